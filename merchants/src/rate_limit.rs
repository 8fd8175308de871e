//! A rate limit that knows debt: a request that costs more than the limit allows at once is let through whole, and the next one
//! waits until it is paid.

use base::locked;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Counts one client's requests (the generic cell rate algorithm).
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// What one request costs.
    interval: Duration,
    /// How far ahead of the clock requests may be.
    burst: Duration,
    /// When all requests so far are paid.
    paid_at: Mutex<Instant>,
}

impl RateLimiter {
    /// `burst` requests may come at once.
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        Self { interval, burst: interval * burst.get(), paid_at: Mutex::new(now) }
    }

    /// Counts a request if there is room for it.
    ///
    /// # Errors
    /// How long to wait for that room; nothing is counted then.
    pub fn spend(&self, now: Instant) -> Result<(), Duration> {
        self.spend_if(self.interval, self.interval, now)
    }

    /// Counts more requests right after a single one, which stood for all of them, if there is room for them or for the most that
    /// there can be room for.
    ///
    /// # Errors
    /// How long to wait for that room; nothing is counted then.
    pub fn spend_more(&self, requests: NonZeroU32, now: Instant) -> Result<(), Duration> {
        let cost = self.interval * requests.get();
        self.spend_if(cost.min(self.burst.saturating_sub(self.interval)), cost, now)
    }

    /// Counts requests whether there is room for them or not: what comes next waits until they are paid.
    pub fn owe(&self, requests: u32, now: Instant) {
        let mut paid_at = self.paid_at();
        *paid_at = (*paid_at).max(now) + self.interval * requests;
    }

    fn spend_if(&self, room: Duration, cost: Duration, now: Instant) -> Result<(), Duration> {
        let mut paid_at = self.paid_at();
        let ahead = paid_at.saturating_duration_since(now);
        match (ahead + room).checked_sub(self.burst) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *paid_at = now + ahead + cost;
                Ok(())
            }
        }
    }

    /// Takes requests back.
    pub fn refund(&self, requests: u32) {
        let mut paid_at = self.paid_at();
        *paid_at = paid_at.checked_sub(self.interval * requests).unwrap_or(*paid_at);
    }

    /// Whether everything is paid.
    pub fn is_idle(&self, now: Instant) -> bool {
        *self.paid_at() <= now
    }

    fn paid_at(&self) -> MutexGuard<'_, Instant> {
        locked(&self.paid_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    #[test]
    fn what_costs_more_than_there_is_room_for_is_paid_off_before_the_next() {
        let now = Instant::now();
        let limiter = RateLimiter::new(n(10), n(10), now);
        let at = |milliseconds| now + Duration::from_millis(milliseconds);
        assert_eq!((limiter.spend(now), limiter.spend_more(n(999), now)), (Ok(()), Ok(())));
        // 1,000 requests at ten a second, of which a second's may be ahead of the clock.
        assert!(limiter.spend(now).unwrap_err() >= Duration::from_secs(99));
        assert!(limiter.spend(at(99_000)).is_err());
        assert_eq!(limiter.spend(at(99_200)), Ok(()));
    }

    #[test]
    fn no_batch_is_refused_for_ever() {
        for rate in [1, 2, 10, 1000] {
            for orders in [1, rate, rate + 1, rate + 2, 1001] {
                let now = Instant::now();
                let limiter = RateLimiter::new(n(rate), n(rate), now);
                assert_eq!(limiter.spend(now), Ok(()));
                let rest = NonZeroU32::new(orders - 1);
                assert_eq!(rest.map_or(Ok(()), |rest| limiter.spend_more(rest, now)), Ok(()), "{orders} at {rate}");
            }
        }
    }
}
