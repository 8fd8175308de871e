//! The same money counts once: on a chain with EIP-7708, logs alone, traces alone and both together give exactly the known coin
//! credits.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chain::{Block as Fetched, FetchedBlock, Receipts, Tracer, Verify, internal_transfers};
use detector::WatchSet;
use detector::matching::{BlockView, COIN_LOG_ADDRESS, Matcher};
use ingest::records::{Change, FinalityTags, records};
use prost::Message as _;
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use topics::{Address, ChainId, U256};

fn lines(part: &str) -> Vec<Value> {
    testdata::lines(&format!("amsterdam-dev.{part}")).unwrap()
}

fn oracle() -> Value {
    testdata::json("amsterdam-dev.transfers.json").unwrap()
}

/// The source of the coin's transfers.
#[derive(Clone, Copy, Debug)]
enum Told {
    Logs,
    Traces,
    Both,
}

/// A credit as text, so that a difference is readable: transaction, from, to, amount, and the token if there is one.
type Credit = (String, String, String, String, Option<String>);

fn credits(told: Told) -> Vec<Credit> {
    let mut watched = WatchSet::default();
    everybody(&oracle()).into_iter().for_each(|address| _ = watched.insert(address));
    let traces: HashMap<String, Value> =
        lines("traces").into_iter().map(|mut line| (line["hash"].to_string(), line["result"].take())).collect();
    let mut matcher = Matcher::default();
    let mut credits = Vec::new();
    let blocks = lines("blocks");
    assert_eq!(blocks.len(), 28);
    for (line, sequence) in blocks.iter().zip(1..) {
        let block = Fetched::parse(&line["block"].to_string()).unwrap();
        let receipts = Receipts::All(serde_json::from_value(line["receipts"].clone()).unwrap());
        let mut fetched = FetchedBlock::new(block, receipts, Verify::Roots).unwrap();
        if !matches!(told, Told::Logs)
            && let Some(trace) = traces.get(&line["hash"].to_string())
        {
            let internal = internal_transfers(&fetched.block, &fetched.statuses, Tracer::CallTracer, &trace.to_string());
            fetched.internal = Some(internal.unwrap());
        }
        let (block, mut logs) = records(ChainId(1337), sequence, Change::Added(Box::new(fetched)), FinalityTags::default());
        if matches!(told, Told::Traces) {
            logs.logs.retain(|log| log.address != COIN_LOG_ADDRESS.as_slice());
        }
        let (block, logs) = (block.encode_to_vec(), logs.encode_to_vec());
        let matches = matcher.matches(&watched, &BlockView::read(&block).unwrap(), &logs).unwrap();
        let hex = |bytes: &[u8]| alloy::hex::encode_prefixed(bytes);
        credits.extend(matches.transfers.iter().map(|transfer| {
            (
                hex(&transfer.transaction_hash),
                hex(&transfer.from),
                hex(&transfer.to),
                U256::from_be_slice(&transfer.amount).to_string(),
                (!transfer.token.is_empty()).then(|| hex(&transfer.token)),
            )
        }));
    }
    credits
}

/// Every address that the oracle names anywhere.
fn everybody(value: &Value) -> BTreeSet<Address> {
    match value {
        Value::Object(fields) => {
            fields.iter().flat_map(|(name, field)| everybody(field).into_iter().chain(name.parse())).collect()
        }
        Value::Array(items) => items.iter().flat_map(everybody).collect(),
        Value::String(text) => text.parse().into_iter().collect(),
        _ => BTreeSet::new(),
    }
}

fn entries(oracle: &Value, list: &str) -> Vec<Credit> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_lowercase();
    let credit = |entry: &Value| {
        let token = entry.get("token").map(|_| text(entry, "token"));
        (text(entry, "tx"), text(entry, "from"), text(entry, "to"), text(entry, "value"), token)
    };
    oracle[list].as_array().unwrap().iter().map(credit).collect()
}

fn coin(credits: Vec<Credit>) -> Vec<Credit> {
    credits.into_iter().filter(|credit| credit.4.is_none()).collect()
}

#[test]
fn coin_is_credited_once_and_in_order_from_every_source() {
    let expected = entries(&oracle(), "transfers");
    assert!(expected.len() > 100 && everybody(&oracle()).len() > 80);
    for told in [Told::Logs, Told::Traces, Told::Both] {
        let credits = coin(credits(told));
        for (place, (credit, expected)) in credits.iter().zip(&expected).enumerate() {
            assert_eq!(credit, expected, "{told:?}, credit {place}");
        }
        assert_eq!(credits.len(), expected.len(), "{told:?}");
    }
}

#[test]
fn what_looks_like_a_payment_and_is_none_credits_no_coin() {
    let oracle = oracle();
    let (nothing, paid) = (entries(&oracle, "nothing"), entries(&oracle, "transfers"));
    let parties = |credit: &Credit| (credit.0.clone(), credit.1.clone(), credit.2.clone(), credit.3.clone());
    // Some of these transactions also contain a payment.
    let paid: BTreeSet<_> = paid.iter().map(parties).collect();
    let nothing: BTreeSet<_> = nothing.iter().map(parties).filter(|credit| !paid.contains(credit)).collect();
    let fakes: Vec<_> =
        oracle["tokenTransfers"].as_array().unwrap().iter().filter(|entry| entry["standard"] == "fake").collect();
    assert!(nothing.len() > 10 && !fakes.is_empty(), "{} {}", nothing.len(), fakes.len());
    for told in [Told::Logs, Told::Traces, Told::Both] {
        let credits = credits(told);
        // Those of the right shape are seen as a token, which anyone can deploy.
        let seen = |fake: &&&Value| {
            credits.iter().any(|credit| fake["tx"] == *credit.0 && fake["token"].as_str() == credit.4.as_deref())
        };
        assert_eq!(fakes.iter().filter(seen).count(), 3, "{told:?}");
        for credit in coin(credits) {
            assert!(!nothing.contains(&parties(&credit)), "{told:?}: {credit:?}");
        }
    }
}
