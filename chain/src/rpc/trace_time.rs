//! How long blocks may take for their traces. Pure: the time is a parameter.
//!
//! A tracer that hangs, or a stranger's transaction in each block that keeps it busy, would make a fast chain fall behind for ever.
//! So a block may take some times as long as the chain takes for one, since several are fetched at once. What it takes beyond is
//! owed, and as long as that is not paid off, later blocks take less. Where nothing is published there is no chain to keep up with.

use super::patience::MAX_DEADLINE;
use std::time::{Duration, Instant};

/// No answer of a tracer comes sooner for sure, however fast the chain is.
const MIN_STEP: Duration = Duration::from_millis(250);
/// What a block may take that is not traced whole after all: half as many as ingest fetches at once, since it has to get ahead of
/// the chain too.
const FREE_STEPS: u32 = 4;
/// What one may take that is traced whole: as many as ingest fetches at once.
const FREE_STEPS_OF_WHOLE: u32 = 8;
/// What is owed is paid off in so many times the time.
const PAY_OFF: u32 = 8;
/// The pace is counted over so many blocks: timestamps are in seconds.
const PACE_BLOCKS: u64 = 16;

/// How long one block may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceTime {
    /// Since when it has been tried.
    pub since: Instant,
    /// For each answer of a tracer.
    pub step: Duration,
    /// Then no other endpoint is asked.
    pub until: Instant,
    /// Until then it waits for what failed.
    pub waits_until: Instant,
}

/// What the blocks before have taken.
#[derive(Clone, Copy, Debug)]
pub struct TraceTimes {
    /// The most that may be owed.
    patience: Duration,
    owed: Duration,
    paid_at: Option<Instant>,
    /// Number and time of the block from which the pace is counted.
    counted_from: Option<(u64, u64)>,
    /// How long the chain takes for a block.
    pace: Option<Duration>,
}

impl TraceTimes {
    pub fn new(patience: Duration) -> Self {
        Self { patience, owed: Duration::ZERO, paid_at: None, counted_from: None, pace: None }
    }

    /// The time for a block that has been tried since then.
    pub fn of_block(&mut self, since: Instant, now: Instant) -> TraceTime {
        self.pay_off(now);
        let left = self.patience.saturating_sub(self.owed);
        let step = self.pace().max(left).min(MAX_DEADLINE);
        TraceTime { since, step, until: since + self.pace() * FREE_STEPS + left, waits_until: since + left }
    }

    /// A block is done that took so long, traced whole or not. Nothing is owed to a chain whose pace is not known.
    pub fn charge(&mut self, took: Duration, is_whole: bool, now: Instant) {
        self.pay_off(now);
        let free = self.pace() * if is_whole { FREE_STEPS_OF_WHOLE } else { FREE_STEPS };
        let more = took.saturating_sub(free) * u32::from(self.pace.is_some());
        self.owed = (self.owed + more).min(self.patience);
    }

    /// Counts the pace from a block that was published.
    pub fn count(&mut self, number: u64, timestamp: u64) {
        match self.counted_from {
            Some((from, since)) if number >= from && timestamp >= since => {
                let blocks = number - from;
                if blocks >= PACE_BLOCKS {
                    self.pace = Some(Duration::from_secs(timestamp - since) / u32::try_from(blocks).unwrap_or(u32::MAX));
                    self.counted_from = Some((number, timestamp));
                }
            }
            // A reorg, or the first.
            _ => self.counted_from = Some((number, timestamp)),
        }
    }

    fn pace(&self) -> Duration {
        self.pace.unwrap_or(MAX_DEADLINE).clamp(MIN_STEP, MAX_DEADLINE)
    }

    fn pay_off(&mut self, now: Instant) {
        let since = self.paid_at.replace(now).unwrap_or(now);
        self.owed = self.owed.saturating_sub(now.saturating_duration_since(since) / PAY_OFF);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(15);

    fn chain_of(seconds: u64, blocks: u64) -> TraceTimes {
        let mut times = TraceTimes::new(PATIENCE);
        (0..100).for_each(|number| times.count(number, 1_700_000_000 + number * seconds / blocks));
        times
    }

    fn step(times: &mut TraceTimes, now: Instant) -> Duration {
        times.of_block(now, now).step
    }

    #[test]
    fn a_fast_chain_that_has_waited_long_waits_no_longer_than_its_blocks_take() {
        let (mut fast, now) = (chain_of(1, 4), Instant::now());
        let first = fast.of_block(now, now);
        assert_eq!((first.step, first.waits_until), (MAX_DEADLINE, now + PATIENCE));
        let mut after = now + Duration::from_secs(20);
        fast.charge(after - now, false, after);
        let next = fast.of_block(after, after);
        assert_eq!((next.step, next.until, next.waits_until), (MIN_STEP, after + MIN_STEP * 4, after));
        // Eight at once, each of which takes all that it may, keep up with the chain.
        for _ in 0..1_000 {
            let time = fast.of_block(after, after);
            let took = (time.until - after).max(time.step * 4);
            after += took / 8;
            fast.charge(took, false, after);
            assert!(took / 8 <= MIN_STEP, "{took:?}");
        }
        assert_eq!(step(&mut fast, after + PATIENCE * 8), MAX_DEADLINE, "it is forgotten in time");
    }

    #[test]
    fn tracers_that_keep_up_owe_nothing() {
        let (mut slow, now) = (chain_of(12, 1), Instant::now());
        (0..100).for_each(|block| slow.charge(Duration::from_secs(40), false, now + Duration::from_secs(12 * block)));
        assert_eq!(step(&mut slow, now), MAX_DEADLINE);
        let mut fast = chain_of(1, 4);
        (0..1_000).for_each(|_| fast.charge(Duration::from_millis(1_900), true, now));
        assert_eq!(step(&mut fast, now), MAX_DEADLINE, "eight at once are as fast as the chain");
        // As in a backfill.
        let mut unknown = TraceTimes::new(PATIENCE);
        (0..1_000).for_each(|_| unknown.charge(Duration::from_secs(60), false, now));
        assert_eq!(step(&mut unknown, now), MAX_DEADLINE, "nothing has to keep up");
    }

    #[test]
    fn the_pace_is_that_of_the_last_blocks_whatever_was_published_before() {
        for odd in [vec![(0, u64::MAX)], vec![(u64::MAX, 0)], vec![(100, 1 << 40), (50, 7), (60, 8), (3, 1)]] {
            let mut times = TraceTimes::new(PATIENCE);
            odd.into_iter().for_each(|(number, timestamp)| times.count(number, timestamp));
            (0..100).for_each(|number| times.count(200 + number, 1_700_000_000 + number / 4));
            assert_eq!(times.pace(), MIN_STEP);
        }
    }
}
