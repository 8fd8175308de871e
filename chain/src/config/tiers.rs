//! Amounts of `chains.yaml` in whole coins or tokens: of confirmation tiers, which are policies by amount, and of `min_transfer`.

use super::chain::{Policy, Tier};
use super::keys::UniqueKeys;
use super::scalar::{Scalar, Whole};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use topics::Amount;

/// A tier as written. Its amount becomes base units once the asset's decimals are known.
pub(super) struct RawTier {
    from: Scalar<Decimal>,
    confirmations: Option<Whole<NonZeroU32>>,
    finality: Option<Finality>,
}

impl<'de> Deserialize<'de> for RawTier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(remote = "RawTier", deny_unknown_fields)]
        struct Fields {
            from: Scalar<Decimal>,
            confirmations: Option<Whole<NonZeroU32>>,
            finality: Option<Finality>,
        }
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = RawTier;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tier: from, and confirmations or finality")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawTier, A::Error> {
                Fields::deserialize(MapAccessDeserializer::new(UniqueKeys::new(map)))
            }
        }
        deserializer.deserialize_map(Entry)
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Finality {
    Safe,
    Finalized,
}

/// An amount in whole coins or tokens: digits, optionally followed by a point and more digits.
pub(super) struct Decimal(pub String);

impl FromStr for Decimal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let fits = match text.split_once('.') {
            Some((whole, fraction)) => digits(whole) && digits(fraction),
            None => digits(text),
        };
        if fits { Ok(Self(text.to_owned())) } else { Err(format!("expected whole coins or tokens like 1.5, got {text:?}")) }
    }
}

/// The policy of a confirmation count or a finality tag; `None` if neither is given.
///
/// # Errors
/// If both are given.
pub(super) fn policy(count: Option<Whole<NonZeroU32>>, finality: Option<Finality>) -> Result<Option<Policy>, &'static str> {
    match (count, finality) {
        (Some(_), Some(_)) => Err("confirmations and finality are both given; expected one of them"),
        (Some(Whole(count)), None) => Ok(Some(Policy::Confirmations(count.get()))),
        (None, Some(Finality::Safe)) => Ok(Some(Policy::Safe)),
        (None, Some(Finality::Finalized)) => Ok(Some(Policy::Finalized)),
        (None, None) => Ok(None),
    }
}

/// Checks the tiers of an asset and sorts them by amount.
///
/// # Errors
/// If a tier has no policy or more decimals than the asset, or two begin at the same amount.
pub(super) fn check(raw: Vec<RawTier>, decimals: u8) -> Result<Vec<Tier>, String> {
    let mut tiers = raw
        .into_iter()
        .map(|RawTier { from: Scalar(Decimal(text)), confirmations, finality }| {
            let policy = policy(confirmations, finality)
                .and_then(|policy| policy.ok_or("confirmations is missing; expected it or finality"))
                .map_err(|message| format!("tiers: from {text}: {message}"))?;
            let from = base_units(&text, decimals)
                .ok_or_else(|| format!("tiers: from {text}: expected at most {decimals} digits after the point"))?;
            Ok(Tier { from, policy })
        })
        .collect::<Result<Vec<_>, String>>()?;
    tiers.sort_by_key(|tier| tier.from);
    match tiers.windows(2).find(|pair| matches!(pair, [one, other] if one.from == other.from)) {
        Some([one, ..]) => Err(format!("tiers: two begin at {}; expected each once", one.from.to_decimal(decimals))),
        _ => Ok(tiers),
    }
}

/// An amount of an asset under a key, such as `min_transfer`; `None` if it is left out.
///
/// # Errors
/// If it has more decimals than the asset.
pub(super) fn amount(key: &str, raw: Option<Scalar<Decimal>>, decimals: u8) -> Result<Option<Amount>, String> {
    let units = |Scalar(Decimal(text)): Scalar<Decimal>| {
        base_units(&text, decimals)
            .ok_or_else(|| format!("{key}: expected at most {decimals} digits after the point, got {text}"))
    };
    raw.map(units).transpose()
}

/// Converts exactly: digits below a base unit are refused, not cut off.
pub(super) fn base_units(text: &str, decimals: u8) -> Option<Amount> {
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text };
    Amount::from_decimal(text, decimals)
}
