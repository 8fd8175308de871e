//! Finds out whether the counterpart that a record waits for is gone. It asks Kafka, and no clock.
//!
//! A block and its logs are one transaction. So once one of them can be read, the other is below the end that its topic has, even if
//! the marker of their transaction is not written there yet. When everything below that end was read without it, it is gone.

use crate::join::Join;
use anyhow::anyhow;
use runtime::Failure;
use runtime::kafka::{Consumer, Kafka, PartitionReader, Record};
use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};
use topics::Topic;

/// How long a record waits before Kafka is asked, and before it is asked again.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What each partition waits with.
#[derive(Default)]
pub struct LogsWatch {
    /// The block that comes next.
    blocks: HashMap<i32, Waiting>,
    /// The first logs.
    logs: HashMap<i32, Waiting>,
    /// Blocks of logs below the second offset are below the first one, or gone.
    cuts: HashMap<i32, (i64, i64)>,
}

/// A record by its offset, and since when it was not asked for.
struct Waiting {
    offset: i64,
    since: Instant,
}

impl LogsWatch {
    /// Looks whether the counterparts of the partition's next block and of its first logs may still come, if these have waited for
    /// long.
    ///
    /// # Errors
    /// `Retry` when the topic was made anew, or the broker does not answer.
    pub fn look(
        &mut self,
        kafka: &Kafka,
        consumer: &Consumer,
        group: &str,
        partition: i32,
        join: &mut Join<Record<'_>>,
    ) -> Result<(), Failure> {
        let next = |topic, read: Option<i64>| match read.or_else(|| consumer.begun(topic, partition)) {
            Some(next) => Ok(next),
            None => Ok::<_, Failure>(kafka.committed(group, topic, partition)?.unwrap_or_default()),
        };
        if is_due(&mut self.blocks, partition, join.front().map(Record::offset)) {
            let (stable, end) = kafka.ends(Topic::Logs, partition)?;
            if let Some(next) = join.next_logs().filter(|next| *next > end) {
                return Err(Failure::Retry(anyhow!(
                    "chain.logs/{partition} ends at {end}, and was read up to {next}: it was made anew, and is read from its beginning"
                )));
            }
            let next = next(Topic::Logs, join.next_logs())?;
            let expected = join.expect_logs_below(end);
            if stable >= expected && !has_record(kafka, (Topic::Logs, partition), next..expected, end)? {
                join.read_logs_up_to(expected);
            }
        }
        let first_logs = join.first_waiting_logs();
        if self.logs.get(&partition).map(|waiting| waiting.offset) != first_logs {
            self.cuts.remove(&partition);
        }
        if is_due(&mut self.logs, partition, first_logs) {
            let (stable, end) = kafka.ends(Topic::Blocks, partition)?;
            let (expected, logs) = *self.cuts.entry(partition).or_insert((end, join.next_logs().unwrap_or_default()));
            let next = next(Topic::Blocks, join.next_block())?;
            if stable >= expected && !has_record(kafka, (Topic::Blocks, partition), next..expected, end)? {
                tracing::warn!("chain.logs/{partition} has logs below offset {logs} whose blocks are gone from chain.blocks");
                join.drop_logs_below(logs);
            }
        }
        Ok(())
    }
}

/// Whether the record that waits in a partition has done so for an interval, since it came or since this was last told.
fn is_due(waiting: &mut HashMap<i32, Waiting>, partition: i32, offset: Option<i64>) -> bool {
    let Some(offset) = offset else {
        waiting.remove(&partition);
        return false;
    };
    let known = waiting.entry(partition).or_insert_with(|| Waiting { offset, since: Instant::now() });
    let is_due = known.offset == offset && known.since.elapsed() >= LOOK_INTERVAL;
    if is_due || known.offset != offset {
        *known = Waiting { offset, since: Instant::now() };
    }
    is_due
}

/// Whether a partition that ends at `end` has one of these records. If the first of them is beyond that, it is of another topic of the
/// same name, which is gone.
fn has_record(kafka: &Kafka, (topic, partition): (Topic, i32), records: Range<i64>, end: i64) -> Result<bool, Failure> {
    let is_gone = records.start > end;
    // On a busy chain all of them have been read by the next look.
    if records.is_empty() && !is_gone {
        return Ok(false);
    }
    let reader = PartitionReader::open_at_once(kafka, topic, partition)?;
    if !is_gone {
        reader.seek(records.start);
    }
    Ok(reader.next()?.is_some_and(|record| record.offset() < records.end))
}
