//! Latency from a block at the node to its event at a read_committed consumer: of `payment.detected` with one endpoint, and of
//! `payment.confirmed` with three, of which one or two have to give a block.

use crate::figure::{Figure, quantile};
use anyhow::{Context as _, Result};
use e2e::{Lab, Plan, Proxy};
use runtime::kafka::Consumer;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use topics::{Topic, frame, wire};

const PAYMENTS: usize = 300;

pub async fn run() -> Result<Vec<Figure>> {
    let lab = Lab::start(Plan { confirmations: 1000, ..Plan::default() }).await?;
    let mut detected = measure(lab, "payment.detected").await?;
    let mut figures = vec![
        Figure::new("event_latency_ms_p50", quantile(&mut detected, 0.5), "ms", "40"),
        Figure::new("event_latency_ms_p99", quantile(&mut detected, 0.99), "ms", "100"),
    ];
    let mut one = confirmed(1).await?;
    let mut two = confirmed(2).await?;
    let (one_p50, one_p99) = (quantile(&mut one, 0.5), quantile(&mut one, 0.99));
    figures.push(Figure::new("unwitnessed_latency_ms_p50", one_p50, "ms", ""));
    figures.push(Figure::new("unwitnessed_latency_ms_p99", one_p99, "ms", ""));
    figures.push(Figure::new("confirmed_latency_ms_p50", quantile(&mut two, 0.5), "ms", "one round trip more"));
    figures.push(Figure::new("confirmed_latency_ms_p99", quantile(&mut two, 0.99), "ms", "one round trip more"));
    Ok(figures)
}

/// With three endpoints, of which so many have to give a block before it confirms.
async fn confirmed(witnesses: u32) -> Result<Vec<f64>> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut endpoints, mut urls) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let endpoint = Proxy::start(&lab.node.url, e2e::Lacks::default()).await?;
        urls.push(format!("{:?}", endpoint.url));
        endpoints.push(endpoint);
    }
    let mut yaml = String::new();
    writeln!(yaml, "- {{ name: anvil, chain_id: 31337, rpc_urls: [{}], confirmations: 1,", urls.join(", "))?;
    writeln!(yaml, "    witnesses: {witnesses}, poll_interval_ms: 20, start_block: 0 }}")?;
    lab.write_chains(&yaml)?;
    measure(lab, "payment.confirmed").await
}

/// Milliseconds from a payment's block to its event of this kind.
async fn measure(lab: Lab, kind: &'static str) -> Result<Vec<f64>> {
    eprintln!("latency: {PAYMENTS} payments, one after the other, until {kind}");
    let (_ctrip, api) = lab.serve("up", "bench").await?;

    let (seen, mut events) = tokio::sync::mpsc::unbounded_channel();
    let done = Arc::new(AtomicBool::new(false));
    let (kafka, stop) = (lab.kafka().await?, done.clone());
    let reader = std::thread::spawn(move || -> Result<(), runtime::Failure> {
        let consumer = Consumer::open(&kafka, "bench", &[Topic::Events], None)?;
        while !stop.load(Ordering::Relaxed) {
            for record in consumer.poll(100, usize::MAX, Duration::from_millis(100))?.records {
                let event: wire::PaymentEvent = frame::decode(record.payload()).map_err(runtime::Failure::halt)?;
                if event.r#type == kind {
                    // The receiver is gone only when the bench has failed.
                    let _ = seen.send((event.payment_id, Instant::now()));
                }
            }
        }
        Ok(())
    });

    let mut samples = Vec::new();
    for i in 0..PAYMENTS {
        let payment = api.coin(1_000).await?;
        let hash = lab.node.pay(payment.address()?, payment.amount()?).await?;
        e2e::eventually("the block", || lab.node.receipt(hash)).await?;
        let available = Instant::now();
        let seen = tokio::time::timeout(Duration::from_secs(30), events.recv()).await.context("no event")?;
        let (id, at) = seen.context("the consumer ended")?;
        anyhow::ensure!(id == payment.id(), "another payment's event");
        // The first ones wait for topics, connections and caches.
        if i >= 20 {
            samples.push(at.saturating_duration_since(available).as_secs_f64() * 1000.0);
        }
    }
    done.store(true, Ordering::Relaxed);
    reader.join().map_err(|_| anyhow::anyhow!("the consumer panicked"))??;
    Ok(samples)
}
