//! Finds out whether the logs that a block waits for are gone. It asks Kafka, and no clock.
//!
//! A block and its logs are one transaction. So once the block can be read, its logs are below the end that `chain.logs` has, even if
//! the marker of their transaction is not written there yet. When everything below that end was read without them, they are gone.

use crate::join::Join;
use anyhow::anyhow;
use runtime::Failure;
use runtime::kafka::{Consumer, Kafka, PartitionReader, Record};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use topics::Topic;

/// How long a block waits before Kafka is asked, and before it is asked again.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The block that each partition waits with, by its offset, and since when.
#[derive(Default)]
pub struct LogsWatch(HashMap<i32, (i64, Instant)>);

impl LogsWatch {
    /// Looks whether the logs of the partition's next block may still come, if it has waited for long.
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
        let Some(block) = join.front().map(Record::offset) else {
            self.0.remove(&partition);
            return Ok(());
        };
        let (waiting, since) = self.0.entry(partition).or_insert_with(|| (block, Instant::now()));
        if *waiting == block && since.elapsed() < LOOK_INTERVAL {
            return Ok(());
        }
        let is_new = std::mem::replace(waiting, block) != block;
        *since = Instant::now();
        if is_new {
            return Ok(());
        }
        let (stable, end) = kafka.ends(Topic::Logs, partition)?;
        let next = match (join.next_logs(), consumer.begun(Topic::Logs, partition)) {
            (Some(next), _) if next > end => {
                return Err(Failure::Retry(anyhow!(
                    "chain.logs/{partition} ends at {end}, and was read up to {next}: it was made anew, and is read from its beginning"
                )));
            }
            (Some(next), _) | (None, Some(next)) => next,
            (None, None) => kafka.committed(group, Topic::Logs, partition)?.unwrap_or_default(),
        };
        let expected = join.expect_logs_below(end);
        if stable >= expected && !has_record(kafka, partition, next, expected)? {
            join.read_logs_up_to(expected);
        }
        Ok(())
    }
}

/// Whether `chain.logs` has a record between two offsets. The first may be of another topic of that name, which is gone.
fn has_record(kafka: &Kafka, partition: i32, from: i64, to: i64) -> Result<bool, Failure> {
    let reader = PartitionReader::open(kafka, Topic::Logs, partition)?;
    if from <= to {
        reader.seek(from)?;
    }
    Ok(reader.next()?.is_some_and(|record| record.offset() < to))
}
