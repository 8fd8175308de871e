//! Amounts of money: integers of up to 256 bits, never floating point.

use alloy::primitives::U256;
use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

/// An amount in an asset's base units (wei, or a token's smallest unit).
///
/// No floating point and no wrapping arithmetic: a sum that does not fit is `None`, and the caller decides. On the wire it is
/// big-endian without leading zeros, in JSON and Postgres a decimal string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(U256);

/// Why text or bytes are no [`Amount`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Something other than decimal digits.
    #[error("expected a whole number of base units in decimal digits, got {0:?}")]
    NotDecimal(String),
    /// More than 2^256 - 1.
    #[error("{0:?} is more than 256 bits hold")]
    TooLarge(String),
    /// More than 32 bytes on the wire.
    #[error("an amount of {0} bytes, expected at most 32")]
    TooLong(usize),
}

impl Amount {
    /// 0.
    pub const ZERO: Self = Self(U256::ZERO);

    /// An amount of base units.
    pub const fn new(units: U256) -> Self {
        Self(units)
    }

    pub const fn units(self) -> U256 {
        self.0
    }

    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// The sum. `None` if it exceeds 256 bits.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Big-endian without leading zeros; 0 is empty.
    pub fn to_wire(self) -> Vec<u8> {
        self.0.to_be_bytes_trimmed_vec()
    }

    /// The reverse of [`to_wire`](Self::to_wire); leading zeros are accepted.
    ///
    /// # Errors
    /// If there are more than 32 bytes.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, AmountError> {
        U256::try_from_be_slice(bytes).map(Self).ok_or(AmountError::TooLong(bytes.len()))
    }

    /// The reverse of [`to_decimal`](Self::to_decimal): digits, optionally followed by a point and at most `decimals` more digits.
    /// `None` if it is not that, or more than 256 bits hold.
    pub fn from_decimal(text: &str, decimals: u8) -> Option<Self> {
        let (whole, fraction) = match text.split_once('.') {
            Some((whole, fraction)) if !fraction.is_empty() => (whole, fraction),
            Some(_) => return None,
            None => (text, ""),
        };
        let zeros = usize::from(decimals).checked_sub(fraction.len())?;
        if whole.is_empty() { None } else { format!("{whole}{fraction}{}", "0".repeat(zeros)).parse().ok() }
    }

    /// The amount in whole coins or tokens, without trailing zeros: `1.5` for 1500000 at 6 decimals.
    pub fn to_decimal(self, decimals: u8) -> String {
        let decimals = usize::from(decimals);
        let digits = format!("{:0>width$}", self.0.to_string(), width = decimals + 1);
        let (whole, fraction) = digits.split_at(digits.len() - decimals);
        match fraction.trim_end_matches('0') {
            "" => whole.to_owned(),
            fraction => format!("{whole}.{fraction}"),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(AmountError::NotDecimal(text.to_owned()));
        }
        U256::from_str_radix(text, 10).map(Self).map_err(|_| AmountError::TooLarge(text.to_owned()))
    }
}

impl From<u64> for Amount {
    fn from(units: u64) -> Self {
        Self(U256::from(units))
    }
}

impl Sum<Amount> for Option<Amount> {
    fn sum<I: Iterator<Item = Amount>>(mut amounts: I) -> Self {
        amounts.try_fold(Amount::ZERO, Amount::checked_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_survives_the_wire_and_text() {
        for text in
            ["0", "1", "9220000000000000001", "115792089237316195423570985008687907853269984665640564039457584007913129639935"]
        {
            let amount: Amount = text.parse().unwrap();
            assert_eq!(amount.to_string(), text);
            assert_eq!(Amount::from_wire(&amount.to_wire()).unwrap(), amount);
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in ["", "-1", "1.5", "0x10", "1e18", " 1", "１"] {
            assert!(matches!(text.parse::<Amount>(), Err(AmountError::NotDecimal(_))), "{text:?}");
        }
        let too_large = format!("1{}", "0".repeat(78));
        assert!(matches!(too_large.parse::<Amount>(), Err(AmountError::TooLarge(_))));
        assert_eq!(Amount::from_wire(&[1; 33]), Err(AmountError::TooLong(33)));
    }

    #[test]
    fn decimals_are_exact() {
        let amount = |n: u64| Amount::from(n);
        assert_eq!(amount(1_500_000).to_decimal(6), "1.5");
        assert_eq!(amount(1).to_decimal(18), "0.000000000000000001");
        assert_eq!(amount(1_000_000).to_decimal(6), "1");
        assert_eq!(amount(42).to_decimal(0), "42");
        assert_eq!(amount(0).to_decimal(6), "0");
        let read = |text: &str, decimals| Amount::from_decimal(text, decimals);
        assert_eq!(read("1.5", 6), Some(amount(1_500_000)));
        assert_eq!([read("0.000001", 6), read("007", 0), read("1.50", 2)], [amount(1), amount(7), amount(150)].map(Some));
        for (wrong, decimals) in
            [("1.5", 0), ("0.0000001", 6), ("1.50", 1), (".5", 6), ("1.", 6), ("", 6), ("-1", 6), ("1e3", 6), ("1.-1", 6)]
        {
            assert_eq!(read(wrong, decimals), None, "{wrong}");
        }
        assert_eq!(read(&"9".repeat(78), 0), None, "more than 256 bits");
    }

    #[test]
    fn a_sum_that_overflows_is_none() {
        let max = Amount::new(U256::MAX);
        assert_eq!([max, Amount::from(1)].into_iter().sum::<Option<Amount>>(), None);
    }
}
