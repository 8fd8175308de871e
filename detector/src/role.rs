use crate::WatchSet;
use crate::join::{Join, Pair, payload, unreadable};
use crate::matching::{Block, Matcher};
use anyhow::anyhow;
use runtime::kafka::{Batch, Consumer, Kafka, Record, Table, Transaction, TransactionalProducer};
use runtime::{Failure, Settings, metrics, stage};
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;
use topics::{Address, Message as _, Topic, frame, wire};

const STAGE: &str = "detector";
/// Of a transaction, when far behind: large enough that its commit costs little beside it.
const MOST: usize = 8192;
const MOST_BYTES: usize = 96 * 1024 * 1024;
/// Unreadable intents that are put aside before the stage stops.
const QUARANTINE_LIMIT: usize = 100;

/// The role: matches every block with the addresses ever issued.
///
/// # Errors
/// When the stage halts.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let kafka = Kafka::connect(&settings).await?;
    // Kept over restarts of the stage: reading all intents again takes long when there are millions.
    let mut intents = None;
    stage::run(STAGE, stop, move |stop| {
        if intents.is_none() {
            intents = Some(Intents::open(&kafka)?);
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

/// `payment.intents` as a set of addresses.
struct Intents {
    table: Table,
    watched: WatchSet,
    unreadable: Vec<wire::Quarantined>,
    quarantined: usize,
    failed: bool,
}

impl Intents {
    fn open(kafka: &Kafka) -> Result<Self, Failure> {
        let table = Table::open(kafka, Topic::Intents)?;
        let mut intents = Self { table, watched: WatchSet::default(), unreadable: Vec::new(), quarantined: 0, failed: false };
        let started = Instant::now();
        intents.catch_up()?;
        tracing::info!("watching {} addresses, read in {:.1?}", intents.watched.len(), started.elapsed());
        Ok(intents)
    }

    /// The barrier: whatever was paid in the blocks at hand went to an address that is in Kafka by now.
    fn catch_up(&mut self) -> Result<(), Failure> {
        let Self { table, watched, unreadable, .. } = self;
        let outcome = table.catch_up(|record| match watched_address(record.key()) {
            Some(address) => {
                watched.insert(address);
            }
            None => unreadable.push(quarantined(record, "key: expected an address in 0x hex, 20 bytes")),
        });
        self.failed = outcome.is_err();
        outcome?;
        #[expect(clippy::cast_precision_loss, reason = "2^52 addresses do not fit into memory")]
        metrics::WATCHED_ADDRESSES.gauge(&[]).set(self.watched.len() as f64);
        Ok(())
    }

    fn quarantine(&mut self, kafka: &Kafka, transaction: &Transaction<'_>) -> Result<(), Failure> {
        for record in self.unreadable.drain(..) {
            self.quarantined += 1;
            if self.quarantined > QUARANTINE_LIMIT {
                return Err(Failure::Halt(anyhow!("more than {QUARANTINE_LIMIT} unreadable intents, the last: {record:?}")));
            }
            tracing::error!("quarantined {} {}/{}: {}", record.source_topic, record.partition, record.offset, record.cause);
            metrics::QUARANTINED.counter(&[("stage", STAGE)]).increment(1);
            transaction.send(Topic::Quarantine, &record.key(), &kafka.encode(&record))?;
        }
        Ok(())
    }
}

/// The key alone tells the address, so an intent whose value nobody can read is watched all the same.
fn watched_address(key: &[u8]) -> Option<Address> {
    std::str::from_utf8(key).ok().filter(|key| key.starts_with("0x"))?.parse().ok()
}

fn quarantined(record: &Record<'_>, cause: &str) -> wire::Quarantined {
    wire::Quarantined {
        source_topic: record.topic.name().to_owned(),
        partition: record.partition(),
        offset: record.offset(),
        key: record.key().to_vec().into(),
        value: record.payload().to_vec().into(),
        cause: cause.to_owned(),
        stage: STAGE.to_owned(),
        quarantined_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    }
}

fn detect(kafka: &Kafka, intents: &mut Intents, stop: &CancellationToken) -> Result<(), Failure> {
    let producer = TransactionalProducer::open(kafka, &format!("{STAGE}-{}", kafka.instance()))?;
    let consumer = Consumer::open(kafka, STAGE, &[Topic::Blocks, Topic::Logs], None)?;
    let mut joins: BTreeMap<i32, Join<'_>> = BTreeMap::new();
    let mut matcher = Matcher::default();
    let mut assignment = 0;
    while !stop.is_cancelled() {
        let Batch { records, assignment: now } = consumer.poll(MOST, MOST_BYTES, Duration::from_millis(100))?;
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
            transform(kafka, &transaction, &intents.watched, &mut matcher, &pairs)?;
            transaction.send_offsets(&offsets(&joins), &consumer.group_metadata()?)?;
            transaction.commit()?;
            report(pairs.len(), &mut matcher, started, written);
        }
        hold(&consumer, &mut joins)?;
    }
    Ok(())
}

fn transform(
    kafka: &Kafka,
    transaction: &Transaction<'_>,
    watched: &WatchSet,
    matcher: &mut Matcher,
    pairs: &[Pair<'_>],
) -> Result<(), Failure> {
    for pair in pairs {
        let block = Block::read(payload(&pair.block)?).map_err(|e| unreadable(&pair.block, e))?;
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

/// Logs are larger than blocks, so that blocks come faster: they wait, but not without limit.
fn hold(consumer: &Consumer, joins: &mut BTreeMap<i32, Join<'_>>) -> Result<(), Failure> {
    for (partition, join) in joins {
        if !join.paused && join.has_enough() {
            consumer.pause(Topic::Blocks, *partition)?;
            join.paused = true;
        } else if join.paused && join.waiting() == 0 {
            consumer.resume(Topic::Blocks, *partition)?;
            join.paused = false;
        }
    }
    Ok(())
}

fn report(blocks: usize, matcher: &mut Matcher, started: Instant, written: Option<i64>) {
    let stage = [("stage", STAGE)];
    metrics::STAGE_RECORDS.counter(&stage).increment(u64::try_from(blocks).unwrap_or_default());
    metrics::STAGE_LATENCY.histogram(&stage).record(started.elapsed());
    metrics::MATCHED_LOGS.counter(&[]).increment(std::mem::take(&mut matcher.logs));
    if let Some(written) = written {
        metrics::stage_lag(STAGE, written);
    }
}
