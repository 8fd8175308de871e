//! EIP-7708's chain, recorded: its coin credits are those of the oracle, once each, whichever source tells of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chain::{Block, FetchedBlock, Receipts, Tracer, Verify, internal_transfers};
use detector::WatchSet;
use detector::matching::{Block as BlockView, Matcher, SYSTEM};
use ingest::records::{Change, Settled, records};
use prost::Message as _;
use serde_json::Value;
use topics::{Address, ChainId, U256, wire};

/// Transaction, from, to, value.
type Credit = (String, String, String, U256);

/// What of a block there is to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sources {
    Logs,
    Traces,
    Both,
}

fn credits(sources: Sources) -> Vec<Credit> {
    let traces = testdata::lines("amsterdam-dev.traces").unwrap();
    let mut watched = WatchSet::default();
    let oracle = oracle();
    for list in ["transfers", "nothing", "tokenTransfers"] {
        for entry in oracle[list].as_array().unwrap() {
            for party in ["from", "to"] {
                if let Some(party) = entry[party].as_str() {
                    watched.insert(party.parse::<Address>().unwrap());
                }
            }
        }
    }
    let mut credits = Vec::new();
    for line in testdata::lines("amsterdam-dev.blocks").unwrap() {
        let block = Block::parse(&line["block"].to_string()).unwrap();
        let receipts = Receipts::All(serde_json::from_value(line["receipts"].clone()).unwrap());
        let mut fetched = FetchedBlock::new(block, receipts, Verify::Roots).unwrap();
        if sources != Sources::Logs {
            let trace = traces.iter().find(|trace| trace["hash"] == line["hash"]).map(|trace| trace["result"].to_string());
            let trace = trace.unwrap_or_else(|| "[]".to_owned());
            let internal = internal_transfers(&fetched.block, &fetched.statuses, Tracer::CallTracer, &trace).unwrap();
            fetched.internal = Some(internal);
        }
        let (block, mut logs) = records(ChainId(1337), 1, Change::Added(Box::new(fetched)), Settled::default());
        if sources == Sources::Traces {
            logs.logs.retain(|log| log.address != SYSTEM.as_slice());
        }
        let (block, logs) = (block.encode_to_vec(), logs.encode_to_vec());
        let matches = Matcher::default().matches(&watched, &BlockView::read(&block).unwrap(), &logs).unwrap();
        credits.extend(matches.transfers.iter().filter(|transfer| transfer.token.is_empty()).map(credit));
    }
    credits
}

fn credit(transfer: &wire::matches_record::Transfer) -> Credit {
    let hex = |bytes: &[u8]| format!("0x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    (hex(&transfer.transaction_hash), hex(&transfer.from), hex(&transfer.to), U256::from_be_slice(&transfer.amount))
}

fn oracle() -> Value {
    testdata::json("amsterdam-dev.transfers.json").unwrap()
}

fn entries(list: &str) -> Vec<Credit> {
    // An NFT's transfer has an id and no value.
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or("0").to_lowercase();
    let of = |entry: &Value| {
        (text(entry, "tx"), text(entry, "from"), text(entry, "to"), text(entry, "value").parse::<U256>().unwrap())
    };
    oracle()[list].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn from_logs_alone_from_traces_alone_and_from_both_each_credit_counts_once() {
    let expected = entries("transfers");
    assert_eq!(expected.len(), 114);
    for sources in [Sources::Logs, Sources::Traces, Sources::Both] {
        let found = credits(sources);
        for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found, expected, "credit {place} from {sources:?}");
        }
        assert_eq!(found.len(), expected.len(), "{sources:?}");
    }
}

#[test]
fn what_only_looks_like_a_payment_credits_no_coin() {
    let paid = entries("transfers");
    let nothing: Vec<Credit> = entries("nothing").into_iter().filter(|entry| !paid.contains(entry)).collect();
    assert!(nothing.len() > 20, "{}", nothing.len());
    let fakes: Vec<Credit> = entries("tokenTransfers").into_iter().filter(|entry| !paid.contains(entry)).collect();
    for sources in [Sources::Logs, Sources::Traces, Sources::Both] {
        let found = credits(sources);
        for entry in nothing.iter().chain(&fakes) {
            assert!(!found.contains(entry), "{entry:?} from {sources:?}");
        }
    }
}

#[test]
fn withdrawals_are_recorded_and_are_nobodys_payment() {
    let mut found = Vec::new();
    for line in testdata::lines("amsterdam-dev.blocks").unwrap() {
        let block = Block::parse(&line["block"].to_string()).unwrap();
        found.extend(block.credits().into_iter().map(|credit| (format!("{:#x}", credit.to), credit.value)));
    }
    let oracle = oracle();
    let expected: Vec<(String, U256)> = oracle["withdrawals"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["to"].as_str().unwrap().to_owned(), entry["value"].as_str().unwrap().parse().unwrap()))
        .collect();
    assert_eq!(found, expected);
}
