//! Transactions that stay open. Whoever reads committed records stops in front of one, and sees nothing that is behind it.
//!
//! A broker ends a transaction whose producer is gone within seconds. If it loses sight of one, only a person can end that. So it is with
//! one that holds a group's offsets: Kafka does not tell them meanwhile.

use super::offsets::group_remedy;
use crate::stage::{self, Notice};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use topics::Topic;

/// For longer no transaction of ours is open: the broker ends it after 15 s, and looks every 10 s for those.
pub(crate) const MAX_OPEN: Duration = Duration::from_secs(40);

/// What a person can do about a transaction that has been open for so long, from an offset of a partition on.
pub(super) fn remedy(name: &str, partition: i32, offset: i64, open: Duration) -> String {
    let tool = "kafka-transactions.sh --bootstrap-server $KAFKA_BROKERS";
    let place = format!("--topic {name} --partition {partition}");
    format!(
        "a transaction on {name}/{partition} has been open for {open:.0?}, from offset {offset} on, and nothing behind it can be read. If \
         `{tool} find-hanging {place} --max-transaction-timeout 1` shows it, `{tool} abort {place} --start-offset {offset}` ends it"
    )
}

/// A transaction that is open in a partition, or several. What comes after its beginning can't be read until it is over.
#[derive(Clone, Debug)]
pub struct OpenTransaction {
    pub(super) topic: Topic,
    /// The topic's name, with the prefix.
    pub(super) name: String,
    pub(super) partition: i32,
    pub(super) from: i64,
    /// The partition's end when it was met.
    pub(super) end: i64,
}

impl OpenTransaction {
    /// What a person can do about it, once it has been open for so long.
    pub fn remedy(&self, open: Duration) -> String {
        remedy(&self.name, self.partition, self.from, open)
    }

    /// Whether all can be read that was there when it was met, where the partition can be read up to `stable`, and ends at `end` by now.
    pub(super) fn is_over(&self, stable: i64, end: i64) -> bool {
        // Kafka may have lost that end meanwhile.
        stable >= self.end.min(end)
    }
}

/// The name under which [`stage::waiting`] tells of open transactions that a consumer meets in a topic.
fn item(name: &str) -> String {
    format!("transaction on {name}")
}

/// Tells of transactions for which a reader of these partitions has waited for so long. What is told of another partition is for those
/// to end who read that one.
pub(super) fn tell(name: &str, partitions: &[i32], open: &[OpenTransaction], waited: Duration) {
    for partition in partitions {
        let item = format!("{}/{partition}", item(name));
        match open.iter().find(|open| open.partition == *partition) {
            Some(open) => stage::waits(&item, &open.remedy(waited)),
            None => stage::resumed(&item),
        }
    }
}

/// The partitions of a consumer that have an open transaction.
#[derive(Default)]
pub(super) struct OpenTransactions {
    /// By topic and partition: where committed records end, and since when.
    open: HashMap<(String, i32), (i64, Instant)>,
    /// By topic.
    notices: HashMap<String, Notice>,
}

impl OpenTransactions {
    /// Notes up to where each partition of a topic can be read, and its end; tells of what has been open for too long.
    pub fn see(&mut self, name: &str, partitions: impl Iterator<Item = (i32, i64, i64)>, now: Instant) {
        let late = partitions.filter_map(|(partition, stable, end)| self.late(name, partition, stable, end, now)).last();
        self.notices.entry(name.to_owned()).or_insert_with(|| Notice::of(item(name))).show(late);
    }

    fn late(&mut self, name: &str, partition: i32, stable: i64, end: i64, now: Instant) -> Option<String> {
        let key = (name.to_owned(), partition);
        if stable < 0 || stable >= end {
            self.open.remove(&key);
            return None;
        }
        let (offset, since) = self.open.entry(key).or_insert((stable, now));
        if *offset != stable {
            (*offset, *since) = (stable, now);
        }
        let open = now - *since;
        (open > MAX_OPEN).then(|| remedy(name, partition, stable, open))
    }
}

/// The assigned partitions of a consumer of which Kafka gives nothing. Where their offsets are the group's, that asks for them until no
/// transaction holds any.
pub(super) struct Unfetched {
    stage: &'static str,
    /// When each was fetched last, or assigned.
    since: HashMap<(String, i32), Instant>,
    notice: Notice,
}

impl Unfetched {
    pub fn of(stage: &'static str) -> Self {
        Self { stage, since: HashMap::new(), notice: Notice::of(format!("{stage}: offsets")) }
    }

    /// Notes a new assignment.
    pub fn assign(&mut self, partitions: impl Iterator<Item = (String, i32)>, now: Instant) {
        self.since = partitions.map(|partition| (partition, now)).collect();
    }

    /// Tells of partitions that are not `fetched` for too long.
    pub fn see(&mut self, fetched: impl Fn(&str, i32) -> bool, now: Instant) {
        self.since.iter_mut().filter(|((name, partition), _)| fetched(name, *partition)).for_each(|(_, since)| *since = now);
        let late = self.since.iter().find(|(_, since)| now - **since > MAX_OPEN);
        self.notice.show(late.map(|((name, partition), since)| {
            format!("nothing is read of {name}/{partition} for {:.0?}; {}", now - *since, group_remedy(self.stage))
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage;

    #[test]
    fn a_partition_that_waits_for_the_groups_offset_is_told_with_the_command_that_ends_it() {
        let told = || stage::cause_of("lab: offsets");
        let (mut unfetched, start) = (Unfetched::of("lab"), Instant::now());
        unfetched.assign([("topic".to_owned(), 3), ("topic".to_owned(), 4)].into_iter(), start);
        let mut see = |seconds, third: bool| {
            unfetched.see(|_, partition| partition == 4 || third, start + Duration::from_secs(seconds));
            told()
        };
        assert_eq!((see(0, false), see(30, false)), (None, None));
        let cause = see(50, false).expect("a partition without an offset");
        assert!(cause.contains("topic/3") && cause.contains("abort --topic __consumer_offsets"), "{cause}");
        assert_eq!((see(52, true), see(80, false)), (None, None));
        assert!(see(100, false).is_some());
        drop(unfetched);
        assert_eq!(told(), None);
    }

    #[test]
    fn a_transaction_that_hangs_is_told_with_the_command_that_ends_it() {
        let (mut open, start) = (OpenTransactions::default(), Instant::now());
        let told = || stage::cause_of("transaction on lab.topic");
        let mut see = |seconds, stable, end| {
            open.see("lab.topic", [(3, stable, end), (4, 9, 9)].into_iter(), start + Duration::from_secs(seconds));
            told()
        };
        // A busy partition always has one, each time another.
        assert_eq!((see(0, 5, 7), see(30, 7, 9), see(60, 9, 11), see(90, 9, 30)), (None, None, None, None));
        let cause = see(101, 9, 40).expect("an open transaction");
        assert!(cause.contains("abort --topic lab.topic --partition 3 --start-offset 9"), "{cause}");
        assert_eq!(see(103, 40, 40), None);
        assert!(see(104, 40, 41).is_none() && see(150, 40, 41).is_some());
        drop(open);
        assert_eq!(told(), None, "the next consumer looks anew");
    }

    #[test]
    fn a_transaction_that_a_reader_waits_for_is_told_until_its_partition_can_be_read() {
        let told = || {
            let waiting = stage::waiting().into_iter();
            waiting.filter(|(item, _)| item.starts_with("transaction on lab.cursors/")).collect::<Vec<_>>()
        };
        let open =
            |partition| OpenTransaction { topic: Topic::Cursors, name: "lab.cursors".to_owned(), partition, from: 8, end: 9 };
        tell("lab.cursors", &[1, 5], &[open(5)], MAX_OPEN);
        let named = told();
        assert!(named.len() == 1 && named[0].0.ends_with("/5"), "{named:?}");
        assert!(named[0].1.contains("abort --topic lab.cursors --partition 5 --start-offset 8"), "{named:?}");
        // A chain reads its own partition first, and another chain looks at its own all the time.
        tell("lab.cursors", &[1], &[], MAX_OPEN);
        assert_eq!(told(), named);
        tell("lab.cursors", &[1, 5], &[open(1)], MAX_OPEN);
        assert!(told().len() == 1 && told()[0].0.ends_with("/1"), "{:?}", told());
        tell("lab.cursors", &[1, 5], &[], MAX_OPEN);
        assert_eq!(told(), []);
    }

    /// An end-to-end test runs those of the page.
    #[test]
    fn the_page_has_the_commands_that_are_told() {
        let page = include_str!("../../../docs/operations.md");
        let told = remedy("TOPIC", 7, 8, MAX_OPEN);
        let commands: Vec<&str> = told.split('`').skip(1).step_by(2).collect();
        assert_eq!(commands.len(), 2, "{told}");
        for command in commands {
            let command =
                command.replace("--partition 7", "--partition P").replace("--start-offset 8", "--start-offset OFFSET");
            assert!(page.lines().any(|line| line == command), "{command}");
        }
    }
}
