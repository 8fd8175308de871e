//! A merchant's settings: what its payments are made with unless a request says otherwise.

use runtime::Failure;
use topics::{Amount, U256};
use uuid::Uuid;

/// Of a whole: hundredths of a percent.
const WHOLE: u32 = 10_000;

/// One merchant, as its row was lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merchant {
    /// Identity.
    pub id: Uuid,
    /// Fingerprint of the account that its addresses are derived from; `None` is cTrip's own.
    pub xpub: Option<String>,
    /// Its terms.
    pub terms: DefaultTerms,
}

/// Terms as shares of an amount that is not known yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DefaultTerms {
    /// How much less is as good as the amount.
    pub underpaid: Share,
    /// How much more is no exception.
    pub overpaid: Share,
    /// A late transfer counts.
    pub accept_late: bool,
}

/// Hundredths of a percent, 0 to 10,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share(u32);

/// The most by which less can be as good: something has to be paid.
pub fn all_but_one(amount: Amount) -> Amount {
    Amount::new(amount.units().saturating_sub(U256::ONE))
}

impl DefaultTerms {
    /// How much less is as good as this amount: always less than all of it.
    pub fn underpaid_of(&self, amount: Amount) -> Amount {
        self.underpaid.of(amount).min(all_but_one(amount))
    }
}

impl Share {
    /// From the database, which checks the bounds too.
    ///
    /// # Errors
    /// When it is out of them.
    pub fn new(bps: i32) -> Result<Self, Failure> {
        let bps = u32::try_from(bps).ok().filter(|bps| *bps <= WHOLE);
        bps.map(Self).ok_or_else(|| Failure::Halt(anyhow::anyhow!("a tolerance is not within 0 to {WHOLE} bps")))
    }

    /// That share of an amount, rounded down to base units.
    pub fn of(self, amount: Amount) -> Amount {
        let (share, whole) = (U256::from(self.0), U256::from(WHOLE));
        let units = amount.units();
        // Apart, since the product of a large amount would not fit into 256 bits.
        let (quotient, rest) = (units / whole, units % whole);
        Amount::new(quotient * share + rest * share / whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_down_and_never_overflows() {
        let of = |bps, units: u64| Share::new(bps).unwrap().of(Amount::from(units));
        assert_eq!(of(50, 1_000), Amount::from(5));
        assert_eq!(of(50, 199), Amount::ZERO);
        assert_eq!(of(1, 19_999), Amount::from(1));
        assert_eq!(of(0, u64::MAX), Amount::ZERO);
        assert_eq!(of(10_000, 7), Amount::from(7));
        assert_eq!(Share::new(10_000).unwrap().of(Amount::new(U256::MAX)), Amount::new(U256::MAX));
        assert!(Share::new(-1).is_err() && Share::new(10_001).is_err());
    }
}
