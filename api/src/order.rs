//! What a create request asks for, read and checked. No IO, no clock.

use crate::catalog::{self, COIN, Catalog};
use crate::fields::{Fields, shown, storable, storable_text, whole};
use crate::merchant::{self, DefaultTerms};
use crate::problem::Problem;
use crate::replay;
use chain::Chain;
use confirmer::{Asset, Policy, Terms};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use std::ops::RangeInclusive;
use topics::{Amount, ChainId};

/// What a create request may have, as `openapi` documents it.
pub const FIELDS: [&str; 13] = [
    "amount",
    "chain",
    "chain_id",
    "token",
    "token_id",
    "token_contract_address",
    "expires_in",
    "external_id",
    "metadata",
    "confirmations",
    "underpaid_tolerance",
    "overpaid_tolerance",
    "accept_late",
];
/// The ways to name a token; at most one is used.
const TOKEN_FIELDS: [&str; 3] = ["token", "token_id", "token_contract_address"];

/// Of an order in a batch; alone it has a header.
const KEY: &str = "idempotency_key";

const DEFAULT_EXPIRES_IN: u64 = 3600;
/// A minute, since paying takes that long, to 30 days.
const EXPIRES_IN: RangeInclusive<u64> = 60..=30 * 24 * 3600;
const CONFIRMATIONS: RangeInclusive<u64> = 1..=10_000;
const LONGEST_EXTERNAL_ID: usize = 255;
const LARGEST_METADATA: usize = 16 * 1024;

/// A payment to be made, without the address and the times it will have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Where it is to be paid.
    pub chain: ChainId,
    /// That chain's name.
    pub chain_name: String,
    /// In what.
    pub asset: Asset,
    /// How much.
    pub amount: Amount,
    /// What the merchant puts up with.
    pub terms: Terms,
    /// When it counts for good.
    pub policy: Policy,
    /// Seconds.
    pub expires_in: u64,
    /// The merchant's own reference.
    pub external_id: Option<String>,
    /// The merchant's JSON object, as it was written.
    pub metadata: Option<String>,
    /// The same for every request that asks for the same, however it is written.
    pub fingerprint: [u8; 32],
}

impl Order {
    /// Reads a request's body.
    ///
    /// # Errors
    /// A problem that names every field that is wrong and says what was expected there.
    pub fn read(body: &[u8], catalog: &Catalog, terms: DefaultTerms) -> Result<Self, Problem> {
        Self::read_fields(Fields::read(body)?, catalog, terms, &FIELDS)
    }

    /// Reads an order of a batch, which may have an `idempotency_key` of its own beside.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_item(body: &[u8], catalog: &Catalog, terms: DefaultTerms) -> Result<(Self, Option<String>), Problem> {
        let mut fields = Fields::read(body)?;
        let key = fields.text(KEY).and_then(|key| fields.check(KEY, replay::check(&key).map(|()| key.clone())));
        let order = Self::read_fields(fields, catalog, terms, &[FIELDS.as_slice(), &[KEY]].concat())?;
        Ok((order, key))
    }

    fn read_fields(mut fields: Fields<'_>, catalog: &Catalog, terms: DefaultTerms, known: &[&str]) -> Result<Self, Problem> {
        let amount = amount(&mut fields);
        let chain = chain(&mut fields, catalog);
        let asset = asset(&mut fields, chain);
        let expires_in = bounded(&mut fields, "expires_in", EXPIRES_IN);
        let confirmations = bounded(&mut fields, "confirmations", CONFIRMATIONS);
        let external_id = external_id(&mut fields);
        let metadata = metadata(&mut fields);
        let underpaid = tolerance(&mut fields, "underpaid_tolerance");
        let overpaid = tolerance(&mut fields, "overpaid_tolerance");
        let accept_late = fields.flag("accept_late");
        let finished = fields.finish(known);
        let (Some(amount), Some(chain), Some(asset)) = (amount, chain, asset) else {
            return Err(finished.err().unwrap_or_else(Problem::internal));
        };
        finished?;

        let expires_in = expires_in.unwrap_or(DEFAULT_EXPIRES_IN);
        // A count takes the place of the chain's policy whatever that is: who asks for one knows the amount at stake.
        let count = confirmations.and_then(|count| u32::try_from(count).ok());
        let token = asset.token.as_ref().map(|token| token.address);
        let asked = (
            chain.id.0,
            token,
            amount.to_string(),
            expires_in,
            &external_id,
            &metadata,
            count,
            // As asked for: a merchant may change its own terms between two tries of a request.
            (underpaid.map(|sum| sum.to_string()), overpaid.map(|sum| sum.to_string()), accept_late),
        );
        let asked = serde_json::to_vec(&asked).map_err(|_| Problem::internal())?;
        Ok(Self {
            chain: chain.id,
            chain_name: chain.name.clone(),
            asset,
            amount,
            terms: Terms {
                underpaid_tolerance: underpaid.unwrap_or_else(|| terms.underpaid_of(amount)).min(merchant::all_but_one(amount)),
                overpaid_tolerance: overpaid.unwrap_or_else(|| terms.overpaid.of(amount)),
                accept_late: accept_late.unwrap_or(terms.accept_late),
            },
            policy: count.map_or_else(|| chain.policy_for(token, amount).into(), Policy::Confirmations),
            expires_in,
            external_id,
            metadata,
            fingerprint: Sha256::digest(asked).into(),
        })
    }
}

fn amount(fields: &mut Fields<'_>) -> Option<Amount> {
    let Some(raw) = fields.raw("amount") else {
        fields.refuse("amount", "missing; expected a positive whole number of base units");
        return None;
    };
    let amount = units(raw).filter(|amount| !amount.is_zero());
    let expected = "expected a positive whole number of base units below 2^256, as JSON integer or string";
    fields.check("amount", amount.ok_or_else(|| format!("{expected}, got {}", shown(raw.get()))))
}

fn tolerance(fields: &mut Fields<'_>, name: &str) -> Option<Amount> {
    let raw = fields.raw(name)?;
    let expected = "expected a whole number of base units below 2^256, as JSON integer or string";
    fields.check(name, units(raw).ok_or_else(|| format!("{expected}, got {}", shown(raw.get()))))
}

/// From the text itself: a JSON number that went through a double has 53 bits left.
fn units(raw: &RawValue) -> Option<Amount> {
    let text: String = serde_json::from_str(raw.get()).unwrap_or_else(|_| whole(raw.get()).to_owned());
    text.parse().ok()
}

fn chain<'c>(fields: &mut Fields<'_>, catalog: &'c Catalog) -> Option<&'c Chain> {
    if !fields.has("chain") && !fields.has("chain_id") {
        fields.refuse("chain", format_args!("missing; name one of {}, or give its chain_id", catalog.names()));
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

fn asset(fields: &mut Fields<'_>, chain: Option<&Chain>) -> Option<Asset> {
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

fn bounded(fields: &mut Fields<'_>, name: &str, bounds: RangeInclusive<u64>) -> Option<u64> {
    let number = fields.number(name)?;
    let (least, most) = (bounds.start(), bounds.end());
    fields.check(
        name,
        if bounds.contains(&number) { Ok(number) } else { Err(format!("expected {least} to {most}, got {number}")) },
    )
}

/// The merchant's own reference.
pub fn external_id(fields: &mut Fields<'_>) -> Option<String> {
    let text = fields.text("external_id")?;
    let length = text.chars().count();
    let checked = match length {
        1..=LONGEST_EXTERNAL_ID => storable_text(&text).map(|()| text),
        _ => Err(format!("expected 1 to {LONGEST_EXTERNAL_ID} characters, got {length}")),
    };
    fields.check("external_id", checked)
}

/// The merchant's JSON object, as it was written.
pub fn metadata(fields: &mut Fields<'_>) -> Option<String> {
    let raw = fields.raw("metadata")?.get();
    let checked = if !raw.starts_with('{') {
        Err(format!("expected a JSON object, got {}", shown(raw)))
    } else if raw.len() > LARGEST_METADATA {
        Err(format!("expected at most {LARGEST_METADATA} bytes, got {}", raw.len()))
    } else {
        storable(raw).map(|()| raw.to_owned())
    };
    fields.check("metadata", checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::catalog;
    use crate::merchant::Share;
    use serde_json::Value;

    fn read(body: &str) -> Result<Order, Value> {
        Order::read(body.as_bytes(), &catalog(), DefaultTerms::default())
            .map_err(|problem| serde_json::to_value(problem).unwrap())
    }

    fn refused(body: &str) -> Vec<String> {
        let problem = read(body).expect_err(body);
        assert_eq!(problem["status"], 422, "{problem}");
        problem["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn no_amount_is_rounded_on_its_way() {
        let max = "115792089237316195423570985008687907853269984665640564039457584007913129639935";
        for digits in ["1", "100000000000000", "9007199254740993", "18446744073709551616", max] {
            let number = read(&format!(r#"{{"chain":"anvil","amount":{digits}}}"#)).unwrap();
            let text = read(&format!(r#"{{"chain_id":31337,"amount":"{digits}"}}"#)).unwrap();
            assert_eq!(number.amount.to_string(), digits);
            assert_eq!(number, text, "the same order, so the same fingerprint");
            assert_eq!(number, read(&format!(r#"{{"chain":"anvil","amount":{digits}.0}}"#)).unwrap());
        }
    }

    #[test]
    fn what_is_no_amount_names_the_field() {
        for amount in
            ["0", "0.0", "-1", "1.5", "1e18", "\"1.0\"", "\"0x10\"", "\"\"", "\" 1\"", "true", "[1]", "null", "\"1_000\"", "{}"]
        {
            assert_eq!(refused(&format!(r#"{{"chain":"anvil","amount":{amount}}}"#)), ["amount"], "{amount}");
        }
        assert_eq!(refused(&format!(r#"{{"chain":"anvil","amount":1{}}}"#, "0".repeat(78))), ["amount"]);
        assert_eq!(refused(r#"{"chain":"anvil"}"#), ["amount"]);
    }

    #[test]
    fn the_chain_is_named_once_or_twice_alike() {
        let order = read(r#"{"amount":1,"chain":"anvil","chain_id":31337}"#).unwrap();
        assert_eq!((order.chain, order.policy, order.expires_in), (ChainId(31337), Policy::Confirmations(3), 3600));
        assert_eq!(refused(r#"{"amount":1,"chain":"anvil","chain_id":8453}"#), ["chain_id"]);
        assert_eq!(refused(r#"{"amount":1,"chain":"goerli"}"#), ["chain"]);
        assert_eq!(refused(r#"{"amount":1,"chain_id":"31337"}"#), ["chain_id"]);
        assert_eq!(refused(r#"{"amount":1,"chain_id":5}"#), ["chain_id"]);
        assert_eq!(refused(r#"{"amount":1}"#), ["chain"]);
    }

    #[test]
    fn a_token_is_asked_for_in_one_way() {
        let address = topics::Address::repeat_byte(0xab);
        for token in [
            r#""token":"USDX""#.to_owned(),
            format!(r#""token_contract_address":"{address}""#),
            format!(r#""token_id":"eip155:31337/erc20:{address}""#),
        ] {
            let order = read(&format!(r#"{{"amount":1,"chain":"anvil",{token}}}"#)).unwrap();
            assert_eq!(order.asset.decimals, 6);
        }
        assert_eq!(read(r#"{"amount":1,"chain":"anvil","token":null}"#).unwrap().asset, COIN);
        assert_eq!(refused(r#"{"amount":1,"chain":"anvil","token":"DAI"}"#), ["token"]);
        assert_eq!(refused(r#"{"amount":1,"chain":"anvil","token":7}"#), ["token"]);
        assert_eq!(refused(r#"{"amount":1,"chain":"anvil","token_id":"USDX"}"#), ["token_id"]);
        assert_eq!(refused(r#"{"amount":1,"chain":"anvil","token_contract_address":"0x12"}"#), ["token_contract_address"]);
        assert_eq!(refused(r#"{"amount":1,"chain":"anvil","token":"USDX","token_id":"x"}"#), ["token_id"]);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let body =
            r#"{"amount":"x","chain":"y","expires_in":59,"confirmations":0,"external_id":"","metadata":[],"callback":1}"#;
        assert_eq!(refused(body), ["amount", "chain", "expires_in", "confirmations", "external_id", "metadata", "callback"]);
    }

    #[test]
    fn the_terms_of_a_request_come_before_its_merchants() {
        let merchant =
            DefaultTerms { underpaid: Share::new(50).unwrap(), overpaid: Share::new(100).unwrap(), accept_late: true };
        let read = |rest: &str| {
            let body = format!(r#"{{"amount":"10000","chain":"anvil"{rest}}}"#);
            Order::read(body.as_bytes(), &catalog(), merchant).unwrap()
        };
        let terms = |underpaid: u64, overpaid: u64, accept_late| Terms {
            underpaid_tolerance: Amount::from(underpaid),
            overpaid_tolerance: Amount::from(overpaid),
            accept_late,
        };
        assert_eq!(read("").terms, terms(50, 100, true));
        let own = r#","underpaid_tolerance":0,"overpaid_tolerance":"7","accept_late":false"#;
        assert_eq!(read(own).terms, terms(0, 7, false));
        assert_ne!(read("").fingerprint, read(own).fingerprint);
        let others = Order::read(br#"{"amount":"10000","chain":"anvil"}"#, &catalog(), DefaultTerms::default()).unwrap();
        assert_eq!(others.fingerprint, read("").fingerprint, "a merchant's change is no other request");
        assert_eq!(others.terms, Terms::default());
    }

    #[test]
    fn a_tolerance_of_everything_leaves_something_to_pay() {
        for wrong in ["-1", "0.5", "true"] {
            let body = format!(r#"{{"amount":10,"chain":"anvil","underpaid_tolerance":{wrong}}}"#);
            assert_eq!(refused(&body), ["underpaid_tolerance"], "{wrong}");
        }
        assert_eq!(refused(r#"{"amount":10,"chain":"anvil","accept_late":1}"#), ["accept_late"]);
        let all = DefaultTerms { underpaid: Share::new(10_000).unwrap(), ..DefaultTerms::default() };
        let own = |tolerance| format!(r#","underpaid_tolerance":{tolerance}"#);
        for (rest, left) in [(String::new(), 9), (own("10"), 9), (own("8"), 8), (own(&"9".repeat(77)), 9)] {
            let order = Order::read(format!(r#"{{"amount":10,"chain":"anvil"{rest}}}"#).as_bytes(), &catalog(), all).unwrap();
            assert_eq!(order.terms.underpaid_tolerance, Amount::from(left), "{rest}");
        }
    }

    #[test]
    fn a_large_amount_has_the_policy_of_its_tier_unless_a_count_is_asked_for() {
        let mut catalog = catalog();
        catalog.0[0].tiers = vec![chain::Tier { from: Amount::from(100), policy: chain::Policy::Finalized }];
        let policy = |body: &str| Order::read(body.as_bytes(), &catalog, DefaultTerms::default()).unwrap().policy;
        assert_eq!(policy(r#"{"amount":99,"chain":"anvil"}"#), Policy::Confirmations(3));
        assert_eq!(policy(r#"{"amount":100,"chain":"anvil"}"#), Policy::Finalized);
        assert_eq!(policy(r#"{"amount":100,"chain":"anvil","confirmations":1}"#), Policy::Confirmations(1));
        assert_eq!(policy(r#"{"amount":100,"chain":"anvil","token":"USDX"}"#), Policy::Confirmations(3));
    }

    #[test]
    fn a_count_takes_the_place_of_a_tag() {
        let order = read(r#"{"amount":1,"chain":"base"}"#).unwrap();
        assert_eq!(order.policy, Policy::Safe);
        let counted = read(r#"{"amount":1,"chain":"base","confirmations":12}"#).unwrap();
        assert_eq!(counted.policy, Policy::Confirmations(12));
        assert_ne!(order.fingerprint, counted.fingerprint);
    }

    #[test]
    fn metadata_and_references_keep_their_text() {
        let order =
            read(r#"{"amount":1,"chain":"anvil","external_id":"order 7","metadata":{"n": 12345678901234567890123}}"#).unwrap();
        assert_eq!(order.metadata.as_deref(), Some(r#"{"n": 12345678901234567890123}"#));
        assert_eq!(order.external_id.as_deref(), Some("order 7"));
        let large = format!(r#"{{"amount":1,"chain":"anvil","metadata":{{"x":"{}"}}}}"#, "y".repeat(LARGEST_METADATA));
        assert_eq!(refused(&large), ["metadata"]);
        let long = format!(r#"{{"amount":1,"chain":"anvil","external_id":"{}"}}"#, "é".repeat(256));
        assert_eq!(refused(&long), ["external_id"]);
    }
}
