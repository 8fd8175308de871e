//! A stage that folds a topic into Postgres: the effects of its records and its offset are one transaction.
//!
//! The offset is a row of `stage_offsets` and not the consumer group's: an assignment begins at the offset in the database. A
//! writer that finds another offset there than the one that it wrote is a zombie, and its transaction fails.
//!
//! A topic may lose its end, as when a single broker loses power, or be made anew. It is known by its end, and by the last record that
//! was applied: at its offset is another one then. Then the offset goes back to what may not be applied, and what is applied all the same
//! must change nothing. Each topic has rows of its own, by its name with `TOPIC_PREFIX`. That is looked at when a partition is assigned.
//! One that does not answer then, such as one without a leader, is not read before it does; the others are.

use crate::failure::Failure;
use crate::held::HeldPartitions;
use crate::kafka::{Backlog, Consumer, Kafka, Mark, Positions, Record, Wait};
use anyhow::anyhow;
use base::{locked, metrics};
use deadpool_postgres::{GenericClient, Pool};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;
use topics::Topic;

/// How long a poll waits for a first record.
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// How far the clocks of Postgres and of those who write records may differ, in milliseconds. It says how far to go back, and not
/// whether.
const MAX_CLOCK_SKEW_MS: i64 = 60_000;

/// A missing row means 0 and nothing else: a crash of Postgres may have undone the first commit.
pub(crate) const CLAIM: &str = "INSERT INTO stage_offsets (stage, topic, partition, next_offset, last_offset, last_record)
     SELECT $1::text, $2::text, $3::integer, $5::bigint, $6::bigint, $7::bytea
     WHERE $4::bigint = 0 OR EXISTS (
         SELECT FROM stage_offsets WHERE stage = $1 AND topic = $2 AND partition = $3)
     ON CONFLICT (stage, topic, partition) DO UPDATE SET next_offset = EXCLUDED.next_offset, updated_at = now(),
             last_offset = EXCLUDED.last_offset, last_record = EXCLUDED.last_record
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
    /// What is done where its offset goes back.
    pub on_return: Option<OnReturn>,
}

/// What is noted where a stage's offset in a partition goes back: what comes next there may have been applied before.
#[derive(Clone, Copy, Debug)]
pub struct OnReturn {
    /// A query for the keys of the topic, as text.
    pub keys: &'static str,
    /// A statement that gets those of the partition.
    pub note: &'static str,
}

impl OnReturn {
    async fn run(&self, db: &impl GenericClient, topic: Topic, partition: i32) -> Result<(), Failure> {
        let keys = db.query(self.keys, &[]).await?;
        let keys = keys_in(topic, partition, keys.iter().map(|row| row.get(0)));
        db.execute(self.note, &[&keys]).await?;
        Ok(())
    }
}

fn keys_in(topic: Topic, partition: i32, keys: impl Iterator<Item = String>) -> Vec<String> {
    keys.filter(|key| topic.partition_of(key) == partition).collect()
}

/// The offsets of a batch in a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// The topic's name with the prefix.
    pub topic: String,
    pub partition: i32,
    /// The offset that the database should have.
    pub from: i64,
    /// The offset that it will have.
    pub next: i64,
    /// The batch's last record.
    pub last: Option<Mark>,
}

/// What the database has of a partition.
struct Applied {
    next: i64,
    /// When it was written, in milliseconds of Unix time.
    at_ms: i64,
    last: Option<Mark>,
}

impl Applied {
    /// All records from this time on may not be applied, if the topic was cut. In milliseconds of Unix time.
    fn unsure_since(&self) -> i64 {
        let written = self.last.as_ref().and_then(Mark::written_ms);
        written.map_or(self.at_ms, |written| written.min(self.at_ms)) - MAX_CLOCK_SKEW_MS
    }
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
        let name = kafka.name(self.topic);
        let held =
            HeldPartitions::of(self.stage, "its records wait, those of other partitions go on", kafka, |_, _| Ok(Ok(())));
        let held = Arc::new(Mutex::new(held));
        let (fold, all, place_kafka, place_pool, place_handle) =
            (*self, Arc::clone(&held), kafka.clone(), pool.clone(), handle.clone());
        let positions: Positions = Box::new(move |assigned| {
            let partitions: Vec<i32> = assigned.iter().map(|(_, partition)| *partition).collect();
            let unanswered = fold.go_back_if_cut(&place_kafka, &place_pool, &place_handle, &partitions, false)?;
            let topic = place_kafka.name(fold.topic);
            let place = |of: &(Topic, i32)| Ok((*of, place_handle.block_on(fold.position(&place_pool, &topic, of.1))?));
            let answered = assigned.iter().filter(|(_, partition)| !unanswered.contains_key(partition));
            let places = answered.map(place).collect();
            let mut held = locked(&all);
            held.clear();
            unanswered.into_iter().for_each(|(partition, wait)| held.hold(partition, wait));
            places
        });
        let consumer = Consumer::open(kafka, self.stage, &[self.topic], Some(positions))?;
        let mut next: HashMap<i32, i64> = HashMap::new();
        let mut assignment = 0;
        while !stop.is_cancelled() {
            let batch = consumer.poll(self.max_records, self.max_bytes, POLL_TIMEOUT)?;
            if let Some((partition, ())) = locked(&held).take_turn()? {
                return Err(Failure::Retry(anyhow!("{name}/{partition} can be read again, and is begun")));
            }
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
                    self.go_back_if_cut(kafka, pool, handle, &[partition], true)?;
                    return Err(Failure::Retry(anyhow!("{}: the topic does not have offset {begun} yet", self.place(first))));
                }
                let from = match next.get(&partition) {
                    Some(from) => *from,
                    // The first records since the assignment begin at the offset in the database.
                    None => handle.block_on(self.position(pool, &name, partition))?.unwrap_or(0),
                };
                spans.push((self.span(&name, partition, from, &records)?, records));
            }
            apply(&spans)?;
            for (span, _) in &spans {
                next.insert(span.partition, span.next);
            }
            self.report(&batch.records, started);
        }
        Ok(())
    }

    /// Lowers the offsets of those of these partitions that do not have what was applied: of those that end before, or have another record
    /// where the last one was; of all that answer where they `are_cut`, as is known. Returns those that do not answer, and may be short as
    /// well.
    fn go_back_if_cut(
        &self,
        kafka: &Kafka,
        pool: &Pool,
        handle: &Handle,
        partitions: &[i32],
        are_cut: bool,
    ) -> Result<BTreeMap<i32, Wait>, Failure> {
        let name = kafka.name(self.topic);
        let mut applied = handle.block_on(self.applied(pool, &name))?;
        applied.retain(|partition, _| partitions.contains(partition));
        let backlog = Backlog::open(kafka)?;
        // Of all, since one to which nothing was applied yet can't be read without an answer either.
        let (ends, unanswered) = backlog.answered_ends_of(self.topic, partitions)?;
        let last = applied.iter().filter_map(|(partition, applied)| Some((*partition, applied.last.clone()?))).collect();
        let changed = backlog.changed(self.topic, &last, &ends)?;
        let is_short = |partition: &i32, next: i64| ends.get(partition).is_some_and(|end| *end < next);
        let cut: BTreeMap<i32, Applied> = applied
            .into_iter()
            .filter(|(p, _)| ends.contains_key(p))
            .filter(|(p, applied)| are_cut || changed.contains(p) || is_short(p, applied.next))
            .collect();
        let since = cut.iter().map(|(partition, applied)| (*partition, applied.unsure_since())).collect();
        let again = kafka.first_since(self.topic, &since)?;
        for (partition, Applied { next, .. }) in cut {
            let to = again.get(&partition).copied().unwrap_or(next).min(next);
            let span = Span { topic: name.clone(), partition, from: next, next: to, last: None };
            if handle.block_on(self.go_back(pool, span))? {
                tracing::error!(
                    stage = self.stage,
                    "{name}/{partition} lacks records up to offset {next} that were applied: Kafka has lost them, or the topic was made \
                     anew. Goes on at offset {to}"
                );
            }
        }
        let wait = |(partition, cause)| (partition, Wait::Silence { topics: vec![self.topic], cause });
        Ok(unanswered.into_iter().map(wait).collect())
    }

    async fn applied(&self, pool: &Pool, topic: &str) -> Result<BTreeMap<i32, Applied>, Failure> {
        let sql = "SELECT partition, next_offset, (extract(epoch FROM updated_at) * 1000)::bigint, last_offset, last_record
                   FROM stage_offsets WHERE stage = $1 AND topic = $2";
        let rows = pool.get().await?.query(sql, &[&self.stage, &topic]).await?;
        let last = |row: &Row| Some(Mark { offset: row.get::<_, Option<_>>(3)?, bytes: row.get::<_, Option<_>>(4)? });
        Ok(rows.iter().map(|row| (row.get(0), Applied { next: row.get(1), at_ms: row.get(2), last: last(row) })).collect())
    }

    /// Lowers the stage's offset, and those of what it has set aside, unless an instance has advanced it meanwhile.
    async fn go_back(&self, pool: &Pool, span: Span) -> Result<bool, Failure> {
        let sql = "WITH lowered AS (
                       UPDATE stage_offsets SET next_offset = $5, last_offset = NULL, last_record = NULL
                       WHERE stage = $1 AND topic = $2 AND partition = $3 AND next_offset = $4 RETURNING partition
                   ), aside AS (
                       UPDATE set_aside s SET next_offset = $5 FROM lowered
                       WHERE s.stage = $1 AND s.topic = $2 AND s.partition = lowered.partition AND s.next_offset > $5
                   )
                   SELECT FROM lowered";
        let Span { topic, partition, from, next, last: _ } = span;
        let mut client = pool.get().await?;
        let tx = client.transaction().await?;
        let is_lowered = tx.query_opt(sql, &[&self.stage, &topic, &partition, &from, &next]).await?.is_some();
        if let Some(on_return) = self.on_return.filter(|_| is_lowered) {
            on_return.run(&tx, self.topic, partition).await?;
        }
        tx.commit().await?;
        Ok(is_lowered)
    }

    /// Topic, partition and offset of a record, for error messages.
    pub fn place(&self, record: &Record<'_>) -> String {
        format!("{} partition {} offset {}", self.topic, record.partition(), record.offset())
    }

    /// The stage's next offset in a partition of the topic with this name; none before its first commit.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn position(&self, pool: &Pool, topic: &str, partition: i32) -> Result<Option<i64>, Failure> {
        let db = pool.get().await?;
        let sql = "SELECT next_offset FROM stage_offsets WHERE stage = $1 AND topic = $2 AND partition = $3";
        let row = db.query_opt(sql, &[&self.stage, &topic, &partition]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Advances the offset and keeps its row locked until the commit. A zombie does not find the offset that it wrote.
    ///
    /// # Errors
    /// `Retry` when another instance has advanced it, or the database fails.
    pub async fn claim(&self, db: &impl GenericClient, span: &Span) -> Result<(), Failure> {
        let statement = db.prepare_cached(CLAIM).await?;
        let Span { topic, partition, from, next, last } = span;
        let (offset, record) = (last.as_ref().map(|last| last.offset), last.as_ref().map(|last| &last.bytes));
        let advanced = db.execute(&statement, &[&self.stage, topic, partition, from, next, &offset, &record]).await?;
        if advanced == 0 {
            return Err(Failure::Retry(anyhow!(
                "partition {partition} of {topic} is no longer at offset {from}: another instance has advanced it"
            )));
        }
        Ok(())
    }

    fn span(&self, topic: &str, partition: i32, from: i64, records: &[&Record<'_>]) -> Result<Span, Failure> {
        let mut next = from;
        for record in records {
            if record.offset() < next {
                return Err(Failure::Retry(anyhow!("{}: read again, the database is at offset {next}", self.place(record))));
            }
            next = record.offset() + 1;
        }
        Ok(Span { topic: topic.to_owned(), partition, from, next, last: records.last().map(|record| record.mark()) })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_where_an_offset_goes_back_is_of_its_partition_alone() {
        let keys = || (1..=100).map(|chain| chain.to_string());
        let mut all: Vec<String> = (0..8).flat_map(|partition| keys_in(Topic::Matches, partition, keys())).collect();
        all.sort_by_key(|key| key.parse::<u64>().unwrap());
        assert_eq!(all, keys().collect::<Vec<_>>());
        let own = Topic::Matches.partition_of("1");
        assert!(keys_in(Topic::Matches, own, keys()).contains(&"1".to_owned()));
        assert!(!keys_in(Topic::Matches, (own + 1) % 8, keys()).contains(&"1".to_owned()));
    }
}
