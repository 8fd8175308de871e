//! The bytes of records, which consumers in other languages rely on. A change here is a change for all of them.

use prost::Message as _;
use topics::wire;

#[test]
fn a_transaction_of_a_block_is_written_in_the_order_of_its_fields() {
    let transaction = wire::block_record::Transaction {
        to: vec![1].into(),
        value: vec![2].into(),
        status: wire::block_record::Status::Success.into(),
        index: 3,
        hash: vec![4].into(),
        from: vec![5].into(),
        r#type: 6,
        nonce: Some(7),
        gas_used: Some(21_000),
        effective_gas_price: Some(vec![8, 9].into()),
    };
    let before = concat!("0a0101", "120102", "1801", "2003", "2a0104", "320105", "3806");
    let hex = |transaction: &wire::block_record::Transaction| alloy::hex::encode(transaction.encode_to_vec());
    assert_eq!(hex(&transaction), [before, "4007", "4888a401", "52020809"].concat());
    // What is known to be 0 is written; what is not known is not.
    let zeros = wire::block_record::Transaction {
        nonce: Some(0),
        gas_used: Some(0),
        effective_gas_price: Some(Vec::new().into()),
        ..transaction.clone()
    };
    assert_eq!(hex(&zeros), [before, "4000", "4800", "5200"].concat());
    let unknown = wire::block_record::Transaction { nonce: None, gas_used: None, effective_gas_price: None, ..transaction };
    assert_eq!(hex(&unknown), before, "as before there were these fields");
}

#[test]
fn a_logs_record_is_written_in_the_order_of_its_fields() {
    let record = wire::LogsRecord {
        chain_id: 1,
        sequence: 2,
        kind: wire::logs_record::Kind::Added.into(),
        number: 3,
        hash: vec![0xaa, 0xbb].into(),
        logs: vec![wire::logs_record::Log {
            address: vec![1].into(),
            topics: vec![vec![2].into(), vec![3].into()],
            data: vec![4].into(),
            index: 5,
            transaction_index: 6,
            transaction_hash: vec![7].into(),
        }],
        ..wire::LogsRecord::default()
    };
    assert_eq!(
        alloy::hex::encode(record.encode_to_vec()),
        concat!(
            "0801", "1002", "1801", "2003", "2a02aabb", "3213", "0a0101", "120102", "120103", "1a0104", "2005", "2806",
            "320107"
        )
    );
}

#[test]
fn a_matches_record_is_written_in_the_order_of_its_fields() {
    let record = wire::MatchesRecord {
        chain_id: 1,
        sequence: 2,
        kind: wire::matches_record::Kind::Removed.into(),
        number: 3,
        hash: vec![0xaa].into(),
        parent_hash: vec![0xbb].into(),
        timestamp: 4,
        safe_number: Some(0),
        finalized_number: None,
        transfers: vec![wire::matches_record::Transfer {
            transaction_hash: vec![1].into(),
            source: wire::matches_record::Source::Log.into(),
            index: 2,
            token: vec![3].into(),
            from: vec![4].into(),
            to: vec![5].into(),
            amount: vec![6].into(),
            transaction_index: 7,
        }],
        witnessed_number: Some(8),
        parent_number: Some(9),
        part: 9,
        parts: 10,
    };
    assert_eq!(
        alloy::hex::encode(record.encode_to_vec()),
        concat!(
            "0801", "1002", "1802", "2003", "2a01aa", "3201bb", "3804", "4000", "5215", "0a0101", "1002", "1802", "220103",
            "2a0104", "320105", "3a0106", "4007", "5808", "6009", "680a", "880109"
        )
    );
}

#[test]
fn a_sweeps_event_is_written_in_the_order_of_its_fields() {
    let event = wire::SweepEvent {
        id: "i".into(),
        r#type: "t".into(),
        sweep_id: "s".into(),
        transaction_id: "o".into(),
        chain_id: 5,
        chain: "c".into(),
        kind: "k".into(),
        sender: vec![8].into(),
        nonce: 9,
        transaction_hash: vec![10].into(),
        raw: vec![11].into(),
        cancels: true,
        idempotency_key: "y".into(),
        request_hash: vec![14].into(),
        block: Some(wire::sweep_event::Block { number: 1, hash: vec![2].into(), timestamp: 3 }),
        gas_used: Some(0),
        gas_price: Some(Vec::new().into()),
        fee: Some(vec![18].into()),
        moved: vec![wire::sweep_event::Moved {
            address: vec![1].into(),
            token_address: vec![2].into(),
            amount: vec![3].into(),
            total: vec![4].into(),
        }],
        occurred_at: 20,
    };
    assert_eq!(
        alloy::hex::encode(event.encode_to_vec()),
        concat!(
            "0a0169", "120174", "1a0173", "22016f", "2805", "320163", "3a016b", "420108", "4809", "52010a", "5a010b", "6001",
            "6a0179", "72010e", "7a07", "0801", "120102", "1803", "800100", "8a0100", "92010112", "9a010c", "0a0101", "120102",
            "1a0103", "220104", "a00114"
        )
    );
}

#[test]
fn every_schema_starts_with_its_record() {
    for topic in topics::Topic::ALL {
        let first = topic.schema().lines().find_map(|line| line.strip_prefix("message "));
        let first = first.and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned();
        let expected = topic.record().strip_prefix("ctrip.v1.").unwrap();
        assert_eq!(first, expected, "{topic}: consumers find the first message of the schema");
    }
}
