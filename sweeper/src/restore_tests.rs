use super::*;
use crate::engine::content::SignedBytes;
use crate::engine::fees::Fees;
use crate::engine::outgoing::Kind;
use crate::engine::store::Record as Recorded;
use crate::keys::{LocalKey, Signer as _};
use crate::records::signed_event;
use alloy::primitives::U256;
use topics::wire::sweep_event::Block;

async fn recorded(content: &Content, cancels: bool) -> SweepEvent {
    let key = LocalKey::new(&keccak256(b"cow").0).unwrap();
    let (chain, sender, nonce) = (ChainId(5), key.address(), 7);
    let transaction = content.unsigned(chain, nonce, Fees { tip: 2, cap: 9 }).unwrap();
    let signature = key.sign_transaction(&transaction).await.unwrap();
    let SignedBytes { hash, raw } = SignedBytes::new(transaction, signature, sender).unwrap();
    let (id, request_hash) = (Uuid::from_u128(1), B256::ZERO);
    let (kind, lane, idempotency_key) = (Kind::Sweep, LaneId { chain, sender }, "sweep:1".to_owned());
    let record = Recorded { id, kind, lane, nonce, hash, raw, cancels, idempotency_key, request_hash, signed_at: 3 };
    signed_event("anvil", &record)
}

/// Whoever writes to the topic may say anything; only what is signed counts.
#[tokio::test]
async fn a_record_is_believed_as_far_as_its_signature_goes() {
    let pays = Content {
        to: Some(Address::repeat_byte(9)),
        value: U256::from(3),
        data: Bytes::new(),
        gas_limit: 21_000,
        authorizations: Vec::new(),
    };
    let event = recorded(&pays, false).await;
    let Said::Signed(believed) = signed(&event) else { panic!("{event:?}") };
    assert_eq!((believed.read.content.clone(), believed.read.nonce, believed.id), (pays.clone(), 7, Uuid::from_u128(1)));
    let nothing = Content::nothing(believed.read.sender);
    assert!(matches!(signed(&recorded(&nothing, true).await), Said::Signed(_)));
    let lane = believed.lane();
    for (name, wrong, of) in [
        ("another nonce", SweepEvent { nonce: 8, ..event.clone() }, vec![lane]),
        ("another chain", SweepEvent { chain_id: 6, ..event.clone() }, vec![lane, LaneId { chain: ChainId(6), ..lane }]),
        (
            "another sender",
            SweepEvent { sender: vec![1; 20].into(), ..event.clone() },
            vec![LaneId { sender: Address::repeat_byte(1), ..lane }, lane],
        ),
        ("another hash", SweepEvent { transaction_hash: vec![1; 32].into(), ..event.clone() }, vec![lane]),
        ("cut bytes", SweepEvent { raw: event.raw.slice(1..), ..event.clone() }, vec![lane]),
        ("no id", SweepEvent { transaction_id: String::new(), ..event.clone() }, vec![lane]),
        ("it pays", SweepEvent { cancels: true, ..event.clone() }, vec![lane]),
        ("nobody", SweepEvent { sender: vec![1].into(), ..event.clone() }, vec![lane]),
        // Postgres keeps no such.
        ("a NUL", SweepEvent { idempotency_key: "a\0b".to_owned(), ..event.clone() }, vec![lane]),
        ("a long key", SweepEvent { idempotency_key: "a".repeat(2_001), ..event.clone() }, vec![lane]),
        ("a time", SweepEvent { occurred_at: u64::MAX, ..event.clone() }, vec![lane]),
        ("no gas", recorded(&Content { gas_limit: 0, ..pays.clone() }, false).await, vec![lane]),
        ("too much gas", recorded(&Content { gas_limit: u64::MAX, ..pays.clone() }, false).await, vec![lane]),
    ] {
        let said = signed(&wrong);
        assert!(matches!(&said, Said::WrongOfLanes(found, _) if *found == of), "{name}: {said:?}");
    }
    let nobody = SweepEvent { sender: vec![1].into(), raw: Vec::new().into(), ..event };
    assert!(matches!(signed(&nobody), Said::Unreadable(Some(ChainId(5)), _)), "{:?}", signed(&nobody));
    let nowhere = SweepEvent { chain_id: u64::MAX, ..nobody };
    assert!(matches!(signed(&nowhere), Said::Unreadable(None, _)), "{:?}", signed(&nowhere));
}

#[tokio::test]
async fn each_attempt_that_is_set_aside_has_a_name_of_its_own_that_postgres_keeps() {
    let event = recorded(&Content::nothing(Address::ZERO), false).await;
    let first = name(&event).unwrap();
    assert_ne!(name(&SweepEvent { raw: event.raw.slice(1..), ..event.clone() }).unwrap(), first);
    assert!(first.starts_with(&event.transaction_id) && first.len() < 200, "{first}");
    assert_eq!(name(&SweepEvent { transaction_id: "a\0b".to_owned(), ..event }), None, "it is named by its place");
}

#[test]
fn what_became_of_one_is_read_by_its_type_and_an_unknown_type_says_nothing() {
    let block = Block { number: 7, hash: vec![1; 32].into(), timestamp: 9 };
    let event = |r#type: &str, block: Option<Block>| SweepEvent {
        r#type: r#type.to_owned(),
        transaction_id: Uuid::from_u128(1).to_string(),
        chain_id: 5,
        sender: vec![2; 20].into(),
        transaction_hash: vec![3; 32].into(),
        gas_used: Some(21_000),
        gas_price: Some(vec![4].into()),
        block,
        ..SweepEvent::default()
    };
    let mined = |succeeded| Mined {
        hash: B256::repeat_byte(3),
        block: BlockRef { number: 7, hash: B256::repeat_byte(1) },
        succeeded: Some(succeeded),
        gas_used: Some(21_000),
        gas_price: Some(4),
    };
    for (name, block, phase) in [
        ("sweep.final", Some(block.clone()), Phase::Final(mined(true))),
        ("sweep.failed", Some(block.clone()), Phase::Failed(mined(false))),
        ("sweep.dropped", Some(block.clone()), Phase::Dropped(Some(mined(true)))),
        ("sweep.dropped", None, Phase::Dropped(None)),
    ] {
        let said = outcome(&event(name, block));
        assert!(matches!(&said, Some(Said::Outcome(Outcome { phase: read, .. }, _)) if *read == phase), "{name}: {said:?}");
    }
    assert!(outcome(&event("sweep.seen", Some(block))).is_none(), "a newer type");
    let lane = LaneId { chain: ChainId(5), sender: Address::repeat_byte(2) };
    let said = outcome(&event("sweep.final", None));
    assert!(matches!(&said, Some(Said::WrongOfLanes(lanes, _)) if *lanes == [lane]), "{said:?}");
}
