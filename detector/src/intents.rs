//! The intent barrier: before a batch is matched, all of `payment.intents` up to its end is read.
//!
//! The API gives out an address only after Kafka has acknowledged its intent. So whatever the blocks of a batch pay went to an
//! address that this set contains.

use crate::watch_set::WatchSet;
use anyhow::anyhow;
use base::metrics;
use runtime::Failure;
use runtime::kafka::{Kafka, Record, Table, Transaction};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use topics::{Address, Message as _, Topic, wire};

/// Unreadable intents that go to `quarantine` before the stage halts.
const MAX_QUARANTINED: usize = 100;

/// Room is made for so many addresses beforehand, at most: a topic may hold each of them many times.
const MAX_RESERVED: usize = 1 << 26;

/// `payment.intents` as a set of addresses.
pub struct IntentBarrier {
    table: Table,
    pub watched: WatchSet,
    /// To be quarantined with the next transaction.
    unreadable: Vec<wire::Quarantined>,
    quarantined: usize,
    /// Reading failed midway, so the set must be read again.
    pub failed: bool,
    stage: &'static str,
}

impl IntentBarrier {
    /// Reads all intents into `watched`. An address that is in it stays, whatever became of the topic; after a failure it has them
    /// still.
    pub fn open(kafka: &Kafka, stage: &'static str, watched: &mut WatchSet) -> Result<Self, Failure> {
        let table = Table::open(kafka, Topic::Intents)?;
        let kept = std::mem::take(watched);
        let mut intents = Self { table, watched: kept, unreadable: Vec::new(), quarantined: 0, failed: false, stage };
        let started = Instant::now();
        if let Err(failure) = intents.load() {
            *watched = intents.watched;
            return Err(failure);
        }
        tracing::info!("watching {} addresses, read in {:.1?}", intents.watched.len(), started.elapsed());
        Ok(intents)
    }

    /// Reads all that there is, with room for as many addresses.
    fn load(&mut self) -> Result<(), Failure> {
        // Those of before a restart of the stage have their room.
        if self.watched.is_empty() {
            let records = self.table.count()?;
            self.watched.reserve(usize::try_from(records).unwrap_or_default().min(MAX_RESERVED));
        }
        self.catch_up()?;
        self.watched.shrink();
        Ok(())
    }

    /// The barrier: reads up to the end of the topic.
    pub fn catch_up(&mut self) -> Result<(), Failure> {
        let Self { table, watched, unreadable, stage, .. } = self;
        let outcome = table.catch_up(|record| match watched_address(record.key()) {
            Some(address) => {
                watched.insert(address);
            }
            None => unreadable.push(quarantined(stage, record, "key: expected an address in 0x hex, 20 bytes")),
        });
        self.failed = outcome.is_err();
        outcome?;
        #[expect(clippy::cast_precision_loss, reason = "2^52 addresses do not fit into memory")]
        metrics::WATCHED_ADDRESSES.gauge(&[]).set(self.watched.len() as f64);
        Ok(())
    }

    /// Sends unreadable intents to `quarantine`, in the transaction of the batch; [`quarantined`](Self::quarantined) when it is
    /// committed.
    pub fn quarantine(&self, kafka: &Kafka, transaction: &Transaction<'_>) -> Result<(), Failure> {
        for (record, count) in self.unreadable.iter().zip(self.quarantined + 1..) {
            if count > MAX_QUARANTINED {
                return Err(Failure::Halt(anyhow!("more than {MAX_QUARANTINED} unreadable intents, the last: {record:?}")));
            }
            transaction.send(Topic::Quarantine, &record.key(), &kafka.encode(record))?;
        }
        Ok(())
    }

    /// What was sent to `quarantine` is there.
    pub fn quarantined(&mut self) {
        for record in self.unreadable.drain(..) {
            self.quarantined += 1;
            tracing::error!("quarantined {} {}/{}: {}", record.source_topic, record.partition, record.offset, record.cause);
            metrics::QUARANTINED.counter(&[("stage", self.stage)]).increment(1);
        }
    }
}

/// The key contains the address, so an intent with an unreadable value is watched all the same.
fn watched_address(key: &[u8]) -> Option<Address> {
    std::str::from_utf8(key).ok().filter(|key| key.starts_with("0x"))?.parse().ok()
}

fn quarantined(stage: &str, record: &Record<'_>, cause: &str) -> wire::Quarantined {
    wire::Quarantined {
        source_topic: record.topic.name().to_owned(),
        partition: record.partition(),
        offset: record.offset(),
        key: record.key().to_vec().into(),
        value: record.payload().to_vec().into(),
        cause: cause.to_owned(),
        stage: stage.to_owned(),
        quarantined_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
    }
}
