//! What an API key allows: its merchant, its scope and its rate limit.
//!
//! The limiter is of this process alone: behind n instances of the API a key has n times its limit.

use crate::keys::{KeyId, Scope};
use crate::merchant::Merchant;
use crate::rate_limit::RateLimiter;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a key allows. A key that does not work has none.
#[derive(Debug)]
pub struct Grant {
    pub id: KeyId,
    pub scope: Scope,
    pub merchant: Merchant,
    /// How many webhooks the merchant has.
    pub(crate) webhooks: u32,
    /// Requests per second; `None` is the API's default.
    pub(crate) rate_limit: Option<NonZeroU32>,
    pub(crate) limiter: Option<Arc<RateLimiter>>,
}

/// A new limiter, with the burst of one second.
pub(crate) fn rate_limiter(per_second: NonZeroU32) -> Arc<RateLimiter> {
    Arc::new(RateLimiter::new(per_second, per_second, Instant::now()))
}

impl Grant {
    /// Counts a request against the key's rate limit.
    ///
    /// # Errors
    /// The time to wait, when the key is over its limit.
    pub fn spend(&self) -> Result<(), Duration> {
        self.limiter.as_ref().map_or(Ok(()), |limiter| limiter.spend(Instant::now()))
    }

    /// Counts the orders of a batch beyond the first, for which its request was counted.
    ///
    /// # Errors
    /// The time to wait, when the key is over its limit. A batch larger than the limit of a second needs what is left of that after
    /// its request, and counts whole: what comes next waits for it.
    pub fn spend_orders(&self, orders: usize) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        let more = NonZeroU32::new(u32::try_from(orders).unwrap_or(u32::MAX).saturating_sub(1));
        more.map_or(Ok(()), |more| limiter.spend_more(more, Instant::now()))
    }

    /// Counts payments that are about to be made as much again for each of the merchant's webhooks beyond the first, as debt: the
    /// deliveries of all merchants are written one after another.
    pub fn owe_deliveries(&self, payments: usize) {
        if let Some(limiter) = &self.limiter {
            limiter.owe(self.more_deliveries(payments), Instant::now());
        }
    }

    /// Takes back what is owed for payments that were not made.
    pub fn forgive_deliveries(&self, payments: usize) {
        if let Some(limiter) = &self.limiter {
            limiter.refund(self.more_deliveries(payments));
        }
    }

    fn more_deliveries(&self, payments: usize) -> u32 {
        u32::try_from(payments).unwrap_or(u32::MAX).saturating_mul(self.webhooks.saturating_sub(1))
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
        let merchant = Merchant { id: Uuid::nil(), xpub: None, restored_account: None, terms: DefaultTerms::default() };
        Grant { id: KeyId::of(&hash_key("k")), scope: Scope::Read, merchant, webhooks: 0, rate_limit: rate, limiter }
    }

    #[test]
    fn a_key_that_had_its_share_is_told_how_long_to_wait() {
        let limited = grant(Some(2));
        assert_eq!(limited.spend(), Ok(()));
        assert_eq!(limited.spend(), Ok(()));
        let wait = limited.spend().unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
        let unlimited = grant(None);
        assert!((0..10_000).all(|_| unlimited.spend().is_ok()));
    }

    #[test]
    fn a_batch_above_a_seconds_share_empties_it_and_is_not_refused_for_ever() {
        let limited = grant(Some(10));
        assert_eq!(limited.spend(), Ok(()));
        assert_eq!(limited.spend_orders(1000), Ok(()));
        assert!(limited.spend().is_err());
        let slow = grant(Some(1));
        assert_eq!((slow.spend(), slow.spend_orders(10)), (Ok(()), Ok(())));
    }

    #[test]
    fn an_order_costs_as_much_as_its_merchant_has_webhooks_and_is_not_refused_for_that() {
        let next = |webhooks: u32| {
            let grant = Grant { webhooks, ..grant(Some(10)) };
            assert_eq!((grant.spend(), grant.spend_orders(1)), (Ok(()), Ok(())));
            grant.owe_deliveries(1);
            grant.spend()
        };
        assert_eq!((next(0), next(1)), (Ok(()), Ok(())));
        assert!(next(20).unwrap_err() > Duration::from_millis(500), "twenty at ten a second");
        // A key that is busy otherwise has its turn too.
        let busy = Grant { webhooks: 20, ..grant(Some(20)) };
        assert!((0..19).all(|_| busy.spend().is_ok()));
        assert_eq!((busy.spend(), busy.spend_orders(1)), (Ok(()), Ok(())));
    }

    #[test]
    fn orders_of_which_nothing_is_made_owe_nothing_for_webhooks() {
        let grant = Grant { webhooks: 20, ..grant(Some(10)) };
        assert_eq!((grant.spend(), grant.spend_orders(1_000)), (Ok(()), Ok(())));
        grant.owe_deliveries(1_000);
        assert!(grant.spend().unwrap_err() > Duration::from_secs(1_900), "what is being made is owed for");
        grant.forgive_deliveries(1_000);
        assert!(grant.spend().unwrap_err() <= Duration::from_secs(100));
    }
}
