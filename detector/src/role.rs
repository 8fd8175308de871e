//! The role: joins blocks with their logs, matches them, and commits input and output in one Kafka transaction.

use crate::intents::IntentBarrier;
use crate::join::{Join, JoinedBlock, payload, unreadable};
use crate::matching::{BlockView, Matcher};
use crate::watch_set::WatchSet;
use base::metrics;
use runtime::kafka::{Batch, Consumer, Kafka, Record, Transaction, TransactionalProducer};
use runtime::{Failure, Settings, stage};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use topics::{Message as _, Topic, frame};

const STAGE: &str = "detector";
/// Per Kafka transaction, when far behind: large enough that the commit costs little in comparison.
const MAX_BATCH_RECORDS: usize = 8192;
const MAX_BATCH_BYTES: usize = 96 * 1024 * 1024;
/// Matches every block with the addresses ever issued, until `stop`.
///
/// # Errors
/// If the stage halts.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let kafka = Kafka::connect(&settings).await?;
    // Kept across restarts of the stage: reading millions of intents again takes long.
    let mut intents = None;
    stage::run(STAGE, stop, move |stop| {
        if intents.is_none() {
            intents = Some(IntentBarrier::open(&kafka, STAGE)?);
        }
        let outcome = match intents.as_mut() {
            Some(intents) => detect(&kafka, intents, stop),
            None => Ok(()),
        };
        if outcome.is_err() && intents.as_ref().is_some_and(|intents| intents.failed) {
            intents = None;
        }
        outcome
    })
    .await
}

fn detect(kafka: &Kafka, intents: &mut IntentBarrier, stop: &CancellationToken) -> Result<(), Failure> {
    let producer = TransactionalProducer::open(kafka, &format!("{STAGE}-{}", kafka.instance()))?;
    let consumer = Consumer::open(kafka, STAGE, &[Topic::Blocks, Topic::Logs], None)?;
    let mut joins: BTreeMap<i32, Join<'_>> = BTreeMap::new();
    let mut matcher = Matcher::default();
    let mut assignment = 0;
    while !stop.is_cancelled() {
        let Batch { records, assignment: now } =
            consumer.poll(MAX_BATCH_RECORDS, MAX_BATCH_BYTES, Duration::from_millis(100))?;
        let started = Instant::now();
        if now != assignment {
            assignment = now;
            joins.clear();
        }
        let written = records.last().and_then(Record::timestamp_ms);
        for record in records {
            joins.entry(record.partition()).or_default().push(record)?;
        }
        let mut pairs = Vec::new();
        for join in joins.values_mut() {
            while let Some(pair) = join.pop()? {
                pairs.push(pair);
            }
        }
        if !pairs.is_empty() {
            intents.catch_up()?;
            let transaction = producer.begin()?;
            intents.quarantine(kafka, &transaction)?;
            match_blocks(kafka, &transaction, &intents.watched, &mut matcher, &pairs)?;
            transaction.send_offsets(&offsets(&joins), &consumer.group_metadata()?)?;
            transaction.commit()?;
            record_metrics(pairs.len(), &mut matcher, started, written);
        }
        apply_backpressure(&consumer, &mut joins)?;
    }
    Ok(())
}

/// Writes one record of `chain.matches` per block.
fn match_blocks(
    kafka: &Kafka,
    transaction: &Transaction<'_>,
    watched: &WatchSet,
    matcher: &mut Matcher,
    pairs: &[JoinedBlock<'_>],
) -> Result<(), Failure> {
    for pair in pairs {
        let block = BlockView::read(payload(&pair.block)?).map_err(|e| unreadable(&pair.block, e))?;
        let logs = frame::payload(pair.logs.payload()).map_err(|e| unreadable(&pair.logs, e))?;
        let matches = matcher.matches(watched, &block, logs).map_err(|e| unreadable(&pair.logs, e))?;
        for transfer in &matches.transfers {
            metrics::MATCHED_TRANSFERS.counter(&[("source", transfer.source().as_str_name())]).increment(1);
        }
        transaction.send(Topic::Matches, &matches.key(), &kafka.encode(&matches))?;
    }
    Ok(())
}

fn offsets(joins: &BTreeMap<i32, Join<'_>>) -> Vec<(Topic, i32, i64)> {
    let mut offsets = Vec::new();
    for (partition, join) in joins {
        let (blocks, logs) = join.offsets();
        offsets.extend(blocks.map(|offset| (Topic::Blocks, *partition, offset)));
        offsets.extend(logs.map(|offset| (Topic::Logs, *partition, offset)));
    }
    offsets
}

/// Pauses `chain.blocks` of a partition while too many of its blocks wait for logs, which are larger and so arrive later.
fn apply_backpressure(consumer: &Consumer, joins: &mut BTreeMap<i32, Join<'_>>) -> Result<(), Failure> {
    for (partition, join) in joins {
        if !join.paused && join.is_full() {
            consumer.pause(Topic::Blocks, *partition)?;
            join.paused = true;
        } else if join.paused && join.waiting() == 0 {
            consumer.resume(Topic::Blocks, *partition)?;
            join.paused = false;
        }
    }
    Ok(())
}

fn record_metrics(blocks: usize, matcher: &mut Matcher, started: Instant, written: Option<i64>) {
    let stage = [("stage", STAGE)];
    metrics::STAGE_RECORDS.counter(&stage).increment(u64::try_from(blocks).unwrap_or_default());
    metrics::STAGE_LATENCY.histogram(&stage).record(started.elapsed());
    metrics::MATCHED_LOGS.counter(&[]).increment(std::mem::take(&mut matcher.logs));
    if let Some(written) = written {
        metrics::stage_lag(STAGE, written);
    }
}
