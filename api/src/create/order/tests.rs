//! Orders as clients write them, right and wrong.

use super::fields::MAX_METADATA_BYTES;
use super::*;
use crate::chains::catalog::COIN;
use crate::chains::catalog::tests::{catalog, chains};
use merchants::BasisPoints;
use serde_json::Value;

fn read(body: &str) -> Result<Order, Value> {
    Order::read(body.as_bytes(), &catalog(), DefaultTerms::default()).map_err(|problem| serde_json::to_value(problem).unwrap())
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
fn a_wrong_amount_names_its_field() {
    for amount in
        ["0", "0.0", "-1", "1.5", "1e18", "\"1.0\"", "\"0x10\"", "\"\"", "\" 1\"", "true", "[1]", "null", "\"1_000\"", "{}"]
    {
        assert_eq!(refused(&format!(r#"{{"chain":"anvil","amount":{amount}}}"#)), ["amount"], "{amount}");
    }
    assert_eq!(refused(&format!(r#"{{"chain":"anvil","amount":1{}}}"#, "0".repeat(78))), ["amount"]);
    assert_eq!(refused(r#"{"chain":"anvil"}"#), ["amount"]);
}

#[test]
fn an_amount_may_be_in_whole_tokens_and_is_the_same_order() {
    let whole = |token: &str, text: &str| read(&format!(r#"{{"chain":"anvil","token":{token},"amount_decimal":{text}}}"#));
    let units = read(r#"{"chain":"anvil","token":"USDX","amount":1500000}"#).unwrap();
    assert_eq!(whole(r#""USDX""#, r#""1.5""#), Ok(units));
    assert_eq!(whole("null", r#""0.000000000000000001""#).unwrap().amount, Amount::from(1));
    for wrong in [r#""1.5000001""#, r#""0""#, r#""0.0""#, r#""-1""#, r#""1e3""#, r#""""#, "1.5", r#"".5""#] {
        let problem = whole(r#""USDX""#, wrong).unwrap_err();
        assert_eq!(problem["errors"][0]["field"], "amount_decimal", "{wrong}: {problem}");
    }
    let problem = whole(r#""USDX""#, r#""1.5000001""#).unwrap_err();
    assert!(problem["detail"].as_str().unwrap().contains("of USDX below 2^256 base units, with at most 6 digits"), "{problem}");
    assert_eq!(refused(r#"{"chain":"anvil","amount":1,"amount_decimal":"1"}"#), ["amount_decimal"]);
    assert_eq!(read(r#"{"chain":"anvil","amount":1,"amount_decimal":null}"#), read(r#"{"chain":"anvil","amount":1}"#));
    assert_eq!(refused(r#"{"chain":"nowhere","amount_decimal":"1"}"#), ["chain"]);
    let long = format!(r#"{{"chain":"anvil","token":"USDX","amount":"{}1.5"}}"#, "0".repeat(10_000));
    assert!(read(&long).unwrap_err().to_string().len() < 1_000, "a reply as long as the request");
    for amount in ["1.5", r#""1.5""#] {
        let problem = read(&format!(r#"{{"chain":"anvil","token":"USDX","amount":{amount}}}"#)).unwrap_err();
        assert!(problem["detail"].as_str().unwrap().contains("1.5 of USDX is 1500000, or"), "{problem}");
    }
}

#[test]
fn an_amount_that_no_transfer_of_it_would_pay_is_refused_with_the_least() {
    let mut chains = chains();
    chains[0].min_transfer = Amount::from(7);
    chains[0].tokens[0].min_transfer = Amount::from(5);
    let catalog = Catalog::of(chains);
    let read = |body: &str| Order::read(body.as_bytes(), &catalog, DefaultTerms::default());
    for (least, token) in [(7, "null"), (5, r#""USDX""#)] {
        let order = |amount: u64| format!(r#"{{"chain":"anvil","token":{token},"amount":{amount}}}"#);
        assert!(read(&order(least)).is_ok());
        let problem = serde_json::to_value(read(&order(least - 1)).unwrap_err()).unwrap();
        assert_eq!(problem["errors"][0]["field"], "amount");
        let message = problem["errors"][0]["message"].as_str().unwrap();
        assert!(message.contains(&format!("at least {least}")), "{message}");
    }
    let problem = read(r#"{"chain":"anvil","token":"USDX","amount_decimal":"0.000004"}"#).unwrap_err();
    let problem = serde_json::to_value(problem).unwrap();
    assert_eq!(problem["errors"][0]["field"], "amount_decimal");
    assert!(problem["detail"].as_str().unwrap().contains("at least 0.000005"), "{problem}");
    assert!(read(r#"{"chain":"base","amount":1}"#).is_ok());
}

#[test]
fn a_chain_is_named_by_name_or_id_and_both_must_agree() {
    let order = read(r#"{"amount":1,"chain":"anvil","chain_id":31337}"#).unwrap();
    assert_eq!((order.chain, order.policy, order.expires_in), (ChainId(31337), Policy::Confirmations(3), 3600));
    assert_eq!(refused(r#"{"amount":1,"chain":"anvil","chain_id":8453}"#), ["chain_id"]);
    assert_eq!(refused(r#"{"amount":1,"chain":"goerli"}"#), ["chain"]);
    assert_eq!(refused(r#"{"amount":1,"chain_id":"31337"}"#), ["chain_id"]);
    assert_eq!(refused(r#"{"amount":1,"chain_id":5}"#), ["chain_id"]);
    assert_eq!(refused(r#"{"amount":1}"#), ["chain"]);
}

#[test]
fn a_token_is_named_in_one_way_only() {
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
fn every_wrong_field_is_named_at_once() {
    let body = r#"{"amount":"x","chain":"y","expires_in":59,"confirmations":0,"external_id":"","metadata":[],"callback":1}"#;
    assert_eq!(refused(body), ["chain", "amount", "expires_in", "confirmations", "external_id", "metadata", "callback"]);
}

#[test]
fn the_terms_of_a_request_override_its_merchants() {
    let merchant =
        DefaultTerms { underpaid: BasisPoints::new(50).unwrap(), overpaid: BasisPoints::new(100).unwrap(), accept_late: true };
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
    assert_eq!(others.fingerprint, read("").fingerprint, "a merchant's new terms do not change the request");
    assert_eq!(others.terms, Terms::default());
}

#[test]
fn a_tolerance_of_everything_leaves_something_to_pay() {
    for wrong in ["-1", "0.5", "true"] {
        let body = format!(r#"{{"amount":10,"chain":"anvil","underpaid_tolerance":{wrong}}}"#);
        assert_eq!(refused(&body), ["underpaid_tolerance"], "{wrong}");
    }
    assert_eq!(refused(r#"{"amount":10,"chain":"anvil","accept_late":1}"#), ["accept_late"]);
    let all = DefaultTerms { underpaid: BasisPoints::new(10_000).unwrap(), ..DefaultTerms::default() };
    let own = |tolerance| format!(r#","underpaid_tolerance":{tolerance}"#);
    for (rest, left) in [(String::new(), 9), (own("10"), 9), (own("8"), 8), (own(&"9".repeat(77)), 9)] {
        let order = Order::read(format!(r#"{{"amount":10,"chain":"anvil"{rest}}}"#).as_bytes(), &catalog(), all).unwrap();
        assert_eq!(order.terms.underpaid_tolerance, Amount::from(left), "{rest}");
    }
}

#[test]
fn a_large_amount_has_the_policy_of_its_tier_unless_the_request_sets_a_count() {
    let mut chains = chains();
    chains[0].tiers = vec![chain::Tier { from: Amount::from(100), policy: chain::Policy::Finalized }];
    let catalog = Catalog::of(chains);
    let policy = |body: &str| Order::read(body.as_bytes(), &catalog, DefaultTerms::default()).unwrap().policy;
    assert_eq!(policy(r#"{"amount":99,"chain":"anvil"}"#), Policy::Confirmations(3));
    assert_eq!(policy(r#"{"amount":100,"chain":"anvil"}"#), Policy::Finalized);
    assert_eq!(policy(r#"{"amount":100,"chain":"anvil","confirmations":1}"#), Policy::Confirmations(1));
    assert_eq!(policy(r#"{"amount":100,"chain":"anvil","token":"USDX"}"#), Policy::Confirmations(3));
}

#[test]
fn a_count_overrides_a_tag() {
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
    let large = format!(r#"{{"amount":1,"chain":"anvil","metadata":{{"x":"{}"}}}}"#, "y".repeat(MAX_METADATA_BYTES));
    assert_eq!(refused(&large), ["metadata"]);
    let long = format!(r#"{{"amount":1,"chain":"anvil","external_id":"{}"}}"#, "é".repeat(256));
    assert_eq!(refused(&long), ["external_id"]);
}
