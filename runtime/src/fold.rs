//! A stage that folds a topic into Postgres: what its records do and the offset it has come to are one transaction.
//!
//! The offset is a row of `stage_offsets`, not the consumer group's: an assignment begins where the database stands. A writer
//! that finds another number there than it left is a zombie, and its transaction fails.

use crate::db;
use crate::failure::Failure;
use crate::kafka::{Consumer, Kafka, Record};
use crate::metrics;
use anyhow::anyhow;
use deadpool_postgres::{GenericClient, Pool};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;

/// How long a look for records lasts while there are none.
const WAITS: Duration = Duration::from_millis(100);

/// A stage and its topic.
#[derive(Clone, Copy, Debug)]
pub struct Folding {
    /// Its name, also the consumer group's.
    pub stage: &'static str,
    /// What it reads.
    pub topic: Topic,
    /// Records a transaction at most.
    pub most: usize,
    /// Likewise, in bytes.
    pub most_bytes: usize,
}

/// A step of a stage in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Partition of the topic.
    pub partition: i32,
    /// Where the database should stand.
    pub from: i64,
    /// Where it will stand.
    pub next: i64,
}

impl Folding {
    /// Gives `apply` records until `stop`, those of each partition in order. It has to [`claim`](Self::claim) a partition's span
    /// in the transaction of what it does with them, be it one for all partitions or one each.
    ///
    /// # Errors
    /// Those of `apply`; `Retry` when Kafka or the database fails.
    pub fn follow(
        &self,
        kafka: &Kafka,
        pool: &Pool,
        handle: &Handle,
        stop: &CancellationToken,
        mut apply: impl FnMut(&[(Span, Vec<&Record<'_>>)]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (folding, position_pool, position_handle) = (*self, pool.clone(), handle.clone());
        let position = move |_: Topic, partition: i32| position_handle.block_on(folding.position(&position_pool, partition));
        let consumer = Consumer::open(kafka, self.stage, &[self.topic], Some(Box::new(position)))?;
        let mut next: HashMap<i32, i64> = HashMap::new();
        let mut assignment = 0;
        while !stop.is_cancelled() {
            let batch = consumer.poll(self.most, self.most_bytes, WAITS)?;
            if batch.assignment != assignment {
                assignment = batch.assignment;
                next.clear();
            }
            let mut partitions: BTreeMap<i32, Vec<&Record<'_>>> = BTreeMap::new();
            for record in &batch.records {
                partitions.entry(record.partition()).or_default().push(record);
            }
            if partitions.is_empty() {
                continue;
            }
            let started = Instant::now();
            let mut spans = Vec::with_capacity(partitions.len());
            for (partition, records) in partitions {
                let from = match next.get(&partition) {
                    Some(from) => *from,
                    // First records since the assignment: they begin where the database stands.
                    None => handle.block_on(self.position(pool, partition))?.unwrap_or(0),
                };
                spans.push((self.span(partition, from, &records)?, records));
            }
            apply(&spans)?;
            for (span, _) in &spans {
                next.insert(span.partition, span.next);
            }
            self.report(&batch.records, started);
        }
        Ok(())
    }

    /// A record's place, for errors.
    pub fn place(&self, record: &Record<'_>) -> String {
        format!("{} partition {} offset {}", self.topic, record.partition(), record.offset())
    }

    /// Where the stage stands in a partition.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn position(&self, pool: &Pool, partition: i32) -> Result<Option<i64>, Failure> {
        let db = pool.get().await.map_err(db::unavailable)?;
        let sql = "SELECT next_offset FROM stage_offsets WHERE stage = $1 AND topic = $2 AND partition = $3";
        let row = db.query_opt(sql, &[&self.stage, &self.topic.name(), &partition]).await.map_err(db::failure)?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Moves the offset on and keeps its row locked until the commit. A zombie finds it elsewhere than it left it.
    ///
    /// # Errors
    /// `Retry` when another instance has read on, or the database fails.
    pub async fn claim(&self, db: &impl GenericClient, span: Span) -> Result<(), Failure> {
        let statement = db
            .prepare_cached(
                // No row stands for 0 and nothing else: a crash of Postgres may have undone the first one.
                "INSERT INTO stage_offsets (stage, topic, partition, next_offset) SELECT $1::text, $2::text, $3::integer, $5::bigint
                 WHERE $4::bigint = 0 OR EXISTS (
                     SELECT FROM stage_offsets WHERE stage = $1 AND topic = $2 AND partition = $3)
                 ON CONFLICT (stage, topic, partition) DO UPDATE SET next_offset = EXCLUDED.next_offset, updated_at = now()
                     WHERE stage_offsets.next_offset = $4",
            )
            .await
            .map_err(db::failure)?;
        let Span { partition, from, next } = span;
        let moved =
            db.execute(&statement, &[&self.stage, &self.topic.name(), &partition, &from, &next]).await.map_err(db::failure)?;
        if moved == 0 {
            let topic = self.topic;
            return Err(Failure::Retry(anyhow!(
                "partition {partition} of {topic} is no longer at {from}: another instance has read on"
            )));
        }
        Ok(())
    }

    fn span(&self, partition: i32, from: i64, records: &[&Record<'_>]) -> Result<Span, Failure> {
        let mut next = from;
        for record in records {
            if record.offset() < next {
                return Err(Failure::Retry(anyhow!("{}: read again, the database stands at {next}", self.place(record))));
            }
            next = record.offset() + 1;
        }
        Ok(Span { partition, from, next })
    }

    fn report(&self, records: &[Record<'_>], started: Instant) {
        let stage = [("stage", self.stage)];
        metrics::STAGE_RECORDS.counter(&stage).increment(u64::try_from(records.len()).unwrap_or_default());
        metrics::STAGE_LATENCY.histogram(&stage).record(started.elapsed());
        if let Some(written) = records.last().and_then(Record::timestamp_ms) {
            metrics::stage_lag(self.stage, written);
        }
    }
}
