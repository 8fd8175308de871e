//! What transactions took: derived from what the roots cover, it is what nodes report; what no root covers is
//! left out, whatever a node says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use alloy::primitives::{Address, B256, U256};
use chain::PartProof::Root;
use chain::{Block, FetchedBlock, ProofError, Receipts, Spent, Verify};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

const FILES: [&str; 4] = ["eth-mainnet-17686110-17686112", "polygon-13522175-13522230", "misc", "amsterdam-dev"];

/// A node's answer, to be altered. `receipts` is null where only logs are recorded.
#[derive(Clone)]
struct Answer {
    chain: u64,
    block: Value,
    receipts: Value,
    logs: Value,
}

fn recorded(file: &str) -> impl Iterator<Item = Answer> {
    testdata::lines(&format!("{file}.blocks")).unwrap().into_iter().map(|mut line| Answer {
        chain: line["chainId"].as_u64().unwrap(),
        block: line["block"].take(),
        receipts: line["receipts"].take(),
        logs: line["logs"].take(),
    })
}

fn small() -> Answer {
    recorded("amsterdam-dev").find(|answer| answer.block["number"] == "0x8").unwrap()
}

/// The first block with a transaction of this type.
fn with_type(chain: u64, kind: &str) -> (Answer, usize) {
    let at = |answer: &Answer| answer.block["transactions"].as_array().unwrap().iter().position(|one| one["type"] == kind);
    recorded("misc").filter(|answer| answer.chain == chain).find_map(|answer| at(&answer).map(|at| (answer, at))).unwrap()
}

impl Answer {
    fn fetch(&self, verify: Verify) -> Result<FetchedBlock, ProofError> {
        let receipts = match &self.receipts {
            Value::Null => Receipts::Logs { logs: serde_json::from_value(self.logs.clone()).unwrap(), paying: HashMap::new() },
            receipts => Receipts::All(serde_json::from_str(&receipts.to_string()).unwrap()),
        };
        let block = Block::parse(&self.block.to_string()).unwrap();
        FetchedBlock::new(block, receipts, verify)
    }

    fn fetched(&self, verify: Verify) -> FetchedBlock {
        self.fetch(verify).unwrap()
    }

    fn spent(&self, verify: Verify) -> Vec<Spent> {
        self.fetched(verify).spent
    }
}

fn number(value: &Value) -> Option<U256> {
    value.as_str().map(|text| text.parse().unwrap())
}

#[test]
fn what_is_derived_of_every_recorded_transaction_is_what_its_node_reported() {
    // By chain: transactions, and how many of them have a nonce, gas and a price.
    let mut counts: BTreeMap<u64, [usize; 4]> = BTreeMap::new();
    for answer in FILES.into_iter().flat_map(recorded) {
        let verify = if answer.chain == 25 { Verify::Bloom } else { Verify::Auto };
        let transactions = answer.block["transactions"].as_array().unwrap();
        let spent = answer.spent(verify);
        assert_eq!(spent.len(), transactions.len());
        for ((transaction, receipt), spent) in
            transactions.iter().zip(0..).map(|(one, at)| (one, &answer.receipts[at])).zip(spent)
        {
            let place = &transaction["hash"];
            let count = counts.entry(answer.chain).or_default();
            count[0] += 1;
            count[1] += usize::from(spent.nonce.is_some());
            count[2] += usize::from(spent.gas_used.is_some());
            count[3] += usize::from(spent.effective_gas_price.is_some());
            let deposit = transaction["type"] == "0x7e";
            let nonce = number(if deposit { &receipt["depositNonce"] } else { &transaction["nonce"] });
            assert!(spent.nonce.is_none() || spent.nonce.map(U256::from) == nonce, "{place}: {spent:?}");
            assert!(
                spent.gas_used.is_none() || spent.gas_used.map(U256::from) == number(&receipt["gasUsed"]),
                "{place}: {spent:?}"
            );
            // A node of before London reports none; a deposit pays none.
            let reported = number(&receipt["effectiveGasPrice"]);
            let reported = reported.or(if deposit { Some(U256::ZERO) } else { number(&transaction["gasPrice"]) });
            assert!(spent.effective_gas_price.is_none() || spent.effective_gas_price == reported, "{place}: {spent:?}");
        }
    }
    let expected = [
        (1, [724, 724, 724, 724]),
        // Deposits of before Canyon have no nonce under a root.
        (10, [8, 7, 8, 8]),
        // Headers of its own.
        (25, [4, 0, 0, 0]),
        // Of most blocks there are logs alone, and Bor's state sync is under no root.
        (137, [470, 469, 65, 65]),
        (1337, [106, 106, 106, 106]),
        (8453, [17, 14, 17, 17]),
        // The chain's own transaction has no sender.
        (42161, [5, 4, 5, 4]),
    ];
    assert_eq!(counts, expected.into());
}

#[test]
fn where_receipts_say_another_price_than_the_rules_none_is_proven() {
    let mut answer = small();
    let (whole, at) = (answer.spent(Verify::Auto), 1);
    assert!(whole.iter().all(|spent| spent.nonce.is_some() && spent.gas_used.is_some() && spent.effective_gas_price.is_some()));
    answer.receipts[at]["effectiveGasPrice"] = json!("0x1");
    let mut without = whole.clone();
    without[at].effective_gas_price = None;
    assert_eq!(answer.spent(Verify::Auto), without);
    // Silence is no agreement, nor is what is no price.
    let silent =
        [Value::Null, json!("lots"), json!({ "wei": [1] }), json!([1]), json!(7.5), json!(-1), json!(true), json!("1")];
    for nothing in silent {
        answer.receipts[at]["effectiveGasPrice"] = nothing;
        assert_eq!(answer.spent(Verify::Auto), without);
    }
    answer.receipts[at].as_object_mut().unwrap().remove("effectiveGasPrice");
    assert_eq!(answer.spent(Verify::Auto), without);
    // Some nodes write numbers plainly.
    answer.receipts[at]["effectiveGasPrice"] = json!(u64::try_from(whole[at].effective_gas_price.unwrap()).unwrap());
    assert_eq!(answer.spent(Verify::Auto), whole);
    answer.receipts[at]["effectiveGasPrice"] = json!(1);
    assert_eq!(answer.spent(Verify::Auto), without);
}

#[test]
fn before_london_receipts_may_be_silent_about_the_price_and_may_not_contradict_it() {
    let old = |answer: &Answer| answer.chain == 1 && answer.block["baseFeePerGas"].is_null() && answer.receipts[0].is_object();
    let mut answer = recorded("misc").find(old).unwrap();
    let signed = number(&answer.block["transactions"][0]["gasPrice"]);
    for silent in [Value::Null, answer.block["transactions"][0]["gasPrice"].clone()] {
        answer.receipts[0]["effectiveGasPrice"] = silent;
        assert_eq!(answer.spent(Verify::Auto)[0].effective_gas_price, signed);
    }
    for other in [json!("0x1"), json!(1), json!(format!("{:#x}", U256::MAX)), json!("lots"), json!({})] {
        answer.receipts[0]["effectiveGasPrice"] = other;
        assert_eq!(answer.spent(Verify::Auto)[0].effective_gas_price, None);
    }
}

#[test]
fn before_london_a_receipt_that_was_not_fetched_agrees_to_no_price() {
    let old = |answer: &Answer| answer.chain == 137 && answer.block["baseFeePerGas"].is_null() && answer.receipts.is_null();
    let spent = recorded("polygon-13522175-13522230").find(old).unwrap().spent(Verify::Auto);
    assert!(spent[0].nonce.is_some());
    assert!(spent.iter().all(|spent| spent.effective_gas_price.is_none()), "{spent:?}");
}

/// What is under the roots is proven, and under which sender a node shows it is its own word.
#[test]
fn whose_a_transaction_is_no_hash_covers() {
    let whole = small();
    let another = json!(Address::repeat_byte(7));
    for at in 0..whole.block["transactions"].as_array().unwrap().len() {
        let mut altered = whole.clone();
        (altered.block["transactions"][at]["from"], altered.receipts[at]["from"]) = (another.clone(), another.clone());
        let fetched = altered.fetched(Verify::Roots);
        assert_eq!(json!(fetched.block.transactions[at].from), another);
        assert_eq!((fetched.proof.header, fetched.proof.transactions, fetched.proof.receipts), (Root, Root, Root));
        assert_eq!(fetched.spent, whole.spent(Verify::Roots));
        // Who reads a nonce as an account's own has to ask the signature.
        let signer = fetched.block.transactions[at].signer();
        assert_eq!(json!(signer), whole.block["transactions"][at]["from"]);
    }
    // The hash of a deposit covers its sender.
    let (mut deposit, at) = with_type(10, "0x7e");
    (deposit.block["transactions"][at]["from"], deposit.receipts[at]["from"]) = (another.clone(), another);
    assert!(deposit.fetch(Verify::Auto).is_err());
}

#[test]
fn arbitrum_takes_its_base_fee_where_its_receipts_say_so() {
    let (mut answer, at) = with_type(42161, "0x0");
    let base_fee = number(&answer.block["baseFeePerGas"]);
    assert!(number(&answer.block["transactions"][at]["gasPrice"]) > base_fee);
    assert_eq!(answer.spent(Verify::Auto)[at].effective_gas_price, base_fee);
    for said in [answer.block["transactions"][at]["gasPrice"].clone(), Value::Null] {
        answer.receipts[at]["effectiveGasPrice"] = said;
        assert_eq!(answer.spent(Verify::Auto)[at].effective_gas_price, None);
    }
}

#[test]
fn a_deposit_pays_for_no_gas_and_before_canyon_no_root_covers_its_nonce() {
    for chain in [10, 8453] {
        let (mut answer, at) = with_type(chain, "0x7e");
        answer.receipts[at]["depositNonce"] = json!("0x7");
        let spent = answer.spent(Verify::Auto)[at];
        assert_eq!((spent.nonce, spent.effective_gas_price), (None, Some(U256::ZERO)), "{chain}");
        assert_eq!(spent.gas_used.map(U256::from), number(&answer.receipts[at]["gasUsed"]), "{chain}");
    }
}

#[test]
fn nothing_is_said_of_what_no_root_covers() {
    for verify in [Verify::Off, Verify::Bloom] {
        assert!(small().spent(verify).iter().all(|spent| *spent == Spent::default()), "{verify:?}");
    }
    // Under a header of the chain's own any root and base fee could be claimed; what was signed is in its hash.
    let mut own = small();
    (own.block["fancyRoot"], own.block["stateRoot"]) = (json!("0x01"), json!(B256::repeat_byte(1)));
    for (spent, whole) in own.spent(Verify::Auto).iter().zip(small().spent(Verify::Auto)) {
        assert_eq!(*spent, Spent { nonce: whole.nonce, ..Spent::default() });
    }
    // Of a list of transactions that no root proves, whose receipt is whose is a node's word.
    let (mut listed, at) = with_type(10, "0x7e");
    listed.block["transactions"][at].as_object_mut().unwrap().retain(|field, _| field != "sourceHash" && field != "mint");
    let signed = |transaction: &Value| (transaction["type"] != "0x7e").then(|| number(&transaction["nonce"]).unwrap());
    for (spent, transaction) in listed.spent(Verify::Auto).iter().zip(listed.block["transactions"].as_array().unwrap()) {
        let nonce = signed(transaction).map(|nonce| u64::try_from(nonce).unwrap());
        assert_eq!(*spent, Spent { nonce, ..Spent::default() });
    }
    // Logs without receipts.
    let mut logs = small();
    let receipts = logs.receipts.take();
    logs.logs = receipts.as_array().unwrap().iter().flat_map(|receipt| receipt["logs"].as_array().unwrap().clone()).collect();
    for (spent, whole) in logs.spent(Verify::Auto).iter().zip(small().spent(Verify::Auto)) {
        assert_eq!(*spent, Spent { nonce: whole.nonce, ..Spent::default() });
    }
}
