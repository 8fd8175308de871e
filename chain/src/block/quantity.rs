//! JSON-RPC quantities: numbers as hexadecimal text.

use serde::Deserializer;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
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

/// What a node says of a price: a hexadecimal or a plain number, with `None` for null alone. Nothing rests on it but whether it
/// is the price that we derive, so whatever else it says is read as the highest number, which is nobody's price.
pub(super) fn said_price<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u128>, D::Error> {
    struct SaidPrice;
    const NO_PRICE: Option<u128> = Some(u128::MAX);
    impl<'de> Visitor<'de> for SaidPrice {
        type Value = Option<u128>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("anything")
        }

        fn visit_str<E>(self, text: &str) -> Result<Option<u128>, E> {
            Ok(text.strip_prefix("0x").and_then(|digits| u128::from_str_radix(digits, 16).ok()).or(NO_PRICE))
        }

        fn visit_u64<E>(self, number: u64) -> Result<Option<u128>, E> {
            Ok(Some(number.into()))
        }

        fn visit_unit<E>(self) -> Result<Option<u128>, E> {
            Ok(None)
        }

        fn visit_bool<E>(self, _: bool) -> Result<Option<u128>, E> {
            Ok(NO_PRICE)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Option<u128>, E> {
            Ok(NO_PRICE)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Option<u128>, E> {
            Ok(NO_PRICE)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Option<u128>, A::Error> {
            IgnoredAny.visit_seq(list).map(|_| NO_PRICE)
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<u128>, A::Error> {
            IgnoredAny.visit_map(map).map(|_| NO_PRICE)
        }
    }
    deserializer.deserialize_any(SaidPrice)
}
