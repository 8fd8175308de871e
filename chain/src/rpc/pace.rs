//! How fast an endpoint may be asked. Nothing is held back until it says that it was too much; then half of what it took
//! just now is the limit, which grows again with what succeeds. (Retry and throttle layers know a fixed rate or none; a
//! provider's limit is known to nobody before it is met.) Pure: the time is given.

use std::time::{Duration, Instant};

const SLOWEST: f64 = 2.0;
/// A limit above this is none.
const FASTEST: f64 = 2000.0;
/// Each success adds so many requests a second: a second at the limit makes it a quarter larger.
const GROWS: f64 = 0.25;
/// Refusals within this time are of the same burst.
const BURST: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The pace of one endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Requests a second.
    limit: Option<f64>,
    /// Nothing goes out before.
    next: Instant,
    slowed: Option<Instant>,
    /// Requests since when, to know what it took.
    since: Instant,
    sent: f64,
}

impl Pace {
    /// Without a limit.
    pub fn new(now: Instant) -> Self {
        Self { limit: None, next: now, slowed: None, since: now, sent: 0.0 }
    }

    /// When the request that is to be made now may go out.
    pub fn slot(&mut self, now: Instant) -> Instant {
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

    /// Whether a request made now would have to wait for long.
    pub fn waits(&self, now: Instant) -> bool {
        self.next.saturating_duration_since(now) > Duration::from_millis(250)
    }

    /// It took a request.
    pub fn succeeded(&mut self) {
        self.limit = self.limit.map(|limit| limit + GROWS).filter(|limit| *limit < FASTEST);
    }

    /// It refused one as too many, and said when to come again, or not.
    pub fn refused(&mut self, now: Instant, retry_after: Option<Duration>) {
        if let Some(wait) = retry_after {
            self.next = self.next.max(now + wait.min(LONGEST_WAIT));
        }
        if self.slowed.is_some_and(|slowed| now.saturating_duration_since(slowed) < BURST) {
            return;
        }
        let took = self.limit.unwrap_or_else(|| {
            self.sent / now.saturating_duration_since(self.since).as_secs_f64().max(SECOND.as_secs_f64() / 4.0)
        });
        self.slowed = Some(now);
        self.limit = Some((took / 2.0).max(SLOWEST));
        self.next = self.next.max(now + Duration::from_secs_f64(1.0 / (took / 2.0).max(SLOWEST)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests that go out within `time`.
    fn sent(pace: &mut Pace, from: Instant, time: Duration) -> u32 {
        let mut count = 0;
        while pace.slot(from) < from + time {
            count += 1;
            assert!(count < 100_000, "there is no limit");
        }
        count
    }

    #[test]
    fn nothing_is_held_back_before_a_refusal() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert!((0..10_000).all(|_| pace.slot(now) == now));
    }

    #[test]
    fn a_refusal_halves_what_it_took_once_a_burst() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..100 {
            pace.slot(now);
        }
        let later = now + SECOND;
        (0..30).for_each(|_| pace.refused(later, None));
        let count = sent(&mut pace, later, SECOND);
        assert!((45..=50).contains(&count), "{count}");
    }

    #[test]
    fn success_makes_it_faster_until_there_is_no_limit() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.refused(now, None);
        let before = pace.limit;
        (0..100).for_each(|_| pace.succeeded());
        assert!(pace.limit > before);
        (0..30_000).for_each(|_| pace.succeeded());
        assert_eq!(pace.limit, None);
    }

    #[test]
    fn it_never_stops_altogether() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..100 {
            now += SECOND;
            pace.refused(now, None);
        }
        assert!(sent(&mut pace, now, SECOND * 10) >= 9);
    }

    #[test]
    fn retry_after_is_honoured() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.refused(now, Some(SECOND * 7));
        assert!(pace.waits(now) && pace.slot(now) >= now + SECOND * 7);
        pace.refused(now, Some(SECOND * 3600));
        assert!(pace.slot(now) <= now + LONGEST_WAIT + SECOND * 2, "a mistaken answer does not stop the endpoint for good");
    }
}
