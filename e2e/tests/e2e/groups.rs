//! Consumer groups expire, are deleted, or are not copied with a cluster. What was written tells where a stage goes on.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, KafkaAdmin, Lab, Payment, Plan, Process, events, eventually, records};
use prost::Message as _;
use runtime::Kafka;
use runtime::kafka::{Consumer, Publisher, Record};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::sync::oneshot::{self, Sender};
use tokio_util::sync::CancellationToken;
use topics::{Topic, wire};

/// anvil calls every block final that is this far below its head.
const FINAL_BELOW: u64 = 64;

async fn pay(lab: &Lab, api: &Api) -> Result<Payment> {
    let payment = api.create_surely(json!({ "chain": "anvil", "amount": "1000", "expires_in": 86_400 })).await?;
    let hash = lab.node.pay(payment.address()?, payment.amount()?).await?;
    eventually("the receipt", || lab.node.receipt(hash)).await?;
    lab.node.mine(3).await?;
    Ok(payment)
}

/// The numbers of the replayed blocks in `chain.matches`.
async fn replayed(lab: &Lab) -> Result<Vec<u64>> {
    let matches: Vec<wire::MatchesRecord> = records(lab).await?;
    Ok(matches.iter().filter(|record| record.sequence == 0).map(|record| record.number).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_detector_goes_on_where_its_output_ends_when_its_group_is_gone() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut roles: Vec<Process> =
        ["api", "ingest", "confirmer"].map(|role| lab.spawn(role)).into_iter().collect::<Result<_>>()?;
    let mut detector = lab.spawn("detector")?;
    let api = lab.merchant("shop")?;
    api.ready(&mut roles[0]).await?;
    api.until(pay(&lab, &api).await?.id(), "confirmed").await?;
    // A backfill replays final blocks only.
    lab.node.mine(FINAL_BELOW + 10).await?;
    lab.ctrip(&["backfill", "--chain", "anvil", "--from", "1", "--to", "3"])?;
    eventually("replayed blocks to be matched", || async { Ok((replayed(&lab).await?.len() == 3).then_some(())) }).await?;
    detector.terminate()?;
    lab.ctrip(&["backfill", "--chain", "anvil", "--from", "4", "--to", "6"])?;
    let meanwhile = pay(&lab, &api).await?;
    KafkaAdmin::of(&lab)?.delete_group("detector").await?;

    let mut detector = lab.spawn("detector")?;
    api.until(meanwhile.id(), "confirmed").await?;
    api.until(pay(&lab, &api).await?.id(), "confirmed").await?;
    let matches: Vec<wire::MatchesRecord> = records(&lab).await?;
    let sequences: Vec<u64> = matches.iter().map(|record| record.sequence).filter(|sequence| *sequence != 0).collect();
    let expected: Vec<u64> = (1..=sequences.len() as u64).collect();
    ensure!(sequences == expected, "chain.matches has the sequences {sequences:?}");
    // Nothing tells of a replayed block whether it was matched but the place of the last match.
    let replayed = replayed(&lab).await?;
    ensure!(replayed == [1, 2, 3, 4, 5, 6], "chain.matches has the replayed blocks {replayed:?}");
    detector.check()?;
    roles.iter_mut().try_for_each(Process::check)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_publishes_each_event_once_when_its_group_is_gone() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut server = lab.spawn("api")?;
    let mut confirmer = lab.spawn("confirmer")?;
    let api = lab.merchant("shop")?;
    api.ready(&mut server).await?;
    for _ in 0..3 {
        let payment = api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?;
        until_published(&lab, &[payment.id().to_owned()]).await?;
    }
    confirmer.kill()?;
    KafkaAdmin::of(&lab)?.delete_group("outbox").await?;
    let mut claimed = Vec::new();
    for _ in 0..2 {
        claimed.push(api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?.id().to_owned());
    }
    let db = lab.database().await?;
    eventually("the intents to be acknowledged", || async {
        let row = db.query_one("SELECT count(*) FROM unacknowledged_intents", &[]).await?;
        Ok((row.get::<_, i64>(0) == 0).then_some(()))
    })
    .await?;
    // As a crash leaves it: one batch was published and is still there, the next was claimed.
    let published = events(&lab).await?;
    let last = batches(&lab).await?.last().copied().context("a batch")?;
    let first = published.first().context("an event")?;
    let (event, payment): (Vec<u8>, uuid::Uuid) = (first.encode_to_vec(), first.payment_id.parse()?);
    let sql = "INSERT INTO outbox (batch, payment_id, event, state) VALUES ($1, $2, $3, '')";
    db.execute(sql, &[&last, &payment, &event]).await?;
    db.execute("UPDATE outbox SET batch = $1 WHERE batch IS NULL", &[&(last + 1)]).await?;

    let mut confirmer = lab.spawn("confirmer")?;
    until_published(&lab, &claimed).await?;
    let later = api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?;
    until_published(&lab, &[later.id().to_owned()]).await?;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for event in events(&lab).await? {
        *seen.entry(event.id).or_default() += 1;
    }
    ensure!(seen.len() == 6 && seen.values().all(|count| *count == 1), "events and how often each is there: {seen:?}");
    confirmer.check()
}

async fn until_published(lab: &Lab, payments: &[String]) -> Result<()> {
    eventually("the events of payments", || async {
        let published: BTreeSet<String> = events(lab).await?.into_iter().map(|event| event.payment_id).collect();
        Ok(payments.iter().all(|payment| published.contains(payment)).then_some(()))
    })
    .await
}

/// The numbers of the batches in payment.events, as their headers have it.
async fn batches(lab: &Lab) -> Result<BTreeSet<i64>> {
    let kafka = lab.kafka().await?;
    let read = tokio::task::spawn_blocking(move || {
        let mut batches = BTreeSet::new();
        let see = |record: &Record<'_>| {
            let batch = record.header("ctrip-batch").and_then(|value| std::str::from_utf8(value).ok()?.parse::<i64>().ok());
            batches.extend(batch);
        };
        kafka.read_all(Topic::Events, see).map(|()| batches)
    });
    read.await?.map_err(|failure| anyhow::anyhow!("{failure}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_paused_before_a_rebalance_is_read_after_it() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (kafka, mut other) = (lab.kafka().await?, lab.settings()?);
    other.instance = "other".to_owned();
    let other = Kafka::connect(&other).await?;
    let publisher = Publisher::open(&kafka, Duration::from_secs(10))?;
    let write = async |round: u32| {
        // So many keys are in every partition.
        let records: Vec<_> = (0..200).map(|key| (format!("{round}-{key}"), b"value".to_vec())).collect();
        publisher.publish(Topic::Intents, &records).await.into_iter().collect::<Result<Vec<()>>>()
    };
    write(1).await?;
    let (sender, paused) = oneshot::channel();
    let first = tokio::task::spawn_blocking(move || read_as_first(&kafka, sender));
    paused.await?;
    // Another member joins: the partitions are assigned anew.
    let stop = CancellationToken::new();
    let second = {
        let stop = stop.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            let consumer = Consumer::open(&other, "pausing", &[Topic::Intents], None).map_err(failed)?;
            while !stop.is_cancelled() {
                consumer.poll(100, 1 << 20, Duration::from_millis(50)).map_err(failed)?;
            }
            Ok(())
        })
    };
    write(2).await?;
    let outcome = first.await?;
    stop.cancel();
    second.await??;
    outcome
}

fn failed(failure: runtime::Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure}")
}

/// Pauses every partition, and reads the half that it has after a rebalance.
fn read_as_first(kafka: &Kafka, paused: Sender<()>) -> Result<()> {
    let consumer = Consumer::open(kafka, "pausing", &[Topic::Intents], None).map_err(failed)?;
    let (started, mut assignment, mut paused) = (Instant::now(), 0, Some(paused));
    let mut seen = BTreeSet::new();
    let all = usize::try_from(Topic::Intents.partitions())?;
    while started.elapsed() < Duration::from_secs(40) {
        let batch = consumer.poll(1000, 1 << 20, Duration::from_millis(50)).map_err(failed)?;
        seen.extend(batch.records.iter().map(Record::partition));
        if let Some(sender) = paused.take_if(|_| seen.len() == all) {
            (0..Topic::Intents.partitions()).try_for_each(|p| consumer.pause(Topic::Intents, p)).map_err(failed)?;
            assignment = batch.assignment;
            seen.clear();
            let _ = sender.send(());
        } else if paused.is_none() && batch.assignment == assignment {
            ensure!(batch.records.is_empty(), "a paused partition was read");
        } else if paused.is_none() && seen.len() == all / 2 {
            // Nothing was committed, so each of its partitions begins anew.
            return Ok(());
        }
    }
    anyhow::bail!("only {seen:?} were read {:.0?} after the start", started.elapsed())
}
