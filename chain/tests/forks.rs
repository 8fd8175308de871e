//! Hard forks: new fields, types and shapes do not stop a chain, and give a lying node no opening. What is new stays unproven
//! and is reported; everything else is proven as before.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use alloy::consensus::EMPTY_ROOT_HASH;
use alloy::consensus::proofs::ordered_trie_root_encoded;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::rlp::{Encodable, Header};
use chain::{Block, PartProof, Proof, ProofError, Receipt, Receipts, Verify, prove};
use serde_json::{Value, json};

/// A node's answer, to be altered.
#[derive(Clone)]
struct Answer {
    block: Value,
    receipts: Value,
}

fn recorded(file: &str, number: u64) -> Answer {
    let mut lines = testdata::lines(&format!("{file}.blocks")).unwrap().into_iter();
    let mut line = lines.find(|line| line["number"] == number).unwrap();
    Answer { block: line["block"].take(), receipts: line["receipts"].take() }
}

fn mainnet() -> Answer {
    recorded("eth-mainnet-17686110-17686112", 17_686_110)
}

/// Two transactions with logs, from the Amsterdam network.
fn small() -> Answer {
    recorded("amsterdam-dev", 8)
}

impl Answer {
    fn read(&self) -> (Block, Receipts) {
        let receipts = Receipts::All(serde_json::from_str(&self.receipts.to_string()).unwrap());
        (Block::parse(&self.block.to_string()).unwrap(), receipts)
    }

    fn proof(&self) -> Result<Proof, ProofError> {
        self.proof_by(Verify::Auto)
    }

    fn proof_by(&self, verify: Verify) -> Result<Proof, ProofError> {
        let (block, receipts) = self.read();
        prove(&block, &receipts, verify)
    }

    /// Gives the block the hash of its header, as the chain would.
    fn mined(mut self) -> Self {
        let (block, _) = self.read();
        let (was, is) = (block.hash.to_string(), block.header_hash().unwrap().to_string());
        for part in [&mut self.block, &mut self.receipts] {
            *part = serde_json::from_str(&part.to_string().replace(&was, &is)).unwrap();
        }
        self
    }

    /// Gives transaction and receipt `at` an unknown type, which the chain hashes like the others.
    fn forked(mut self, at: usize, transaction: &Value) -> Self {
        let hash = self.block["transactions"][at]["hash"].clone();
        self.block["transactions"][at] = transaction.clone();
        self.block["transactions"][at]["hash"] = hash;
        self.block["transactions"][at]["type"] = json!("0x50");
        self.receipts[at]["type"] = json!("0x50");
        let receipts: Vec<Receipt> = serde_json::from_value(self.receipts.clone()).unwrap();
        let encoded: Vec<Vec<u8>> = receipts.iter().map(encode).collect();
        self.block["receiptsRoot"] = json!(ordered_trie_root_encoded(&encoded));
        self.mined()
    }
}

fn list(fields: &[&dyn Encodable]) -> Raw {
    let mut payload = Vec::new();
    fields.iter().for_each(|field| field.encode(&mut payload));
    let mut out = Vec::new();
    Header { list: true, payload_length: payload.len() }.encode(&mut out);
    out.extend(payload);
    Raw(out)
}

/// Bytes that are encoded already.
struct Raw(Vec<u8>);

impl Encodable for Raw {
    fn encode(&self, out: &mut dyn alloy::rlp::BufMut) {
        out.put_slice(&self.0);
    }
}

fn encode(receipt: &Receipt) -> Vec<u8> {
    let logs: Vec<Raw> = receipt.logs.iter().map(|log| list(&[&log.address, &log.topics, &log.data])).collect();
    let logs: Vec<&dyn Encodable> = logs.iter().map(|log| log as &dyn Encodable).collect();
    let fields =
        list(&[&receipt.status.unwrap(), &receipt.cumulative_gas_used.unwrap(), &receipt.logs_bloom.unwrap(), &list(&logs)]);
    let kind = u8::try_from(receipt.kind).unwrap();
    if kind == 0 { fields.0 } else { [&[kind], &fields.0[..]].concat() }
}

fn gap(part: &PartProof) -> &str {
    match part {
        PartProof::Root => "",
        PartProof::Bloom(why) | PartProof::Unproven(why) => why,
    }
}

#[test]
fn a_transaction_of_a_new_type_does_not_stop_a_chain_however_it_looks() {
    let looks = [
        json!({}),
        json!({ "from": null, "to": null, "value": null, "input": null, "gas": null, "nonce": null }),
        json!({ "from": ["a", "b"], "to": { "many": [] }, "value": { "gwei": 1 }, "input": 7, "gas": "lots", "v": [1], "calls": [[]] }),
        json!({ "from": "0x00", "to": "", "value": "one", "chainId": {}, "accessList": "none", "authorizationList": [1] }),
    ];
    for transaction in looks {
        let answer = small().forked(1, &transaction);
        let proof = answer.proof().unwrap_or_else(|e| panic!("{transaction}: {e}"));
        assert_eq!((proof.header, proof.receipts), (PartProof::Root, PartProof::Root), "{transaction}");
        assert_eq!(proof.transactions, PartProof::Unproven("transactions of type 0x50".to_owned()));
        assert_eq!(answer.read().0.transactions.len(), 3);
        assert!(answer.proof_by(Verify::Roots).is_err());
        // Receipts of a new type must match the root like any other.
        let mut altered = answer.clone();
        altered.receipts[1]["status"] = json!("0x0");
        assert_eq!(altered.proof().unwrap_err().what, "the receipts", "{transaction}");
        altered = answer.clone();
        altered.receipts[1]["logs"].as_array_mut().unwrap().pop();
        assert!(altered.proof().is_err());
        // The other transactions are proven as before.
        altered = answer;
        altered.block["transactions"][0]["value"] = json!("0x1");
        assert_eq!(altered.proof().unwrap_err().what, "transaction 0");
    }
}

/// No root covers it, and the type of the transaction is no excuse for a sender that can be read.
#[test]
fn a_receipt_that_names_another_sender_is_refused_whatever_the_type() {
    let known = small();
    let forked = small().forked(1, &known.block["transactions"][1]);
    for mut answer in [known, forked] {
        answer.proof().unwrap();
        answer.receipts[1]["from"] = json!(Address::repeat_byte(9));
        assert_eq!(answer.proof().unwrap_err().what, "receipt 1's sender");
        answer.receipts[1].as_object_mut().unwrap().remove("from");
        answer.proof().unwrap();
    }
}

/// Neither a root nor a bloom covers them.
#[test]
fn a_log_that_names_another_block_or_transaction_is_refused_under_a_bloom_as_well() {
    for verify in [Verify::Auto, Verify::Roots, Verify::Bloom] {
        small().proof_by(verify).unwrap();
        for (field, what) in [("blockHash", "log 0's block"), ("transactionHash", "log 0's transaction")] {
            let mut lie = small();
            lie.receipts[0]["logs"][0][field] = json!(B256::repeat_byte(9));
            assert_eq!(lie.proof_by(verify).unwrap_err().what, what, "{verify:?}");
            // Nothing is said there.
            lie.receipts[0]["logs"][0].as_object_mut().unwrap().remove(field);
            lie.proof_by(verify).unwrap();
        }
    }
    // Two blooms are told apart without their 256 bytes.
    let mut fewer = small();
    fewer.receipts[0]["logs"].as_array_mut().unwrap().pop();
    let error = fewer.proof_by(Verify::Bloom).unwrap_err();
    assert!(error.what == "the logs" && error.expected != error.got, "{error}");
    for bloom in [&error.expected, &error.got] {
        assert!(bloom.starts_with("a bloom with hash 0x") && bloom.len() < 100, "{bloom}");
    }
    // Only one with every bit set says nothing.
    fewer.block["logsBloom"] = json!(format!("0x{}e", "f".repeat(511)));
    assert_eq!(fewer.proof_by(Verify::Bloom).unwrap_err().what, "the logs");
    fewer.block["logsBloom"] = json!(format!("0x{}", "f".repeat(512)));
    assert!(matches!(fewer.proof_by(Verify::Bloom).unwrap().receipts, PartProof::Unproven(_)));
}

#[test]
fn a_type_that_is_no_number_is_an_unknown_type() {
    let mut answer = small();
    answer.block["transactions"][1]["type"] = json!("fancy");
    let (block, _) = answer.read();
    assert_eq!(block.transactions[1].kind, u64::MAX);
    // Its receipt must have that type too.
    assert_eq!(answer.proof().unwrap_err().what, "transaction 1's type");
}

#[test]
fn what_a_block_can_not_do_without_is_still_an_error() {
    for field in ["number", "hash", "parentHash", "timestamp", "transactionsRoot", "receiptsRoot", "transactions"] {
        for odd in [None, Some(json!({ "new": 1 }))] {
            let mut block = small().block;
            match odd {
                None => drop(block.as_object_mut().unwrap().remove(field)),
                Some(odd) => block[field] = odd,
            }
            // A missing timestamp or number is not taken for 0.
            assert!(Block::parse(&block.to_string()).is_err(), "{field}");
        }
    }
    let mut block = small().block;
    block["transactions"][1]["hash"] = Value::Null;
    assert!(Block::parse(&block.to_string()).is_err());
    assert!(Block::parse(&small().block.to_string()[..1000]).is_err());
}

#[test]
fn a_new_receipt_encoding_falls_back_to_the_bloom_and_needs_a_new_field_as_its_excuse() {
    let mut answer = small();
    (answer.block["transactions"][1]["type"], answer.receipts[1]["type"]) = (json!("0x50"), json!("0x50"));
    // A node may claim a new type in order to falsify the receipt.
    assert_eq!(answer.proof().unwrap_err().what, "the receipts");
    answer.receipts[1]["payer"] = Value::Null;
    assert_eq!(answer.proof().unwrap_err().what, "the receipts");
    answer.receipts[1]["payer"] = json!("0x01");
    let proof = answer.proof().unwrap();
    assert_eq!(proof.receipts, PartProof::Bloom("receipts of type 0x50 with unknown fields payer".to_owned()));
    answer.receipts[1]["logs"].as_array_mut().unwrap().pop();
    assert_eq!(answer.proof().unwrap_err().what, "the logs");
}

#[test]
fn a_false_receipt_of_a_known_type_has_no_excuse() {
    for mut answer in [small(), mainnet()] {
        // A new field that the encoding does not cover does no harm.
        answer.receipts[1]["fancy"] = json!({ "a": [1] });
        answer.receipts[1]["logs"][0]["fancy"] = json!("0x1");
        assert_eq!(answer.proof().unwrap().receipts, PartProof::Root);
        for (field, value) in [("status", json!("0x0")), ("cumulativeGasUsed", json!("0x1")), ("status", Value::Null)] {
            let mut lie = answer.clone();
            lie.receipts[1][field] = value;
            assert_eq!(lie.proof().unwrap_err().what, "the receipts", "{field}");
        }
        answer.receipts[1].as_object_mut().unwrap().remove("cumulativeGasUsed");
        assert_eq!(answer.proof().unwrap_err().what, "the receipts");
    }
}

/// Otherwise a node could add a field to a transaction and then falsify payee and amount.
#[test]
fn no_new_field_excuses_a_transaction_that_hashes_otherwise_under_a_proven_header() {
    for mut answer in [small(), mainnet()] {
        let at = 1;
        answer.block["transactions"][at]["fancy"] = json!("0x1");
        assert_eq!(answer.proof().unwrap().transactions, PartProof::Root, "a field that no hash covers");
        for (field, value) in
            [("nonce", "0x999999"), ("value", "0x999999"), ("to", "0x00000000000000000000000000000000000000aa")]
        {
            let mut lie = answer.clone();
            lie.block["transactions"][at][field] = json!(value);
            assert_eq!(lie.proof().unwrap_err().what, "transaction 1", "{field}");
            // A chain with headers of its own may have transactions of its own too.
            lie.block["fancyRoot"] = json!("0x01");
            lie.block["stateRoot"] = json!(B256::repeat_byte(1));
            let proof = lie.proof().unwrap();
            assert!(gap(&proof.header).ends_with("with unknown fields fancyRoot"), "{proof:?}");
            assert!(gap(&proof.transactions).ends_with("with unknown fields fancy"), "{proof:?}");
            assert_eq!(proof.receipts, PartProof::Root);
            lie.block["transactions"][at]["fancy"] = Value::Null;
            assert_eq!(lie.proof().unwrap_err().what, "transaction 1");
        }
    }
    // A missing field that the hash covers is no hard fork.
    let mut answer = small();
    answer.block["transactions"][1].as_object_mut().unwrap().remove("r");
    assert_eq!(answer.proof().unwrap_err().what, "transaction 1");
}

/// A transfer to oneself is no payment, and no root covers the sender: a node that names the payee as payer would make a
/// payment disappear.
#[test]
fn a_payment_does_not_pass_for_a_transfer_to_oneself() {
    let paying = |answer: &Answer| {
        let (block, _) = answer.read();
        block.transactions.iter().position(|tx| tx.to.is_some() && tx.to != Some(tx.from) && !tx.value.is_zero()).unwrap()
    };
    for mut answer in [mainnet(), recorded("amsterdam-dev", 7)] {
        let at = paying(&answer);
        let payee = answer.block["transactions"][at]["to"].clone();
        answer.block["transactions"][at]["from"] = payee.clone();
        answer.receipts[at]["from"] = payee;
        assert_eq!(answer.proof().unwrap_err().what, format!("the sender of transaction {at}"));
    }
}

/// Otherwise an honest block would be refused.
#[test]
fn the_signer_of_each_recorded_transaction_is_its_sender_whatever_its_type() {
    let mut kinds = std::collections::BTreeSet::new();
    for file in ["eth-mainnet-17686110-17686112", "amsterdam-dev", "misc"] {
        for line in testdata::lines(&format!("{file}.blocks")).unwrap() {
            if line["chainId"] == 25 || line["receipts"].is_null() {
                continue;
            }
            let answer = Answer { block: line["block"].clone(), receipts: line["receipts"].clone() };
            let (block, _) = answer.read();
            for transaction in block.transactions.iter().filter(|tx| tx.kind <= 4 && !tx.is_state_sync()) {
                assert_eq!(transaction.signer(), Some(transaction.from), "{file} {} {}", line["number"], transaction.hash);
                kinds.insert(transaction.kind);
            }
        }
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[test]
fn a_header_of_a_new_shape_leaves_the_rest_proven() {
    for (field, value) in
        [("fancyRoot", json!("0x01")), ("nonce", json!({ "new": 1 })), ("gasLimit", json!(["0x1"])), ("logsBloom", json!("0x"))]
    {
        for mut answer in [small(), mainnet()] {
            answer.block["stateRoot"] = json!(B256::repeat_byte(1));
            assert_eq!(answer.proof().unwrap_err().what, "the header");
            answer.block[field] = value.clone();
            let proof = answer.proof().unwrap();
            assert_eq!(proof.header, PartProof::Unproven(format!("header with unknown fields {field}")));
            assert_eq!((&proof.transactions, &proof.receipts), (&PartProof::Root, &PartProof::Root), "{field}");
            answer.receipts[0]["status"] = json!("0x0");
            assert_eq!(answer.proof().unwrap_err().what, "the receipts");
        }
    }
    // A missing field is no unknown field.
    let mut answer = small();
    answer.block.as_object_mut().unwrap().remove("stateRoot");
    assert_eq!(answer.proof().unwrap_err().what, "the header");
}

#[test]
fn a_miner_may_have_two_names() {
    let mut answer = small();
    answer.block["author"] = answer.block["miner"].clone();
    assert_eq!(answer.proof().unwrap().header, PartProof::Root);
    answer.block.as_object_mut().unwrap().remove("miner");
    assert_eq!(answer.proof().unwrap().header, PartProof::Root);
}

/// Bor's state sync is outside the roots. On a chain that has none, no logs may pass for one.
#[test]
fn logs_outside_the_roots_are_bors_alone() {
    // Bor's blocks have a difficulty and no withdrawals; others have one of both, or neither, and Arbitrum's have both, without Bor's
    // signature.
    let mut difficult = small();
    difficult.block["difficulty"] = json!("0x1");
    for mut answer in [small(), mainnet(), difficult.mined(), recorded("misc", 17_000_000), recorded("misc", 150_000_000)] {
        answer.proof().unwrap();
        let (hash, nobody) = (B256::repeat_byte(7), Address::ZERO);
        answer.block["transactions"].as_array_mut().unwrap().push(json!({
            "hash": hash, "from": nobody, "to": nobody, "value": "0x0", "gas": "0x0", "input": "0x", "type": "0x0",
        }));
        let log = json!({ "address": nobody, "topics": [], "data": Bytes::from_static(&[1]) });
        answer.receipts.as_array_mut().unwrap().push(json!({
            "transactionHash": hash, "status": "0x1", "cumulativeGasUsed": "0x1", "logs": [log], "logsBloom": format!("0x{}", "0".repeat(512)),
        }));
        assert!(answer.read().0.transactions.last().unwrap().is_state_sync());
        assert!(answer.proof().is_err());
    }
}

/// Nothing is proven of zkSync's blocks and those of its sisters, whose headers have zeros for roots. They must not stop.
#[test]
fn a_header_without_roots_leaves_the_rest_unproven_and_stops_no_chain() {
    let mut answer = small();
    assert_eq!(answer.proof().unwrap().gaps().collect::<Vec<_>>(), [""; 0], "all of it is proven");
    let full_bloom = answer.block["logsBloom"].clone();
    for root in ["transactionsRoot", "receiptsRoot", "stateRoot"] {
        answer.block[root] = json!(B256::ZERO);
    }
    // Also where its transactions hash as Ethereum's do, or there are none.
    let mut empty = answer.clone();
    (empty.block["transactions"], empty.receipts) = (json!([]), json!([]));
    empty.block["logsBloom"] = json!(format!("0x{}", "0".repeat(512)));
    for answer in [&answer, &empty] {
        let proof = answer.proof().unwrap();
        let gaps = [&proof.header, &proof.transactions].map(gap);
        assert_eq!(gaps, ["header without roots", "transactions without a root"]);
        assert!(proof.gaps().take(2).eq(gaps));
    }
    // At the head, and so no unknown field.
    answer.block["l1BatchNumber"] = Value::Null;
    answer.block["logsBloom"] = json!(format!("0x{}", "0".repeat(512)));
    (answer.block["transactions"][0]["type"], answer.receipts[0]["type"]) = (json!("0x71"), json!("0x71"));
    answer.block["transactions"][1]["nonce"] = json!("0x999999");
    let proof = answer.proof().unwrap();
    assert_eq!(proof.header, PartProof::Unproven("header without roots".to_owned()));
    assert_eq!(gap(&proof.transactions), "transactions of type 0x71");
    let unproven = "receipts without a root, under a bloom with no bit set".to_owned();
    assert_eq!(proof.receipts, PartProof::Unproven(unproven));
    assert!(answer.proof_by(Verify::Roots).is_err());
    // A bloom that says something must be right.
    let mut later = answer.clone();
    later.block["logsBloom"] = full_bloom;
    assert_eq!(later.proof().unwrap().receipts, PartProof::Bloom("receipts without a root".to_owned()));
    later.receipts[1]["logs"].as_array_mut().unwrap().pop();
    assert_eq!(later.proof().unwrap_err().what, "the logs");
    // A node that lags is noticed all the same.
    answer.receipts.as_array_mut().unwrap().pop();
    assert_eq!(answer.proof().unwrap_err().what, "the number of receipts");
    // Zeros excuse nothing under a header that has roots.
    let mut lie = small();
    lie.block["receiptsRoot"] = json!(B256::ZERO);
    assert!(lie.proof().unwrap().gaps().count() > 0, "it is at least not said to be proven");
}

/// Some chains log what belongs to no transaction, or have a bloom that says nothing.
#[test]
fn an_empty_block_with_a_bloom_stops_no_chain_and_hides_no_transaction() {
    let mut answer = small();
    (answer.block["transactions"], answer.receipts) = (json!([]), json!([]));
    answer.block["transactionsRoot"] = json!(EMPTY_ROOT_HASH);
    let without_receipts = Receipts::Logs { logs: vec![], paying: std::collections::HashMap::new() };
    let (block, _) = answer.clone().mined().read();
    let proof = prove(&block, &without_receipts, Verify::Auto).unwrap();
    assert!(matches!(proof.receipts, PartProof::Unproven(_)), "{proof:?}");
    assert!(matches!(prove(&block, &without_receipts, Verify::Bloom).unwrap().receipts, PartProof::Unproven(_)));
    // Filecoin's have no receipts root, and a header of their own.
    let mut filecoin = answer.clone();
    filecoin.block["receiptsRoot"] = json!(B256::ZERO);
    filecoin.block["logsBloom"] = json!(format!("0x{}", "f".repeat(512)));
    assert!(filecoin.proof().unwrap().gaps().any(|gap| gap.contains("every bit set")));
    // A block whose transactions are left out.
    answer.block["transactionsRoot"] = small().block["transactionsRoot"].clone();
    let (block, _) = answer.mined().read();
    assert!(
        prove(&block, &without_receipts, Verify::Auto).is_err() && prove(&block, &without_receipts, Verify::Bloom).is_err()
    );
}

/// A block with one transaction of type 0x7e, which is hashed as these fields.
fn with_system_transaction(mut transaction: Value, fields: &[&dyn Encodable]) -> Answer {
    let mut answer = recorded("misc", 109_860_869);
    let encoded = [&[0x7e], &list(fields).0[..]].concat();
    transaction["hash"] = json!(keccak256(&encoded));
    let mut receipt = answer.receipts[0].clone();
    (receipt["transactionHash"], receipt["from"]) = (transaction["hash"].clone(), transaction["from"].clone());
    receipt["logs"] = json!([]);
    receipt["logsBloom"] = json!(format!("0x{}", "0".repeat(512)));
    answer.receipts = json!([receipt]);
    answer.block["transactions"] = json!([transaction]);
    answer.block["transactionsRoot"] = json!(ordered_trie_root_encoded(&[encoded]));
    let receipts: Vec<Receipt> = serde_json::from_value(answer.receipts.clone()).unwrap();
    answer.block["receiptsRoot"] = json!(ordered_trie_root_encoded(&receipts.iter().map(encode).collect::<Vec<_>>()));
    answer.mined()
}

/// Mantle's mint and send ETH, beside its coin. Fields after op-geth's `DepositTx` in mantlenetworkio/op-geth.
#[test]
fn a_deposit_of_mantle_is_proven_with_its_eth() {
    let (source, from, to) = (B256::repeat_byte(3), Address::repeat_byte(4), Address::repeat_byte(5));
    let (mint, value, eth, sent) = (U256::from(6), U256::from(7), U256::from(8), U256::from(9));
    let (gas, input) = (100_000_u64, Bytes::from_static(&[1, 2]));
    let transaction = json!({
        "type": "0x7e", "sourceHash": source, "from": from, "to": to, "mint": mint, "value": value, "gas": "0x186a0",
        "isSystemTx": false, "input": input, "ethValue": eth, "nonce": "0x0",
    });
    let mut later = transaction.clone();
    later["ethTxValue"] = json!(sent);
    let fields: [&dyn Encodable; 10] = [&source, &from, &to, &mint, &value, &gas, &false, &eth, &input, &sent];
    for (transaction, count) in [(transaction, 9), (later, 10)] {
        let answer = with_system_transaction(transaction, &fields[..count]);
        let proof = answer.proof().unwrap();
        assert_eq!((proof.header, proof.transactions), (PartProof::Root, PartProof::Root));
        for field in ["value", "mint", "ethValue"] {
            let mut lie = answer.clone();
            lie.block["transactions"][0][field] = json!("0x99");
            assert_eq!(lie.proof().unwrap_err().what, "transaction 0", "{field}");
        }
    }
}

/// Berachain's system transaction has OP Stack's type and is no deposit (BRIP-0004; fields after berachain/bera-geth).
#[test]
fn a_system_transaction_of_berachain_is_no_deposit_and_carries_no_coin() {
    let (chain, from, to, nonce, gas) =
        (80_094_u64, Address::repeat_byte(0xfe), Address::repeat_byte(5), 7_u64, 30_000_000_u64);
    let (price, input) = (U256::from(10), Bytes::from_static(&[1, 2]));
    let transaction = json!({
        "type": "0x7e", "chainId": "0x138de", "from": from, "to": to, "value": "0x0", "nonce": "0x7", "gas": "0x1c9c380",
        "gasPrice": price, "input": input,
    });
    let fields: [&dyn Encodable; 7] = [&chain, &from, &to, &nonce, &gas, &price, &input];
    let answer = with_system_transaction(transaction, &fields);
    assert_eq!(answer.proof().unwrap().transactions, PartProof::Root);
    // Hashed otherwise it is not proven, and does not stop the chain.
    let mut other = answer.clone();
    other.block["transactions"][0]["nonce"] = json!("0x8");
    let why = "transactions of type 0x7e without a sourceHash".to_owned();
    assert_eq!(other.proof().unwrap().transactions, PartProof::Unproven(why));
    for field in ["value", "mint"] {
        let mut lie = answer.clone();
        lie.block["transactions"][0][field] = json!("0xde0b6b3a7640000");
        assert_eq!(lie.proof().unwrap_err().what, "transaction 0", "coin in {field}");
    }
}
