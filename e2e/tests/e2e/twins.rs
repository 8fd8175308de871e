//! A second process of a role, by mistake or since the first was paused: nothing is written twice, and nobody ends for it.

use anyhow::{Result, ensure};
use e2e::{Lab, Payment, Plan, events, eventually, records};
use runtime::kafka::TransactionalProducer;
use runtime::{Failure, Kafka, stage};
use serde_json::json;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;
use topics::Topic;
use topics::wire::ChainCursor;

const ID: &str = "paused";

/// One transaction with one record.
fn write(
    producer: &TransactionalProducer,
    kafka: &Kafka,
    meanwhile: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let cursor = ChainCursor { chain_id: 7, sequence: 1, ..ChainCursor::default() };
    let transaction = producer.begin()?;
    transaction.send(Topic::Cursors, "7", &kafka.encode(&cursor))?;
    meanwhile()?;
    transaction.commit()
}

/// What a broker does with a transaction that a pause has kept open too long: it ends it with a new epoch.
fn bump_epoch(kafka: &Kafka) -> Result<(), Failure> {
    TransactionalProducer::open(kafka, ID).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_meets_a_new_epoch_after_a_pause_is_tried_once_more_and_written_once() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let kafka = lab.kafka().await?;
    let runs = Arc::new(AtomicUsize::new(0));
    let causes = Arc::new(Mutex::new(Vec::new()));
    let (counted, told) = (runs.clone(), causes.clone());
    stage::run("paused", CancellationToken::new(), move |_| {
        let run = counted.fetch_add(1, Ordering::Relaxed);
        let producer = TransactionalProducer::open(&kafka, ID)?;
        let outcome = write(&producer, &kafka, || if run == 0 { bump_epoch(&kafka) } else { Ok(()) });
        if let (Err(failure), Ok(mut causes)) = (&outcome, told.lock()) {
            causes.push(format!("{failure:?}"));
        }
        outcome
    })
    .await?;
    let causes = causes.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.clone();
    ensure!(causes.len() == 1 && causes[0].starts_with("Reopen"), "{causes:?}");
    let written: Vec<ChainCursor> = records(&lab).await?;
    ensure!((runs.load(Ordering::Relaxed), written.len()) == (2, 1), "{} records", written.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_by_mistake_is_refused_before_it_touches_kafka() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let (mut first, api) = lab.serve("up", "shop").await?;
    // Its API's port is taken; then only the instance is the same.
    for (variable, expected) in [("METRICS_LISTEN", "API_LISTEN"), ("API_LISTEN", "CTRIP_INSTANCE")] {
        lab.env.insert(variable.to_owned(), format!("127.0.0.1:{}", e2e::free_port()?));
        let mut second = lab.spawn("up")?;
        let status = second.end().await?;
        ensure!(!status.success() && second.tail().contains(expected), "it said: {}", second.tail());
    }
    let payment = api.create(json!({ "chain": "anvil", "amount": 5 })).await?;
    lab.node.pay(payment.address()?, payment.amount()?).await?;
    lab.node.mine(3).await?;
    api.until(payment.id(), "confirmed").await?;
    first.check()?;
    let log = std::fs::read_to_string(&first.log)?.to_lowercase();
    ensure!(!log.contains("fenced"), "the first was fenced: {log}");
    Ok(())
}

/// The kernel of a frozen process answers keepalives, so its session lives, and with it the lock of the relay's leader.
#[tokio::test(flavor = "multi_thread")]
async fn the_lead_of_a_frozen_relay_passes_to_another() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let mut server = lab.spawn("api")?;
    let mut leader = lab.spawn("confirmer")?;
    let api = lab.merchant("shop")?;
    api.ready(&mut server).await?;
    until_told(&lab, &api.create_surely(json!({ "chain": "anvil", "amount": 5 })).await?).await?;
    lab.env.insert("CTRIP_INSTANCE".to_owned(), "second".to_owned());
    let mut second = lab.spawn("confirmer")?;
    let frozen = Command::new("kill").args(["-STOP", &leader.id().to_string()]).status()?;
    ensure!(frozen.success(), "kill -STOP");
    until_told(&lab, &api.create_surely(json!({ "chain": "anvil", "amount": 5 })).await?).await?;
    second.check()?;
    leader.kill()
}

async fn until_told(lab: &Lab, payment: &Payment) -> Result<()> {
    eventually("payment.created", || async {
        Ok(events(lab).await?.iter().any(|event| event.payment_id == payment.id()).then_some(()))
    })
    .await
}
