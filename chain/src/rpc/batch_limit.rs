//! How many calls an endpoint takes in one batch. Pure: the time is a parameter.
//!
//! Providers allow 3, 10, 20 or 100, or none, and say so in errors of their own. So the limit is learned: a refused batch halves
//! it, and after a while a larger one is tried again, later each time in a row that the limit holds.

use std::time::{Duration, Instant};

const MAX_CALLS: usize = 100;
const MIN_HOLD: Duration = Duration::from_secs(60);
const MAX_HOLD: Duration = Duration::from_secs(3600);

/// The batch limit of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimit {
    calls: usize,
    /// The largest batch that was answered.
    answered: usize,
    /// When a larger batch may be tried.
    grows_at: Option<Instant>,
    hold: Duration,
}

impl Default for BatchLimit {
    fn default() -> Self {
        Self { calls: MAX_CALLS, answered: 0, grows_at: None, hold: MIN_HOLD }
    }
}

impl BatchLimit {
    /// How many calls to put into a batch now; 1 is no batch.
    pub fn calls(&mut self, now: Instant) -> usize {
        if self.grows_at.is_some_and(|at| at <= now) {
            self.calls = (self.calls + (self.calls / 4).max(1)).min(MAX_CALLS);
            self.grows_at = (self.calls < MAX_CALLS).then(|| now + self.hold);
        }
        self.calls
    }

    /// A batch of this many calls was answered.
    pub fn record_answer(&mut self, calls: usize) {
        self.answered = self.answered.max(calls);
    }

    /// A batch of this many calls was refused for its size.
    pub fn record_refusal(&mut self, calls: usize, now: Instant) {
        if calls <= self.answered {
            self.answered = 0;
        }
        let fits = (calls / 2).max(self.answered).max(1);
        // Batches that were under way at the refusal say nothing new.
        if fits >= self.calls && self.grows_at.is_some() {
            return;
        }
        let was_tried_again = self.grows_at.is_some() && self.answered >= fits;
        self.hold = if was_tried_again { (self.hold * 2).min(MAX_HOLD) } else { MIN_HOLD };
        self.calls = fits.min(self.calls);
        self.grows_at = Some(now + self.hold);
    }
}

impl BatchLimit {
    /// A batch of this many calls was refused as one too many. A provider that counts calls may take no batch of this size.
    pub fn record_crowding(&mut self, calls: usize, now: Instant) {
        if calls > self.answered {
            self.record_refusal(calls, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit that is found at a provider which takes `allowed` calls, and the number of refused batches.
    fn learn(limit: &mut BatchLimit, allowed: usize, now: Instant) -> (usize, usize) {
        let mut refused = 0;
        loop {
            let calls = limit.calls(now);
            if calls <= allowed {
                limit.record_answer(calls);
                return (calls, refused);
            }
            limit.record_refusal(calls, now);
            refused += 1;
        }
    }

    #[test]
    fn the_limit_of_a_provider_is_found_in_a_few_refusals() {
        for (allowed, found) in [(1, 1), (3, 3), (10, 6), (20, 12), (100, 100)] {
            let (calls, refused) = learn(&mut BatchLimit::default(), allowed, Instant::now());
            assert_eq!(calls, found, "{allowed}");
            assert!(refused <= 6, "{allowed}: {refused}");
        }
    }

    #[test]
    fn it_grows_again_slowly_and_a_limit_that_holds_is_tried_less_often() {
        let (mut limit, mut now) = (BatchLimit::default(), Instant::now());
        assert_eq!(learn(&mut limit, 3, now).0, 3);
        assert_eq!(limit.calls(now + MIN_HOLD / 2), 3);
        let mut tries = 0;
        for _ in 0..24 * 60 {
            now += MIN_HOLD;
            let (calls, refused) = learn(&mut limit, 3, now);
            assert_eq!(calls, 3);
            tries += refused;
        }
        assert!((20..60).contains(&tries), "{tries} refused batches in a day");
        // The plan is a better one now.
        for _ in 0..24 * 60 {
            now += MIN_HOLD;
            learn(&mut limit, 100, now);
        }
        assert_eq!(limit.calls(now), MAX_CALLS);
    }
}
