//! A stage that folds a topic into Postgres: the effects of its records and its offset are one transaction.
//!
//! The offset is a row of `stage_offsets` and not the consumer group's: an assignment begins at the offset in the database. A
//! writer that finds another offset there than the one that it wrote is a zombie, and its transaction fails.
//!
//! A topic may lose its end, as when a single broker loses power, or be another one, as under another `TOPIC_PREFIX`. All below the
//! offset was written before the offset was: a younger record there tells that it was never applied. Then the offset goes back
//! to what may not be applied, and what is applied all the same must change nothing.

use crate::failure::Failure;
use crate::kafka::{Consumer, Kafka, Record};
use anyhow::anyhow;
use base::metrics;
use deadpool_postgres::{GenericClient, Pool};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;

/// How long a poll waits for a first record.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// How far the clocks of Postgres and of those who write records may differ, in milliseconds.
const MAX_CLOCK_SKEW_MS: i64 = 60_000;

/// A missing row means 0 and nothing else: a crash of Postgres may have undone the first commit.
pub(crate) const CLAIM: &str =
    "INSERT INTO stage_offsets (stage, topic, partition, next_offset) SELECT $1::text, $2::text, $3::integer, $5::bigint
     WHERE $4::bigint = 0 OR EXISTS (
         SELECT FROM stage_offsets WHERE stage = $1 AND topic = $2 AND partition = $3)
     ON CONFLICT (stage, topic, partition) DO UPDATE SET next_offset = EXCLUDED.next_offset, updated_at = now()
         WHERE stage_offsets.next_offset = $4";

/// A stage, its topic and the size of its batches.
#[derive(Clone, Copy, Debug)]
pub struct FoldStage {
    /// Name of the stage and of its consumer group.
    pub stage: &'static str,
    pub topic: Topic,
    /// Records per batch.
    pub max_records: usize,
    /// Bytes of values per batch.
    pub max_bytes: usize,
}

/// The offsets of a batch in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub partition: i32,
    /// The offset that the database should have.
    pub from: i64,
    /// The offset that it will have.
    pub next: i64,
}

impl FoldStage {
    /// Hands `apply` batches until `stop`, each partition's records in order. `apply` must [`claim`](Self::claim) the span of a
    /// partition in the transaction that holds the effects of its records; one transaction may cover several partitions.
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
        self.go_back_if_cut(kafka, pool, handle, None)?;
        let (fold, position_pool, position_handle) = (*self, pool.clone(), handle.clone());
        let position = move |_: Topic, partition: i32| position_handle.block_on(fold.position(&position_pool, partition));
        let consumer = Consumer::open(kafka, self.stage, &[self.topic], Some(Box::new(position)))?;
        let mut next: HashMap<i32, i64> = HashMap::new();
        let mut assignment = 0;
        while !stop.is_cancelled() {
            let batch = consumer.poll(self.max_records, self.max_bytes, POLL_TIMEOUT)?;
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
                if let (Some(first), Some(begun)) = (records.first(), consumer.begun(self.topic, partition))
                    && first.offset() < begun
                {
                    self.go_back_if_cut(kafka, pool, handle, Some(partition))?;
                    return Err(Failure::Retry(anyhow!("{}: the topic does not have offset {begun} yet", self.place(first))));
                }
                let from = match next.get(&partition) {
                    Some(from) => *from,
                    // The first records since the assignment begin at the offset in the database.
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

    /// Lowers the offsets of partitions that do not have what was applied: of those that have younger records below them, and of
    /// one that is `known` to have ended before.
    fn go_back_if_cut(&self, kafka: &Kafka, pool: &Pool, handle: &Handle, known: Option<i32>) -> Result<(), Failure> {
        let applied = handle.block_on(self.applied(pool))?;
        let since = |skew: i64| applied.iter().map(|(partition, (_, at))| (*partition, at + skew)).collect();
        let unapplied = kafka.first_since(self.topic, &since(MAX_CLOCK_SKEW_MS))?;
        let below = |partition: &i32, next: &i64| unapplied.get(partition).is_some_and(|unapplied| unapplied < next);
        let cut = applied.iter().filter(|(partition, (next, _))| Some(**partition) == known || below(partition, next));
        let cut: Vec<(i32, i64)> = cut.map(|(partition, (next, _))| (*partition, *next)).collect();
        if cut.is_empty() {
            return Ok(());
        }
        let again = kafka.first_since(self.topic, &since(-MAX_CLOCK_SKEW_MS))?;
        for (partition, next) in cut {
            let Some(to) = again.get(&partition).filter(|to| **to < next) else { continue };
            if handle.block_on(self.go_back(pool, Span { partition, from: next, next: *to }))? {
                let name = kafka.name(self.topic);
                tracing::error!(
                    stage = self.stage,
                    "{name}/{partition} lacks records up to offset {next} that were applied: Kafka has lost them, or TOPIC_PREFIX is \
                     another. Goes on at offset {to}"
                );
            }
        }
        Ok(())
    }

    /// The stage's next offset in each partition, and when it was written, in milliseconds of Unix time.
    async fn applied(&self, pool: &Pool) -> Result<BTreeMap<i32, (i64, i64)>, Failure> {
        let sql = "SELECT partition, next_offset, (extract(epoch FROM updated_at) * 1000)::bigint FROM stage_offsets
                   WHERE stage = $1 AND topic = $2";
        let rows = pool.get().await?.query(sql, &[&self.stage, &self.topic.name()]).await?;
        Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
    }

    /// Lowers the stage's offset, and those of what it has set aside, unless an instance has advanced it meanwhile.
    async fn go_back(&self, pool: &Pool, span: Span) -> Result<bool, Failure> {
        let sql = "WITH lowered AS (
                       UPDATE stage_offsets SET next_offset = $5
                       WHERE stage = $1 AND topic = $2 AND partition = $3 AND next_offset = $4 RETURNING partition
                   ), aside AS (
                       UPDATE set_aside s SET next_offset = $5 FROM lowered
                       WHERE s.stage = $1 AND s.topic = $2 AND s.partition = lowered.partition AND s.next_offset > $5
                   )
                   SELECT FROM lowered";
        let Span { partition, from, next } = span;
        let lowered = pool.get().await?.query_opt(sql, &[&self.stage, &self.topic.name(), &partition, &from, &next]).await?;
        Ok(lowered.is_some())
    }

    /// Topic, partition and offset of a record, for error messages.
    pub fn place(&self, record: &Record<'_>) -> String {
        format!("{} partition {} offset {}", self.topic, record.partition(), record.offset())
    }

    /// The stage's next offset in a partition; none before its first commit.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn position(&self, pool: &Pool, partition: i32) -> Result<Option<i64>, Failure> {
        let db = pool.get().await?;
        let sql = "SELECT next_offset FROM stage_offsets WHERE stage = $1 AND topic = $2 AND partition = $3";
        let row = db.query_opt(sql, &[&self.stage, &self.topic.name(), &partition]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Advances the offset and keeps its row locked until the commit. A zombie does not find the offset that it wrote.
    ///
    /// # Errors
    /// `Retry` when another instance has advanced it, or the database fails.
    pub async fn claim(&self, db: &impl GenericClient, span: Span) -> Result<(), Failure> {
        let statement = db.prepare_cached(CLAIM).await?;
        let Span { partition, from, next } = span;
        let advanced = db.execute(&statement, &[&self.stage, &self.topic.name(), &partition, &from, &next]).await?;
        if advanced == 0 {
            let topic = self.topic;
            return Err(Failure::Retry(anyhow!(
                "partition {partition} of {topic} is no longer at offset {from}: another instance has advanced it"
            )));
        }
        Ok(())
    }

    fn span(&self, partition: i32, from: i64, records: &[&Record<'_>]) -> Result<Span, Failure> {
        let mut next = from;
        for record in records {
            if record.offset() < next {
                return Err(Failure::Retry(anyhow!("{}: read again, the database is at offset {next}", self.place(record))));
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
