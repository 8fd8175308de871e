//! What an API key allows: its merchant, its scope and its rate limit.
//!
//! The limiter is of this process alone: behind n instances of the API a key has n times its limit.

use crate::keys::{KeyId, Scope};
use crate::merchant::Merchant;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// What a key allows. A key that does not work has none.
#[derive(Debug)]
pub struct Grant {
    pub id: KeyId,
    pub scope: Scope,
    pub merchant: Merchant,
    /// Requests per second; `None` is the API's default.
    pub(crate) rate_limit: Option<NonZeroU32>,
    pub(crate) limiter: Option<Arc<DefaultDirectRateLimiter>>,
}

/// A new limiter, with the burst of one second.
pub(crate) fn rate_limiter(per_second: NonZeroU32) -> Arc<DefaultDirectRateLimiter> {
    Arc::new(RateLimiter::direct(Quota::per_second(per_second)))
}

impl Grant {
    /// Counts requests against the key's rate limit.
    ///
    /// # Errors
    /// The time to wait, when the key is over its limit. A batch larger than the limit of a second counts as what is left of that
    /// limit after the HTTP request, which was counted before. Otherwise no wait would ever let it through.
    pub fn spend(&self, requests: NonZeroU32) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        let wait = |until: &governor::NotUntil<_>| until.wait_time_from(DefaultClock::default().now());
        match limiter.check_n(requests) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(wait(&until)),
            Err(governor::InsufficientCapacity(most)) => {
                let rest = NonZeroU32::new(most.saturating_sub(1));
                match rest.map(|rest| limiter.check_n(rest)) {
                    Some(Ok(Err(until))) => Err(wait(&until)),
                    _ => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::hash_key;
    use crate::merchant::DefaultTerms;
    use uuid::Uuid;

    fn grant(rate: Option<u32>) -> Grant {
        let rate = rate.and_then(NonZeroU32::new);
        let limiter = rate.map(rate_limiter);
        let merchant = Merchant { id: Uuid::nil(), xpub: None, terms: DefaultTerms::default() };
        Grant { id: KeyId::of(&hash_key("k")), scope: Scope::Read, merchant, rate_limit: rate, limiter }
    }

    fn n(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    #[test]
    fn a_key_that_had_its_share_is_told_how_long_to_wait() {
        let limited = grant(Some(2));
        assert_eq!(limited.spend(n(1)), Ok(()));
        assert_eq!(limited.spend(n(1)), Ok(()));
        let wait = limited.spend(n(1)).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
        let unlimited = grant(None);
        assert!((0..10_000).all(|_| unlimited.spend(n(1)).is_ok()));
    }

    #[test]
    fn a_batch_above_a_seconds_share_empties_it_and_is_not_refused_for_ever() {
        let limited = grant(Some(10));
        assert_eq!(limited.spend(n(1)), Ok(()));
        assert_eq!(limited.spend(n(999)), Ok(()));
        assert!(limited.spend(n(1)).is_err());
        let slow = grant(Some(1));
        assert_eq!((slow.spend(n(1)), slow.spend(n(9))), (Ok(()), Ok(())));
    }
}
