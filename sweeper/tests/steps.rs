//! Single rules of the engine, each with the failure that it prevents. The model has all of them together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use alloy::primitives::{B256, U256};
use sweeper::engine::answers::Answer;
use sweeper::engine::fees::{Fees, Market};
use sweeper::engine::outgoing::{
    Action, Attempt, Contradiction, Input, Kind, Mined, Moment, Notice, Order, Outgoing, Pace, Phase,
};
use sweeper::engine::step::step;
use topics::BlockRef;

const PACE: Pace = Pace { max_fee: 130, raise: 100, resend_after: 10, stuck_after: 30, raise_after: 2 };
const NONCE: u64 = 7;

fn hash(number: u8) -> B256 {
    B256::repeat_byte(number)
}

fn block(number: u64) -> BlockRef {
    BlockRef { number, hash: B256::left_padding_from(&number.to_be_bytes()) }
}

fn mined(attempt: u8, number: u64) -> Input {
    Input::SeenInBlock(Mined { hash: hash(attempt), block: block(number), succeeded: true, gas_used: 21_000, gas_price: 1 })
}

fn attempt(number: u8, nonce: u64, cap: u128, cancels: bool) -> Input {
    let (hash, fees) = (hash(number), Fees { tip: 1, cap });
    Input::Signed(Attempt { hash, nonce, fees, cancels, acknowledged: false, first_sent: None, last_sent: None })
}

/// One with the lowest nonce of its lane, and the time.
struct Case {
    outgoing: Outgoing,
    now: u64,
}

impl Case {
    /// Signed, recorded and sent once, at the time 100.
    fn sent(cap: u128) -> Self {
        let mut case = Self { outgoing: Outgoing::queued(Kind::Payout), now: 100 };
        case.tell(attempt(1, NONCE, cap, false));
        case.tell(Input::Acknowledged(hash(1)));
        case.tell(Input::Answer(hash(1), Answer::Accepted));
        case
    }

    fn moment(&self) -> Moment {
        let market = Some(Market { base: Some(10), tip: 1 });
        Moment { time: self.now, market, is_lowest: true, pace: PACE }
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        let step = step(&self.outgoing, &input, &self.moment()).unwrap();
        self.outgoing = step.next;
        step.actions
    }

    fn refuse(&self, input: &Input) -> Contradiction {
        step(&self.outgoing, input, &self.moment()).unwrap_err()
    }

    fn after(&mut self, seconds: u64) -> Vec<Action> {
        self.now += seconds;
        self.tell(Input::Tick)
    }
}

#[test]
fn nothing_is_sent_before_kafka_has_its_record() {
    let mut case = Case { outgoing: Outgoing::queued(Kind::Payout), now: 100 };
    let first = Action::Sign(Order { nonce: None, fees: Fees { tip: 1, cap: 21 }, cancels: false });
    assert_eq!(case.tell(Input::Tick), [first]);
    assert_eq!(case.tell(attempt(1, NONCE, 21, false)), [Action::Publish(hash(1))]);
    assert_eq!(case.after(1000), [Action::Publish(hash(1))], "after a crash it is said again, and nothing else");
    assert_eq!(case.tell(Input::Acknowledged(hash(1))), [Action::Broadcast(hash(1))]);
    assert_eq!(case.after(1000), [Action::Broadcast(hash(1))], "after a crash too");
}

#[test]
fn what_is_stuck_is_raised_and_what_waits_behind_it_is_not() {
    let mut case = Case::sent(21);
    assert_eq!(case.after(9), []);
    assert_eq!(case.after(1), [Action::Broadcast(hash(1)), Action::FillGaps], "pools drop transactions");
    let raised = Action::Sign(Order { nonce: Some(NONCE), fees: Fees { tip: 2, cap: 24 }, cancels: false });
    assert!(case.after(20).contains(&raised));
    let behind = Moment { is_lowest: false, ..case.moment() };
    let step = step(&case.outgoing, &Input::Tick, &behind).unwrap();
    assert_eq!(step.actions, [Action::Broadcast(hash(1))]);
}

#[test]
fn at_the_cap_the_same_bytes_are_sent_again_and_it_is_told_once() {
    let mut case = Case::sent(120);
    let told = case.after(30);
    assert_eq!(told, [Action::Broadcast(hash(1)), Action::FillGaps, Action::Tell(Notice::AtCap)]);
    for _ in 0..5 {
        case.tell(Input::Answer(hash(1), Answer::AlreadyThere));
        assert_eq!(case.after(10), [Action::Broadcast(hash(1)), Action::FillGaps]);
    }
}

#[test]
fn a_pool_that_asks_for_more_gets_more_and_drives_no_price_up_at_once() {
    let mut case = Case::sent(21);
    assert_eq!(case.tell(Input::Answer(hash(1), Answer::ReplacementUnderpriced)), []);
    assert_eq!(case.after(1), []);
    assert!(matches!(case.after(1).as_slice(), [Action::Sign(Order { nonce: Some(NONCE), cancels: false, .. })]));
    case.tell(attempt(2, NONCE, 24, false));
    assert_eq!(case.after(100), [Action::Publish(hash(2)), Action::Broadcast(hash(1)), Action::FillGaps]);
}

#[test]
fn no_answer_makes_one_failed_and_what_holds_it_up_is_told_once() {
    for answer in [Answer::Unknown, Answer::AlreadyReserved, Answer::InFlightLimit] {
        let mut case = Case::sent(21);
        assert_eq!(case.tell(Input::Answer(hash(1), answer)), [], "{answer:?}");
        assert_eq!(case.outgoing.phase, Phase::Broadcast);
    }
    let mut case = Case::sent(21);
    for (overshot, expected) in [(5, true), (5, false), (6, false)] {
        let overshot = Some(U256::from(overshot));
        let told = case.tell(Input::Answer(hash(1), Answer::InsufficientFunds { overshot }));
        assert_eq!(!told.is_empty(), expected);
    }
    assert_eq!(case.tell(Input::Answer(hash(1), Answer::NonceTooLow)), [Action::AskNonce]);
    assert_eq!(case.tell(Input::Answer(hash(1), Answer::NonceTooHigh)), [Action::FillGaps]);
    assert_eq!(case.outgoing.phase, Phase::Broadcast);
}

#[test]
fn what_the_sender_cannot_pay_for_is_not_raised_until_it_is_taken() {
    let mut case = Case::sent(21);
    case.tell(Input::Answer(hash(1), Answer::InsufficientFunds { overshot: None }));
    assert_eq!(case.after(60), [Action::Broadcast(hash(1)), Action::FillGaps]);
    case.tell(Input::Answer(hash(1), Answer::Accepted));
    assert!(case.after(60).iter().any(|action| matches!(action, Action::Sign(_))));
}

#[test]
fn what_a_reorg_takes_back_is_sent_again_at_once() {
    let mut case = Case::sent(21);
    assert_eq!(case.tell(mined(1, 5)), []);
    assert_eq!(case.tell(Input::Removed(block(6))), []);
    assert_eq!(case.tell(Input::Removed(block(5))), [Action::Broadcast(hash(1))]);
    case.tell(mined(1, 6));
    case.tell(Input::Final(5));
    assert!(matches!(case.outgoing.phase, Phase::Mined(_)));
    case.tell(Input::Final(6));
    assert!(matches!(case.outgoing.phase, Phase::Final(_)));
    assert_eq!(case.refuse(&Input::Removed(block(6))), Contradiction::FinalRemoved(block(6)));
}

/// Signed anew before that is final, both would be mined after a reorg.
#[test]
fn a_nonce_of_a_stranger_is_given_up_when_that_is_final_and_not_before() {
    let mut case = Case::sent(21);
    let foreign = Input::ForeignNonce { nonce: NONCE, number: 9 };
    assert_eq!(case.tell(foreign.clone()), [Action::Tell(Notice::ForeignNonce)]);
    assert_eq!(case.after(1000), [], "nothing is signed");
    assert_eq!(case.tell(Input::Removed(block(9))), [Action::Broadcast(hash(1))]);
    case.tell(foreign);
    assert_eq!(case.tell(Input::Final(8)), []);
    let anew = case.tell(Input::Final(9));
    assert!(matches!(anew.as_slice(), [Action::Sign(Order { nonce: None, cancels: false, .. })]), "{anew:?}");
    assert_eq!(case.refuse(&mined(1, 10)), Contradiction::NonceTwice(NONCE));
    case.tell(attempt(2, NONCE + 1, 21, false));
    assert_eq!(case.tell(Input::ForeignNonce { nonce: NONCE, number: 12 }), [Action::Publish(hash(2))], "that is over");
    assert_eq!(case.outgoing.phase, Phase::Signed);
    assert_eq!(case.refuse(&mined(1, 13)), Contradiction::NonceTwice(NONCE));
}

#[test]
fn what_is_not_wanted_leaves_no_gap_and_may_still_be_mined() {
    let mut queued = Case { outgoing: Outgoing::queued(Kind::Payout), now: 100 };
    assert_eq!(queued.tell(Input::Drop), []);
    assert_eq!(queued.outgoing.phase, Phase::Dropped(None));

    for (first_mined, is_dropped) in [(2, true), (1, false)] {
        let mut case = Case::sent(21);
        let cancel = case.tell(Input::Drop);
        assert!(matches!(cancel.as_slice(), [Action::Sign(Order { nonce: Some(NONCE), cancels: true, .. })]), "{cancel:?}");
        case.tell(attempt(2, NONCE, 24, true));
        case.tell(Input::Acknowledged(hash(2)));
        case.tell(mined(first_mined, 5));
        case.tell(Input::Final(5));
        assert_eq!(matches!(case.outgoing.phase, Phase::Dropped(Some(_))), is_dropped);
        assert_eq!(matches!(case.outgoing.phase, Phase::Final(_)), !is_dropped);
    }
}

#[test]
fn what_contradicts_what_is_known_changes_nothing() {
    let mut case = Case::sent(21);
    case.tell(mined(1, 5));
    let before = case.outgoing.clone();
    assert_eq!(case.refuse(&mined(1, 6)), Contradiction::TwoBlocks { before: block(5), after: block(6) });
    assert_eq!(case.refuse(&mined(9, 6)), Contradiction::UnknownAttempt(hash(9)));
    assert_eq!(case.refuse(&attempt(3, NONCE, 24, false)), Contradiction::NotToBeSigned);
    assert_eq!(case.tell(mined(1, 5)), [], "the same record again is none");
    assert_eq!(case.outgoing, before);
    let sent = Case::sent(21);
    assert!(matches!(sent.refuse(&attempt(3, NONCE + 1, 24, false)), Contradiction::OtherNonce { .. }));
}
