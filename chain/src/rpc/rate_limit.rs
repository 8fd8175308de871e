//! The rate limit of an endpoint, learned from its refusals. Pure: the time is a parameter.
//!
//! Nothing is held back until the provider refuses a request as one too many. Then half of the current rate becomes the limit,
//! and each success raises it again. Throttle layers know a fixed rate or none, but a provider's limit is unknown until it is
//! hit.

use std::time::{Duration, Instant};

/// In requests per second.
const MIN_RATE: f64 = 2.0;
/// A limit above this rate counts as none.
const MAX_RATE: f64 = 2000.0;
/// What a success adds to the limit, in requests per second: a second at the limit raises it by a quarter.
const RATE_STEP: f64 = 0.25;
/// Refusals within this time belong to the same burst and count once.
const BURST_WINDOW: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// The rate limit of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct AdaptiveRateLimit {
    /// Requests per second.
    limit: Option<f64>,
    /// No request goes out before this time.
    next: Instant,
    /// When the last burst of refusals began.
    slowed: Option<Instant>,
    /// Start of the second in which `sent` requests went out: the current rate.
    since: Instant,
    sent: f64,
}

impl AdaptiveRateLimit {
    /// No limit.
    pub fn new(now: Instant) -> Self {
        Self { limit: None, next: now, slowed: None, since: now, sent: 0.0 }
    }

    /// Reserves the next slot: the time at which a request may go out.
    pub fn reserve(&mut self, now: Instant) -> Instant {
        if now.saturating_duration_since(self.since) > SECOND {
            (self.since, self.sent) = (now, 0.0);
        }
        self.sent += 1.0;
        let slot = self.next.max(now);
        if let Some(limit) = self.limit {
            self.next = slot + Duration::from_secs_f64(1.0 / limit);
        }
        slot
    }

    /// Whether a request made now would wait for more than a quarter of a second.
    pub fn is_throttled(&self, now: Instant) -> bool {
        self.next.saturating_duration_since(now) > Duration::from_millis(250)
    }

    /// A request succeeded. Raises the limit.
    pub fn record_success(&mut self) {
        self.limit = self.limit.map(|limit| limit + RATE_STEP).filter(|limit| *limit < MAX_RATE);
    }

    /// The provider refused a request as one too many, with its `Retry-After` if it sent one. Halves the limit.
    pub fn record_refusal(&mut self, now: Instant, retry_after: Option<Duration>) {
        if let Some(wait) = retry_after {
            self.next = self.next.max(now + wait.min(MAX_RETRY_AFTER));
        }
        if self.slowed.is_some_and(|slowed| now.saturating_duration_since(slowed) < BURST_WINDOW) {
            return;
        }
        let took = self.limit.unwrap_or_else(|| {
            self.sent / now.saturating_duration_since(self.since).as_secs_f64().max(SECOND.as_secs_f64() / 4.0)
        });
        self.slowed = Some(now);
        self.limit = Some((took / 2.0).max(MIN_RATE));
        self.next = self.next.max(now + Duration::from_secs_f64(1.0 / (took / 2.0).max(MIN_RATE)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the requests that go out within `time`.
    fn sent(rate_limit: &mut AdaptiveRateLimit, from: Instant, time: Duration) -> u32 {
        let mut count = 0;
        while rate_limit.reserve(from) < from + time {
            count += 1;
            assert!(count < 100_000, "there is no limit");
        }
        count
    }

    #[test]
    fn nothing_is_held_back_before_a_refusal() {
        let now = Instant::now();
        let mut rate_limit = AdaptiveRateLimit::new(now);
        assert!((0..10_000).all(|_| rate_limit.reserve(now) == now));
    }

    #[test]
    fn a_burst_of_refusals_halves_the_rate_once() {
        let now = Instant::now();
        let mut rate_limit = AdaptiveRateLimit::new(now);
        for _ in 0..100 {
            rate_limit.reserve(now);
        }
        let later = now + SECOND;
        (0..30).for_each(|_| rate_limit.record_refusal(later, None));
        let count = sent(&mut rate_limit, later, SECOND);
        assert!((45..=50).contains(&count), "{count}");
    }

    #[test]
    fn successes_raise_the_limit_until_there_is_none() {
        let now = Instant::now();
        let mut rate_limit = AdaptiveRateLimit::new(now);
        rate_limit.record_refusal(now, None);
        let before = rate_limit.limit;
        (0..100).for_each(|_| rate_limit.record_success());
        assert!(rate_limit.limit > before);
        (0..30_000).for_each(|_| rate_limit.record_success());
        assert_eq!(rate_limit.limit, None);
    }

    #[test]
    fn requests_never_stop_altogether() {
        let mut now = Instant::now();
        let mut rate_limit = AdaptiveRateLimit::new(now);
        for _ in 0..100 {
            now += SECOND;
            rate_limit.record_refusal(now, None);
        }
        assert!(sent(&mut rate_limit, now, SECOND * 10) >= 9);
    }

    #[test]
    fn retry_after_is_honoured() {
        let now = Instant::now();
        let mut rate_limit = AdaptiveRateLimit::new(now);
        rate_limit.record_refusal(now, Some(SECOND * 7));
        assert!(rate_limit.is_throttled(now) && rate_limit.reserve(now) >= now + SECOND * 7);
        rate_limit.record_refusal(now, Some(SECOND * 3600));
        assert!(
            rate_limit.reserve(now) <= now + MAX_RETRY_AFTER + SECOND * 2,
            "a mistaken answer does not stop the endpoint for good"
        );
    }
}
