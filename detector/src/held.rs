//! Partitions that are not matched for now, since somebody has left a transaction open: where their chains go on is behind it.
//! The others go on meanwhile.
//!
//! What has to be known is the end of the partition of `chain.matches`, where nothing that was written may be overlooked, and the
//! offsets that the group has committed. A transaction is over within seconds, but for one of which a broker has lost sight.

use anyhow::anyhow;
use base::locked;
use runtime::kafka::{GroupOffsets, Kafka, OpenTransaction, group_remedy};
use runtime::{Failure, HeldPartitions};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use topics::Topic;

/// How long a look at `chain.matches` waits for open transactions, or an assignment in all. What lasts longer holds the partition.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long a look waits for offsets. Its connection is kept from one to the next, and may take longer to come.
const OFFSETS_PATIENCE: Duration = Duration::from_secs(1);

/// What a partition waits for.
#[derive(Clone, Debug)]
pub enum Cause {
    /// One on its partition of `chain.matches`.
    Matches(OpenTransaction),
    /// One that holds its offsets of the group.
    Offsets,
}

impl Cause {
    /// What a person can do about it, once it has lasted for so long.
    fn remedy(&self, group: &str, open: Duration) -> String {
        let remedy = match self {
            Self::Matches(transaction) => transaction.remedy(open),
            Self::Offsets => format!("its offsets are not told for {open:.0?}; {}", group_remedy(group)),
        };
        format!("its chains wait, those of other partitions go on: {remedy}")
    }
}

/// The partitions that wait. Cheap to clone: the consumer's assignments share it with the loop.
#[derive(Clone)]
pub struct Held {
    kafka: Kafka,
    group: &'static str,
    offsets: Arc<Mutex<Option<GroupOffsets>>>,
    /// For what each waits, and whether the consumer reads it. One that it does not read begins with a new consumer.
    waiting: Arc<Mutex<HeldPartitions<(Cause, bool)>>>,
}

impl Held {
    pub fn new(kafka: &Kafka, group: &'static str) -> Self {
        let waiting = Arc::new(Mutex::new(HeldPartitions::of(group)));
        Self { kafka: kafka.clone(), group, offsets: Arc::default(), waiting }
    }

    /// Forgets all: a new assignment begins.
    pub fn clear(&self) {
        *locked(&self.waiting) = HeldPartitions::of(self.group);
    }

    /// Keeps a partition from being matched.
    pub fn hold(&self, partition: i32, cause: Cause, is_read: bool) {
        let place = if matches!(cause, Cause::Offsets) { "that holds its offsets" } else { "on chain.matches" };
        tracing::info!("partition {partition} waits for a transaction {place}, the others go on");
        locked(&self.waiting).hold(partition, (cause, is_read));
    }

    pub fn holds(&self, partition: i32) -> bool {
        locked(&self.waiting).holds(partition)
    }

    /// Looks whether the next of them may go on, if it is time; tells of one that waits for long.
    ///
    /// # Errors
    /// `Retry` when one that the consumer does not read can be begun; when the broker does not answer.
    pub fn look(&self) -> Result<(), Failure> {
        let due = locked(&self.waiting).due(|(cause, _), open| cause.remedy(self.group, open));
        let Some((partition, (cause, is_read))) = due else { return Ok(()) };
        if !self.is_over(partition, &cause)? {
            return Ok(());
        }
        locked(&self.waiting).release(partition);
        if is_read {
            return Ok(());
        }
        Err(Failure::Retry(anyhow!("partition {partition} can be begun: the transaction is over for which it waited")))
    }

    fn is_over(&self, partition: i32, cause: &Cause) -> Result<bool, Failure> {
        let offsets = [(Topic::Blocks, partition), (Topic::Logs, partition)];
        match cause {
            Cause::Matches(open) => open.is_over(&self.kafka),
            Cause::Offsets => {
                let kept = &mut *locked(&self.offsets);
                let kept = match kept {
                    Some(kept) => kept,
                    none => none.insert(GroupOffsets::open(&self.kafka, self.group)?),
                };
                kept.are_told(&offsets, OFFSETS_PATIENCE)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_partition_that_waits_for_offsets_has_the_command() {
        let told = Cause::Offsets.remedy("lab", Duration::from_secs(50));
        assert!(told.contains("group lab") && told.contains("kafka-transactions.sh"), "{told}");
    }
}
