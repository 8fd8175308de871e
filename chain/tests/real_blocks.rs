//! Every block of testdata/ is proven as its `verified` field says an independent program found, and nothing in them can be
//! altered unnoticed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use chain::{Block, FetchedBlock, Log, Part, Receipts, Status, Verify, prove};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};

struct Recorded {
    name: String,
    verified: Value,
    block: Value,
    receipts: Option<Value>,
    logs: Option<Value>,
}

fn recorded(file: &str) -> Vec<Recorded> {
    let path = format!("{}/../testdata/{file}.blocks.jsonl.gz", env!("CARGO_MANIFEST_DIR"));
    let reader = flate2::read::MultiGzDecoder::new(std::fs::File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}")));
    BufReader::new(reader)
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            Recorded {
                name: format!("{}:{}", line["chainId"], line["number"]),
                verified: line["verified"].take(),
                block: line["block"].take(),
                receipts: line.get_mut("receipts").map(Value::take),
                logs: line.get_mut("logs").map(Value::take),
            }
        })
        .collect()
}

const FILES: [&str; 4] = ["eth-mainnet-17686110-17686112", "polygon-13522175-13522230", "misc", "amsterdam-dev"];

fn all() -> Vec<Recorded> {
    FILES.iter().flat_map(|file| recorded(file)).collect()
}

fn read(block: &Value, receipts: Option<&Value>, logs: Option<&Value>) -> Result<(Block, Receipts), serde_json::Error> {
    let block = Block::parse(&block.to_string())?;
    let receipts = match (receipts, logs) {
        (Some(receipts), _) => Receipts::All(serde_json::from_value(receipts.clone())?),
        (None, Some(logs)) => Receipts::Logs { logs: serde_json::from_value::<Vec<Log>>(logs.clone())?, some: HashMap::new() },
        (None, None) => panic!("neither receipts nor logs"),
    };
    Ok((block, receipts))
}

impl Recorded {
    fn read(&self) -> (Block, Receipts) {
        read(&self.block, self.receipts.as_ref(), self.logs.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    fn is_cronos(&self) -> bool {
        self.name.starts_with("25:")
    }
}

#[test]
fn every_block_is_proven_as_an_independent_program_found() {
    let (mut blocks, mut whole) = (0, 0);
    for recorded in all().iter().filter(|recorded| !recorded.is_cronos()) {
        let (block, receipts) = recorded.read();
        let proof = prove(&block, &receipts, Verify::Auto).unwrap_or_else(|e| panic!("{}: {e}", recorded.name));
        assert_eq!(proof.header, Part::Root, "{}", recorded.name);
        let state_sync = block.transactions.iter().any(|transaction| transaction.is_state_sync());
        // What the independent program did not prove: Bor's state sync, which is left out of the roots, and Arbitrum's 0x6a.
        let roots = recorded.verified["txRoot"] == json!(true) || state_sync || recorded.name.starts_with("42161:");
        assert_eq!(proof.transactions == Part::Root, roots, "{}: {:?}", recorded.name, proof.transactions);
        if recorded.receipts.is_some() {
            assert_eq!(proof.receipts == Part::Root, recorded.verified["receiptsRoot"] == json!(true), "{}", recorded.name);
        } else {
            assert!(matches!(proof.receipts, Part::Bloom(_)), "{}", recorded.name);
        }
        blocks += 1;
        whole += usize::from(prove(&block, &receipts, Verify::Roots).is_ok());
    }
    assert_eq!((blocks, whole), (98, 41));
}

#[test]
fn a_chain_whose_headers_are_its_own_is_refused_unless_its_bloom_suffices() {
    let cronos: Vec<Recorded> = all().into_iter().filter(Recorded::is_cronos).collect();
    assert_eq!(cronos.len(), 2);
    for recorded in &cronos {
        let (block, receipts) = recorded.read();
        assert_eq!(prove(&block, &receipts, Verify::Auto).unwrap_err().what, "the header");
        let proof = prove(&block, &receipts, Verify::Bloom).unwrap();
        assert!(matches!(proof.receipts, Part::Bloom(_)));
        // One of their blocks lists a transaction that never ran: without a receipt it pays nothing.
        let fetched = FetchedBlock::new(block, receipts, Verify::Bloom).unwrap();
        assert_eq!(fetched.statuses.contains(&Status::Unknown), recorded.name == "25:6541");
    }
}

/// Flips one hexadecimal digit of the text at `place`, for every place where a text of such digits is.
fn alterations(value: &Value, place: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, field)| alterations(field, &format!("{place}/{name}"), out)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| alterations(item, &format!("{place}/{index}"), out));
        }
        Value::String(text) if text.len() > 2 => out.push(place.to_owned()),
        _ => {}
    }
}

fn flip(value: &mut Value, place: &str, salt: usize) {
    let text = value.pointer_mut(place).unwrap();
    let mut bytes = text.as_str().unwrap().as_bytes().to_vec();
    let at = 2 + salt % (bytes.len() - 2);
    bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
    *text = Value::String(String::from_utf8(bytes).unwrap());
}

/// What the JSON repeats or adds for convenience, which no hash covers and which nothing here reads.
const NOT_READ: [&str; 16] = [
    "blockNumber",
    "transactionIndex",
    "logIndex",
    "gasUsed",
    "effectiveGasPrice",
    "contractAddress",
    "size",
    "totalDifficulty",
    "blockTimestamp",
    "to",
    "blobGasPrice",
    "blobGasUsed",
    "l1BlockNumber",
    "gasUsedForL1",
    "uncles",
    "withdrawals",
];
const NOT_READ_IN_TRANSACTIONS: [&str; 6] =
    ["blockHash", "blockNumber", "transactionIndex", "blockTimestamp", "standardV", "publicKey"];

fn is_read(block: &Value, place: &str) -> bool {
    let name = place.rsplit('/').next().unwrap();
    if let Some(rest) = place.strip_prefix("/block/transactions/") {
        let transaction = &block["transactions"][rest.split('/').next().unwrap().parse::<usize>().unwrap()];
        let kind = transaction["type"].as_str().unwrap_or("0x0");
        // A deposit has no signature, and a nonce only for show. A mined one's price is the effective one, but where it is
        // the signed one. A legacy one's chain is in its v. Beside a yParity, v says the same.
        let redundant = match (kind, name) {
            ("0x7e", "nonce" | "v" | "r" | "s" | "gasPrice" | "yParity" | "depositReceiptVersion") => true,
            ("0x0", "chainId") => true,
            ("0x0" | "0x1", _) => false,
            (_, "gasPrice") => true,
            _ => false,
        };
        return !redundant
            && !NOT_READ_IN_TRANSACTIONS.contains(&name)
            && (name != "v" || transaction.get("yParity").is_none());
    }
    if place.starts_with("/block/") {
        let header = place.matches('/').count() == 2;
        return header && !["size", "totalDifficulty", "l1BlockNumber", "sendCount", "sendRoot"].contains(&name);
    }
    // Before Canyon a deposit's nonce is not hashed.
    !NOT_READ.contains(&name) && name != "depositNonce" && !name.starts_with("l1")
}

/// Altering any single digit of what is read: parsing or the proof must refuse it. Every `step`-th place of each block.
fn refuses_every_alteration(file: &str, step: usize) -> usize {
    let mut tried = 0;
    for recorded in recorded(file).iter().filter(|recorded| !recorded.is_cronos() && recorded.receipts.is_some()) {
        let whole = json!({ "block": recorded.block, "receipts": recorded.receipts });
        let mut places = Vec::new();
        alterations(&whole, "", &mut places);
        places.retain(|place| is_read(&recorded.block, place));
        for (salt, place) in places.iter().enumerate().step_by(step) {
            let mut altered = whole.clone();
            flip(&mut altered, place, salt);
            let outcome = read(&altered["block"], Some(&altered["receipts"]), None);
            let accepted = outcome.is_ok_and(|(block, receipts)| prove(&block, &receipts, Verify::Auto).is_ok());
            assert!(!accepted, "{}: altered {place} from {:?} unnoticed", recorded.name, whole.pointer(place).unwrap());
            tried += 1;
        }
    }
    tried
}

#[test]
fn one_altered_digit_is_noticed_wherever_it_is() {
    assert!(refuses_every_alteration("amsterdam-dev", 3) > 1000);
}

#[test]
fn one_altered_digit_is_noticed_in_large_blocks_and_odd_chains() {
    assert!(refuses_every_alteration("eth-mainnet-17686110-17686112", 101) > 100);
    assert!(refuses_every_alteration("misc", 53) > 100);
}

#[test]
fn a_missing_log_or_receipt_is_noticed() {
    let mut tried = 0;
    for recorded in all().iter().filter(|recorded| !recorded.is_cronos()) {
        let (block, receipts) = recorded.read();
        let synced = |log: &Log| {
            block
                .transactions
                .iter()
                .any(|transaction| transaction.is_state_sync() && Some(transaction.hash) == log.transaction_hash)
        };
        let without = match receipts {
            Receipts::All(all) if all.is_empty() => continue,
            Receipts::All(all) => [
                // A lagging node's empty list, one receipt missing, one receipt's logs missing.
                Some(vec![]),
                Some(all[..all.len() - 1].to_vec()),
                all.iter().position(|receipt| !receipt.logs.is_empty()).map(|at| {
                    let mut fewer = all.clone();
                    fewer[at].logs.pop();
                    fewer
                }),
            ]
            .into_iter()
            .flatten()
            .map(Receipts::All)
            .collect::<Vec<_>>(),
            Receipts::Logs { logs, .. } if logs.iter().all(synced) => continue,
            Receipts::Logs { .. } => vec![Receipts::Logs { logs: vec![], some: HashMap::new() }],
        };
        for receipts in without {
            assert!(prove(&block, &receipts, Verify::Auto).is_err(), "{}", recorded.name);
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn an_unknown_header_field_does_not_stop_a_chain_but_is_told() {
    let mut recorded = recorded("eth-mainnet-17686110-17686112").remove(0);
    let (was, is) = (recorded.block["hash"].as_str().unwrap().to_owned(), "0x".to_owned() + &"11".repeat(32));
    let renamed = |value: &Value| serde_json::from_str(&value.to_string().replace(&was, &is)).unwrap();
    (recorded.block, recorded.receipts) = (renamed(&recorded.block), recorded.receipts.as_ref().map(renamed));
    let (block, receipts) = recorded.read();
    assert_eq!(prove(&block, &receipts, Verify::Auto).unwrap_err().what, "the header");
    // Null says nothing, as over websockets.
    recorded.block["nothing"] = Value::Null;
    assert!(prove(&recorded.read().0, &receipts, Verify::Auto).is_err());

    recorded.block["fancyRoot"] = json!("0x01");
    let (block, receipts) = recorded.read();
    let proof = prove(&block, &receipts, Verify::Auto).unwrap();
    assert_eq!(proof.header, Part::Unproven("header with unknown fields fancyRoot".to_owned()));
    assert_eq!((proof.transactions, proof.receipts), (Part::Root, Part::Root));
    assert!(prove(&block, &receipts, Verify::Roots).is_err());
}

#[test]
fn logs_are_placed_by_counting_and_as_the_nodes_said() {
    for recorded in all() {
        let (block, receipts) = recorded.read();
        let verify = if recorded.is_cronos() { Verify::Bloom } else { Verify::Auto };
        let count = block.transactions.len();
        let fetched = FetchedBlock::new(block, receipts, verify).unwrap();
        assert_eq!(fetched.statuses.len(), count);
        for placed in &fetched.logs {
            assert_eq!(
                placed.log.log_index.unwrap_or_else(|| placed.index.into()),
                u64::from(placed.index),
                "{}",
                recorded.name
            );
            let transaction = &fetched.block.transactions[placed.transaction_index as usize];
            assert_eq!(transaction.hash, placed.transaction_hash);
        }
    }
}
