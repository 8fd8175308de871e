//! The rate limit of an endpoint, learned from its refusals. Pure: the time is a parameter.
//!
//! Nothing is held back until the provider refuses a request as one too many. Then half of the current rate becomes the limit,
//! and each success raises it again. Throttle layers know a fixed rate or none, but a provider's limit is unknown until it is
//! hit. While most requests are answered all the same, slower ones would be refused as often and the chain would fall behind:
//! then the rate stays.

use std::time::{Duration, Instant};

/// In requests per second.
const MIN_RATE: f64 = 4.0;
/// The least first limit, as long as so few requests went out that their rate says nothing.
const FIRST_RATE: f64 = 50.0;
const FEW_REQUESTS: f64 = 10.0;
/// A limit above this rate counts as none.
const MAX_RATE: f64 = 2000.0;
/// What a success adds to the limit at least, in requests per second: a second at the limit raises it by a quarter.
const RATE_STEP: f64 = 0.25;
/// What a success adds to the limit, as a share of it: soon a limit that was too low is none.
const RATE_GROWTH: f64 = 0.02;
/// Share of requests that are answered, above which the rate stays.
const MIN_ANSWERED: f64 = 0.5;
/// Weight of the latest request in that share.
const ANSWERED_WEIGHT: f64 = 0.05;
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
    /// Share of requests that were not refused, as a moving average.
    answered: Option<f64>,
}

impl AdaptiveRateLimit {
    /// No limit.
    pub fn new(now: Instant) -> Self {
        Self { limit: None, next: now, slowed: None, since: now, sent: 0.0, answered: None }
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

    /// Reserves a slot if there is one now, for a request that is not worth waiting for. Returns whether there was.
    pub fn reserve_free(&mut self, now: Instant) -> bool {
        let is_free = self.next <= now;
        if is_free {
            self.reserve(now);
        }
        is_free
    }

    /// How long a request made now would wait.
    pub fn wait(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// Whether a request made now would wait for more than a quarter of a second.
    pub fn is_throttled(&self, now: Instant) -> bool {
        self.wait(now) > Duration::from_millis(250)
    }

    /// A request succeeded. Raises the limit.
    pub fn record_success(&mut self) {
        self.record_answered(1.0);
        self.limit = self.limit.map(|limit| limit + RATE_STEP.max(limit * RATE_GROWTH)).filter(|limit| *limit < MAX_RATE);
    }

    /// Records an answer (1) or a refusal (0). Returns the share of answers.
    fn record_answered(&mut self, answer: f64) -> f64 {
        let share = self.answered.map_or(answer, |share| share + ANSWERED_WEIGHT * (answer - share));
        self.answered = Some(share);
        share
    }

    /// The provider refused a request as one too many, with its `Retry-After` if it sent one. Halves the limit, unless most are
    /// answered.
    pub fn record_refusal(&mut self, now: Instant, retry_after: Option<Duration>) {
        if let Some(wait) = retry_after {
            self.next = self.next.max(now + wait.min(MAX_RETRY_AFTER));
        }
        if self.record_answered(0.0) >= MIN_ANSWERED {
            return;
        }
        if self.slowed.is_some_and(|slowed| now.saturating_duration_since(slowed) < BURST_WINDOW) {
            return;
        }
        let took = self.limit.unwrap_or_else(|| {
            self.sent / now.saturating_duration_since(self.since).as_secs_f64().max(SECOND.as_secs_f64() / 4.0)
        });
        let least = if self.limit.is_none() && self.sent < FEW_REQUESTS { FIRST_RATE } else { MIN_RATE };
        let limit = (took / 2.0).max(least);
        self.slowed = Some(now);
        self.limit = Some(limit);
        self.next = self.next.max(now + Duration::from_secs_f64(1.0 / limit));
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

    /// A gateway that refuses three requests of ten, whatever their rate. Slowing down for each of them stopped the chain.
    #[test]
    fn refusals_at_random_do_not_slow_what_is_answered() {
        let mut now = Instant::now();
        let mut rate_limit = AdaptiveRateLimit::new(now);
        let started = now;
        for request in 0..2000 {
            now = rate_limit.reserve(now) + Duration::from_millis(5);
            if request % 10 < 7 {
                rate_limit.record_success();
            } else {
                rate_limit.record_refusal(now, None);
            }
        }
        let took = now - started;
        assert!(took < SECOND * 15, "2,000 requests of 5 ms took {took:?}");
        // A provider that answers one of five is over its limit.
        (0..20).for_each(
            |request| if request % 5 == 0 { rate_limit.record_success() } else { rate_limit.record_refusal(now, None) },
        );
        assert!(rate_limit.limit.is_some());
    }

    /// It may be refused at random, and four requests a second would be too few for any chain.
    #[test]
    fn a_refusal_of_the_first_request_says_little() {
        let now = Instant::now();
        let mut rate_limit = AdaptiveRateLimit::new(now);
        rate_limit.reserve(now);
        rate_limit.record_refusal(now, None);
        assert_eq!(rate_limit.limit, Some(FIRST_RATE));
        let later = now + SECOND;
        (0..10).for_each(|_| rate_limit.record_refusal(later, None));
        assert_eq!(rate_limit.limit, Some(FIRST_RATE / 2.0), "more of them say more");
    }

    #[test]
    fn a_limit_that_was_too_low_is_forgotten_within_seconds() {
        let mut now = Instant::now();
        let mut rate_limit = AdaptiveRateLimit::new(now);
        rate_limit.limit = Some(MIN_RATE);
        let started = now;
        while rate_limit.limit.is_some_and(|limit| limit < 100.0) {
            now = rate_limit.reserve(now);
            rate_limit.record_success();
        }
        assert!(now - started < SECOND * 12, "{:?}", now - started);
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
