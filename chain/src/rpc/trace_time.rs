//! How long blocks may take for their traces. Pure: the time is a parameter.
//!
//! A tracer that hangs, or a stranger's transaction in each block that keeps it busy, would make a fast chain fall behind for ever.
//! So a block may take some times as long as the chain takes for one, since several are fetched at once. What it takes beyond is
//! owed, and as long as that is not paid off, later blocks take less.

use super::patience::MAX_DEADLINE;
use std::time::{Duration, Instant};

/// No answer of a tracer comes sooner for sure, however fast the chain is.
const MIN_STEP: Duration = Duration::from_millis(250);
/// Half as many as ingest fetches at once: it has to get ahead of the chain too.
const FREE_STEPS: u32 = 4;
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
    pub fn of_block(&mut self, number: u64, timestamp: u64, since: Instant, now: Instant) -> TraceTime {
        self.count(number, timestamp);
        self.pay_off(now);
        let left = self.patience.saturating_sub(self.owed);
        let step = self.pace().max(left).min(MAX_DEADLINE);
        TraceTime { since, step, until: since + self.free() + left, waits_until: since + left }
    }

    /// A block is done that took so long.
    pub fn charge(&mut self, took: Duration, now: Instant) {
        self.pay_off(now);
        self.owed = (self.owed + took.saturating_sub(self.free())).min(self.patience);
    }

    fn count(&mut self, number: u64, timestamp: u64) {
        match self.counted_from {
            Some((from, since)) if number >= from && number - from < PACE_BLOCKS || timestamp < since => {}
            Some((from, since)) if number > from => {
                let blocks = u32::try_from(number - from).unwrap_or(u32::MAX);
                self.pace = Some(Duration::from_secs(timestamp - since) / blocks);
                self.counted_from = Some((number, timestamp));
            }
            _ => self.counted_from = Some((number, timestamp)),
        }
    }

    fn pace(&self) -> Duration {
        self.pace.unwrap_or(MAX_DEADLINE).clamp(MIN_STEP, MAX_DEADLINE)
    }

    /// What each block may take.
    pub fn free(&self) -> Duration {
        self.pace() * FREE_STEPS
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
        times.of_block(100, 1_700_100_000, now, now).step
    }

    #[test]
    fn a_fast_chain_that_has_waited_long_waits_no_longer_than_its_blocks_take() {
        let (mut fast, now) = (chain_of(1, 4), Instant::now());
        let first = fast.of_block(99, 1_700_000_024, now, now);
        assert_eq!((first.step, first.waits_until), (MAX_DEADLINE, now + PATIENCE));
        let mut after = now + Duration::from_secs(20);
        fast.charge(after - now, after);
        let next = fast.of_block(99, 1_700_000_024, after, after);
        assert_eq!((next.step, next.until, next.waits_until), (MIN_STEP, after + MIN_STEP * 4, after));
        // Eight at once, each of which takes all that it may, keep up with the chain.
        for _ in 0..1_000 {
            let time = fast.of_block(99, 1_700_000_024, after, after);
            let took = (time.until - after).max(time.step * 4);
            after += took / 8;
            fast.charge(took, after);
            assert!(took / 8 <= MIN_STEP, "{took:?}");
        }
        assert_eq!(step(&mut fast, after + PATIENCE * 8), MAX_DEADLINE, "it is forgotten in time");
    }

    #[test]
    fn a_slow_chain_owes_nothing_for_slow_tracers() {
        let (mut slow, now) = (chain_of(12, 1), Instant::now());
        for block in 0..100 {
            slow.charge(Duration::from_secs(40), now + Duration::from_secs(12 * block));
        }
        assert_eq!(step(&mut slow, now), MAX_DEADLINE);
        let mut unknown = TraceTimes::new(PATIENCE);
        unknown.charge(Duration::from_secs(40), now);
        assert_eq!(step(&mut unknown, now), MAX_DEADLINE, "of the first blocks nothing is known");
    }

    #[test]
    fn blocks_in_any_order_and_with_any_time_are_no_pace() {
        let mut odd = TraceTimes::new(PATIENCE);
        for (number, timestamp) in [(0, u64::MAX), (u64::MAX, 0), (50, 7), (60, 8), (3, 1), (u64::MAX, u64::MAX), (0, 0)] {
            odd.count(number, timestamp);
            assert!((MIN_STEP..=MAX_DEADLINE).contains(&odd.pace()));
        }
    }
}
