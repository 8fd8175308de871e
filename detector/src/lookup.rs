//! A look-up in a topic, which may have to read far where a chain was quiet for long. Meanwhile its stage does nothing else, so
//! `/health` tells of it.

use runtime::stage;
use std::time::{Duration, Instant};
use topics::Topic;

/// How often it is told.
const INTERVAL: Duration = Duration::from_secs(5);

/// How far a look-up has come.
pub struct Lookup {
    item: String,
    told: Option<Instant>,
    started: Instant,
    interval: Duration,
}

impl Lookup {
    pub fn of(chain_id: u64) -> Self {
        Self::named(format!("detector: chain {chain_id}"))
    }

    /// The look-up for all chains of a partition.
    pub fn of_partition(partition: i32) -> Self {
        Self::named(format!("detector: beginning of partition {partition}"))
    }

    fn named(item: String) -> Self {
        Self { item, told: None, started: Instant::now(), interval: INTERVAL }
    }

    /// Notes which record is read.
    pub fn at(&mut self, topic: Topic, partition: i32, offset: i64) {
        if self.told.unwrap_or(self.started).elapsed() < self.interval {
            return;
        }
        self.told = Some(Instant::now());
        let (item, taken) = (&self.item, self.started.elapsed());
        tracing::info!("{item}: looking for where it goes on, for {taken:.0?}, at offset {offset} of {topic}/{partition}");
        stage::waits(item, &format!("looks for where it goes on, for {taken:.0?}, at offset {offset} of {topic}/{partition}"));
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if self.told.is_some() {
            stage::resumed(&self.item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_up_is_told_if_it_takes_long_and_only_while_it_lasts() {
        let told = || stage::cause_of("detector: chain 7");
        let mut lookup = Lookup::of(7);
        lookup.at(Topic::Matches, 3, 1_000);
        assert_eq!(told(), None);
        lookup.interval = Duration::ZERO;
        lookup.at(Topic::Matches, 3, 900);
        assert!(told().is_some_and(|cause| cause.contains("offset 900 of chain.matches/3")));
        drop(lookup);
        assert_eq!(told(), None);
    }
}
