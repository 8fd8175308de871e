//! Partitions that are not matched for now. Somebody has left a transaction open, and where their chains go on is behind it; or no broker
//! tells the ends of theirs. The others go on meanwhile.
//!
//! What has to be known is the end of the partition of `chain.matches`, where nothing that was written may be overlooked, and the
//! offsets that the group has committed. A transaction is over within seconds, but for one of which a broker has lost sight.

use anyhow::anyhow;
use base::locked;
use runtime::kafka::{Kafka, Wait};
use runtime::{Failure, HeldPartitions};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use topics::Topic;

/// How long a look at `chain.matches` waits for open transactions, or an assignment in all. What lasts longer holds the partition.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// What a partition is begun with, and written.
pub const TOPICS: [Topic; 3] = [Topic::Blocks, Topic::Logs, Topic::Matches];

/// The partitions that wait. Cheap to clone: the consumer's assignments share it with the loop.
#[derive(Clone)]
pub struct Held(Arc<Mutex<Inner>>);

struct Inner {
    waiting: HeldPartitions<()>,
    /// Those that the consumer does not read. They begin with a new one.
    unread: BTreeSet<i32>,
}

impl Held {
    pub fn new(kafka: &Kafka, group: &'static str) -> Self {
        let meaning = "its chains wait, those of other partitions go on";
        let waiting = HeldPartitions::of(group, meaning, kafka, |_, _| Ok(Ok(())));
        Self(Arc::new(Mutex::new(Inner { waiting, unread: BTreeSet::new() })))
    }

    /// Forgets all: a new assignment begins.
    pub fn clear(&self) {
        let Inner { waiting, unread } = &mut *locked(&self.0);
        waiting.clear();
        unread.clear();
    }

    /// Keeps a partition from being matched.
    pub fn hold(&self, partition: i32, wait: Wait, is_read: bool) {
        let Inner { waiting, unread } = &mut *locked(&self.0);
        waiting.hold(partition, wait);
        if !is_read {
            unread.insert(partition);
        }
    }

    pub fn holds(&self, partition: i32) -> bool {
        locked(&self.0).waiting.holds(partition)
    }

    /// Takes in what was seen of the next of them, if it may go on; tells of one that waits for long.
    ///
    /// # Errors
    /// `Retry` when one that the consumer does not read can be begun. A look that fails is taken again.
    pub fn look(&self) -> Result<(), Failure> {
        let Inner { waiting, unread } = &mut *locked(&self.0);
        let Some((partition, ())) = waiting.take_turn()? else { return Ok(()) };
        waiting.release(partition);
        if !unread.remove(&partition) {
            return Ok(());
        }
        Err(Failure::Retry(anyhow!("partition {partition} can be begun: that is over for which it waited")))
    }
}
