//! Whether an endpoint has a method, as far as known. Pure: the time is a parameter.
//!
//! A provider may refuse a method once that it has: behind one name there are many nodes, and plans change. So a refusal holds
//! for a while, and for longer each time in a row.

use std::time::{Duration, Instant};

const MIN_ABSENCE: Duration = Duration::from_secs(60);
const MAX_ABSENCE: Duration = Duration::from_secs(3600);

/// A method of an endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capability {
    /// Until when it is not asked for.
    absent_until: Option<Instant>,
    /// Refusals in a row.
    refusals: u32,
}

impl Capability {
    /// Whether to ask for it.
    pub fn is_assumed(&self, now: Instant) -> bool {
        self.absent_until.is_none_or(|until| until <= now)
    }

    /// The endpoint says that it has no such method. Returns whether it says so for the first time in a row.
    pub fn record_refusal(&mut self, now: Instant) -> bool {
        // Requests that were under way at the refusal say nothing new.
        if !self.is_assumed(now) {
            return false;
        }
        let absence = MIN_ABSENCE.saturating_mul(1 << self.refusals.min(10)).min(MAX_ABSENCE);
        self.absent_until = Some(now + absence);
        self.refusals = self.refusals.saturating_add(1);
        self.refusals == 1
    }

    /// It answered.
    pub fn record_answer(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_holds_for_a_while_and_longer_each_time() {
        let (mut capability, now) = (Capability::default(), Instant::now());
        assert!(capability.is_assumed(now));
        assert!(capability.record_refusal(now) && !capability.record_refusal(now), "eight requests under way are one refusal");
        assert!(!capability.is_assumed(now + MIN_ABSENCE / 2) && capability.is_assumed(now + MIN_ABSENCE));
        let later = now + MIN_ABSENCE;
        assert!(!capability.record_refusal(later), "it is logged once");
        assert!(!capability.is_assumed(later + MIN_ABSENCE) && capability.is_assumed(later + MIN_ABSENCE * 2));
        capability.record_answer();
        assert!(capability.is_assumed(later));
        let mut at = later;
        for _ in 0..40 {
            capability.record_refusal(at);
            at += MAX_ABSENCE;
            assert!(capability.is_assumed(at), "it is tried again every hour at least");
        }
    }
}
