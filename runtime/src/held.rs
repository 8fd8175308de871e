//! Partitions that a stage holds while something in Kafka is not over, such as a transaction that somebody has left open. The
//! others go on; each that is held is looked at in its turn, and told if it waits for long.

use crate::kafka::MAX_OPEN;
use crate::stage::Notice;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often it is looked whether one may go on. They take turns, since a look takes a while.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

/// The partitions that a stage holds, and for what.
pub struct HeldPartitions<C> {
    stage: &'static str,
    held: BTreeMap<i32, Held<C>>,
    looked: Option<Instant>,
}

struct Held<C> {
    cause: C,
    since: Instant,
    looked: Instant,
    notice: Notice,
}

impl<C: Clone> HeldPartitions<C> {
    /// None yet.
    pub const fn of(stage: &'static str) -> Self {
        Self { stage, held: BTreeMap::new(), looked: None }
    }

    /// Holds a partition from now on.
    pub fn hold(&mut self, partition: i32, cause: C) {
        let (now, notice) = (Instant::now(), Notice::of(format!("{}: partition {partition}", self.stage)));
        self.held.insert(partition, Held { cause, since: now, looked: now, notice });
    }

    /// Holds it no more. The others may have waited for the same, so the next is looked at soon.
    pub fn release(&mut self, partition: i32) {
        self.held.remove(&partition);
        self.looked = None;
    }

    pub fn holds(&self, partition: i32) -> bool {
        self.held.contains_key(&partition)
    }

    /// Those that are held, in order.
    pub fn partitions(&self) -> Vec<i32> {
        self.held.keys().copied().collect()
    }

    /// The partition to look at now, and for what it waits; `None` while it is too early. Those that wait for longer than any
    /// transaction of ours lasts are told as `tell` says, in `/health` ([`crate::stage::waiting`]), a metric and the log.
    pub fn due(&mut self, tell: impl Fn(&C, Duration) -> String) -> Option<(i32, C)> {
        self.due_at(Instant::now(), tell)
    }

    fn due_at(&mut self, now: Instant, tell: impl Fn(&C, Duration) -> String) -> Option<(i32, C)> {
        if self.looked.is_some_and(|looked| now - looked < LOOK_INTERVAL) {
            return None;
        }
        self.looked = Some(now);
        for held in self.held.values_mut() {
            let waits = now.saturating_duration_since(held.since);
            if waits > MAX_OPEN {
                held.notice.show(Some(tell(&held.cause, waits)));
            }
        }
        let (partition, next) = self.held.iter_mut().min_by_key(|(_, held)| held.looked)?;
        next.looked = now;
        Some((*partition, next.cause.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage;

    #[test]
    fn a_partition_that_waits_for_long_is_told_with_the_command_and_goes_when_it_goes_on() {
        let told = || stage::cause_of("lab: partition 3");
        let (mut held, start) = (HeldPartitions::of("lab"), Instant::now());
        held.hold(3, "a transaction");
        let mut look = |seconds| held.due_at(start + Duration::from_secs(seconds), |cause, _| format!("waits for {cause}"));
        assert_eq!(look(20), Some((3, "a transaction")));
        assert_eq!(told(), None, "a broker may still end it");
        assert_eq!(look(50), Some((3, "a transaction")));
        assert_eq!(told().as_deref(), Some("waits for a transaction"));
        held.release(3);
        assert_eq!(told(), None);
    }

    #[test]
    fn those_that_are_held_are_looked_at_in_turn_and_not_too_often() {
        let (mut held, start) = (HeldPartitions::of("turns"), Instant::now());
        held.hold(1, "one");
        held.hold(2, "two");
        let mut look =
            |seconds| held.due_at(start + Duration::from_secs(seconds), |_, _| String::new()).map(|(number, _)| number);
        assert_eq!([10, 11, 14, 18].map(&mut look), [Some(1), None, Some(2), Some(1)]);
        held.release(1);
        assert_eq!((held.partitions(), held.holds(1), held.holds(2)), (vec![2], false, true));
    }
}
