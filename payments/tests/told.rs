//! A restored payment makes its events again, and none of them is told twice or under another number.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use payments::events::event_record;
use payments::lifecycle::{Cause, Event, EventKind, Head, Input, step};
use payments::told::ToldEvents;
use payments::{Asset, Payment, Policy, ReceivedTransfer, Settlement, Status, Sums, Terms, TransferLabel};
use std::sync::Arc;
use topics::{Address, Amount, B256, BlockRef, ChainId, PaymentId, Source, TransferId};
use uuid::Uuid;

const HOME: ChainId = ChainId(1);
const ABROAD: ChainId = ChainId(2);

fn payment() -> Payment {
    Payment {
        id: PaymentId(Uuid::nil()),
        merchant: Uuid::nil(),
        external_id: None,
        metadata: None,
        chain: HOME,
        chain_name: "home".to_owned(),
        asset: Asset { token: None, decimals: 18 },
        address: Address::repeat_byte(1),
        xpub: String::new(),
        address_index: 0,
        amount: Amount::from(100),
        terms: Terms::default(),
        policy: Policy::Confirmations(1),
        created_at: 0,
        expires_at: 1_000,
        cancelled: false,
        expired_by: None,
        settlement: None,
        deposit_address: None,
        sums: Sums::default(),
        parts: Vec::new(),
        transfers: Vec::new(),
        sequence: 1,
        updated_at: 0,
    }
}

fn cause(chain: ChainId, number: u8) -> Cause {
    let block = BlockRef { number: number.into(), hash: B256::repeat_byte(number) };
    Cause { chain, block, timestamp: number.into() }
}

fn transfer(chain: ChainId, number: u8, amount: u64) -> Input {
    Input::Transfer(received(chain, number, None, 0, amount))
}

fn received(chain: ChainId, number: u8, token: Option<Address>, index: u32, amount: u64) -> ReceivedTransfer {
    let Cause { block, timestamp, .. } = cause(chain, number);
    ReceivedTransfer {
        id: TransferId { chain, block: block.hash, transaction: B256::ZERO, source: Source::Transaction, index },
        block,
        timestamp,
        transaction_index: 0,
        token,
        from: Address::ZERO,
        amount: Amount::from(amount),
        credited: false,
        listed: true,
        below_minimum: false,
        confirmed: false,
        label: TransferLabel::default(),
    }
}

/// Twelve of a block that are taken as one.
fn many(number: u8, token: Option<Address>, first: u32) -> Input {
    Input::Transfers((first..first + 12).map(|index| Arc::new(received(HOME, number, token, index, 10))).collect())
}

fn head(number: u8) -> Input {
    Input::Head(Head { cause: cause(HOME, number), safe: None, finalized: None, witnessed: Some(u64::from(number)) })
}

fn removed(number: u8) -> Input {
    Input::Removed { cause: cause(HOME, number), below: u64::from(number) - 1 }
}

/// Lives through the inputs; returns the payment and its events.
fn live(mut payment: Payment, inputs: &[Input]) -> (Payment, Vec<(Payment, Event)>) {
    let mut events = Vec::new();
    for input in inputs {
        let step = step(&payment, input).unwrap();
        payment = step.next;
        events.extend(step.events.into_iter().map(|event| (payment.clone(), event)));
    }
    (payment, events)
}

/// [`live`] for a payment that was restored: with what was told, and with blocks' inputs alone.
fn live_again(mut payment: Payment, inputs: &[Input], told: &mut ToldEvents) -> (Payment, Vec<Event>) {
    let mut events = Vec::new();
    payment = told.apply_next(payment);
    for input in inputs {
        let step = told.step(&payment, input).unwrap();
        payment = step.next;
        events.extend(step.events);
    }
    (payment, events)
}

fn told(events: &[(Payment, Event)]) -> ToldEvents {
    let mut told = ToldEvents::default();
    for (payment, event) in events {
        told.insert(&event_record(payment, event));
    }
    told
}

#[test]
fn what_was_told_is_made_again_in_silence_and_what_was_not_is_told() {
    let inputs = [transfer(HOME, 2, 40), transfer(HOME, 3, 60), head(3)];
    let (ended, events) = live(payment(), &inputs);
    assert_eq!(events.len(), 3);
    for known in 0..=events.len() {
        let mut told = told(&events[..known]);
        let (again, made) = live_again(payment(), &inputs, &mut told);
        assert_eq!(again.status(), ended.status());
        assert_eq!(again.transfers, ended.transfers);
        let untold: Vec<&Event> = events[known..].iter().map(|(_, event)| event).collect();
        assert_eq!(made.iter().collect::<Vec<_>>(), untold, "with {known} told");
        assert_eq!(told.made().len(), known);
    }
}

/// Its block came again under the same hash, with another amount, sender or token.
#[test]
fn an_event_of_other_content_is_another() {
    let lie = received(HOME, 2, None, 0, 40);
    let others = [
        ReceivedTransfer { amount: Amount::from(50), ..lie.clone() },
        ReceivedTransfer { from: Address::repeat_byte(7), ..lie.clone() },
    ];
    for truth in others {
        let inputs = [Input::Transfer(lie.clone()), removed(2), Input::Transfer(truth.clone())];
        let (_, events) = live(payment(), &inputs);
        let (_, made) = live_again(payment(), &inputs, &mut told(&events[..2]));
        assert_eq!(made.iter().map(|event| event.sequence).collect::<Vec<_>>(), [4], "{made:?}");
        // The chain has the truth alone by now.
        let (_, made) = live_again(payment(), &inputs[2..], &mut told(&events[..1]));
        assert_eq!(made.len(), 1, "{truth:?} takes the place of the lie: {made:?}");
    }
}

/// Many transfers of a block are one event, which names none of them but its first and last.
#[test]
fn what_was_told_of_many_transfers_is_known_by_their_first_and_their_number() {
    let other = Some(Address::repeat_byte(7));
    let inputs = [many(2, None, 0), many(2, other, 20), many(2, Some(Address::repeat_byte(8)), 40), head(2)];
    let (ended, events) = live(payment(), &inputs);
    assert!(events.iter().filter(|(_, event)| event.summary.is_some()).count() == 4, "{events:?}");
    for known in 0..=events.len() {
        let mut told = told(&events[..known]);
        let (again, made) = live_again(payment(), &inputs, &mut told);
        assert_eq!(again.sums, ended.sums);
        let untold: Vec<&Event> = events[known..].iter().map(|(_, event)| event).collect();
        assert_eq!(made.iter().collect::<Vec<_>>(), untold, "with {known} told");
    }
    // A reorg takes them back, and is known by its block.
    let inputs = [many(2, None, 0), removed(2)];
    let (_, events) = live(payment(), &inputs);
    let (again, made) = live_again(payment(), &inputs, &mut told(&events));
    assert!(made.is_empty() && again.sums == Sums::default(), "{made:?}");
    // What brings more than was told is told.
    let more = Input::Transfers((0..13).map(|index| Arc::new(received(HOME, 2, None, index, 10))).collect());
    let (_, made) = live_again(payment(), &[more], &mut told(&events));
    assert_eq!(made.len(), 2, "{made:?}");
}

#[test]
fn a_cancellation_stands_where_it_stood() {
    let lived = [transfer(HOME, 2, 40), Input::Cancel { at: 7 }, transfer(HOME, 9, 60), head(9)];
    let (ended, events) = live(payment(), &lived);
    let blocks = [transfer(HOME, 2, 40), transfer(HOME, 9, 60), head(9)];
    let mut told = told(&events);
    let (again, made) = live_again(payment(), &blocks, &mut told);
    assert!(made.is_empty(), "{made:?}");
    assert_eq!((again.status(), again.exception()), (ended.status(), ended.exception()));
    assert_eq!((again.sequence, again.updated_at), (ended.sequence, ended.updated_at));
    assert_eq!(told.made().len(), events.len());
    // As the first event after the restored one, it needs no block.
    let (_, events) = live(payment(), &[Input::Cancel { at: 7 }]);
    let mut told = self::told(&events);
    assert_eq!(told.apply_next(payment()).status(), Status::Cancelled);
}

/// The records of two chains come in any order.
#[test]
fn events_of_two_chains_keep_their_numbers_whichever_comes_first() {
    let (home, abroad) = (transfer(HOME, 2, 100), transfer(ABROAD, 3, 5));
    let (ended, events) = live(payment(), &[abroad.clone(), home.clone()]);
    let mut told = told(&events);
    let late = transfer(HOME, 4, 1);
    let (again, made) = live_again(payment(), &[home, abroad, late], &mut told);
    assert_eq!(made.iter().map(|event| event.sequence).collect::<Vec<_>>(), [ended.sequence + 1]);
    assert_eq!(again.sequence, ended.sequence + 1);
}

/// What happened abroad before the cancellation may come again long after it.
#[test]
fn a_cancellation_waits_for_no_other_chain() {
    let (abroad, late) = (transfer(ABROAD, 3, 5), transfer(HOME, 9, 60));
    let (ended, events) = live(payment(), &[abroad.clone(), Input::Cancel { at: 7 }, late.clone()]);
    let mut told = told(&events);
    let (again, made) = live_again(payment(), &[late, abroad], &mut told);
    assert!(made.is_empty() && !told.is_contradicted(), "{made:?}");
    assert_eq!((again.status(), again.exception(), again.sequence), (ended.status(), ended.exception(), ended.sequence));
}

#[test]
fn a_cancellation_that_the_chain_contradicts_is_given_up_and_said() {
    let (_, events) = live(payment(), &[Input::Cancel { at: 7 }]);
    let mut told = told(&events);
    let paid = step(&payment(), &transfer(HOME, 2, 100)).unwrap().next;
    assert_eq!(told.apply_next(paid).status(), Status::Detected);
    assert!(told.is_contradicted() && !told.has_without_match());
}

/// The transfer that was told before it does not count any more. The payment would be cancelled, expired or paid once more.
#[test]
fn a_cancellation_that_was_told_after_what_is_never_made_again_stands_once_the_chain_is_past_it() {
    let soon = Payment { expires_at: 60, ..payment() };
    let (_, events) = live(soon.clone(), &[transfer(HOME, 2, 40), Input::Cancel { at: 7 }]);
    let expires = |number| Input::Expired(cause(HOME, number));
    let behind = |ends, head| {
        let mut told = told(&events);
        told.end_after(ends, head);
        told
    };
    let mut told = behind(Some(50), Some(40));
    let (waits, made) = live_again(soon.clone(), &[head(45)], &mut told);
    assert!(made.is_empty() && waits.status() == Status::Pending, "it may be made again");
    let elsewhere = Input::Expired(cause(ABROAD, 70));
    assert_eq!(live_again(soon.clone(), &[elsewhere], &mut told).0.status(), Status::Pending);
    for inputs in [vec![head(51)], vec![expires(70)], vec![head(51), expires(70), transfer(HOME, 71, 100)]] {
        let mut told = behind(Some(50), Some(40));
        let (again, made) = live_again(soon.clone(), &inputs, &mut told);
        assert_eq!((again.status(), again.updated_at.min(7)), (Status::Cancelled, 7), "{inputs:?}");
        let kinds: Vec<_> = made.iter().map(|event| (event.kind, event.sequence)).collect();
        assert_eq!(kinds, [(EventKind::Late, 4)][..usize::from(inputs.len() > 2)], "{inputs:?}");
        assert_eq!((told.made(), told.is_contradicted()), ([2, 3].as_slice(), false));
    }
    // The merchant asks for it again.
    let again = behind(Some(50), Some(51)).step(&soon, &Input::Cancel { at: 99 }).unwrap();
    assert!(again.events.is_empty() && again.next.status() == Status::Cancelled && again.next.sequence == 3, "{again:?}");
    // On another chain it may be made again for as long as that takes, and was told.
    let abroad = transfer(ABROAD, 3, 5);
    let (_, events) = live(soon.clone(), &[abroad.clone(), Input::Cancel { at: 7 }]);
    let mut told = self::told(&events);
    told.end_after(Some(50), Some(40));
    let (again, made) = live_again(soon.clone(), &[head(51), abroad], &mut told);
    assert!(made.is_empty() && again.status() == Status::Cancelled, "{made:?}");
    // Its orphans wait.
    let (waits, _) = live_again(soon, &[head(51)], &mut behind(None, Some(99)));
    assert_eq!(waits.status(), Status::Pending);
}

/// Its transfers were orphans until it was there again, and the head has gone on.
#[test]
fn a_payment_that_comes_back_late_is_confirmed_and_expires_once() {
    let (_, events) = live(payment(), &[transfer(HOME, 2, 100), head(2)]);
    let mut told = self::told(&events);
    let (again, made) = live_again(payment(), &[transfer(HOME, 2, 100), head(9)], &mut told);
    assert!(made.is_empty() && told.made().len() == events.len(), "{made:?}");
    assert_eq!(again.status(), Status::Confirmed);
    // What happens from here on is news.
    let lives_on = [removed(2), transfer(HOME, 10, 100), head(10)];
    let (_, made) = live_again(again, &lives_on, &mut told);
    assert_eq!(made.iter().map(|event| event.sequence).collect::<Vec<_>>(), [4, 5, 6], "{made:?}");

    let expires = |number| Input::Expired(cause(HOME, number));
    let soon = Payment { expires_at: 5, ..payment() };
    let (_, events) = live(soon.clone(), &[expires(6)]);
    let (again, made) = live_again(soon, &[expires(9)], &mut self::told(&events));
    assert!(made.is_empty() && again.status() == Status::Expired, "{made:?}");
}

/// The store keeps what was made again for as long as anything is left. The payment was an orphan's before a next block came.
#[test]
fn a_payment_whose_last_event_came_back_first_expires_once() {
    let expires = |number| Input::Expired(cause(HOME, number));
    let soon = Payment { expires_at: 5, ..payment() };
    let (_, events) = live(soon.clone(), &[expires(6), transfer(HOME, 7, 10)]);
    let mut told = self::told(&events);
    let (again, made) = live_again(soon, &[transfer(HOME, 7, 10)], &mut told);
    assert!(made.is_empty() && told.made().len() == 1, "{made:?}");
    let mut left = ToldEvents::default();
    for record in events.iter().map(|(payment, event)| event_record(payment, event)) {
        if told.made().contains(&record.sequence) { left.insert_made(&record) } else { left.insert(&record) }
    }
    let (again, made) = live_again(again, &[expires(9)], &mut left);
    assert!(made.is_empty() && again.status() == Status::Expired && again.sequence == 3, "{made:?}");
}

#[test]
fn a_confirmation_after_a_reorg_that_was_told_last_is_told() {
    let (_, events) = live(payment(), &[transfer(HOME, 2, 100), head(2), removed(2)]);
    let (again, made) = live_again(payment(), &[transfer(HOME, 2, 100), head(9)], &mut told(&events));
    assert_eq!(again.status(), Status::Confirmed);
    assert_eq!(made.iter().map(|event| (event.kind, event.sequence)).collect::<Vec<_>>(), [(EventKind::Confirmed, 5)]);
}

fn swept(number: u8) -> Input {
    let Cause { block, timestamp, .. } = cause(HOME, number);
    let settlement = Settlement { transaction: B256::repeat_byte(number), block, timestamp, fee: Some(Amount::from(7)) };
    Input::Swept { covered: Amount::from(1_000).into(), settlement }
}

/// `sweep.events` may lack the record by then, or have later ones that cover it too.
#[test]
fn a_payment_that_was_told_as_settled_is_settled_again_with_that_transaction_and_told_to_nobody() {
    let inputs = [transfer(HOME, 2, 100), head(2), swept(3)];
    let (ended, events) = live(payment(), &inputs);
    assert_eq!(ended.status(), Status::Settled);
    let settled = |payment: &Payment| (payment.status(), payment.settlement, payment.sequence);
    for known in 0..3 {
        for again in [&inputs[..2], &inputs, &[inputs[0].clone(), inputs[1].clone(), swept(9)]] {
            let (mut before, _) = live(payment(), &inputs[..known]);
            before.updated_at = 0;
            let mut told = told(&events[known..]);
            let (restored, made) = live_again(before, &again[known..], &mut told);
            assert_eq!((settled(&restored), made), (settled(&ended), vec![]), "{known} events were known");
            assert_eq!(told.made().len(), 3 - known);
        }
    }
}

#[test]
fn a_payment_that_was_settled_twice_is_settled_again_in_the_order_of_its_life() {
    let rewound = Input::Rewound(cause(HOME, 1));
    let inputs =
        [transfer(HOME, 2, 100), head(2), swept(3), rewound, transfer(HOME, 4, 100), head(4), swept(5), transfer(HOME, 6, 1)];
    let (ended, events) = live(payment(), &inputs);
    let without: Vec<Input> = inputs.iter().filter(|input| !matches!(input, Input::Swept { .. })).cloned().collect();
    for again in [&inputs[..], &without] {
        let mut told = told(&events);
        let (restored, made) = live_again(payment(), again, &mut told);
        assert_eq!((restored.settlement, restored.sequence, made), (ended.settlement, ended.sequence, vec![]));
        assert_eq!((restored.status(), told.made().len()), (Status::Settled, events.len()));
    }
}

/// What confirms it comes at a later block, as after its transfers were orphans.
#[test]
fn a_settled_payment_that_is_confirmed_at_a_later_block_than_it_was_told_tells_nothing() {
    let (ended, events) = live(payment(), &[transfer(HOME, 2, 100), head(2), swept(3)]);
    let mut told = told(&events);
    let (restored, made) = live_again(payment(), &[transfer(HOME, 2, 100), head(8)], &mut told);
    assert_eq!((restored.settlement, restored.sequence, made), (ended.settlement, ended.sequence, vec![]));
}

/// `sweep.events` may be read before the records of blocks that made it confirmed when it was settled.
#[test]
fn what_was_told_as_settled_is_not_settled_before_what_was_told_before_that() {
    let more = Input::Transfer(received(HOME, 3, None, 1, 5));
    let inputs = [transfer(HOME, 2, 100), head(2), more.clone(), head(3), swept(4)];
    let (ended, events) = live(payment(), &inputs);
    assert_eq!(ended.status(), Status::Settled);
    let mut told = told(&events);
    let again = [transfer(HOME, 2, 100), head(2), swept(4)];
    let (before, made) = live_again(payment(), &again, &mut told);
    assert_eq!((before.status(), made, told.is_settled_later()), (Status::Confirmed, vec![], true));
    let (restored, made) = live_again(before, &[more, head(3)], &mut told);
    assert_eq!((restored.settlement, restored.sequence, made), (ended.settlement, ended.sequence, vec![]));
    assert!(!told.is_settled_later());
}

/// It has been settled since.
#[test]
fn what_was_not_told_as_settled_is_told_above_all_that_was() {
    let (_, events) = live(payment(), &[transfer(HOME, 2, 100), head(2)]);
    let mut told = told(&events);
    let (restored, made) = live_again(payment(), &[transfer(HOME, 2, 100), head(2), swept(3)], &mut told);
    let made: Vec<_> = made.iter().map(|event| (event.kind, event.sequence)).collect();
    assert_eq!((restored.status(), made), (Status::Settled, vec![(EventKind::Settled, 4)]));
}
