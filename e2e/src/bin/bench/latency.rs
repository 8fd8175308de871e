//! Latency from a block at the node to its event at a read_committed consumer.

use crate::figure::{Figure, quantile};
use anyhow::{Context as _, Result};
use e2e::{Lab, Plan};
use runtime::kafka::Consumer;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use topics::{Topic, frame, wire};

const PAYMENTS: usize = 300;

pub async fn run() -> Result<Vec<Figure>> {
    eprintln!("latency: {PAYMENTS} payments, one after the other");
    let lab = Lab::start(Plan { confirmations: 1000, block_time: None }).await?;
    let mut ctrip = lab.spawn("up")?;
    let api = lab.merchant("bench")?;
    api.ready(&mut ctrip).await?;

    let (seen, mut detected) = tokio::sync::mpsc::unbounded_channel();
    let done = Arc::new(AtomicBool::new(false));
    let (kafka, stop) = (lab.kafka().await?, done.clone());
    let reader = std::thread::spawn(move || -> Result<(), runtime::Failure> {
        let consumer = Consumer::open(&kafka, "bench", &[Topic::Events], None)?;
        while !stop.load(Ordering::Relaxed) {
            for record in consumer.poll(100, usize::MAX, Duration::from_millis(100))?.records {
                let event: wire::PaymentEvent = frame::decode(record.payload()).map_err(runtime::Failure::halt)?;
                if event.r#type == "payment.detected" {
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
        let seen = tokio::time::timeout(Duration::from_secs(30), detected.recv()).await.context("no event")?;
        let (id, at) = seen.context("the consumer ended")?;
        anyhow::ensure!(id == payment.id(), "another payment's event");
        // The first ones wait for topics, connections and caches.
        if i >= 20 {
            samples.push(at.saturating_duration_since(available).as_secs_f64() * 1000.0);
        }
    }
    done.store(true, Ordering::Relaxed);
    reader.join().map_err(|_| anyhow::anyhow!("the consumer panicked"))?.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    Ok(vec![
        Figure::new("event_latency_ms_p50", quantile(&mut samples, 0.5), "ms", "40"),
        Figure::new("event_latency_ms_p99", quantile(&mut samples, 0.99), "ms", "100"),
    ])
}
