//! Every sequence of up to seven inputs, through the production `step`, held against a payment's rules said once more.
//!
//! A world is a chain, and what the merchant, the node's tag and witnesses said. Sequences that lead to the same world are followed
//! once, which is sound because a payment is checked to be the same in it whichever of them led there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use payments::lifecycle::{Cause, EventKind, Head, Input, StepError, step};
use payments::{
    Asset, Exception, Payment, Policy, ReceivedTransfer, Settlement, Status, Sums, Terms, Token, Total, TransferLabel,
};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use topics::{Address, Amount, B256, BlockRef, ChainId, PaymentId, Source, TransferId};
use uuid::Uuid;

const LONGEST: usize = 7;
const CHAIN: ChainId = ChainId(1);
const TOKEN: Address = Address::repeat_byte(0x77);
const OTHER_TOKEN: Address = Address::repeat_byte(0x66);
const AMOUNT: u64 = 100;
/// Two are more than the amount.
const PART: u64 = 60;
const EXPIRES: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// A block with a part of the amount.
    Transfer,
    /// The last transfer on the chain, as if its record were read again.
    Duplicate,
    /// The head is taken off.
    Removed,
    /// A block with the money that a removed block had moved last.
    Elsewhere,
    /// A block after the payment's time.
    Expiry,
    /// The merchant calls it off.
    Cancel,
    /// A part in a block after the payment's time.
    Late,
    /// A block with another listed token.
    WrongAsset,
    /// A block with a part that is below the minimum.
    BelowMinimum,
    /// A block with a part in two transfers that are taken as one.
    Many,
    /// A block with nothing.
    Confirmation,
    /// The node's tag reaches the head.
    Finality,
    /// Enough endpoints have given the head.
    Witnesses,
    /// All that is confirmed has left.
    Swept,
    /// All but one unit of what it needs has.
    SweptShort,
}

const MOVES: [Move; 11] = [
    Move::Transfer,
    Move::Duplicate,
    Move::Removed,
    Move::Elsewhere,
    Move::Expiry,
    Move::Cancel,
    Move::Late,
    Move::WrongAsset,
    Move::Confirmation,
    Move::Finality,
    Move::Witnesses,
];
/// All moves at once are too many.
const MOVES_WITH_DUST: [Move; 9] = [
    Move::Transfer,
    Move::Duplicate,
    Move::Removed,
    Move::Elsewhere,
    Move::Expiry,
    Move::BelowMinimum,
    Move::Many,
    Move::Confirmation,
    Move::Witnesses,
];

const MOVES_WITH_SWEEPS: [Move; 10] = [
    Move::Transfer,
    Move::Removed,
    Move::Elsewhere,
    Move::Expiry,
    Move::Cancel,
    Move::Late,
    Move::Confirmation,
    Move::Witnesses,
    Move::Swept,
    Move::SweptShort,
];

/// Money that moves once: wherever it stands on the chain, it is this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Money {
    transaction: u64,
    what: What,
}

/// How the money counts for the payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum What {
    Part,
    /// A part in two transfers.
    Halves,
    WrongAsset,
    BelowMinimum,
}

impl What {
    fn credited(self) -> bool {
        matches!(self, Self::Part | Self::Halves)
    }

    fn counts(self) -> bool {
        self != Self::BelowMinimum
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Block {
    hash: u64,
    late: bool,
    money: Option<Money>,
}

/// What can be known from outside, and nothing of how it came about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct World {
    chain: Vec<Block>,
    cancelled: bool,
    /// Number of the highest block on the chain that the tag has reached; 0 is none.
    tag: u64,
    /// Number of the highest block on the chain that is witnessed; 0 is none.
    witnessed: u64,
    /// What the last removed block had moved, while it is nowhere else.
    loose: Option<Money>,
    /// What was confirmed has left since it was confirmed last.
    swept: bool,
}

/// The rules, said once more: what the payment must be in a world.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    status: Status,
    exception: Option<Exception>,
    received: u64,
}

fn number(place: usize) -> u64 {
    u64::try_from(place).unwrap() + 1
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

fn b256(of: u64) -> B256 {
    B256::left_padding_from(&of.to_be_bytes())
}

impl World {
    fn height(&self) -> u64 {
        u64::try_from(self.chain.len()).unwrap()
    }

    fn witnessed(&self) -> Option<u64> {
        Some(self.witnessed).filter(|number| *number > 0)
    }

    fn cause(&self, place: usize) -> Cause {
        let block = self.chain[place];
        let timestamp = if block.late { EXPIRES + 1 } else { EXPIRES };
        Cause { chain: CHAIN, block: BlockRef { number: number(place), hash: b256(block.hash) }, timestamp }
    }

    /// The transfers of a block.
    fn transfers(&self, place: usize) -> Vec<ReceivedTransfer> {
        let cause = self.cause(place);
        let Some(money) = self.chain[place].money else {
            return Vec::new();
        };
        let halves = money.what == What::Halves;
        let transfer = |index| ReceivedTransfer {
            id: TransferId {
                chain: CHAIN,
                block: cause.block.hash,
                transaction: b256(money.transaction),
                source: Source::Log,
                index,
            },
            block: cause.block,
            timestamp: cause.timestamp,
            transaction_index: 0,
            token: Some(if money.what == What::WrongAsset { OTHER_TOKEN } else { TOKEN }),
            from: Address::ZERO,
            amount: Amount::from(if halves { PART / 2 } else { PART }),
            credited: false,
            listed: true,
            below_minimum: money.what == What::BelowMinimum,
            confirmed: false,
            label: TransferLabel::default(),
        };
        (0..if halves { 2 } else { 1 }).map(transfer).collect()
    }

    /// The world with a block more. Its hash follows from its parent and what it holds, so the same block can come again.
    fn with(&self, step: Move) -> Option<Self> {
        let parent = self.chain.last().map_or(0, |block| block.hash);
        let late = self.chain.last().is_some_and(|block| block.late) || matches!(step, Move::Expiry | Move::Late);
        let fresh = |what| Some(Money { transaction: hash((parent, late, what)), what });
        let money = match step {
            Move::Transfer | Move::Late => fresh(What::Part),
            Move::WrongAsset => fresh(What::WrongAsset),
            Move::BelowMinimum => fresh(What::BelowMinimum),
            Move::Many => fresh(What::Halves),
            Move::Elsewhere => Some(self.loose?),
            Move::Expiry | Move::Confirmation => None,
            Move::Duplicate | Move::Removed | Move::Cancel | Move::Finality | Move::Witnesses => return None,
            Move::Swept | Move::SweptShort => return None,
        };
        let elsewhere = step == Move::Elsewhere;
        let mut next = self.clone();
        next.chain.push(Block { hash: hash((parent, late, money, elsewhere)), late, money });
        next.loose = self.loose.filter(|loose| Some(*loose) != money);
        Some(next)
    }

    fn without_head(&self) -> Option<Self> {
        let mut next = self.clone();
        let removed = next.chain.pop()?;
        next.tag = next.tag.min(next.height());
        next.witnessed = next.witnessed.min(next.height());
        next.loose = removed.money.or(self.loose);
        Some(next)
    }

    fn confirmed(&self, policy: Policy, place: usize) -> bool {
        match policy {
            // What nobody witnesses is no confirmation, and no block to confirm.
            Policy::Confirmations(count) => number(place) + u64::from(count.max(1)) <= self.height().min(self.witnessed) + 1,
            Policy::Safe | Policy::Finalized => number(place) <= self.tag.min(self.witnessed),
        }
    }

    fn verdict(&self, Case { policy, terms, needed, allowed }: Case) -> Verdict {
        let parts =
            || (0..self.chain.len()).filter(|place| self.chain[*place].money.is_some_and(|money| money.what.credited()));
        let sum = |that: &dyn Fn(usize) -> bool| PART * u64::try_from(parts().filter(|place| that(*place)).count()).unwrap();
        let counts = |place: usize| terms.accept_late || !self.chain[place].late;
        let received = sum(&|_| true);
        let status = if self.cancelled {
            Status::Cancelled
        } else if sum(&|place| counts(place) && self.confirmed(policy, place)) >= needed {
            if self.swept { Status::Settled } else { Status::Confirmed }
        } else if sum(&counts) >= needed {
            Status::Detected
        } else if self.chain.iter().any(|block| block.late) {
            Status::Expired
        } else {
            Status::Pending
        };
        let some_late = sum(&|place| self.chain[place].late) > 0;
        let exception = match status {
            Status::Detected | Status::Confirmed | Status::Settled => (received > allowed).then_some(Exception::Overpaid),
            _ if received == 0 => None,
            Status::Pending => Some(Exception::Underpaid),
            Status::Expired => Some(if some_late { Exception::Late } else { Exception::Underpaid }),
            Status::Cancelled => Some(Exception::Late),
        };
        Verdict { status, exception, received }
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    policy: Policy,
    terms: Terms,
    /// The amount less what may be missing.
    needed: u64,
    /// The amount and what may be too much.
    allowed: u64,
}

impl Case {
    fn new(policy: Policy, underpaid: u64, overpaid: u64, accept_late: bool) -> Self {
        let (underpaid_tolerance, overpaid_tolerance) = (Amount::from(underpaid), Amount::from(overpaid));
        let terms = Terms { underpaid_tolerance, overpaid_tolerance, accept_late };
        Self { policy, terms, needed: AMOUNT - underpaid, allowed: AMOUNT + overpaid }
    }

    fn payment(self) -> Payment {
        Payment {
            id: PaymentId(Uuid::nil()),
            merchant: Uuid::nil(),
            external_id: None,
            metadata: None,
            chain: CHAIN,
            chain_name: String::new(),
            asset: Asset { token: Some(Token { symbol: String::new(), address: TOKEN }), decimals: 6 },
            address: Address::repeat_byte(1),
            xpub: String::new(),
            address_index: 0,
            amount: Amount::from(AMOUNT),
            terms: self.terms,
            policy: self.policy,
            created_at: 0,
            expires_at: EXPIRES,
            deposit_address: None,
            cancelled: false,
            expired_by: None,
            settlement: None,
            sums: Sums::default(),
            parts: Vec::new(),
            transfers: Vec::new(),
            sequence: 1,
            updated_at: 0,
        }
    }

    /// The events that a move must make, no more and no fewer.
    fn events(self, before: &World, was: &Verdict, one: Move, after: &World) -> Vec<EventKind> {
        let is = after.verdict(self);
        let mut expected = Vec::new();
        match one {
            Move::Duplicate => {}
            Move::Cancel => expected.push(EventKind::Cancelled),
            Move::Removed => {
                let money = before.chain.last().unwrap().money;
                if *was != is || money.is_some_and(|money| money.what.counts()) {
                    expected.push(EventKind::Reverted);
                }
            }
            Move::Finality | Move::Witnesses | Move::SweptShort => {}
            Move::Swept => {
                if was.status == Status::Confirmed {
                    expected.push(EventKind::Settled);
                }
            }
            Move::Transfer
            | Move::Elsewhere
            | Move::Expiry
            | Move::Late
            | Move::WrongAsset
            | Move::BelowMinimum
            | Move::Many
            | Move::Confirmation => {
                let block = after.chain.last().unwrap();
                if block.late && was.status == Status::Pending {
                    expected.push(EventKind::Expired);
                }
                let paid = matches!(is.status, Status::Detected | Status::Confirmed | Status::Settled);
                match (block.money, was.status) {
                    (None | Some(Money { what: What::BelowMinimum, .. }), _) => {}
                    (Some(Money { what: What::WrongAsset, .. }), _) => expected.push(EventKind::UnexpectedTransfer),
                    (_, Status::Cancelled) => expected.push(EventKind::Late),
                    (_, Status::Detected | Status::Confirmed | Status::Settled) => expected.push(EventKind::Overpaid),
                    (_, Status::Pending | Status::Expired) => {
                        if block.late {
                            expected.push(EventKind::Late);
                        }
                        if paid {
                            expected.push(EventKind::Detected);
                        } else if !block.late {
                            expected.push(EventKind::Underpaid);
                        }
                        if is.exception == Some(Exception::Overpaid) {
                            expected.push(EventKind::Overpaid);
                        }
                    }
                }
            }
        }
        if one != Move::Removed && was.status != Status::Confirmed && is.status == Status::Confirmed {
            expected.push(EventKind::Confirmed);
        }
        expected
    }

    /// Plays the surviving chain alone.
    fn straight(self, world: &World) -> Payment {
        let mut driver = Driver { payment: self.payment(), events: Vec::new() };
        if world.cancelled {
            driver.take(&Input::Cancel { at: 0 });
        }
        for place in 0..world.chain.len() {
            driver.add(world, place);
        }
        if world.tag > 0 || world.witnessed > 0 {
            driver.tags(world);
        }
        if world.swept {
            driver.swept(driver.payment.sums.confirmed);
        }
        driver.payment
    }

    fn check(self, world: &World, payment: &Payment) {
        let verdict = world.verdict(self);
        assert_eq!(payment.status(), verdict.status);
        assert_eq!(payment.exception(), verdict.exception);
        assert_eq!(payment.received(), Amount::from(verdict.received), "what is credited is what is on the chain");
        let on_chain: Vec<(TransferId, bool, bool)> = (0..world.chain.len())
            .flat_map(|place| world.transfers(place).into_iter().map(move |paid| (paid, place)))
            .filter(|(paid, _)| !paid.below_minimum)
            .map(|(paid, place)| {
                let credited = paid.token == Some(TOKEN);
                (paid.id, credited, credited && world.confirmed(self.policy, place))
            })
            .collect();
        let known: Vec<_> = payment.transfers.iter().map(|paid| (paid.id, paid.credited, paid.confirmed)).collect();
        assert_eq!(known, on_chain, "each transfer once, confirmed if its block is on the chain and deep enough");
        let mut money: Vec<(B256, u32)> = payment.transfers.iter().map(|paid| (paid.id.transaction, paid.id.index)).collect();
        money.sort();
        money.dedup();
        assert_eq!(money.len(), payment.transfers.len(), "the same money twice");
        let sum = |of: fn(&payments::Part) -> Total| payment.parts.iter().fold(Total::ZERO, |sum, part| sum.plus(of(part)));
        let (received, confirmed) = (sum(|part| part.credited), sum(|part| part.confirmed));
        assert_eq!((payment.sums.received, payment.sums.confirmed), (received, confirmed), "the sums are those of the parts");
    }
}

/// Gives a payment what the fold gives it.
struct Driver {
    payment: Payment,
    events: Vec<EventKind>,
}

impl Driver {
    fn take(&mut self, input: &Input) {
        let step = step(&self.payment, input).unwrap();
        let expected = (self.payment.sequence + 1..).take(step.events.len());
        assert!(step.events.iter().map(|event| event.sequence).eq(expected), "events count without gaps");
        assert_eq!(step.next.sequence, self.payment.sequence + u64::try_from(step.events.len()).unwrap());
        self.events.extend(step.events.iter().map(|event| event.kind));
        self.payment = step.next;
    }

    fn add(&mut self, world: &World, place: usize) {
        let cause = world.cause(place);
        self.take(&Input::Expired(cause));
        let mut transfers = world.transfers(place);
        match transfers.len() {
            0 => {}
            1 => self.take(&Input::Transfer(transfers.remove(0))),
            _ => self.take(&Input::Transfers(transfers.into_iter().map(Arc::new).collect())),
        }
        self.take(&Input::Head(Head { cause, safe: None, finalized: None, witnessed: world.witnessed() }));
    }

    fn tags(&mut self, world: &World) {
        let (cause, tag) = (world.cause(world.chain.len() - 1), Some(world.tag));
        self.take(&Input::Head(Head { cause, safe: tag, finalized: tag, witnessed: world.witnessed() }));
    }

    /// So much has left.
    fn swept(&mut self, covered: Total) {
        let block = BlockRef { number: 1, hash: B256::ZERO };
        let settlement = Settlement { transaction: B256::ZERO, block, timestamp: 0, fee: None };
        self.take(&Input::Swept { covered, settlement });
    }

    /// Makes a move; none if it can't be made in this world.
    fn play(&mut self, case: Case, world: &World, one: Move) -> Option<World> {
        match one {
            Move::Transfer
            | Move::Elsewhere
            | Move::Expiry
            | Move::Late
            | Move::WrongAsset
            | Move::BelowMinimum
            | Move::Many
            | Move::Confirmation => {
                let next = world.with(one)?;
                self.add(&next, next.chain.len() - 1);
                Some(next)
            }
            Move::Removed => {
                let mut next = world.without_head()?;
                next.swept &= next.verdict(case).status == Status::Settled;
                let cause = world.cause(next.chain.len());
                self.take(&Input::Removed { cause, below: cause.block.number - 1 });
                Some(next)
            }
            Move::Duplicate => {
                let counted = (0..world.chain.len()).rev().flat_map(|place| world.transfers(place));
                let known = counted.into_iter().find(|paid| !paid.below_minimum)?;
                let refused = step(&self.payment, &Input::Transfer(known.clone()));
                assert_eq!(refused, Err(StepError::DuplicateTransfer(known.id)));
                Some(world.clone())
            }
            Move::Cancel => {
                if self.payment.status() == Status::Pending {
                    self.take(&Input::Cancel { at: 7 });
                    return Some(World { cancelled: true, ..world.clone() });
                }
                let refused = step(&self.payment, &Input::Cancel { at: 7 });
                assert_eq!(refused, Err(StepError::NotPending(self.payment.status())));
                None
            }
            Move::Finality => {
                let next = World { tag: world.height(), ..world.clone() };
                world.chain.last()?;
                self.tags(&next);
                Some(next)
            }
            Move::SweptShort => {
                self.swept(Total::from(self.payment.needed()).minus(Amount::from(1).into()));
                Some(world.clone())
            }
            Move::Swept => {
                self.swept(self.payment.sums.confirmed);
                let is_confirmed = world.verdict(case).status == Status::Confirmed;
                Some(World { swept: world.swept || is_confirmed, ..world.clone() })
            }
            Move::Witnesses => {
                let next = World { witnessed: world.height(), ..world.clone() };
                world.chain.last()?;
                self.tags(&next);
                Some(next)
            }
        }
    }
}

/// Without the count of events, which tells of the way.
fn facts(mut payment: Payment) -> Payment {
    payment.sequence = 0;
    payment.updated_at = 0;
    payment
}

fn explore(case: Case, moves: &[Move]) {
    let start = World::default();
    case.check(&start, &case.payment());
    let mut sequences: u64 = 0;
    // Payment of each world met so far, and of those met last the number of sequences that end there.
    let mut met: HashMap<World, Payment> = HashMap::from([(start.clone(), facts(case.payment()))]);
    let mut frontier: HashMap<World, u64> = HashMap::from([(start, 1)]);
    for _ in 0..LONGEST {
        let mut reached: HashMap<World, u64> = HashMap::new();
        for (world, ways) in &frontier {
            let verdict = world.verdict(case);
            for one in moves.iter().copied() {
                let mut driver = Driver { payment: met[world].clone(), events: Vec::new() };
                let Some(next) = driver.play(case, world, one) else {
                    continue;
                };
                let place = || format!("{one:?} in {world:?} under {case:?}");
                assert_eq!(driver.events, case.events(world, &verdict, one, &next), "{}", place());
                let payment = facts(driver.payment);
                match met.get(&next) {
                    Some(known) => assert_eq!(payment, *known, "{}", place()),
                    None => {
                        case.check(&next, &payment);
                        // A block put on a world that was played straight is played straight, but for tags and witnesses told
                        // before.
                        if next.chain.len() <= world.chain.len() || next.tag > 0 || next.witnessed > 0 {
                            assert_eq!(payment, facts(case.straight(&next)), "{}", place());
                        }
                        met.insert(next.clone(), payment);
                    }
                }
                sequences += ways;
                *reached.entry(next).or_default() += ways;
            }
        }
        frontier = reached;
    }
    println!("{case:?}: {sequences} sequences of up to {LONGEST} inputs, {} different ends", met.len());
    assert!(sequences > 1_000_000, "only {sequences} sequences: the moves are not all there");
}

#[test]
fn every_short_life_under_one_confirmation() {
    explore(Case::new(Policy::Confirmations(1), 0, 0, false), &MOVES);
}

#[test]
fn every_short_life_under_two_confirmations_that_accepts_late_money() {
    explore(Case::new(Policy::Confirmations(2), 0, 2 * PART - AMOUNT, true), &MOVES);
}

#[test]
fn every_short_life_under_finality_that_tolerates_a_part_less() {
    explore(Case::new(Policy::Finalized, AMOUNT - PART, 0, false), &MOVES);
}

#[test]
fn every_short_life_under_safety() {
    explore(Case::new(Policy::Safe, 0, 0, false), &MOVES);
}

#[test]
fn every_short_life_with_many_transfers_at_once_and_some_below_the_minimum() {
    explore(Case::new(Policy::Confirmations(2), 0, 0, false), &MOVES_WITH_DUST);
}

#[test]
fn every_short_life_of_money_that_is_swept() {
    explore(Case::new(Policy::Confirmations(2), 0, 0, true), &MOVES_WITH_SWEEPS);
}
