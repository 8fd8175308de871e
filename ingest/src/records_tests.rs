use super::*;
use crate::cannot_follow::CannotFollow;
use crate::record_size::MAX_TRANSACTIONS;
use chain::{Block, Receipts, Verify};
use serde_json::json;

fn word(byte: u8) -> String {
    format!("0x{}", format!("{byte:02x}").repeat(32))
}

fn of(byte: u8, count: usize) -> Bytes {
    vec![byte; count].into()
}

fn fetched() -> FetchedBlock {
    let address = |byte: u8| format!("0x{}", format!("{byte:02x}").repeat(20));
    let transaction = |hash: u8, to: Option<String>, value: &str, kind: &str| json!({ "hash": word(hash), "from": address(1), "to": to, "value": value, "type": kind, "gas": "0x5208", "input": "0x" });
    let block = json!({
        "number": "0x10", "hash": word(0xb1), "parentHash": word(0xb0), "timestamp": "0x64",
        "transactionsRoot": word(0xa1), "receiptsRoot": word(0xa2), "stateRoot": word(0), "sha3Uncles": word(0),
        "miner": address(0), "gasLimit": "0x1", "gasUsed": "0x1",
        "transactions": [
            transaction(0x11, Some(address(2)), "0xde0b6b3a7640000", "0x2"),
            transaction(0x12, None, "0x0", "0x0"),
            transaction(0x13, Some(address(3)), "0x1", "0x6a"),
        ],
    });
    let receipt = |hash: u8, status: Option<&str>, logs: serde_json::Value| json!({ "transactionHash": word(hash), "status": status, "cumulativeGasUsed": "0x1", "logs": logs });
    let log = |topics: usize| json!({ "address": address(9), "topics": vec![word(7); topics], "data": "0x0102" });
    let receipts = json!([
        receipt(0x11, Some("0x1"), json!([log(3)])),
        receipt(0x12, Some("0x0"), json!([])),
        receipt(0x13, None, json!([log(0), log(1)])),
    ]);
    let block = Block::parse(&block.to_string()).unwrap();
    FetchedBlock::new(block, Receipts::All(serde_json::from_value(receipts).unwrap()), Verify::Off).unwrap()
}

#[test]
fn a_block_with_too_many_transactions_can_not_be_published() {
    let mut block = fetched();
    assert!(CannotFollow::check(Verify::Auto, &block).is_ok());
    let transaction = block.block.transactions[0].clone();
    block.block.transactions = vec![transaction; MAX_TRANSACTIONS + 1];
    assert!(matches!(CannotFollow::check(Verify::Auto, &block), Err(CannotFollow::TooLarge { .. })));
}

#[test]
fn an_added_block_is_written_whole() {
    let finality = FinalityTags { safe: Some(12), finalized: None, witnessed: Some(99) };
    let (block, logs) = records(ChainId(7), 42, Change::Added(Box::new(fetched())), finality);
    assert_eq!((block.chain_id, block.sequence, block.kind(), block.number), (7, 42, Kind::Added, 16));
    assert_eq!((block.hash, block.parent_hash, block.timestamp), (of(0xb1, 32), of(0xb0, 32), 100));
    assert_eq!((block.safe_number, block.finalized_number, block.traced), (Some(12), None, false));
    assert_eq!(block.witnessed_number, Some(16), "a record claims no witnesses for blocks above its own");
    assert_eq!((block.transactions_root, block.receipts_root), (of(0xa1, 32), of(0xa2, 32)));

    let [paid, created, odd] = &block.transactions[..] else { panic!("{:?}", block.transactions) };
    assert_eq!(
        (paid.to.clone(), paid.value.clone(), paid.r#type),
        (of(2, 20), Bytes::copy_from_slice(&10u64.pow(18).to_be_bytes()), 2)
    );
    assert_eq!(
        (paid.status(), created.status(), odd.status()),
        (block_record::Status::Success, block_record::Status::Reverted, block_record::Status::Unknown)
    );
    assert_eq!((created.to.len(), created.value.len(), created.index, odd.index), (0, 0, 1, 2));

    assert_eq!(
        (logs.chain_id, logs.sequence, logs.kind(), logs.number, logs.hash),
        (7, 42, logs_record::Kind::Added, 16, of(0xb1, 32))
    );
    let places: Vec<(u32, u32, u8, usize)> =
        logs.logs.iter().map(|log| (log.index, log.transaction_index, log.transaction_hash[0], log.topics.len())).collect();
    assert_eq!(places, [(0, 0, 0x11, 3), (1, 2, 0x13, 0), (2, 2, 0x13, 1)]);
    assert_eq!((&logs.logs[0].address, &logs.logs[0].data), (&of(9, 20), &Bytes::from_static(&[1, 2])));
}

#[test]
fn what_a_transaction_took_is_written_as_far_as_it_is_proven() {
    let mut fetched = fetched();
    assert_eq!(fetched.spent, [Spent::default(); 3], "verify: off proves nothing");
    let price = topics::U256::from(0x1_0000);
    fetched.spent[0] = Spent { nonce: Some(5), gas_used: Some(21_000), effective_gas_price: Some(price) };
    fetched.spent[1] = Spent { nonce: Some(0), gas_used: Some(0), effective_gas_price: Some(topics::U256::ZERO) };
    let (block, _) = records(ChainId(7), 42, Change::Added(Box::new(fetched)), FinalityTags::default());
    let written: Vec<_> =
        block.transactions.iter().map(|one| (one.nonce, one.gas_used, one.effective_gas_price.as_deref())).collect();
    assert_eq!(written[0], (Some(5), Some(21_000), Some(&[1, 0, 0][..])));
    assert_eq!(written[1], (Some(0), Some(0), Some(&[][..])));
    assert_eq!(written[2], (None, None, None));
}

#[test]
fn internal_transfers_are_written_and_so_is_whether_traces_were_requested() {
    let word = topics::B256::repeat_byte(0x12);
    let moved = InternalTransfer {
        from: topics::Address::repeat_byte(4),
        to: topics::Address::repeat_byte(5),
        value: topics::U256::from(0x1234),
        transaction_hash: word,
        transaction_index: 1,
        frame: 2,
    };
    for internal in [None, Some(vec![]), Some(vec![moved, InternalTransfer { frame: 3, ..moved }])] {
        let (traced, count) = (internal.is_some(), internal.iter().flatten().count());
        let fetched = FetchedBlock { internal, ..fetched() };
        for change in [Change::Added(Box::new(fetched.clone())), Change::Replayed(Box::new(fetched))] {
            let (block, _) = records(ChainId(7), 42, change, FinalityTags::default());
            assert_eq!((block.traced, block.internal_transfers.len()), (traced, count));
            for (written, frame) in block.internal_transfers.iter().zip(2..) {
                assert_eq!((&written.from, &written.to, &written.value[..]), (&of(4, 20), &of(5, 20), &[0x12, 0x34][..]));
                assert_eq!((&written.transaction_hash, written.transaction_index, written.frame), (&of(0x12, 32), 1, frame));
            }
        }
    }
}

#[test]
fn credits_are_written_one_by_one() {
    use block_record::credit::Source;
    let mut fetched = fetched();
    let withdrawal =
        json!([{ "index": "0x9", "validatorIndex": "0x1", "address": format!("0x{}", "06".repeat(20)), "amount": "0x2" }]);
    fetched.block.withdrawals = serde_json::from_value(withdrawal).unwrap();
    fetched.block.transactions[1].kind = 0x7e;
    fetched.block.transactions[1].mint = Some(topics::U256::from(5));
    let (block, _) = records(ChainId(7), 42, Change::Added(Box::new(fetched)), FinalityTags::default());
    let [withdrawn, minted] = &block.credits[..] else { panic!("{:?}", block.credits) };
    assert_eq!((withdrawn.source(), &withdrawn.to, withdrawn.index), (Source::Withdrawal, &of(6, 20), 9));
    assert_eq!((&withdrawn.value[..], withdrawn.transaction_hash.len()), (&[0x77, 0x35, 0x94, 0x00][..], 0));
    // The deposit failed; the minted coin stays.
    assert_eq!(block.transactions[1].status(), block_record::Status::Reverted);
    assert_eq!((minted.source(), &minted.to, minted.index), (Source::Deposit, &of(1, 20), 1));
    assert_eq!((&minted.value[..], &minted.transaction_hash), (&[5][..], &of(0x12, 32)));
}

#[test]
fn what_is_learned_between_blocks_names_the_tip_and_adds_nothing() {
    let head = fetched().block.head();
    let known = FinalityTags { safe: Some(12), finalized: Some(9), witnessed: Some(15) };
    let (block, logs) = records(ChainId(7), 44, Change::Tags(head), known);
    assert_eq!((block.kind(), block.number, block.sequence, &block.hash), (Kind::Tags, 16, 44, &of(0xb1, 32)));
    assert_eq!((block.safe_number, block.finalized_number, block.witnessed_number), (Some(12), Some(9), Some(15)));
    assert!(block.transactions.is_empty() && block.transactions_root.is_empty() && logs.logs.is_empty());
    assert_eq!((logs.kind(), logs.sequence, logs.hash), (logs_record::Kind::Tags, 44, of(0xb1, 32)));
}

#[test]
fn what_is_known_never_goes_down_but_below_a_removed_block() {
    let known = |safe, finalized, witnessed| FinalityTags { safe, finalized, witnessed };
    let told = known(Some(5), None, Some(9)).advanced(known(Some(4), Some(3), Some(10)));
    assert_eq!(told, known(Some(5), Some(3), Some(10)));
    assert_eq!(told.advanced(FinalityTags::default()), told);
    assert_eq!(told.below(Some(9)), known(Some(5), Some(3), Some(9)));
    assert_eq!(told.below(Some(2)), known(Some(2), Some(2), Some(2)));
    assert_eq!(told.below(None), FinalityTags::default());
}

#[test]
fn a_removed_block_is_named_and_carries_nothing() {
    let head = fetched().block.head();
    let (block, logs) = records(
        ChainId(7),
        43,
        Change::Removed(head, Some(12)),
        FinalityTags { safe: Some(12), finalized: Some(1), witnessed: Some(15) },
    );
    assert_eq!((block.kind(), block.number, block.sequence), (Kind::Removed, 16, 43));
    assert_eq!((&block.hash, &block.parent_hash, block.parent_number), (&of(0xb1, 32), &of(0xb0, 32), Some(12)));
    assert!(block.transactions.is_empty() && block.transactions_root.is_empty() && block.safe_number.is_none());
    assert_eq!((logs.kind(), logs.hash, logs.logs.len()), (logs_record::Kind::Removed, of(0xb1, 32), 0));
}
