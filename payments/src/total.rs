//! Sums of amounts, exact beyond 256 bits.
//!
//! A token's contract may claim any amount, so a sum may exceed what an [`Amount`] holds. A sum that stopped at 256 bits could not
//! be taken back by a reorg; so sums are exact, and only what is shown of them stops there.

use std::fmt;
use std::str::FromStr;
use topics::{Amount, U256, U512};

/// A sum of amounts of one asset. 2^256 of the largest amounts fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Total(U512);

impl Total {
    /// 0.
    pub const ZERO: Self = Self(U512::ZERO);

    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    pub fn plus(self, other: impl Into<Self>) -> Self {
        Self(self.0.saturating_add(other.into().0))
    }

    /// The rest once `part` is taken back, which was part of the sum.
    pub fn minus(self, part: Self) -> Self {
        Self(self.0.saturating_sub(part.0))
    }

    /// The largest amount if the sum exceeds it.
    pub fn saturated(self) -> Amount {
        Amount::new(self.0.saturating_to())
    }

    /// Whether [`saturated`](Self::saturated) is less than the sum.
    pub fn is_saturated(self) -> bool {
        self.0 > U512::from(U256::MAX)
    }
}

impl From<Amount> for Total {
    fn from(amount: Amount) -> Self {
        Self(U512::from(amount.units()))
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no sum of amounts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a sum in decimal digits, got {0:?}")]
pub struct NoTotal(String);

impl FromStr for Total {
    type Err = NoTotal;

    fn from_str(text: &str) -> Result<Self, NoTotal> {
        U512::from_str_radix(text, 10).map(Self).map_err(|_| NoTotal(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_an_amount_is_shown_as_the_largest_and_can_be_taken_back() {
        let most = Amount::new(U256::MAX);
        let sum = Total::from(most).plus(Amount::from(7));
        assert!(sum.is_saturated() && sum.saturated() == most);
        assert_eq!(sum.to_string().parse(), Ok(sum));
        assert_eq!(sum.minus(most.into()).saturated(), Amount::from(7));
        assert!(!Total::from(most).is_saturated());
        assert!(Total::ZERO.is_zero() && sum.minus(sum).is_zero() && !sum.is_zero());
    }
}
