//! JSON-RPC quantities: numbers as hexadecimal text.

use serde::Deserializer;
use serde::de::{Error, Unexpected, Visitor};
use std::fmt;

/// A hexadecimal number. A plain number is accepted too, since some nodes send one; null is 0.
pub(super) fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    optional_quantity(deserializer).map(Option::unwrap_or_default)
}

/// As [`quantity`], with `None` for null.
pub(super) fn optional_quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Quantity;
    impl Visitor<'_> for Quantity {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number like 0x1f of up to 64 bits")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Option<u64>, E> {
            let number = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
            number.map(Some).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }

        fn visit_u64<E>(self, number: u64) -> Result<Option<u64>, E> {
            Ok(Some(number))
        }

        fn visit_unit<E>(self) -> Result<Option<u64>, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(Quantity)
}
