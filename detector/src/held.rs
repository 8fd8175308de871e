//! Partitions that are not matched for now, since somebody has left a transaction open: where their chains go on is behind it.
//! The others go on meanwhile.
//!
//! What has to be known is the end of the partition of `chain.matches`, where nothing that was written may be overlooked, and the
//! offsets that the group has committed. A transaction is over within seconds, but for one of which a broker has lost sight.

use anyhow::anyhow;
use base::locked;
use runtime::Failure;
use runtime::kafka::{GroupOffsets, Kafka, OpenTransaction, group_remedy};
use runtime::stage::Notice;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use topics::Topic;

/// How often it is looked whether one may go on. They take turns, since a look takes a while.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// A broker ends what a producer that is gone has left open some 25 s later. What lasts longer is told.
const MAX_WAIT: Duration = Duration::from_secs(40);
/// How long a look at `chain.matches` waits for open transactions. What lasts longer holds the partition.
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
        match self {
            Self::Matches(transaction) => transaction.remedy(open),
            Self::Offsets => format!("its offsets are not told for {open:.0?}; {}", group_remedy(group)),
        }
    }
}

/// The partitions that wait. Cheap to clone: the consumer's assignments share it with the loop.
#[derive(Clone)]
pub struct Held {
    kafka: Kafka,
    group: &'static str,
    offsets: Arc<Mutex<Option<GroupOffsets>>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<i32, Waiting>,
    looked: Option<Instant>,
}

struct Waiting {
    cause: Cause,
    /// Whether the consumer reads it. One that it does not read begins with a new consumer.
    is_read: bool,
    since: Instant,
    looked: Instant,
    notice: Notice,
}

impl Held {
    pub fn new(kafka: &Kafka, group: &'static str) -> Self {
        Self { kafka: kafka.clone(), group, offsets: Arc::default(), state: Arc::default() }
    }

    /// Forgets all: a new assignment begins.
    pub fn clear(&self) {
        *locked(&self.state) = State::default();
    }

    /// Keeps a partition from being matched.
    pub fn hold(&self, partition: i32, cause: Cause, is_read: bool) {
        let place = if matches!(cause, Cause::Offsets) { "that holds its offsets" } else { "on chain.matches" };
        tracing::info!("partition {partition} waits for a transaction {place}, the others go on");
        let (now, notice) = (Instant::now(), Notice::of(item(self.group, partition)));
        locked(&self.state).waiting.insert(partition, Waiting { cause, is_read, since: now, looked: now, notice });
    }

    pub fn holds(&self, partition: i32) -> bool {
        locked(&self.state).waiting.contains_key(&partition)
    }

    /// Looks whether the next of them may go on, if it is time; tells of one that waits for long.
    ///
    /// # Errors
    /// `Retry` when one that the consumer does not read can be begun; when the broker does not answer.
    pub fn look(&self) -> Result<(), Failure> {
        let now = Instant::now();
        let next = {
            let state = &mut *locked(&self.state);
            if state.looked.is_some_and(|looked| now - looked < LOOK_INTERVAL) {
                return Ok(());
            }
            state.looked = Some(now);
            state.tell(self.group, now);
            let next = state.waiting.iter_mut().min_by_key(|(_, waiting)| waiting.looked);
            let Some((partition, waiting)) = next else { return Ok(()) };
            waiting.looked = now;
            (*partition, waiting.cause.clone(), waiting.is_read)
        };
        let (partition, cause, is_read) = next;
        if !self.is_over(partition, &cause)? {
            return Ok(());
        }
        let state = &mut *locked(&self.state);
        state.waiting.remove(&partition);
        // It may have been on other partitions as well.
        state.looked = None;
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

impl State {
    /// Tells of those that wait for longer than any transaction of ours lasts.
    fn tell(&mut self, group: &str, now: Instant) {
        for waiting in self.waiting.values_mut() {
            let open = now.saturating_duration_since(waiting.since);
            if open > MAX_WAIT {
                let remedy = waiting.cause.remedy(group, open);
                waiting.notice.show(Some(format!("its chains wait, those of other partitions go on: {remedy}")));
            }
        }
    }
}

/// The name under which `runtime::stage::waiting` tells of a partition.
fn item(group: &str, partition: i32) -> String {
    format!("{group}: partition {partition}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::stage;

    #[test]
    fn a_partition_that_waits_for_long_is_told_with_the_command_and_goes_when_it_goes_on() {
        let told = || stage::waiting().into_iter().find(|(named, _)| named == "lab: partition 3").map(|(_, cause)| cause);
        let (mut state, start) = (State::default(), Instant::now());
        let notice = Notice::of(item("lab", 3));
        let waiting = Waiting { cause: Cause::Offsets, is_read: false, since: start, looked: start, notice };
        state.waiting.insert(3, waiting);
        state.tell("lab", start + Duration::from_secs(20));
        assert_eq!(told(), None, "a broker may still end it");
        state.tell("lab", start + Duration::from_secs(50));
        let cause = told().expect("a partition that waits");
        assert!(cause.contains("group lab") && cause.contains("kafka-transactions.sh"), "{cause}");
        drop(state);
        assert_eq!(told(), None);
    }
}
