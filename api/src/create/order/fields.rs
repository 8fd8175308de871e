//! Reads and checks single fields of an order. Each function takes its fields out, notes what is wrong with them, and returns
//! `None` for a field that is left out or wrong.

use crate::chains::catalog::{self, COIN, Catalog};
use crate::http::fields::{Fields, integer_digits};
use base::json::{check_storable, check_storable_text};
use base::text::excerpt;
use chain::Chain;
use payments::Asset;
use serde_json::value::RawValue;
use std::ops::RangeInclusive;
use topics::{Amount, ChainId};

/// The ways to name a token; at most one is used.
const TOKEN_FIELDS: [&str; 3] = ["token", "token_id", "token_contract_address"];
/// Characters.
const MAX_EXTERNAL_ID_LENGTH: usize = 255;
/// Bytes of JSON.
pub const MAX_METADATA_BYTES: usize = 16 * 1024;

/// The required positive amount, in base units or in whole coins or tokens.
pub fn amount(fields: &mut Fields<'_>, asset: Option<&Asset>) -> Option<Amount> {
    match (fields.has("amount"), fields.has("amount_decimal")) {
        (true, false) => amount_in_base_units(fields, asset),
        (false, true) => amount_in_whole(fields, asset?),
        (false, false) => {
            fields.refuse("amount", "missing; expected a positive whole number of base units, or amount_decimal");
            None
        }
        (true, true) => {
            fields.refuse("amount_decimal", "the amount is given as amount already; expected one of them");
            None
        }
    }
}

fn amount_in_base_units(fields: &mut Fields<'_>, asset: Option<&Asset>) -> Option<Amount> {
    let raw = fields.raw("amount")?;
    let expected = "expected a positive whole number of base units below 2^256, as JSON integer or string";
    let amount = base_units(raw).filter(|amount| !amount.is_zero());
    fields.check("amount", amount.ok_or_else(|| format!("{expected}, got {}{}", excerpt(raw.get()), meant(raw, asset))))
}

/// The base units that a number with a point may stand for.
fn meant(raw: &RawValue, asset: Option<&Asset>) -> String {
    let text: String = serde_json::from_str(raw.get()).unwrap_or_else(|_| raw.get().to_owned());
    let meant = asset
        .filter(|_| text.contains('.') && excerpt(&text) == text)
        .and_then(|asset| Some((asset, Amount::from_decimal(&text, asset.decimals)?)));
    meant.map_or_else(String::new, |(asset, units)| {
        format!("; {text} of {} is {units}, or write amount_decimal instead", asset_name(asset))
    })
}

fn amount_in_whole(fields: &mut Fields<'_>, asset: &Asset) -> Option<Amount> {
    let text = fields.text("amount_decimal")?;
    let (name, decimals) = (asset_name(asset), asset.decimals);
    let amount = Amount::from_decimal(&text, decimals).filter(|amount| !amount.is_zero());
    let expected = format_args!(
        "expected a positive number of {name} below 2^256 base units, with at most {decimals} digits after the point"
    );
    fields.check("amount_decimal", amount.ok_or_else(|| format!("{expected}, got {:?}", excerpt(&text))))
}

fn asset_name(asset: &Asset) -> &str {
    asset.token.as_ref().map_or("the coin", |token| &token.symbol)
}

/// A tolerance; zero is one.
pub fn tolerance(fields: &mut Fields<'_>, name: &str) -> Option<Amount> {
    let raw = fields.raw(name)?;
    let expected = "expected a whole number of base units below 2^256, as JSON integer or string";
    fields.check(name, base_units(raw).ok_or_else(|| format!("{expected}, got {}", excerpt(raw.get()))))
}

/// Parsed from the text itself: a JSON number that went through a double has 53 bits left.
fn base_units(raw: &RawValue) -> Option<Amount> {
    let text: String = serde_json::from_str(raw.get()).unwrap_or_else(|_| integer_digits(raw.get()).to_owned());
    text.parse().ok()
}

/// The chain, by `chain`, `chain_id` or both.
pub fn chain<'c>(fields: &mut Fields<'_>, catalog: &'c Catalog) -> Option<&'c Chain> {
    if !fields.has("chain") && !fields.has("chain_id") {
        fields.refuse("chain", format_args!("missing; expected one of {}, or a chain_id", catalog.names()));
        return None;
    }
    let by_name = fields.text("chain").and_then(|name| fields.check("chain", catalog.by_name(&name)));
    let by_id = fields.number("chain_id").and_then(|id| fields.check("chain_id", catalog.by_id(ChainId(id))));
    if let (Some(named), Some(numbered)) = (by_name, by_id)
        && named.id != numbered.id
    {
        fields.refuse("chain_id", format_args!("chain {} has id {}, got {}", named.name, named.id, numbered.id));
        return None;
    }
    by_name.or(by_id)
}

/// The token, or the chain's coin when none is named.
pub fn asset(fields: &mut Fields<'_>, chain: Option<&Chain>) -> Option<Asset> {
    let given: Vec<&str> = TOKEN_FIELDS.into_iter().filter(|name| fields.has(name)).collect();
    let texts = given.iter().map(|name| fields.text(name)).collect::<Vec<_>>();
    match (given.as_slice(), texts.as_slice()) {
        ([], _) => Some(COIN),
        ([name], [Some(text)]) => {
            let chain = chain?;
            let asset = match *name {
                "token" => catalog::by_symbol(chain, text),
                "token_id" => catalog::by_token_id(chain, text),
                _ => catalog::by_address(chain, text),
            };
            fields.check(name, asset)
        }
        ([_], _) => None,
        ([first, second, ..], _) => {
            fields.refuse(
                second,
                format_args!("the token is given as {first} already; expected one of {}", TOKEN_FIELDS.join(", ")),
            );
            None
        }
    }
}

/// Refuses an amount that no transfer of it would pay.
pub fn payable(fields: &mut Fields<'_>, given: &str, chain: &Chain, asset: &Asset, amount: Amount) {
    let least = chain.min_transfer_of(asset.token.as_ref().map(|token| token.address));
    if amount < least {
        let name = asset_name(asset);
        let shown = |amount: Amount| match given {
            "amount_decimal" => amount.to_decimal(asset.decimals),
            _ => amount.to_string(),
        };
        let (least, amount) = (shown(least), shown(amount));
        let message = format!("expected at least {least}: less of {name} does not count on chain {}, got {amount}", chain.name);
        fields.refuse(given, message);
    }
}

/// A whole number within bounds.
pub fn bounded(fields: &mut Fields<'_>, name: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
    let number = fields.number(name)?;
    let (min, max) = (bounds.start(), bounds.end());
    fields
        .check(name, if bounds.contains(&number) { Ok(number) } else { Err(format!("expected {min} to {max}, got {number}")) })
}

/// The merchant's own reference.
pub fn external_id(fields: &mut Fields<'_>) -> Option<String> {
    let text = fields.text("external_id")?;
    let length = text.chars().count();
    let checked = match length {
        1..=MAX_EXTERNAL_ID_LENGTH => check_storable_text(&text).map(|()| text),
        _ => Err(format!("expected 1 to {MAX_EXTERNAL_ID_LENGTH} characters, got {length}")),
    };
    fields.check("external_id", checked)
}

/// The merchant's JSON object, as it was written.
pub fn metadata(fields: &mut Fields<'_>) -> Option<String> {
    let raw = fields.raw("metadata")?.get();
    let checked = if !raw.starts_with('{') {
        Err(format!("expected a JSON object, got {}", excerpt(raw)))
    } else if raw.len() > MAX_METADATA_BYTES {
        Err(format!("expected at most {MAX_METADATA_BYTES} bytes, got {}", raw.len()))
    } else {
        check_storable(raw).map(|()| raw.to_owned())
    };
    fields.check("metadata", checked)
}
