//! A payment ends where the surviving chain says it ends, whatever the way there was.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panicking; its numbers are small")]

use confirmer::lifecycle::{Cause, EventKind, Head, Illegal, Input, Step, step};
use confirmer::{Asset, Exception, Label, Paid, Payment, Policy, Status, Terms, Token};
use proptest::prelude::*;
use std::collections::HashSet;
use topics::{Address, Amount, B256, BlockRef, ChainId, PaymentId, Source, TransferId};
use uuid::Uuid;

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
        deposit_address: None,
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

    fn transfers(&self) -> impl Iterator<Item = Paid> {
        let block = BlockRef { number: self.number, hash: self.hash };
        let timestamp = self.timestamp;
        self.amounts.clone().into_iter().zip(0..).map(move |(amount, index)| Paid {
            id: TransferId { chain: CHAIN, block: block.hash, transaction: B256::ZERO, source: Source::Log, index },
            block,
            timestamp,
            transaction_index: 0,
            token: Some(TOKEN),
            from: Address::ZERO,
            amount: Amount::from(amount),
            credited: false,
            listed: true,
            confirmed: false,
            label: Label::default(),
        })
    }
}

/// Drives a payment as the fold does, and checks what must hold after every input.
struct Driver {
    payment: Payment,
    events: Vec<EventKind>,
}

impl Driver {
    fn new(policy: Policy) -> Self {
        Self { payment: payment(policy), events: Vec::new() }
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
        let ids: HashSet<_> = next.transfers.iter().map(|t| t.id).collect();
        assert_eq!(ids.len(), next.transfers.len(), "a transfer counts once");
        self.events.extend(events.iter().map(|event| event.kind));
        self.payment = next;
    }

    fn add(&mut self, block: &Block) {
        if block.timestamp > EXPIRES {
            self.take(&Input::Expired(block.cause()));
        }
        for transfer in block.transfers() {
            self.take(&Input::Transfer(transfer));
        }
        self.take(&Input::Head(Head { cause: block.cause(), safe: None, finalized: Some(block.number.saturating_sub(4)) }));
    }

    fn remove(&mut self, block: &Block) {
        self.take(&Input::Removed(block.cause()));
    }

    fn verdict(&self) -> (Status, Option<Exception>, Option<Amount>, Vec<TransferId>) {
        let payment = &self.payment;
        (payment.status(), payment.exception(), payment.received(), payment.transfers.iter().map(|t| t.id).collect())
    }
}

#[derive(Clone, Debug)]
enum Move {
    Add { later: u64, amounts: Vec<u64> },
    Reorganise { depth: usize },
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let amounts = prop::collection::vec(prop_oneof![Just(30_u64), Just(70), Just(100), Just(150)], 0..3);
    let add = (1..300_u64, prop_oneof![3 => Just(Vec::new()), 1 => amounts]);
    prop::collection::vec(
        prop_oneof![
            4 => add.prop_map(|(later, amounts)| Move::Add { later, amounts }),
            1 => (1..6_usize).prop_map(|depth| Move::Reorganise { depth }),
        ],
        1..40,
    )
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![(0..6_u32).prop_map(Policy::Confirmations)]
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
            }
        }
        let mut straight = Driver::new(policy);
        chain.iter().for_each(|block| straight.add(block));
        prop_assert_eq!(lived.verdict(), straight.verdict());

        let on_chain: u64 = chain.iter().flat_map(|block| &block.amounts).sum();
        prop_assert_eq!(lived.payment.received(), Some(Amount::from(on_chain)));
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

#[test]
fn what_was_paid_in_time_does_not_expire_however_late_it_is_seen() {
    let mut driver = Driver::new(Policy::Confirmations(2));
    driver.add(&block(1, EXPIRES, &[100]));
    driver.add(&block(2, EXPIRES + 10_000, &[]));
    assert_eq!(driver.payment.status(), Status::Confirmed);
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
    let fake =
        Paid { token: Some(Address::repeat_byte(0x66)), listed: false, ..block(1, 10, &[100]).transfers().next().unwrap() };
    driver.take(&Input::Transfer(fake.clone()));
    assert_eq!(driver.payment, payment(Policy::Confirmations(1)), "it is no part of the payment");
    assert_eq!(driver.events, []);
    driver.take(&Input::Transfer(Paid { id: TransferId { index: 1, ..fake.id }, listed: true, ..fake }));
    assert_eq!(driver.events, [EventKind::UnexpectedTransfer]);
    assert_eq!(driver.payment.received(), Some(Amount::ZERO));
}

#[test]
fn the_same_transfer_twice_is_refused() {
    let mut driver = Driver::new(Policy::Confirmations(1));
    let paid = block(1, 10, &[100]).transfers().next().unwrap();
    driver.take(&Input::Transfer(paid.clone()));
    assert_eq!(step(&driver.payment, &Input::Transfer(paid.clone())), Err(Illegal::Twice(paid.id)));
}

#[test]
fn only_a_pending_payment_can_be_cancelled() {
    let mut driver = Driver::new(Policy::Confirmations(2));
    driver.add(&block(1, 10, &[100]));
    assert_eq!(step(&driver.payment, &Input::Cancel { at: 20 }), Err(Illegal::NotPending(Status::Detected)));
    let mut driver = Driver::new(Policy::Confirmations(2));
    driver.take(&Input::Cancel { at: 5 });
    driver.add(&block(1, 10, &[100]));
    assert_eq!((driver.payment.status(), driver.payment.exception()), (Status::Cancelled, Some(Exception::Late)));
    assert_eq!(driver.events, [EventKind::Cancelled, EventKind::Late]);
}
