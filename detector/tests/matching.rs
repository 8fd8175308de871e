//! Matching: transfers that pay an address, and lookalikes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use detector::WatchSet;
use detector::matching::{BlockView, COIN_LOG_ADDRESS, LogsPart, Matcher, RecordHead, TRANSFER_TOPIC};
use prost::Message as _;
use topics::{Address, B256, wire};
use wire::block_record::{InternalTransfer, Kind, Status, Transaction};
use wire::logs_record::Log;
use wire::matches_record::{Source, Transfer};

const PAYEE: Address = Address::repeat_byte(0xaa);
const PAYER: Address = Address::repeat_byte(0xbb);
const TOKEN: Address = Address::repeat_byte(0x77);

fn transaction(to: Address, value: u64, status: Status) -> Transaction {
    Transaction {
        to: to.to_vec().into(),
        value: topics::Amount::from(value).to_wire().into(),
        status: status.into(),
        index: 0,
        hash: B256::repeat_byte(1).to_vec().into(),
        from: PAYER.to_vec().into(),
        r#type: 2,
        ..Transaction::default()
    }
}

fn log(emitter: Address, topics: &[B256], data: &[u8]) -> Log {
    Log {
        address: emitter.to_vec().into(),
        topics: topics.iter().map(|topic| topic.to_vec().into()).collect(),
        data: data.to_vec().into(),
        index: 3,
        transaction_index: 0,
        transaction_hash: B256::repeat_byte(1).to_vec().into(),
    }
}

fn erc20(emitter: Address, from: Address, to: Address, value: u64) -> Log {
    log(emitter, &[TRANSFER_TOPIC, from.into_word(), to.into_word()], B256::from(topics::U256::from(value)).as_slice())
}

fn found(transactions: Vec<Transaction>, internal_transfers: Vec<InternalTransfer>, logs: Vec<Log>) -> Vec<Transfer> {
    let mut watched = WatchSet::default();
    watched.insert(PAYEE);
    let block = wire::BlockRecord {
        chain_id: 1,
        sequence: 1,
        kind: Kind::Added.into(),
        hash: B256::repeat_byte(9).to_vec().into(),
        transactions,
        internal_transfers,
        ..Default::default()
    }
    .encode_to_vec();
    let logs = wire::LogsRecord { chain_id: 1, sequence: 1, logs, ..Default::default() }.encode_to_vec();
    let block = BlockView::read(&block).unwrap();
    Matcher::default().matches(&watched, &block, &logs).unwrap().transfers
}

#[test]
fn coin_and_token_are_found_with_what_moved() {
    let found = found(vec![transaction(PAYEE, 500, Status::Success)], vec![], vec![erc20(TOKEN, PAYER, PAYEE, 70_000)]);
    let seen: Vec<_> = found.iter().map(|t| (t.source(), t.token.to_vec(), t.amount.to_vec(), t.index)).collect();
    assert_eq!(
        seen,
        [(Source::Transaction, vec![], vec![0x01, 0xf4], 0), (Source::Log, TOKEN.to_vec(), vec![0x01, 0x11, 0x70], 3),]
    );
}

/// Those that the block's own record does not hold.
#[test]
fn transactions_that_come_with_the_logs_are_matched() {
    let mut watched = WatchSet::default();
    watched.insert(PAYEE);
    let [first, other] = [7, 500].map(|value| transaction(PAYEE, value, Status::Success));
    let block = wire::BlockRecord { chain_id: 1, sequence: 1, transactions: vec![first], ..Default::default() }.encode_to_vec();
    let transactions = vec![Transaction { index: 9, ..other }.encode_to_vec().into()];
    let of_logs = |transactions, logs| wire::LogsRecord { transactions, logs, ..Default::default() }.encode_to_vec();
    let matched = |logs: Vec<Log>| {
        let parts = [of_logs(transactions.clone(), vec![]), of_logs(vec![], logs)];
        let matches = Matcher::default().matches_in_parts(&watched, &BlockView::read(&block).unwrap(), &[&parts[0], &parts[1]]);
        matches.unwrap().transfers.iter().map(|t| (t.transaction_index, t.amount.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(matched(vec![]), [(0, vec![7]), (9, vec![0x01, 0xf4])]);
    assert_eq!(matched(vec![erc20(COIN_LOG_ADDRESS, PAYER, PAYEE, 3)]), [(0, vec![3])], "the logs tell every movement");
}

#[test]
fn failed_and_empty_transfers_pay_nothing() {
    assert_eq!(found(vec![transaction(PAYEE, 500, Status::Reverted)], vec![], vec![]), []);
    assert_eq!(found(vec![transaction(PAYEE, 500, Status::Unknown)], vec![], vec![]), []);
    assert_eq!(found(vec![transaction(PAYEE, 0, Status::Success)], vec![], vec![]), []);
    assert_eq!(found(vec![transaction(PAYER, 500, Status::Success)], vec![], vec![]), []);
    assert_eq!(found(vec![], vec![], vec![erc20(TOKEN, PAYER, PAYEE, 0)]), []);
    assert_eq!(found(vec![], vec![], vec![erc20(TOKEN, PAYEE, PAYEE, 5)]), []);
}

#[test]
fn the_least_amount_is_found() {
    let found = found(vec![transaction(PAYEE, 1, Status::Success)], vec![], vec![erc20(TOKEN, PAYER, PAYEE, 1)]);
    assert_eq!(found.iter().map(|t| t.amount.to_vec()).collect::<Vec<_>>(), [[1], [1]]);
}

#[test]
fn a_log_of_another_shape_is_no_transfer() {
    let word = B256::with_last_byte(5);
    let (from, to) = (PAYER.into_word(), PAYEE.into_word());
    let mut dirty = to;
    dirty[11] = 1;
    let shapes = [
        // ERC-721: the token's id is indexed.
        log(TOKEN, &[TRANSFER_TOPIC, from, to, word], &[]),
        log(TOKEN, &[TRANSFER_TOPIC, from, to], &[]),
        log(TOKEN, &[TRANSFER_TOPIC, from, to], &[0; 64]),
        log(TOKEN, &[TRANSFER_TOPIC], word.as_slice()),
        log(TOKEN, &[word, from, to], word.as_slice()),
        log(TOKEN, &[], &[]),
        // An address has twelve zero bytes in front of it.
        log(TOKEN, &[TRANSFER_TOPIC, from, B256::repeat_byte(0xaa)], word.as_slice()),
        log(TOKEN, &[TRANSFER_TOPIC, from, dirty], word.as_slice()),
    ];
    for shape in shapes {
        assert_eq!(found(vec![], vec![], vec![shape.clone()]), [], "{shape:?}");
    }
}

#[test]
fn a_token_that_indexes_nothing_is_found() {
    for (amount, told) in [(B256::with_last_byte(9), vec![9]), (B256::repeat_byte(0xff), vec![0xff; 32])] {
        let data = [PAYER.into_word(), PAYEE.into_word(), amount].concat();
        let found = found(vec![], vec![], vec![log(TOKEN, &[TRANSFER_TOPIC], &data)]);
        assert_eq!(found.iter().map(|t| (t.from.to_vec(), t.amount.to_vec())).collect::<Vec<_>>(), [(PAYER.to_vec(), told)]);
    }
}

#[test]
fn the_same_money_counts_once_where_the_block_has_eip_7708_logs() {
    let internal = InternalTransfer {
        to: PAYEE.to_vec().into(),
        value: vec![7].into(),
        from: PAYER.to_vec().into(),
        transaction_hash: B256::repeat_byte(1).to_vec().into(),
        transaction_index: 0,
        frame: 1,
    };
    let paid = transaction(PAYEE, 500, Status::Success);
    let by_logs = found(vec![paid.clone()], vec![internal.clone()], vec![erc20(COIN_LOG_ADDRESS, PAYER, PAYEE, 500)]);
    assert_eq!(
        by_logs.iter().map(|t| (t.source(), t.token.len(), t.amount.to_vec())).collect::<Vec<_>>(),
        [(Source::Log, 0, vec![1, 0xf4])]
    );
    let by_traces = found(vec![paid], vec![internal], vec![]);
    assert_eq!(by_traces.iter().map(Transfer::source).collect::<Vec<_>>(), [Source::Transaction, Source::Trace]);
}

#[test]
fn a_fake_log_that_names_the_system_as_sender_is_a_token() {
    let found = found(vec![], vec![], vec![erc20(TOKEN, COIN_LOG_ADDRESS, PAYEE, 500)]);
    assert_eq!(found.iter().map(|t| t.token.to_vec()).collect::<Vec<_>>(), [TOKEN.to_vec()]);
}

#[test]
fn two_equal_payments_in_one_transaction_are_two() {
    let second = Log { index: 4, ..erc20(TOKEN, PAYER, PAYEE, 5) };
    let found = found(vec![], vec![], vec![erc20(TOKEN, PAYER, PAYEE, 5), second]);
    assert_eq!(found.iter().map(|t| t.index).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn what_is_learned_between_blocks_goes_through_with_no_transfers() {
    let mut watched = WatchSet::default();
    watched.insert(PAYEE);
    let block = wire::BlockRecord {
        chain_id: 1,
        sequence: 8,
        kind: Kind::Tags.into(),
        number: 5,
        hash: B256::repeat_byte(9).to_vec().into(),
        safe_number: Some(4),
        finalized_number: Some(3),
        transactions: vec![transaction(PAYEE, 5, Status::Success)],
        witnessed_number: Some(5),
        ..Default::default()
    };
    let logs = wire::LogsRecord { logs: vec![erc20(TOKEN, PAYER, PAYEE, 5)], ..Default::default() }.encode_to_vec();
    let bytes = block.encode_to_vec();
    let matches = Matcher::default().matches(&watched, &BlockView::read(&bytes).unwrap(), &logs).unwrap();
    assert_eq!(matches.kind(), wire::matches_record::Kind::Tags);
    assert_eq!((matches.sequence, matches.number, &matches.hash), (8, 5, &block.hash));
    assert_eq!((matches.safe_number, matches.finalized_number, matches.witnessed_number), (Some(4), Some(3), Some(5)));
    assert!(matches.transfers.is_empty());
}

#[test]
fn a_removed_block_tells_the_number_of_its_parent() {
    let kind = Kind::Removed.into();
    let block = wire::BlockRecord { chain_id: 1, sequence: 5, kind, number: 13, parent_number: Some(11), ..Default::default() };
    let block = wire::BlockRecord { parent_hash: vec![7; 32].into(), ..block }.encode_to_vec();
    let matched = Matcher::default().matches(&WatchSet::default(), &BlockView::read(&block).unwrap(), &[]).unwrap();
    assert_eq!(matched.parent_number, Some(11));
    for record in [block, matched.encode_to_vec()] {
        assert_eq!(RecordHead::read(&record).unwrap().parent_number, Some(11));
    }
}

#[test]
fn a_blocks_records_have_all_that_its_own_says_of_it() {
    let (hash, parent_hash) = (vec![9; 32], vec![8; 32]);
    let block = wire::BlockRecord {
        chain_id: 31337,
        sequence: 41,
        kind: Kind::Added.into(),
        number: 7,
        hash: hash.clone().into(),
        parent_hash: parent_hash.clone().into(),
        timestamp: 1_700_000_000,
        safe_number: Some(5),
        finalized_number: Some(3),
        witnessed_number: Some(6),
        ..Default::default()
    }
    .encode_to_vec();
    let expected = wire::MatchesRecord {
        chain_id: 31337,
        sequence: 41,
        kind: Kind::Added.into(),
        number: 7,
        hash: hash.clone().into(),
        parent_hash: parent_hash.clone().into(),
        timestamp: 1_700_000_000,
        safe_number: Some(5),
        finalized_number: Some(3),
        witnessed_number: Some(6),
        ..Default::default()
    };
    let matched = Matcher::default().matches(&WatchSet::default(), &BlockView::read(&block).unwrap(), &[]).unwrap();
    assert_eq!(matched, expected);
    let kind = Kind::Added.into();
    let (hash, parent_hash) = (hash.as_slice(), parent_hash.as_slice());
    let head = RecordHead { chain_id: 31337, sequence: 41, kind, number: 7, hash, parent_hash, parent_number: None };
    for record in [block, matched.encode_to_vec()] {
        assert_eq!(RecordHead::read(&record).unwrap(), head);
    }
}

/// Its buffers are kept for the next block, and nothing that is in them.
#[test]
fn one_matcher_finds_in_each_block_what_is_in_that_block() {
    let mut watched = WatchSet::default();
    watched.insert(PAYEE);
    let is_on = |contract: &topics::CoinContract, chain| contract.is_on(topics::ChainId(chain));
    let celo = topics::COIN_CONTRACTS.iter().find(|contract| is_on(contract, 42_220) && !is_on(contract, 1)).unwrap().address;
    let other = Address::repeat_byte(0xcc);
    let blocks = [
        (42_220, vec![erc20(celo, PAYER, PAYEE, 5), erc20(TOKEN, PAYER, other, 1)], vec![Address::ZERO]),
        (
            1,
            vec![erc20(TOKEN, PAYER, other, 1), erc20(TOKEN, PAYER, PAYEE, 6), erc20(celo, PAYER, PAYEE, 7)],
            vec![TOKEN, celo],
        ),
        (1, vec![erc20(TOKEN, PAYER, other, 1)], vec![]),
    ];
    let mut matcher = Matcher::default();
    let mut examined = 0;
    for (chain_id, logs, tokens) in blocks {
        examined += u64::try_from(logs.len()).unwrap();
        let block = wire::BlockRecord { chain_id, sequence: 1, ..Default::default() }.encode_to_vec();
        let logs = wire::LogsRecord { chain_id, sequence: 1, logs, ..Default::default() }.encode_to_vec();
        let found = matcher.matches(&watched, &BlockView::read(&block).unwrap(), &logs).unwrap().transfers;
        let token = |t: &Transfer| if t.token.is_empty() { Address::ZERO } else { Address::from_slice(&t.token) };
        assert_eq!(found.iter().map(token).collect::<Vec<_>>(), tokens, "{chain_id}");
        assert_eq!(matcher.logs, examined);
    }
}

/// Transactions come after the fields that say which part it is.
#[test]
fn a_large_part_is_known_although_transactions_follow_and_a_small_record_is_whole() {
    let read = |record: &wire::LogsRecord| LogsPart::read(&record.encode_to_vec()).unwrap();
    let with = |bytes| wire::LogsRecord { part: 2, parts: 3, transactions: vec![vec![0; bytes].into()], ..Default::default() };
    let large = topics::MAX_LOGS_BYTES / 2;
    let least = with(2 * large - with(large).encoded_len());
    assert_eq!(least.encoded_len(), large);
    for record in [least, with(large)] {
        assert_eq!(read(&record), LogsPart { part: 2, parts: 3 });
    }
    let whole = |bytes| wire::LogsRecord { transactions: vec![vec![0; bytes].into()], ..Default::default() };
    for record in [whole(0), whole(2 * large - 1 - whole(large).encoded_len())] {
        assert_eq!(read(&record), LogsPart::WHOLE);
    }
}
