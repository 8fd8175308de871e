//! Every block of testdata/ is proven as far as an independent program proved it (its `verified` field), and no alteration
//! passes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use alloy::primitives::BloomInput;
use chain::{Block, FetchedBlock, Log, PartProof, Receipt, ReceiptStatus, Receipts, Verify, prove};
use serde_json::{Value, json};
use std::collections::HashMap;

struct Recorded {
    name: String,
    verified: Value,
    block: Value,
    receipts: Option<Value>,
    logs: Option<Value>,
}

fn recorded(file: &str) -> Vec<Recorded> {
    testdata::lines(&format!("{file}.blocks"))
        .unwrap()
        .into_iter()
        .map(|mut line| Recorded {
            name: format!("{}:{}", line["chainId"], line["number"]),
            verified: line["verified"].take(),
            block: line["block"].take(),
            receipts: line.get_mut("receipts").map(Value::take),
            logs: line.get_mut("logs").map(Value::take),
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
        (None, Some(logs)) => {
            Receipts::Logs { logs: serde_json::from_value::<Vec<Log>>(logs.clone())?, paying: HashMap::new() }
        }
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
        assert_eq!(proof.header, PartProof::Root, "{}", recorded.name);
        let state_sync = block.transactions.iter().any(|transaction| transaction.is_state_sync());
        // What the independent program did not prove: Bor's state sync, which is left out of the roots, and Arbitrum's 0x6a.
        let roots = recorded.verified["txRoot"] == json!(true) || state_sync || recorded.name.starts_with("42161:");
        assert_eq!(proof.transactions == PartProof::Root, roots, "{}: {:?}", recorded.name, proof.transactions);
        if recorded.receipts.is_some() {
            assert_eq!(
                proof.receipts == PartProof::Root,
                recorded.verified["receiptsRoot"] == json!(true),
                "{}",
                recorded.name
            );
        } else {
            assert!(matches!(proof.receipts, PartProof::Bloom(_)), "{}", recorded.name);
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
        assert!(matches!(proof.receipts, PartProof::Bloom(_)));
        // One of their blocks lists a transaction that never ran. Without a receipt it pays nothing.
        let fetched = FetchedBlock::new(block, receipts, Verify::Bloom).unwrap();
        assert_eq!(fetched.statuses.contains(&ReceiptStatus::Unknown), recorded.name == "25:6541");
    }
}

/// Collects the places of all texts, in which one hexadecimal digit can be flipped.
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

/// Fields that the JSON repeats or adds for convenience. No hash covers them and no proof rests on them.
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

/// The places in a part of an answer (`place`) that are read.
fn places(block: &Value, part: &Value, place: &str) -> Vec<String> {
    let mut places = Vec::new();
    alterations(part, place, &mut places);
    places.retain(|place| is_read(block, place));
    places
}

/// Which places are tried: all, or one per part, a different one each time.
#[derive(Clone, Copy)]
enum Tried {
    All,
    One,
}

/// Alters single digits of every receipt, log and transaction, and of every field of the header: the proof must refuse each.
struct Alterations<'a> {
    recorded: &'a Recorded,
    block: Block,
    receipts: Vec<Receipt>,
    tried: Tried,
    count: usize,
}

impl Alterations<'_> {
    fn transactions(&mut self) {
        for index in 0..self.block.transactions.len() {
            let part = &self.recorded.block["transactions"][index];
            self.each(part, &format!("/block/transactions/{index}"), index, |all, altered| {
                let altered = serde_json::from_value(altered).unwrap();
                let whole = std::mem::replace(&mut all.block.transactions[index], altered);
                let refused = all.is_refused();
                all.block.transactions[index] = whole;
                refused
            });
        }
    }

    fn receipts(&mut self) {
        for index in 0..self.receipts.len() {
            let mut part = self.recorded.receipts.as_ref().unwrap()[index].clone();
            let logs = part["logs"].take();
            part["logs"] = json!([]);
            self.each(&part, &format!("/receipts/{index}"), index, |all, altered| {
                let mut altered: Receipt = serde_json::from_value(altered).unwrap();
                altered.logs = all.receipts[index].logs.clone();
                let whole = std::mem::replace(&mut all.receipts[index], altered);
                let refused = all.is_refused();
                all.receipts[index] = whole;
                refused
            });
            for (place, log) in logs.as_array().unwrap().iter().enumerate() {
                self.each(log, &format!("/receipts/{index}/logs/{place}"), index + place, |all, altered| {
                    let altered = serde_json::from_value(altered).unwrap();
                    let whole = std::mem::replace(&mut all.receipts[index].logs[place], altered);
                    let refused = all.is_refused();
                    all.receipts[index].logs[place] = whole;
                    refused
                });
            }
        }
    }

    fn header(&mut self) {
        let mut part = self.recorded.block.clone();
        part["transactions"] = json!([]);
        self.tried = Tried::All;
        self.each(&part, "/block", 0, |all, altered| {
            let mut altered = Block::parse(&altered.to_string()).unwrap();
            altered.transactions = std::mem::take(&mut all.block.transactions);
            let whole = std::mem::replace(&mut all.block, altered);
            let refused = all.is_refused();
            let altered = std::mem::replace(&mut all.block, whole);
            all.block.transactions = altered.transactions;
            refused
        });
    }

    fn each(&mut self, part: &Value, place: &str, salt: usize, mut try_one: impl FnMut(&mut Self, Value) -> bool) {
        let places = places(&self.recorded.block, part, place);
        let tried: Vec<&String> = match self.tried {
            Tried::All => places.iter().collect(),
            Tried::One => places.iter().skip(salt % places.len()).take(1).collect(),
        };
        assert!(!tried.is_empty(), "nothing is read of {place}");
        for at in tried {
            let mut altered = part.clone();
            flip(&mut altered, at.strip_prefix(place).unwrap(), salt + self.count);
            assert!(try_one(self, altered), "{}: altered {at} unnoticed", self.recorded.name);
            self.count += 1;
        }
    }

    fn is_refused(&mut self) -> bool {
        let receipts = Receipts::All(std::mem::take(&mut self.receipts));
        let refused = prove(&self.block, &receipts, Verify::Auto).is_err();
        let Receipts::All(receipts) = receipts else { unreachable!() };
        self.receipts = receipts;
        refused
    }
}

/// Returns the number of alterations tried, and of receipts, logs and transactions altered.
fn refuses_every_alteration(file: &str, tried: Tried) -> (usize, usize) {
    let (mut count, mut parts) = (0, 0);
    for recorded in recorded(file).iter().filter(|recorded| !recorded.is_cronos()) {
        let (block, Receipts::All(receipts)) = recorded.read() else { panic!("{}: no receipts", recorded.name) };
        parts += block.transactions.len() + receipts.iter().map(|receipt| 1 + receipt.logs.len()).sum::<usize>();
        let mut alterations = Alterations { recorded, block, receipts, tried, count: 0 };
        alterations.transactions();
        alterations.receipts();
        alterations.header();
        count += alterations.count;
    }
    println!("{file}: {count} alterations of {parts} receipts, logs and transactions");
    (count, parts)
}

#[test]
fn one_altered_digit_is_noticed_wherever_it_is() {
    let (count, parts) = refuses_every_alteration("amsterdam-dev", Tried::All);
    assert!(count > 8 * parts && parts > 300, "{count} {parts}");
}

#[test]
fn one_altered_digit_is_noticed_in_each_receipt_log_and_transaction_of_large_blocks() {
    let (count, parts) = refuses_every_alteration("eth-mainnet-17686110-17686112", Tried::One);
    assert!(count > parts && parts > 1900, "{count} {parts}");
}

#[test]
fn one_altered_digit_is_noticed_in_each_receipt_log_and_transaction_of_odd_chains() {
    let (count, parts) = refuses_every_alteration("misc", Tried::One);
    assert!(count > parts && parts > 800, "{count} {parts}");
}

fn prove_logs(block: &Block, logs: &mut Vec<Log>) -> Option<PartProof> {
    let receipts = Receipts::Logs { logs: std::mem::take(logs), paying: HashMap::new() };
    let proof = prove(block, &receipts, Verify::Auto);
    let Receipts::Logs { logs: back, .. } = receipts else { unreachable!() };
    *logs = back;
    proof.ok().map(|proof| proof.receipts)
}

/// Without receipts, the bloom is the only proof of logs. It covers emitter and topics, but not the data, nor how often a log
/// occurs; and like every bloom filter it has false positives. Then a second endpoint must confirm.
#[test]
fn without_receipts_the_bloom_notices_an_altered_address_or_topic() {
    let (mut altered, mut mistaken, mut unnoticed) = (0, 0, 0);
    for recorded in recorded("polygon-13522175-13522230") {
        let (block, Receipts::Logs { mut logs, .. }) = recorded.read() else { panic!("{}: receipts", recorded.name) };
        let synced = block.transactions.last().filter(|last| last.is_state_sync()).map(|last| last.hash);
        for at in 0..logs.len() {
            if logs[at].transaction_hash == synced {
                continue;
            }
            let whole = logs[at].clone();
            for part in 0..=whole.topics.len() {
                let salt = at + part;
                let word: &mut [u8] = match part.checked_sub(1) {
                    None => logs[at].address.as_mut_slice(),
                    Some(topic) => logs[at].topics[topic].as_mut_slice(),
                };
                word[salt % word.len()] ^= 1;
                let looks_known = block.logs_bloom.unwrap().contains_input(BloomInput::Raw(word));
                let refused = prove_logs(&block, &mut logs).is_none();
                assert!(refused || looks_known, "{}: log {at}, part {part}", recorded.name);
                mistaken += usize::from(!refused);
                logs[at] = whole.clone();
                altered += 1;
            }
            if !whole.data.is_empty() {
                let mut data = whole.data.to_vec();
                data[0] ^= 1;
                logs[at].data = data.into();
                unnoticed += usize::from(prove_logs(&block, &mut logs).is_some_and(|receipts| receipts != PartProof::Root));
                logs[at] = whole;
            }
        }
    }
    println!(
        "{altered} addresses and topics altered, {mistaken} of them unnoticed; {unnoticed} altered data believed, and said not to be proven"
    );
    assert!(altered > 1000 && mistaken * 20 < altered && unnoticed > 300, "{altered} {mistaken} {unnoticed}");
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
            Receipts::Logs { .. } => vec![Receipts::Logs { logs: vec![], paying: HashMap::new() }],
        };
        for receipts in without {
            assert!(prove(&block, &receipts, Verify::Auto).is_err(), "{}", recorded.name);
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn an_unknown_header_field_does_not_stop_a_chain_but_is_a_proof_gap() {
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
    assert_eq!(proof.header, PartProof::Unproven("header with unknown fields fancyRoot".to_owned()));
    assert_eq!((proof.transactions, proof.receipts), (PartProof::Root, PartProof::Root));
    assert!(prove(&block, &receipts, Verify::Roots).is_err());
}

#[test]
fn counted_log_places_are_those_of_the_node() {
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
