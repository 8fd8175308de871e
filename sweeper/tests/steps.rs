//! Single rules of the engine, each with the failure that it prevents. The model has all of them together.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use alloy::primitives::{B256, U256};
use sweeper::engine::answers::Answer;
use sweeper::engine::fees::{Fees, Market, Replacement};
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
    mined_as(attempt, number, Some(true))
}

fn mined_as(attempt: u8, number: u64, succeeded: Option<bool>) -> Input {
    let (gas_used, gas_price) = (succeeded.map(|_| 21_000), Some(1));
    Input::SeenInBlock(Mined { hash: hash(attempt), block: block(number), succeeded, gas_used, gas_price })
}

fn attempt(number: u8, nonce: u64, cap: u128, cancels: bool) -> Input {
    Input::Signed(Attempt::signed(hash(number), nonce, Fees { tip: 1, cap }, cancels))
}

fn receipt(attempt: u8, number: u64, succeeded: bool) -> Input {
    let Input::SeenInBlock(mined) = mined_as(attempt, number, Some(succeeded)) else { unreachable!() };
    Input::Receipt(Some(mined))
}

/// One with the lowest nonce of its lane, the time, and how many blocks were read by then.
struct Case {
    outgoing: Outgoing,
    now: u64,
    blocks: u64,
}

impl Case {
    fn queued() -> Self {
        Self { outgoing: Outgoing::queued(Kind::Payout), now: 100, blocks: 5 }
    }

    /// Signed, recorded and sent once, at the time 100.
    fn sent(cap: u128) -> Self {
        let mut case = Self::queued();
        case.tell(attempt(1, NONCE, cap, false));
        case.tell(Input::Acknowledged(hash(1)));
        case.tell(Input::Answer(hash(1), Answer::Accepted));
        case
    }

    fn moment(&self) -> Moment {
        let market = Some(Market { base: Some(10), tip: 1 });
        Moment { time: self.now, market, is_lowest: true, blocks: self.blocks, pace: PACE }
    }

    fn tell(&mut self, input: Input) -> Vec<Action> {
        let step = step(&self.outgoing, &input, &self.moment()).unwrap();
        self.outgoing = step.next;
        step.actions
    }

    fn refuse(&self, input: &Input) -> Contradiction {
        step(&self.outgoing, input, &self.moment()).unwrap_err()
    }

    /// With a block meanwhile.
    fn after(&mut self, seconds: u64) -> Vec<Action> {
        self.blocks += 1;
        self.after_without_block(seconds)
    }

    fn after_without_block(&mut self, seconds: u64) -> Vec<Action> {
        self.now += seconds;
        self.tell(Input::Tick)
    }
}

#[test]
fn nothing_is_sent_before_kafka_has_its_record() {
    let mut case = Case::queued();
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

/// All nodes are away, or the chain makes no blocks: each raise would be paid for when they come back.
#[test]
fn what_no_node_took_or_no_block_could_have_is_not_raised() {
    let is_raised = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Sign(_)));
    for answer in [Answer::Unknown, Answer::NonceTooHigh, Answer::AlreadyReserved, Answer::InFlightLimit] {
        let mut case = Case::queued();
        case.tell(attempt(1, NONCE, 21, false));
        case.tell(Input::Acknowledged(hash(1)));
        for _ in 0..5 {
            case.tell(Input::Answer(hash(1), answer));
            assert!(!is_raised(&case.after(30)), "{answer:?}");
        }
        case.tell(Input::Answer(hash(1), Answer::AlreadyThere));
        assert!(is_raised(&case.after(30)), "it was there, and the answer was lost");
    }
    let mut case = Case::sent(21);
    (0..5).for_each(|_| assert!(!is_raised(&case.after_without_block(30)), "no block could have had it"));
    assert!(is_raised(&case.after(0)));
    case.tell(attempt(2, NONCE, 24, false));
    case.tell(Input::Acknowledged(hash(2)));
    case.tell(Input::Answer(hash(2), Answer::Unknown));
    assert!(!is_raised(&case.after(60)), "nor is one raised that replaces it");
}

#[test]
fn at_the_cap_the_same_bytes_are_sent_again_and_it_is_told_once() {
    let mut case = Case::sent(118);
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
    assert_eq!(case.tell(Input::Answer(hash(1), Answer::NonceTooLow)), [Action::Tell(Notice::NonceUsed)]);
    assert_eq!(case.tell(Input::Answer(hash(1), Answer::NonceTooHigh)), []);
    assert_eq!(case.outgoing.phase, Phase::Broadcast);
    assert_eq!(case.after(60), [Action::Broadcast(hash(1)), Action::FillGaps], "and it is not raised for it");
}

#[test]
fn what_the_sender_cannot_pay_for_is_not_raised_until_it_is_taken() {
    let mut case = Case::sent(21);
    case.tell(Input::Answer(hash(1), Answer::InsufficientFunds { overshot: None }));
    assert_eq!(case.after(60), [Action::Broadcast(hash(1)), Action::FillGaps]);
    case.tell(Input::Answer(hash(1), Answer::Accepted));
    assert!(case.after(60).iter().any(|action| matches!(action, Action::Sign(_))));
}

/// Thousands of such would keep the engine from all else.
#[test]
fn what_the_sender_cannot_pay_for_is_sent_again_ever_more_rarely() {
    let mut case = Case::queued();
    case.tell(attempt(1, NONCE, 21, false));
    case.tell(Input::Acknowledged(hash(1)));
    let mut sent = Vec::new();
    for _ in 0..2_000 {
        if case.after(1).contains(&Action::Broadcast(hash(1))) {
            sent.push(case.now);
            case.tell(Input::Answer(hash(1), Answer::InsufficientFunds { overshot: None }));
            let pause = case.outgoing.due_at(&PACE).unwrap() - case.now;
            assert!((10..=200).contains(&pause), "{pause}");
        }
    }
    let pauses: Vec<u64> = sent.windows(2).map(|sent| sent[1] - sent[0]).collect();
    assert!(pauses.is_sorted() && pauses.len() > 5 && pauses[..2] == [10, 10] && pauses.ends_with(&[200, 200]), "{pauses:?}");
    case.tell(Input::Answer(hash(1), Answer::Accepted));
    assert!(case.after(10).contains(&Action::Broadcast(hash(1))), "as often as any other");
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
    assert_eq!(case.tell(Input::Removed(block(6))), [Action::Tell(Notice::Frozen)]);
    assert!(case.outgoing.frozen.is_some(), "it was told as paid");
}

/// Above where a chain begins anew nothing is taken back by name: what is only there would be told as paid.
#[test]
fn what_is_above_where_the_chain_begins_anew_is_sent_again() {
    let mut case = Case::sent(21);
    case.tell(mined(1, 6));
    assert_eq!(case.tell(Input::Restarted(6)), []);
    assert_eq!(case.tell(Input::Restarted(5)), [Action::Broadcast(hash(1))]);
    case.tell(Input::Final(9));
    assert_eq!(case.outgoing.phase, Phase::Broadcast);
    case.tell(Input::ForeignNonce { nonce: NONCE, number: 9 });
    assert_eq!(case.tell(Input::Restarted(8)), [Action::Broadcast(hash(1))]);
    assert_eq!(case.tell(mined(1, 7)), [], "it is in another block, and in no two");
    assert_eq!(case.outgoing.frozen, None);
}

/// Of what moves no coin some records do not say whether it succeeded: false would have it paid again, true told as paid.
#[test]
fn a_status_that_no_block_told_is_asked_for_and_nothing_is_told_before() {
    for succeeded in [true, false] {
        let mut case = Case::sent(21);
        assert_eq!(case.tell(mined_as(1, 6, None)), [Action::AskReceipt]);
        assert_eq!(case.tell(Input::Receipt(None)), [Action::Tell(Notice::StatusUnknown)]);
        assert_eq!(case.outgoing.due_at(&PACE), Some(case.now + PACE.resend_after));
        case.tell(Input::Final(9));
        assert!(matches!(case.outgoing.phase, Phase::Mined(_)));
        assert_eq!(case.after(10), [Action::AskReceipt]);
        assert_eq!(case.tell(receipt(1, 6, succeeded)), []);
        case.tell(Input::Final(10));
        assert_eq!(matches!(case.outgoing.phase, Phase::Final(_)), succeeded);
        assert_eq!(matches!(case.outgoing.phase, Phase::Failed(_)), !succeeded);
    }
}

/// Its block has left the chain while the answer was on its way, and is not taken back once more: it would be told as paid.
#[test]
fn a_receipt_that_comes_late_makes_nothing_mined() {
    let mut case = Case::sent(21);
    assert_eq!(case.tell(mined_as(1, 6, None)), [Action::AskReceipt]);
    case.tell(Input::Removed(block(6)));
    let sent_again = case.outgoing.clone();
    assert_eq!(case.tell(receipt(1, 6, true)), [Action::Broadcast(hash(1))]);
    assert_eq!(case.outgoing, sent_again);
    // By now it is in another block.
    case.tell(mined_as(1, 7, None));
    assert_eq!(case.tell(receipt(1, 6, false)), [Action::Tell(Notice::StatusUnknown)]);
    assert!(matches!(case.outgoing.phase, Phase::Mined(Mined { succeeded: None, .. })) && case.outgoing.frozen.is_none());
    assert_eq!(case.after(10), [Action::AskReceipt]);
    case.tell(receipt(1, 7, true));
    case.tell(Input::Final(7));
    assert!(matches!(case.outgoing.phase, Phase::Final(told) if told.block == block(7)));

    // A stranger's transaction has the nonce by now.
    let mut case = Case::sent(21);
    case.tell(mined_as(1, 6, None));
    case.tell(Input::Removed(block(6)));
    case.tell(Input::ForeignNonce { nonce: NONCE, number: 6 });
    assert_eq!(case.tell(receipt(1, 6, true)), []);
    assert_eq!(case.outgoing.phase, Phase::Replaced(6));
}

/// Every honest node counts one more, since ours is in a block that was not read.
#[test]
fn what_a_missing_block_may_have_is_not_signed_anew() {
    let mut case = Case::sent(21);
    assert_eq!(case.tell(Input::Counted(NONCE)), []);
    assert_eq!(case.tell(Input::Counted(NONCE + 1)), [Action::Tell(Notice::Lost), Action::AskReceipt]);
    assert!(!case.outgoing.waits_for_block(), "it holds up no other");
    case.tell(Input::Receipt(None));
    assert_eq!(case.after(5), []);
    assert_eq!(case.tell(Input::Final(100)), [], "a receipt that nobody has proves nothing");
    assert_eq!(case.after(5), [Action::AskReceipt]);
    assert_eq!(case.tell(Input::Counted(NONCE)), [Action::Broadcast(hash(1))], "the block that was missing has left the chain");
    case.tell(Input::Counted(NONCE + 1));
    assert_eq!(case.tell(receipt(1, 50, true)), []);
    case.tell(Input::Final(101));
    assert!(matches!(case.outgoing.phase, Phase::Final(_)));
}

/// The first can be paid, the raised one can't: it would never be sent again.
#[test]
fn what_a_node_has_taken_is_sent_again_where_none_takes_the_raised_one() {
    let mut case = Case::sent(21);
    case.after(30);
    case.tell(attempt(2, NONCE, 24, false));
    case.tell(Input::Acknowledged(hash(2)));
    let told = case.tell(Input::Answer(hash(2), Answer::InsufficientFunds { overshot: None }));
    assert!(matches!(told.as_slice(), [Action::Tell(Notice::InsufficientFunds { .. })]));
    let both = [Action::Broadcast(hash(1)), Action::Broadcast(hash(2)), Action::FillGaps];
    assert_eq!(case.after(60), both);
    assert_eq!(case.tell(Input::Answer(hash(1), Answer::Accepted)), both);
    assert_eq!(
        case.tell(Input::Answer(hash(2), Answer::InsufficientFunds { overshot: None })),
        [],
        "told once, and not raised"
    );
    case.tell(mined(1, 5));
    assert_eq!(case.tell(Input::Removed(block(5))), both[..2], "also when a reorg takes it back");
    case.tell(Input::Answer(hash(2), Answer::Accepted));
    assert_eq!(case.after(10), [Action::Broadcast(hash(2)), Action::FillGaps]);
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
    case.tell(attempt(2, NONCE + 1, 21, false));
    assert_eq!(case.tell(Input::ForeignNonce { nonce: NONCE, number: 12 }), [Action::Publish(hash(2))], "that is over");
    assert_eq!(case.outgoing.phase, Phase::Signed);
}

/// The stranger's block was final, and left the chain: ours is mined after all.
#[test]
fn once_a_block_shows_it_paid_nothing_that_pays_is_signed_or_sent() {
    let given_up = || {
        let mut case = Case::sent(21);
        case.tell(Input::ForeignNonce { nonce: NONCE, number: 9 });
        case.tell(Input::Final(9));
        case
    };
    let mut case = given_up();
    assert_eq!(case.tell(mined(1, 10)), [], "not signed yet: it is simply mined");
    assert!(matches!(case.outgoing.phase, Phase::Mined(_)) && case.outgoing.frozen.is_none());

    let mut case = given_up();
    case.tell(Input::Drop);
    assert_eq!(case.outgoing.phase, Phase::Dropped(None));
    assert_eq!(case.tell(mined(1, 10)), [Action::Tell(Notice::Frozen)], "its money is out, and it was told as dropped");
    assert!(matches!(case.outgoing.phase, Phase::Mined(_)));

    for is_sent in [false, true] {
        let mut case = given_up();
        case.tell(attempt(2, NONCE + 1, 21, false));
        if is_sent {
            case.tell(Input::Acknowledged(hash(2)));
            case.tell(Input::Answer(hash(2), Answer::Accepted));
        }
        let shown = case.tell(mined(1, 13));
        let cancel = |action: &Action| matches!(action, Action::Sign(Order { nonce: Some(8), cancels: true, .. }));
        assert!(shown[0] == Action::Tell(Notice::Frozen) && shown[1..].iter().all(cancel) && shown.len() == 2, "{shown:?}");
        case.tell(attempt(3, NONCE + 1, 24, true));
        assert_eq!(case.after(60), [Action::Publish(hash(3))]);
        assert!(case.tell(Input::Acknowledged(hash(3))).contains(&Action::Broadcast(hash(3))));
        case.tell(mined(3, 14));
        case.tell(Input::Final(20));
        assert!(!case.outgoing.phase.is_over(), "what it was is not told until a person has looked");
    }
}

#[test]
fn what_is_not_wanted_leaves_no_gap_and_may_still_be_mined() {
    let mut queued = Case::queued();
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

/// In one step it would be sent, and cancelled only once that is recorded.
#[test]
fn what_is_not_wanted_is_not_sent_any_more() {
    let mut case = Case::queued();
    case.tell(attempt(1, NONCE, 21, false));
    case.tell(Input::Acknowledged(hash(1)));
    let cancel = case.tell(Input::Drop);
    assert!(matches!(cancel.as_slice(), [Action::Sign(Order { cancels: true, .. })]), "{cancel:?}");
    case.tell(attempt(2, NONCE, 24, true));
    assert_eq!(case.after(100), [Action::Publish(hash(2))], "Kafka is down");
    assert_eq!(case.tell(Input::Acknowledged(hash(2))), [Action::Broadcast(hash(2))]);

    let mut case = Case::queued();
    case.tell(attempt(1, NONCE, 21, false));
    let cancel = case.tell(Input::Drop);
    assert!(matches!(cancel.as_slice(), [Action::Sign(Order { cancels: true, .. })]), "nor recorded: {cancel:?}");
    case.tell(attempt(2, NONCE, 24, true));
    case.tell(Input::Acknowledged(hash(2)));
    case.tell(Input::Answer(hash(2), Answer::Accepted));
    assert_eq!(case.outgoing.due_at(&PACE), Some(case.now + PACE.resend_after), "and it does not wait for that record");
}

/// The first may be signed at the most that a payment may cost: what can't be cancelled would jam its lane.
#[test]
fn what_pays_as_much_as_it_may_can_still_be_cancelled() {
    for max_fee in [130, 131, 1_000, 12_345_678_901] {
        let pace = Pace { max_fee, ..PACE };
        let highest = Fees { tip: 1, cap: pace.max_payload_fee() };
        assert!(matches!(highest.replacement(None, pace.raise, max_fee), Replacement::Raise(_)), "{max_fee}");
    }
    let mut case = Case::sent(PACE.max_payload_fee());
    assert!(!case.after(30).iter().any(|action| matches!(action, Action::Sign(_))));
    let cancel = case.tell(Input::Drop);
    assert!(cancel.iter().any(|action| matches!(action, Action::Sign(Order { cancels: true, .. }))), "{cancel:?}");
}

/// A deposit address that pays for its own sweep has left so much for its gas, whatever the settings allow.
#[test]
fn what_pays_offers_no_more_than_its_sender_has_left_for_it_and_what_cancels_it_may() {
    let mut case = Case::queued();
    case.outgoing.max_fee = Some(15);
    let signed = case.tell(Input::Tick);
    assert!(matches!(signed.as_slice(), [Action::Sign(Order { fees: Fees { cap: 15, .. }, .. })]), "{signed:?}");
    case.outgoing.max_fee = Some(10);
    assert_eq!(case.tell(Input::Tick), [Action::Tell(Notice::TooDear)]);
    let mut sent = Case::sent(21);
    sent.outgoing.max_fee = Some(22);
    assert!(!sent.after(30).iter().any(|action| matches!(action, Action::Sign(_))), "it would be raised to 24");
    assert_eq!(sent.outgoing.told, Some(Notice::AtCap));
    let cancel = sent.tell(Input::Drop);
    assert!(cancel.iter().any(|action| matches!(action, Action::Sign(Order { cancels: true, .. }))), "{cancel:?}");
    sent.outgoing.max_fee = Some(u128::MAX);
    assert_eq!(sent.outgoing.max_payload_fee(&PACE), PACE.max_payload_fee());
}

/// It has the lowest nonce, and no node ever takes it: all behind it would wait for a person. What one node says alone, while
/// the others are silent, cancels nothing.
#[test]
fn what_each_node_refuses_after_a_while_is_cancelled() {
    let mut case = Case::queued();
    case.tell(attempt(1, NONCE, 21, false));
    case.tell(Input::Acknowledged(hash(1)));
    assert_eq!(case.tell(Input::Answer(hash(1), Answer::RevertedByAll)), [Action::Tell(Notice::Reverted)]);
    case.after(30);
    let one = Answer::best(&[Answer::Reverted, Answer::Unknown]);
    case.tell(Input::Answer(hash(1), one));
    assert!(!case.outgoing.dropping, "the others said nothing");
    let given_up = case.tell(Input::Answer(hash(1), Answer::best(&[Answer::Reverted, Answer::Reverted])));
    assert!(given_up.contains(&Action::Tell(Notice::GivenUp)), "{given_up:?}");
    assert!(given_up.iter().any(|action| matches!(action, Action::Sign(Order { cancels: true, .. }))), "{given_up:?}");
    let mut taken = Case::sent(21);
    taken.after(60);
    taken.tell(Input::Answer(hash(1), Answer::RevertedByAll));
    assert!(!taken.outgoing.dropping, "it is in a pool");
}

/// It would be due at each turn, before all others.
#[test]
fn what_can_not_be_signed_is_tried_again_after_a_pause() {
    let mut case = Case::queued();
    assert_eq!(case.outgoing.due_at(&PACE), Some(0));
    case.tell(Input::InVain(Notice::NotSigned));
    assert_eq!(case.outgoing.due_at(&PACE), Some(110));
    let dear = Moment { market: Some(Market { base: Some(500), tip: 1 }), time: 200, ..case.moment() };
    let step = step(&case.outgoing, &Input::Tick, &dear).unwrap();
    assert_eq!((step.actions, step.next.due_at(&PACE)), (vec![Action::Tell(Notice::TooDear)], Some(210)));
}

#[test]
fn what_contradicts_what_is_known_changes_nothing() {
    let mut case = Case::sent(21);
    case.tell(mined(1, 5));
    let before = case.outgoing.clone();
    assert_eq!(case.refuse(&mined(9, 6)), Contradiction::UnknownAttempt(hash(9)));
    assert_eq!(case.refuse(&attempt(3, NONCE, 24, false)), Contradiction::NotToBeSigned);
    assert_eq!(case.tell(mined(1, 5)), [], "the same record again is none");
    assert_eq!(case.outgoing, before);
    assert_eq!(case.tell(mined(1, 6)), [Action::Tell(Notice::Frozen)]);
    assert_eq!(case.outgoing.phase, before.phase);
    let sent = Case::sent(21);
    assert!(matches!(sent.refuse(&attempt(3, NONCE + 1, 24, false)), Contradiction::OtherNonce { .. }));
}
