//! What a token's contract says beside chains.yaml, and who is believed about it.

#![allow(clippy::unwrap_used, clippy::result_large_err, reason = "a test fails by panicking")]

mod node;

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use chain::{Token, TokenVerdict, check_token};
use node::{Node, pool, refused};
use serde_json::{Value, json};
use topics::{Address, Amount};

/// The 32 bytes of a number.
fn word(number: u64) -> String {
    format!("0x{number:064x}")
}

/// "USDC" as ABI string, and "MKR" as bytes32.
const USDC: &str = "0x0000000000000000000000000000000000000000000000000000000000000020\
                    0000000000000000000000000000000000000000000000000000000000000004\
                    5553444300000000000000000000000000000000000000000000000000000000";
const MKR: &str = "0x4d4b520000000000000000000000000000000000000000000000000000000000";

/// A node with one contract, that returns these; `None` reverts.
async fn contract(code: &'static str, decimals: Option<String>, symbol: Option<&'static str>) -> Node {
    Node::start(true, move |method, params| {
        let returned = |value: Option<Value>| value.map_or_else(|| refused(3, "execution reverted"), Ok);
        match (method, params[0]["data"].as_str()) {
            ("eth_getCode", _) => Ok(json!(code)),
            ("eth_call", Some("0x313ce567")) => returned(decimals.as_ref().map(|word| json!(word))),
            ("eth_call", Some("0x95d89b41")) => returned(symbol.map(|text| json!(text))),
            ("eth_blockNumber", _) => Ok(json!("0x1")),
            _ => panic!("{method} {params}"),
        }
    })
    .await
}

fn listed(symbol: &str, decimals: u8) -> Token {
    let address = Address::repeat_byte(7);
    Token { symbol: symbol.to_owned(), address, decimals, tiers: vec![], min_transfer: Amount::ZERO }
}

async fn verdict(nodes: &[&Node], symbol: &str, decimals: u8) -> TokenVerdict {
    check_token(&pool(nodes), &listed(symbol, decimals)).await
}

fn is_wrong(verdict: &TokenVerdict, words: &[&str]) -> bool {
    matches!(verdict, TokenVerdict::Wrong(text) if words.iter().all(|word| text.contains(word)))
}

#[tokio::test]
async fn a_token_with_other_decimals_or_without_a_contract_is_wrong() {
    let usdc = contract("0x60", Some(word(6)), Some(USDC)).await;
    assert!(matches!(verdict(&[&usdc], "usdc", 6).await, TokenVerdict::Fits(_)));
    let found = verdict(&[&usdc], "USDC", 18).await;
    assert!(is_wrong(&found, &["6 decimals", "says 18", "decimals: 6", "0x0707"]), "{found:?}");
    let nothing = contract("0x", Some("0x".to_owned()), Some("0x")).await;
    let found = verdict(&[&nothing], "USDC", 6).await;
    assert!(is_wrong(&found, &["no contract at 0x0707"]), "{found:?}");
    let huge = contract("0x60", Some(format!("0x{}", "f".repeat(64))), Some(USDC)).await;
    assert!(is_wrong(&verdict(&[&huge], "USDC", 255).await, &[]), "not cut off");
}

#[tokio::test]
async fn what_a_contract_does_not_say_contradicts_nothing() {
    let mkr = contract("0x60", Some(word(18)), Some(MKR)).await;
    assert!(matches!(verdict(&[&mkr], "MKR", 18).await, TokenVerdict::Fits(_)), "a symbol of bytes32");
    let found = verdict(&[&mkr], "DAI", 18).await;
    assert!(matches!(&found, TokenVerdict::OtherSymbol(text) if text.contains("\"MKR\"")), "{found:?}");
    let odd = [USDC, "0x", "0x12", "0xff", &USDC[..66 + 64]];
    for symbol in odd.into_iter().skip(1) {
        let symbol: &'static str = symbol.to_owned().leak();
        let bare = contract("0x60", None, Some(symbol)).await;
        assert!(
            matches!(verdict(&[&bare], "OLD", 8).await, TokenVerdict::Undeclared(text) if text.contains("8 are believed")),
            "{symbol}"
        );
    }
    let precompile = contract("0x", Some(word(10)), None).await;
    assert!(matches!(verdict(&[&precompile], "DOT", 10).await, TokenVerdict::Fits(_)), "a token without code");
}

#[tokio::test]
async fn one_endpoint_takes_no_token_away_and_silence_none_either() {
    let liar = contract("0x60", Some(word(7)), Some(USDC)).await;
    let honest = contract("0x60", Some(word(6)), Some(USDC)).await;
    assert!(matches!(verdict(&[&liar, &honest], "USDC", 6).await, TokenVerdict::Fits(_)));
    let silent = Node::start(true, |_, _| Err(StatusCode::BAD_GATEWAY.into_response())).await;
    assert!(matches!(verdict(&[&silent], "USDC", 6).await, TokenVerdict::Unknown(_)));
    assert!(matches!(verdict(&[&silent, &honest], "USDC", 6).await, TokenVerdict::Fits(_)));
    assert!(
        is_wrong(&verdict(&[&silent, &liar], "USDC", 6).await, &[&liar.url["http://".len()..]]),
        "each amount may be wrong"
    );
    let lagging = contract("0x", Some("0x".to_owned()), Some("0x")).await;
    assert!(matches!(verdict(&[&silent, &lagging], "USDC", 6).await, TokenVerdict::Unknown(_)), "it may lag");
    assert!(matches!(verdict(&[&honest, &lagging], "USDC", 6).await, TokenVerdict::Fits(_)));
}

/// Otherwise a node that limits us would make anybody believe the file for good.
#[tokio::test]
async fn a_node_that_refuses_to_ask_has_said_nothing_about_the_contract() {
    let refusing = async |code: i64, message: &'static str| {
        Node::start(true, move |method, _| match method {
            "eth_getCode" => Ok(json!("0x60")),
            "eth_blockNumber" => Ok(json!("0x1")),
            _ => refused(code, message),
        })
        .await
    };
    let honest = contract("0x60", Some(word(18)), Some(USDC)).await;
    let refusals = [
        (-32005, "limit exceeded"),
        (-32601, "the method eth_call does not exist/is not available"),
        (-32000, "header not found"),
        (-32000, "missing trie node"),
        (-32603, "internal error"),
    ];
    for (code, message) in refusals {
        let node = refusing(code, message).await;
        assert!(is_wrong(&verdict(&[&node, &honest], "USDC", 6).await, &["18 decimals"]), "{message}");
    }
    let alone = refusing(-32000, "header not found").await;
    assert!(matches!(verdict(&[&alone], "USDC", 6).await, TokenVerdict::Unknown(_)));
    // One that has an empty answer is not believed before one that has a number.
    let empty = contract("0x60", Some("0x".to_owned()), None).await;
    assert!(is_wrong(&verdict(&[&empty, &honest], "USDC", 6).await, &["18 decimals"]));
    assert!(matches!(verdict(&[&empty, &honest], "USDC", 18).await, TokenVerdict::Fits(_)));
    // Where endpoints have said that the contract does not tell, one that is silent keeps nothing back.
    let silent = Node::start(true, |_, _| Err(StatusCode::BAD_GATEWAY.into_response())).await;
    assert!(matches!(verdict(&[&empty, &silent], "USDC", 6).await, TokenVerdict::Undeclared(_)));
    // Decimals are all there is to know, whoever refuses to tell the code.
    let without_code = Node::start(true, |method, params| match (method, params[0]["data"].as_str()) {
        ("eth_call", Some("0x313ce567")) => Ok(json!(word(6))),
        ("eth_call", _) => Ok(json!(USDC)),
        ("eth_blockNumber", _) => Ok(json!("0x1")),
        _ => refused(-32601, "the method eth_getCode is not available"),
    })
    .await;
    assert!(matches!(verdict(&[&without_code], "USDC", 6).await, TokenVerdict::Fits(_)));
    // Nor does it matter that the symbol can't be asked for.
    let wide = Node::start(true, |method, params| match (method, params[0]["data"].as_str()) {
        ("eth_getCode", _) => Ok(json!("0x60")),
        ("eth_call", Some("0x313ce567")) => Ok(json!(word(18))),
        ("eth_blockNumber", _) => Ok(json!("0x1")),
        _ => refused(-32005, "limit exceeded"),
    })
    .await;
    assert!(is_wrong(&verdict(&[&wide], "USDC", 6).await, &["18 decimals"]));
    let lagging = contract("0x", Some("0x".to_owned()), None).await;
    assert!(matches!(verdict(&[&lagging, &empty], "OLD", 8).await, TokenVerdict::Undeclared(_)), "there is a contract");
    let old = refusing(-32000, "invalid opcode: INVALID").await;
    assert!(matches!(verdict(&[&old], "OLD", 8).await, TokenVerdict::Undeclared(_)));
}
