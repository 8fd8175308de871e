//! A payment ends where the surviving chain says it ends, whatever the way there was.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking; its numbers are small")]

use payments::deposit::deposit_id;
use payments::events::state_for_records;
use payments::lifecycle::{Cause, EventKind, Head, Input, Step, StepError, step};
use payments::{
    Asset, DepositAddress, Exception, Payment, Policy, ReceivedTransfer, Settlement, Status, Sums, Terms, Token, Total,
    TransferLabel,
};
use proptest::prelude::*;
use std::collections::HashSet;
use std::sync::Arc;
use topics::{Address, Amount, B256, BlockRef, ChainId, PaymentId, Source, Transfer, TransferId};
use uuid::Uuid;

#[path = "lifecycle/kept.rs"]
mod kept;
#[path = "lifecycle/settled.rs"]
mod settled;

const CHAIN: ChainId = ChainId(1);
const EXPIRES: u64 = 1_000;
const TOKEN: Address = Address::repeat_byte(0x77);

fn payment(policy: Policy) -> Payment {
    Payment {
        id: PaymentId(Uuid::nil()),
        merchant: Uuid::nil(),
        external_id: None,
        metadata: None,
        chain: CHAIN,
        chain_name: "test".to_owned(),
        asset: Asset { token: Some(Token { symbol: "T".to_owned(), address: TOKEN }), decimals: 6 },
        address: Address::repeat_byte(1),
        xpub: String::new(),
        address_index: 0,
        amount: Amount::from(100),
        terms: Terms::default(),
        policy,
        created_at: 0,
        expires_at: EXPIRES,
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

/// A block on a fork: what it pays, and how much later than its parent it is.
#[derive(Clone, Debug)]
struct Block {
    number: u64,
    hash: B256,
    timestamp: u64,
    amounts: Vec<u64>,
}

impl Block {
    fn cause(&self) -> Cause {
        Cause { chain: CHAIN, block: BlockRef { number: self.number, hash: self.hash }, timestamp: self.timestamp }
    }

    fn removed(&self) -> Input {
        Input::Removed { cause: self.cause(), below: self.number - 1 }
    }

    fn transfers(&self) -> impl Iterator<Item = ReceivedTransfer> {
        let block = BlockRef { number: self.number, hash: self.hash };
        let timestamp = self.timestamp;
        self.amounts.clone().into_iter().zip(0..).map(move |(amount, index)| ReceivedTransfer {
            id: TransferId { chain: CHAIN, block: block.hash, transaction: B256::ZERO, source: Source::Log, index },
            block,
            timestamp,
            transaction_index: 0,
            token: Some(TOKEN),
            from: Address::ZERO,
            amount: Amount::from(amount),
            credited: false,
            listed: true,
            below_minimum: false,
            confirmed: false,
            label: TransferLabel::default(),
        })
    }
}

/// A payment whose parts are all in memory: the sums, kept step by step, are those of the parts.
fn check_sums(payment: &Payment) {
    let sum = |of: &dyn Fn(&payments::Part) -> Total| payment.parts.iter().fold(Total::ZERO, |sum, part| sum.plus(of(part)));
    let in_time = |part: &payments::Part| part.timestamp <= payment.expires_at;
    let timely = |part: &payments::Part, of: Total| if in_time(part) { of } else { Total::ZERO };
    let sums = Sums {
        received: sum(&|part| part.credited),
        in_time: sum(&|part| timely(part, part.credited)),
        confirmed: sum(&|part| part.confirmed),
        confirmed_in_time: sum(&|part| timely(part, part.confirmed)),
    };
    assert_eq!(payment.sums, sums);
    for transfer in &payment.transfers {
        let part = payment.parts.iter().find(|part| part.block == transfer.block).unwrap();
        // A replay may have added to a part that was confirmed.
        let (must, may) = (part.confirmed == part.credited, !part.confirmed.is_zero());
        assert!(
            if transfer.confirmed { transfer.credited && may } else { !transfer.credited || !must },
            "{transfer:?} of {part:?}"
        );
    }
}

/// Drives a payment as the fold does, and checks what must hold after every input.
struct Driver {
    payment: Payment,
    events: Vec<EventKind>,
}

impl Driver {
    fn new(policy: Policy) -> Self {
        Self::of(payment(policy))
    }

    fn of(payment: Payment) -> Self {
        Self { payment, events: Vec::new() }
    }

    fn take(&mut self, input: &Input) {
        let before = self.payment.clone();
        let Step { next, events, .. } = step(&before, input).unwrap();
        assert_eq!(next.sequence, before.sequence + events.len() as u64, "events count without gaps");
        for (event, sequence) in events.iter().zip(before.sequence + 1..) {
            assert_eq!(event.sequence, sequence);
        }
        if next.status() != before.status() {
            assert!(!events.is_empty(), "{} became {} and nobody was told", before.status(), next.status());
        }
        check_sums(&next);
        let ids: HashSet<_> = next.transfers.iter().map(|t| t.id).collect();
        assert_eq!(ids.len(), next.transfers.len(), "a transfer counts once");
        self.events.extend(events.iter().map(|event| event.kind));
        self.payment = next;
    }

    fn add(&mut self, block: &Block) {
        self.take(&Input::Expired(block.cause()));
        for transfer in block.transfers() {
            self.take(&Input::Transfer(transfer));
        }
        let (finalized, witnessed) = (Some(block.number.saturating_sub(4)), Some(block.number));
        self.take(&Input::Head(Head { cause: block.cause(), safe: None, finalized, witnessed }));
    }

    fn remove(&mut self, block: &Block) {
        self.take(&block.removed());
    }

    fn verdict(&self) -> (Status, Option<Exception>, Sums, Vec<TransferId>) {
        let payment = &self.payment;
        (payment.status(), payment.exception(), payment.sums, payment.transfers.iter().map(|t| t.id).collect())
    }
}

#[derive(Clone, Debug)]
enum Move {
    Add {
        later: u64,
        amounts: Vec<u64>,
    },
    Reorganise {
        depth: usize,
    },
    /// The chain begins anew so deep.
    Restart {
        depth: usize,
    },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let amounts = prop::collection::vec(prop_oneof![Just(30_u64), Just(70), Just(100), Just(150)], 0..3);
    let add = (1..300_u64, prop_oneof![3 => Just(Vec::new()), 1 => amounts]);
    prop::collection::vec(
        prop_oneof![
            4 => add.prop_map(|(later, amounts)| Move::Add { later, amounts }),
            1 => (1..6_usize).prop_map(|depth| Move::Reorganise { depth }),
            1 => (0..6_usize).prop_map(|depth| Move::Restart { depth }),
        ],
        1..40,
    )
}

fn policies() -> impl Strategy<Value = Policy> {
    (0..6_u32).prop_map(Policy::Confirmations)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_end_depends_on_the_surviving_chain_alone(moves in moves(), policy in policies()) {
        let mut lived = Driver::new(policy);
        let mut chain: Vec<Block> = Vec::new();
        for (salt, one) in moves.into_iter().enumerate() {
            match one {
                Move::Add { later, amounts } => {
                    let (number, timestamp) = chain.last().map_or((1, 500), |tip| (tip.number + 1, tip.timestamp + later));
                    let block = Block { number, hash: B256::with_last_byte(salt as u8 + 1), timestamp, amounts };
                    lived.add(&block);
                    chain.push(block);
                }
                Move::Reorganise { depth } => {
                    for _ in 0..depth.min(chain.len()) {
                        let block = chain.pop().unwrap();
                        lived.remove(&block);
                    }
                }
                Move::Restart { depth } => {
                    chain.truncate(chain.len().saturating_sub(depth));
                    let none = Block { number: 0, hash: B256::ZERO, timestamp: 500, amounts: Vec::new() };
                    lived.take(&Input::Rewound(chain.last().unwrap_or(&none).cause()));
                }
            }
        }
        let mut straight = Driver::new(policy);
        chain.iter().for_each(|block| straight.add(block));
        prop_assert_eq!(lived.verdict(), straight.verdict());

        let on_chain: u64 = chain.iter().flat_map(|block| &block.amounts).sum();
        prop_assert_eq!(lived.payment.received(), Amount::from(on_chain));
    }
}

fn block(number: u64, timestamp: u64, amounts: &[u64]) -> Block {
    Block { number, hash: B256::with_last_byte(number as u8), timestamp, amounts: amounts.to_vec() }
}

#[test]
fn a_payment_is_detected_then_confirmed_at_its_depth() {
    let mut driver = Driver::new(Policy::Confirmations(3));
    driver.add(&block(1, 10, &[100]));
    assert_eq!(driver.payment.status(), Status::Detected);
    driver.add(&block(2, 20, &[]));
    assert_eq!(driver.payment.status(), Status::Detected);
    driver.add(&block(3, 30, &[]));
    assert_eq!(driver.events, [EventKind::Detected, EventKind::Confirmed]);
}

#[test]
fn parts_add_up_and_the_last_one_decides_the_depth() {
    let mut driver = Driver::new(Policy::Confirmations(2));
    driver.add(&block(1, 10, &[30]));
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Pending, Some(Exception::Underpaid)));
    driver.add(&block(2, 20, &[70]));
    assert_eq!(driver.payment.status(), Status::Detected);
    driver.add(&block(3, 30, &[]));
    assert_eq!(driver.events, [EventKind::Underpaid, EventKind::Detected, EventKind::Confirmed]);
}

#[test]
fn a_reorganisation_takes_a_confirmed_payment_back() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let paid = block(1, 10, &[100]);
    driver.add(&paid);
    assert_eq!(driver.payment.status(), Status::Confirmed);
    driver.remove(&paid);
    assert_eq!(driver.payment.status(), Status::Pending);
    assert_eq!(driver.events, [EventKind::Detected, EventKind::Confirmed, EventKind::Reverted]);
}

/// The block at 13 stands on the one at 11.
#[test]
fn what_a_block_above_a_hole_confirms_is_taken_back_with_it() {
    let mut driver = Driver::new(Policy::Confirmations(3));
    let [paid, below, above] = [block(10, 10, &[100]), block(11, 20, &[]), block(13, 30, &[])];
    for block in [&paid, &below, &above] {
        driver.add(block);
    }
    assert_eq!(driver.payment.status(), Status::Confirmed);
    driver.take(&Input::Removed { cause: above.cause(), below: 11 });
    assert_eq!((driver.payment.status(), driver.events.last()), (Status::Detected, Some(&EventKind::Reverted)));
    driver.add(&above);
    assert_eq!(driver.payment.status(), Status::Confirmed);
}

#[test]
fn what_was_paid_in_time_does_not_expire_however_late_it_is_seen() {
    let mut driver = Driver::new(Policy::Confirmations(2));
    driver.add(&block(1, EXPIRES, &[100]));
    let head = block(2, EXPIRES + 10_000, &[]);
    driver.add(&head);
    assert_eq!(driver.payment.status(), Status::Confirmed);
    assert_eq!(driver.events, [EventKind::Detected, EventKind::Confirmed], "it did not expire in its last second");
    driver.remove(&head);
    assert_eq!(driver.payment.status(), Status::Detected, "its confirmation is taken back with the head");
}

#[test]
fn late_money_is_announced_and_does_not_revive_a_payment() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    driver.add(&block(1, EXPIRES + 1, &[100]));
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Expired, Some(Exception::Late)));
    assert_eq!(driver.events, [EventKind::Expired, EventKind::Late]);
}

#[test]
fn an_expiry_is_taken_back_with_its_block() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let too_late = block(1, EXPIRES + 1, &[]);
    driver.add(&too_late);
    driver.remove(&too_late);
    assert_eq!(driver.payment.status(), Status::Pending);
    driver.add(&Block { hash: B256::with_last_byte(9), ..block(1, EXPIRES, &[100]) });
    assert_eq!(driver.payment.status(), Status::Confirmed);
}

#[test]
fn a_fake_token_changes_nothing_and_is_announced_to_nobody() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let fake = ReceivedTransfer {
        token: Some(Address::repeat_byte(0x66)),
        listed: false,
        ..block(1, 10, &[100]).transfers().next().unwrap()
    };
    driver.take(&Input::Transfer(fake.clone()));
    assert_eq!(driver.payment, payment(Policy::Confirmations(1)), "it is no part of the payment");
    assert_eq!(driver.events, []);
    driver.take(&Input::Transfer(ReceivedTransfer { id: TransferId { index: 1, ..fake.id }, listed: true, ..fake }));
    assert_eq!(driver.events, [EventKind::UnexpectedTransfer]);
    assert_eq!(driver.payment.received(), Amount::ZERO);
}

#[test]
fn the_same_transfer_twice_is_refused() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let paid = block(1, 10, &[100]).transfers().next().unwrap();
    driver.take(&Input::Transfer(paid.clone()));
    assert_eq!(step(&driver.payment, &Input::Transfer(paid.clone())), Err(StepError::DuplicateTransfer(paid.id)));
}

#[test]
fn only_a_pending_payment_can_be_cancelled() {
    let mut driver = Driver::new(Policy::Confirmations(2));
    driver.add(&block(1, 10, &[100]));
    assert_eq!(step(&driver.payment, &Input::Cancel { at: 20 }), Err(StepError::NotPending(Status::Detected)));
    let mut driver = Driver::new(Policy::Confirmations(2));
    driver.take(&Input::Cancel { at: 5 });
    driver.add(&block(1, 10, &[100]));
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Cancelled, Some(Exception::Late)));
    assert_eq!(driver.events, [EventKind::Cancelled, EventKind::Late]);
}

fn on_terms(terms: Terms) -> Driver {
    Driver::of(Payment { terms, ..payment(Policy::Confirmations(1)) })
}

#[test]
fn a_little_less_is_enough_and_a_little_more_is_no_exception() {
    let terms = Terms { underpaid_tolerance: 5.into(), overpaid_tolerance: 5.into(), accept_late: false };
    let cases = [
        (94, Status::Pending, Some(Exception::Underpaid), vec![EventKind::Underpaid]),
        (95, Status::Confirmed, None, vec![EventKind::Detected, EventKind::Confirmed]),
        (105, Status::Confirmed, None, vec![EventKind::Detected, EventKind::Confirmed]),
        (
            106,
            Status::Confirmed,
            Some(Exception::Overpaid),
            vec![EventKind::Detected, EventKind::Overpaid, EventKind::Confirmed],
        ),
    ];
    for (amount, status, exception, events) in cases {
        let mut driver = on_terms(terms);
        driver.add(&block(1, 10, &[amount]));
        assert_eq!(
            (driver.payment.status(), driver.payment.exception(), driver.events),
            (status, exception, events),
            "{amount}"
        );
    }
}

#[test]
fn what_comes_on_top_is_announced_even_where_it_is_tolerated() {
    let mut driver = on_terms(Terms { overpaid_tolerance: 5.into(), ..Terms::default() });
    driver.add(&block(1, 10, &[100, 3]));
    assert_eq!(driver.payment.exception(), None);
    assert_eq!(driver.events, [EventKind::Detected, EventKind::Overpaid, EventKind::Confirmed]);
}

#[test]
fn no_tolerance_pays_a_payment_with_nothing() {
    let mut driver = on_terms(Terms { underpaid_tolerance: 100.into(), ..Terms::default() });
    assert_eq!(driver.payment.status(), Status::Pending);
    driver.add(&block(1, 10, &[1]));
    assert_eq!(driver.payment.status(), Status::Confirmed, "the least that there is pays it");
    let driver = on_terms(Terms { underpaid_tolerance: Amount::new(topics::U256::MAX), ..Terms::default() });
    assert_eq!(driver.payment.status(), Status::Pending);
}

#[test]
fn late_money_pays_an_expired_payment_whose_merchant_accepts_it() {
    let mut driver = on_terms(Terms { accept_late: true, ..Terms::default() });
    driver.add(&block(1, EXPIRES, &[40]));
    driver.add(&block(2, EXPIRES + 1, &[30]));
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Expired, Some(Exception::Late)));
    let whole = block(3, EXPIRES + 2, &[40]);
    driver.add(&whole);
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Confirmed, Some(Exception::Overpaid)));
    use EventKind::{Confirmed, Detected, Expired, Late, Overpaid, Reverted, Underpaid};
    assert_eq!(driver.events, [Underpaid, Expired, Late, Late, Detected, Overpaid, Confirmed]);
    driver.remove(&whole);
    assert_eq!(driver.payment.status(), Status::Expired);
    assert_eq!(driver.events.last(), Some(&Reverted));
}

#[test]
fn a_part_in_time_that_a_replay_finds_pays_an_expired_payment() {
    let mut driver = Driver::new(Policy::Confirmations(3));
    driver.add(&block(5, EXPIRES + 1, &[]));
    let part = |number, amount| block(number, 10, &[amount]).transfers().next().unwrap();
    driver.take(&Input::Transfer(part(1, 60)));
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Expired, Some(Exception::Underpaid)));
    driver.take(&Input::Transfer(part(2, 40)));
    let cause = block(5, EXPIRES + 1, &[]).cause();
    driver.take(&Input::Head(Head { cause, safe: None, finalized: None, witnessed: Some(5) }));
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Confirmed, None));
    use EventKind::{Confirmed, Detected, Expired, Underpaid};
    assert_eq!(driver.events, [Expired, Underpaid, Detected, Confirmed]);
}

#[test]
fn the_payments_own_token_on_another_chain_is_told_with_its_chain_whatever_the_status() {
    for cancelled in [false, true] {
        let mut driver = Driver::of(Payment { cancelled, ..payment(Policy::Confirmations(1)) });
        let elsewhere = block(1, 10, &[100]).transfers().next().unwrap();
        let elsewhere = ReceivedTransfer { id: TransferId { chain: ChainId(2), ..elsewhere.id }, ..elsewhere };
        let step = step(&driver.payment, &Input::Transfer(elsewhere.clone())).unwrap();
        assert_eq!(step.events[0].block, Some((ChainId(2), elsewhere.block)));
        assert_eq!(step.events[0].transfer.as_ref().map(|t| (t.id, t.credited)), Some((elsewhere.id, false)));
        driver.take(&Input::Transfer(elsewhere.clone()));
        assert_eq!(
            (driver.events.as_slice(), driver.payment.received()),
            ([EventKind::UnexpectedTransfer].as_slice(), Amount::ZERO)
        );
        // Neither chain's blocks do anything to the other's.
        let other = |timestamp| Cause { chain: ChainId(2), block: elsewhere.block, timestamp };
        let unmoved = driver.payment.clone();
        driver.take(&Input::Expired(other(EXPIRES + 1)));
        driver.take(&Input::Head(Head { cause: other(10), safe: Some(9), finalized: Some(9), witnessed: Some(9) }));
        driver.take(&Input::Removed { cause: Cause { chain: CHAIN, ..other(10) }, below: 9 });
        assert_eq!(driver.payment, unmoved);
        driver.take(&Input::Removed { cause: other(10), below: 9 });
        assert_eq!(driver.events.last(), Some(&EventKind::Reverted));
        assert!(driver.payment.transfers.is_empty());
    }
}

/// The block and the depth that its policy asks for have to be witnessed, whatever the head and the tags say.
#[test]
fn what_enough_endpoints_have_not_given_confirms_nothing() {
    for policy in [Policy::Confirmations(3), Policy::Safe, Policy::Finalized] {
        let mut driver = Driver::new(policy);
        let head = |number, witnessed| {
            let cause = block(number, 10, &[]).cause();
            Input::Head(Head { cause, safe: Some(number), finalized: Some(number), witnessed })
        };
        block(5, 10, &[100]).transfers().for_each(|transfer| driver.take(&Input::Transfer(transfer)));
        let needed = policy.due(5);
        for witnessed in [None, Some(4), Some(needed - 1)] {
            driver.take(&head(20, witnessed));
            assert_eq!(driver.payment.status(), Status::Detected, "{policy:?} with {witnessed:?} witnessed");
        }
        driver.take(&head(20, Some(needed)));
        assert_eq!(driver.payment.status(), Status::Confirmed, "{policy:?}");
        assert_eq!(driver.events, [EventKind::Detected, EventKind::Confirmed]);
    }
}

#[test]
fn a_tag_confirms_what_it_reaches_and_keeps_it_when_the_head_goes_down() {
    let mut driver = Driver::new(Policy::Finalized);
    driver.add(&block(1, 10, &[100]));
    driver.add(&block(4, 20, &[]));
    assert_eq!(driver.payment.status(), Status::Detected);
    let head = block(5, 30, &[]);
    driver.add(&head);
    assert_eq!(driver.payment.status(), Status::Confirmed);
    driver.remove(&head);
    assert_eq!(driver.payment.status(), Status::Confirmed);
}

fn chain() -> chain::Chain {
    use chain::{Policy, Sweeping, Tier, Token, Verify};
    let tier = |from: u64, policy| Tier { from: from.into(), policy };
    chain::Chain {
        name: "test".to_owned(),
        id: CHAIN,
        rpc_urls: vec![],
        ws_urls: vec![],
        witnesses: 1,
        poa: false,
        policy: Policy::Confirmations(1),
        tiers: vec![],
        min_transfer: Amount::ZERO,
        start_block: None,
        poll_interval: std::time::Duration::ZERO,
        max_lag: None,
        verify: Verify::Auto,
        traces: false,
        sweeping: Sweeping::default(),
        tokens: vec![Token {
            symbol: "T".to_owned(),
            address: TOKEN,
            decimals: 6,
            tiers: vec![tier(100, Policy::Confirmations(3))],
            min_transfer: Amount::ZERO,
        }],
        doubts: std::collections::BTreeMap::new(),
    }
}

fn address() -> DepositAddress {
    DepositAddress {
        id: Uuid::from_u128(5),
        merchant: Uuid::nil(),
        external_id: Some("customer 5".to_owned()),
        metadata: None,
        address: Address::repeat_byte(1),
        xpub: String::new(),
        address_index: 5,
        created_at: 0,
        asked_by: None,
    }
}

fn deposit(paid: &[ReceivedTransfer]) -> Option<Payment> {
    let address = address();
    let sent = |paid: &ReceivedTransfer| {
        let ReceivedTransfer { id, token, from, amount, transaction_index, .. } = *paid;
        Transfer { id, token, from, to: address.address, amount, transaction_index }
    };
    let id = deposit_id(&paid.iter().map(sent).collect::<Vec<_>>(), paid.first()?.timestamp);
    address.deposit(id, &chain(), &paid.iter().cloned().map(Arc::new).collect::<Vec<_>>())
}

#[test]
fn a_transfer_to_a_static_address_makes_a_deposit_of_its_own_amount_and_policy() {
    for (amount, depth) in [(99, 1), (100, 3)] {
        let paid = block(1, EXPIRES + 1, &[amount]);
        let mut driver = Driver::of(deposit(&[paid.transfers().next().unwrap()]).unwrap());
        assert_eq!(driver.payment.policy, Policy::Confirmations(depth));
        driver.add(&paid);
        for number in 2..=u64::from(depth) {
            assert_eq!(driver.payment.status(), Status::Detected, "{number}");
            driver.add(&block(number, u64::MAX, &[]));
        }
        assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Confirmed, None));
        assert_eq!(driver.payment.amount, Amount::from(amount));
        let names: Vec<_> = driver.events.iter().map(|kind| kind.name(&driver.payment)).collect();
        assert_eq!(names, ["deposit.detected", "deposit.confirmed"]);
    }
}

#[test]
fn a_deposit_goes_with_its_block_comes_back_with_it_and_is_never_cancelled() {
    let paid = block(1, 10, &[50]);
    let transfer = paid.transfers().next().unwrap();
    let mut driver = Driver::of(deposit(std::slice::from_ref(&transfer)).unwrap());
    driver.add(&paid);
    assert_eq!(step(&driver.payment, &Input::Cancel { at: 1 }), Err(StepError::CancelledDeposit));
    driver.remove(&paid);
    assert_eq!((driver.payment.status(), driver.payment.received()), (Status::Pending, Amount::ZERO));
    assert_eq!(step(&driver.payment, &Input::Cancel { at: 1 }), Err(StepError::CancelledDeposit));
    driver.add(&paid);
    assert_eq!(driver.payment.status(), Status::Confirmed);
    let again = deposit(std::slice::from_ref(&transfer)).unwrap();
    assert_eq!(again.id, driver.payment.id, "the same transfer makes the same deposit");
    let others = [
        ReceivedTransfer { id: TransferId { block: B256::ZERO, ..transfer.id }, ..transfer.clone() },
        ReceivedTransfer { token: None, ..transfer.clone() },
        ReceivedTransfer { from: Address::repeat_byte(9), ..transfer.clone() },
        ReceivedTransfer { amount: Amount::from(51), ..transfer.clone() },
        ReceivedTransfer { timestamp: 11, ..transfer.clone() },
    ];
    for other in others {
        assert_ne!(
            deposit(std::slice::from_ref(&other)).unwrap().id,
            again.id,
            "in another block, or with other content: {other:?}"
        );
    }
}

/// A batch may have tens of thousands of deposits at one address, and as many events.
#[test]
fn deposits_and_their_events_share_the_metadata_of_their_address() {
    let paid: Vec<ReceivedTransfer> = block(1, 10, &[50, 60]).transfers().collect();
    let address = DepositAddress { metadata: Some("{}".into()), ..address() };
    let deposits =
        paid.iter().map(|paid| address.deposit(PaymentId(Uuid::nil()), &chain(), &[Arc::new(paid.clone())]).unwrap());
    for metadata in deposits.flat_map(|deposit| [state_for_records(&deposit).metadata, deposit.metadata]) {
        assert!(Arc::ptr_eq(&metadata.unwrap(), address.metadata.as_ref().unwrap()));
    }
}

#[test]
fn a_fake_token_makes_no_deposit() {
    let paid = block(1, 10, &[50]).transfers().next().unwrap();
    assert_eq!(deposit(&[ReceivedTransfer { token: Some(Address::repeat_byte(0x66)), listed: false, ..paid }]), None);
}

#[test]
fn dust_makes_no_record_that_kafka_refuses() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    driver.add(&block(1, 10, &vec![1; 150]));
    let told = payments::events::state_record(&driver.payment);
    assert_eq!((told.transfers.len(), told.amount_received.as_ref()), (100, [150].as_slice()));
    assert_eq!(told.transfers.last().map(|t| t.index), Some(149));
}

fn bundle(block: &Block) -> Input {
    Input::Transfers(block.transfers().map(Arc::new).collect())
}

#[test]
fn many_transfers_of_a_block_are_one_event_with_their_count_sum_first_and_last() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let dust = block(1, 10, &vec![1; 2_000]);
    let step = step(&driver.payment, &bundle(&dust)).unwrap();
    let kinds: Vec<EventKind> = step.events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Detected, EventKind::Overpaid], "they are paid with as one, of their sum");
    for event in &step.events {
        let told = event.summary.as_ref().unwrap();
        let ends = [&told.first, &told.last].map(|end| end.as_ref().map(|t| (t.id.index, t.credited)));
        assert_eq!((told.count, told.sum, ends), (2_000, Amount::from(2_000).into(), [Some((0, true)), Some((1_999, true))]));
        assert_eq!(event.transfer, None);
        let record = payments::events::event_record(&step.next, event);
        assert_eq!((record.summary.unwrap().count, record.transfers.len()), (2_000, 100));
    }
    assert!(step.next.transfers.len() == 100 && step.next.parts.len() == 1, "its size does not depend on how many they are");
    driver.take(&bundle(&dust));
    driver.take(&Input::Head(Head { cause: dust.cause(), safe: None, finalized: None, witnessed: Some(1) }));
    assert_eq!(driver.payment.status(), Status::Confirmed);
    driver.remove(&dust);
    assert_eq!((driver.payment.status(), driver.payment.received()), (Status::Pending, Amount::ZERO));
    assert!(driver.payment.transfers.is_empty() && driver.payment.parts.is_empty());
}

#[test]
fn a_reorg_tells_how_many_transfers_it_took_back() {
    for count in [1, 2, 100, 101] {
        let mut driver = Driver::new(Policy::Confirmations(1));
        let paid = block(1, 10, &vec![1; count]);
        driver.take(&bundle(&paid));
        let reverted = step(&driver.payment, &paid.removed()).unwrap().events.pop().unwrap();
        assert_eq!((reverted.kind, reverted.transfer.is_some()), (EventKind::Reverted, count == 1));
        let told = reverted.summary.map(|told| (told.count, told.sum, told.first.is_some(), told.last.is_some()));
        assert_eq!(told, (count > 1).then(|| (count as u64, Amount::from(count as u64).into(), count <= 100, true)));
    }
}

#[test]
fn a_reorg_of_a_flood_uncovers_the_transfers_before_it() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    driver.add(&block(1, 10, &[30, 20]));
    let flood = block(2, 20, &vec![1; 500]);
    driver.take(&bundle(&flood));
    let shown = || |p: &Payment| payments::events::state_record(p).transfers.len();
    assert_eq!((shown()(&driver.payment), driver.payment.received()), (100, Amount::from(550)));
    driver.remove(&flood);
    assert_eq!((shown()(&driver.payment), driver.payment.received()), (2, Amount::from(50)));
}

/// A contract may claim to have moved any amount.
#[test]
fn a_sum_beyond_256_bits_is_shown_as_the_largest_amount_and_can_be_taken_back() {
    let most = Amount::new(topics::U256::MAX);
    let mut driver = Driver::new(Policy::Confirmations(1));
    driver.add(&block(1, 10, &[40]));
    let huge = block(2, 20, &[1, 1]);
    for transfer in huge.transfers() {
        driver.take(&Input::Transfer(ReceivedTransfer { amount: most, ..transfer }));
    }
    driver.take(&Input::Head(Head { cause: huge.cause(), safe: None, finalized: None, witnessed: Some(2) }));
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Confirmed, Some(Exception::Overpaid)));
    assert_eq!(driver.payment.received(), most);
    let told = payments::events::state_record(&driver.payment);
    assert!(told.amount_received_saturated && told.amount_received.as_ref() == [0xff; 32]);
    driver.remove(&huge);
    assert_eq!((driver.payment.status(), driver.payment.received()), (Status::Pending, Amount::from(40)));
    assert!(!payments::events::state_record(&driver.payment).amount_received_saturated);
}

#[test]
fn what_is_below_the_minimum_changes_nothing_and_is_announced_to_nobody() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let dust = ReceivedTransfer { below_minimum: true, ..block(1, 10, &[100]).transfers().next().unwrap() };
    driver.take(&Input::Transfer(dust.clone()));
    driver.take(&Input::Transfer(ReceivedTransfer { token: None, ..dust }));
    assert_eq!(driver.payment, payment(Policy::Confirmations(1)));
    assert_eq!(driver.events, []);
}

#[test]
fn what_a_replay_adds_to_a_confirmed_block_is_confirmed_by_the_next_head_and_told_once() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let paid = block(1, 10, &[100, 7]);
    let head = Input::Head(Head { cause: paid.cause(), safe: None, finalized: None, witnessed: Some(1) });
    let mut transfers = paid.transfers();
    for _ in 0..2 {
        driver.take(&Input::Transfer(transfers.next().unwrap()));
        driver.take(&head);
    }
    let part = driver.payment.parts[0];
    assert!(part.confirmed == part.credited && driver.payment.transfers.iter().all(|t| t.confirmed));
    assert_eq!(driver.events, [EventKind::Detected, EventKind::Confirmed, EventKind::Overpaid]);
}

#[test]
fn many_transfers_make_one_deposit_of_their_sum() {
    let paid = block(1, 10, &[60, 60]);
    let transfers: Vec<ReceivedTransfer> = paid.transfers().collect();
    let one = deposit(&transfers).unwrap();
    assert_eq!((one.amount, one.policy), (Amount::from(120), Policy::Confirmations(3)));
    assert_ne!(one.id, deposit(&transfers[..1]).unwrap().id, "its id is that of all of them");
    let mut driver = Driver::of(one);
    driver.take(&bundle(&paid));
    assert_eq!((driver.payment.status(), driver.events.as_slice()), (Status::Detected, [EventKind::Detected].as_slice()));
}
