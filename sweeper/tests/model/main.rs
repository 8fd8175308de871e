//! The engine's rules against a simulated chain: reorgs, deeper than what was final too, pools that forget, answers and
//! processes that are lost between any two steps, two processes at once, records that are lost before they are read, a sender
//! with little coin, a stranger who signs with the same key, people who change their mind; one node of three that lies about
//! all it is asked, another that lags, and times when no honest one answers; answers that come when the chain has gone on. What
//! is kept is what Postgres and Kafka keep.
//!
//! However it went: no id is ever in two transactions of the chain, nothing is told as paid that the chain has not, nothing is
//! sent before Kafka has it, nothing that pays is sent when it is not wanted or when a block shows it paid, nothing is raised
//! that no node took, or cancelled that somebody wants; and once the faults end (but for the liar), each id ends, with a receipt
//! of its own, and no nonce is left out.
//!
//! `PROPTEST_CASES=10000 cargo test -p sweeper --test model` tries more.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

mod chain;
mod process;

use alloy::primitives::B256;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use sweeper::engine::answers::Answer;
use sweeper::engine::fees::{Fees, MIN_RAISE};
use sweeper::engine::outgoing::{Action, Input, Kind, Outgoing, Pace, Phase};
use topics::BlockRef;

const PACE: Pace = Pace { max_fee: 10_000, raise: MIN_RAISE, resend_after: 10, stuck_after: 30, raise_after: 2 };
/// Rounds in which all has to end once nothing fails any more. A chain at the cap needs some.
const MAX_ROUNDS: usize = 400;

#[derive(Clone, Debug)]
enum Op {
    Queue,
    Drop(usize),
    /// Says what is to be done for one, and does so many of it after the first so many.
    Work {
        row: usize,
        skip: usize,
        actions: usize,
        fate: Fate,
    },
    /// So many answers that were on their way are noted.
    Hear(usize),
    /// A block with the first so many transactions that can be mined.
    Mine(usize),
    /// Takes so many blocks off; their transactions go back into the pool, or are lost.
    Reorg {
        depth: usize,
        into_pool: bool,
    },
    /// A block is mined and read, something is done for one, and the answers are noted when the block has left the chain.
    Overtake(usize),
    /// One that takes off final blocks, and mines attempts of nonces that were given up.
    DeepReorg(usize),
    /// A second process has read what is to be done for one.
    Leave(usize),
    /// It does so many of that, whatever has become of it since.
    Resume(usize),
    /// Everything below the head less so many is final.
    Finalize(usize),
    /// The process reads so many records of the chain.
    Read(usize),
    /// So many records are lost before it reads them, and it knows that.
    Hole(usize),
    /// One node lies from now on, in this way.
    Lie(Lie),
    /// Another lags, and knows no new block and no transaction.
    Lag(bool),
    /// No honest node answers, or takes anything.
    Outage(bool),
    /// The sender can pay no higher cap.
    Funds(u128),
    /// The pool forgets every so-manieth transaction.
    Forget(usize),
    /// A stranger with the same key sends one, with the nonce that the chain asks for next or one above.
    Foreign(u64),
    Wait(u64),
    Price(u128),
}

/// What becomes of the answers to what a process did: the last may be lost after it took effect, and all may come late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Noted,
    LastLost,
    Late,
}

/// An answer that is on its way.
#[derive(Clone, Debug)]
enum Answered {
    Input(usize, Input),
    /// Asked at this block, after so many removals.
    Count {
        at: BlockRef,
        removals: u64,
        count: u64,
    },
}

/// What a node says, whatever is true.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Lie {
    #[default]
    None,
    /// To all that is sent, and counts so many.
    Says(Answer, u64),
    /// Has a receipt of everything.
    Forges,
}

#[derive(Clone, Debug)]
struct Block {
    reference: BlockRef,
    transactions: Vec<B256>,
}

#[derive(Clone, Debug)]
enum Record {
    Added(Block),
    Removed(Block),
    Final(u64),
}

/// What a transaction is: of which row, or of a stranger.
#[derive(Clone, Copy, Debug)]
struct Signed {
    row: Option<usize>,
    nonce: u64,
    fees: Fees,
    cancels: bool,
    /// How many blocks had been read when a node took it first.
    taken: Option<u64>,
}

#[derive(Default)]
struct World {
    now: u64,
    price: u128,
    counter: u64,
    // Postgres.
    rows: Vec<Outgoing>,
    counted: Option<u64>,
    counted_in: Option<B256>,
    given: BTreeMap<u64, usize>,
    foreign: BTreeMap<u64, BlockRef>,
    read_final: Option<u64>,
    read_head: Option<BlockRef>,
    blocks: u64,
    removals: u64,
    /// By another process: of which row, what it was when it was read, and what is to be done.
    left: Vec<(usize, Outgoing, Action)>,
    on_their_way: Vec<Answered>,
    /// What somebody does not want any more.
    unwanted: BTreeSet<usize>,
    /// What is in the blocks that were read.
    shown: BTreeSet<B256>,
    // Kafka.
    records: BTreeSet<B256>,
    chain_blocks: Vec<Record>,
    read: usize,
    // The chain and a node.
    signed: BTreeMap<B256, Signed>,
    chain: Vec<Block>,
    finalized: usize,
    pool: BTreeMap<u64, B256>,
    lie: Lie,
    lags: bool,
    is_out: bool,
    funds: u128,
    /// Final blocks have left the chain.
    is_broken: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self { price: 10, funds: u128::MAX, ..Self::default() };
        world.mine(0);
        world
    }

    fn hash(&mut self) -> B256 {
        self.counter += 1;
        B256::left_padding_from(&self.counter.to_be_bytes())
    }

    fn run(&mut self, op: &Op) {
        let rows = self.rows.len();
        match *op {
            Op::Queue => self.rows.push(Outgoing::queued(Kind::Payout)),
            Op::Drop(row) if rows > 0 => {
                self.unwanted.insert(row % rows);
                self.apply(row % rows, &Input::Drop);
            }
            Op::Work { row, skip, actions, fate } if rows > 0 => self.work(row % rows, skip, actions, fate),
            Op::Leave(row) if rows > 0 => self.leave(row % rows),
            Op::Overtake(row) if rows > 0 => {
                self.mine(usize::MAX);
                self.read_all();
                self.work(row % rows, 0, usize::MAX, Fate::Late);
                self.reorg(1, true);
                self.read_all();
                self.hear(usize::MAX);
            }
            Op::Drop(_) | Op::Work { .. } | Op::Leave(_) | Op::Overtake(_) => {}
            Op::Resume(actions) => self.resume(actions),
            Op::Hear(answers) => self.hear(answers),
            Op::Hole(records) => self.lose_records(records),
            Op::Lie(lie) => self.lie = lie,
            Op::Lag(lags) => self.lags = lags,
            Op::Outage(is_out) => self.is_out = is_out,
            Op::Funds(funds) => self.funds = funds,
            Op::DeepReorg(depth) => self.deep_reorg(depth),
            Op::Mine(most) => self.mine(most),
            Op::Reorg { depth, into_pool } => self.reorg(depth, into_pool),
            Op::Finalize(lag) => self.finalize(lag),
            Op::Read(records) => (0..records).for_each(|_| self.read_record()),
            Op::Forget(every) => self.pool.retain(|nonce, _| !(*nonce as usize).is_multiple_of(every)),
            Op::Foreign(above) => self.foreign(above),
            Op::Wait(seconds) => self.now += seconds,
            Op::Price(price) => self.price = price,
        }
    }

    /// Nothing can become of it any more: it is over, or left to a person since its nonce is used in a block that was not read,
    /// and by a stranger; or since the chain has broken its word.
    fn is_settled(&self, row: &Outgoing) -> bool {
        let by = |hash: &B256| Some(self.signed[hash].nonce) == row.nonce && self.signed[hash].row.is_none();
        let by_stranger = || self.chain.iter().flat_map(|block| &block.transactions).any(by);
        row.phase.is_over() || row.phase == Phase::Lost && by_stranger() || self.is_broken && row.frozen.is_some()
    }

    /// Nothing fails any more, but for the liar.
    fn settle(&mut self) {
        (self.price, self.lags, self.is_out, self.funds) = (10, false, false, u128::MAX);
        self.hear(usize::MAX);
        for _ in 0..MAX_ROUNDS {
            self.now += 40;
            (0..self.rows.len()).for_each(|row| self.work(row, 0, usize::MAX, Fate::Noted));
            self.mine(usize::MAX);
            self.finalize(0);
            self.read_all();
            if self.rows.iter().all(|row| self.is_settled(row)) {
                return;
            }
        }
        // A chain that broke its word may have left more behind than is mended without a person.
        if self.is_broken {
            return;
        }
        let open: Vec<_> = self.rows.iter().filter(|row| !self.is_settled(row)).collect();
        panic!("no end: {open:#?}\npool {:?}, count {}, counted {:?}", self.pool, self.count(), self.counted);
    }

    fn check_ends(&self) {
        let mut mined: BTreeMap<usize, Vec<(B256, bool)>> = BTreeMap::new();
        for hash in self.chain.iter().flat_map(|block| &block.transactions) {
            let Signed { row, cancels, .. } = self.signed[hash];
            row.into_iter().for_each(|row| mined.entry(row).or_default().push((*hash, cancels)));
        }
        for (row, outgoing) in self.rows.iter().enumerate() {
            let on_chain = mined.remove(&row).unwrap_or_default();
            if outgoing.frozen.is_some() {
                assert!(self.is_broken, "frozen on a sound chain: {outgoing:?}");
                continue;
            }
            match outgoing.phase {
                Phase::Final(told) | Phase::Failed(told) => {
                    assert_eq!(on_chain, [(told.hash, false)], "{outgoing:?}");
                    let succeeded = self.signed[&told.hash].nonce % 5 != 3;
                    assert_eq!(matches!(outgoing.phase, Phase::Final(_)), succeeded, "{outgoing:?}");
                }
                Phase::Lost => assert!(on_chain.is_empty(), "{outgoing:?}"),
                Phase::Dropped(Some(told)) => assert_eq!(on_chain, [(told.hash, true)], "{outgoing:?}"),
                // Nothing of it can be mined any more: others have used the nonces of all that was signed.
                Phase::Dropped(None) => {
                    let used = self.count_in(self.finalized);
                    assert!(on_chain.is_empty() && outgoing.attempts.iter().all(|old| old.nonce < used), "{outgoing:?}");
                }
                _ => panic!("not over: {outgoing:?}"),
            }
        }
    }
}

fn lie() -> impl Strategy<Value = Lie> {
    let answer = prop_oneof![
        Just(Answer::Accepted),
        Just(Answer::NonceTooLow),
        Just(Answer::NonceTooHigh),
        Just(Answer::Underpriced),
        Just(Answer::InsufficientFunds { overshot: None }),
        Just(Answer::Reverted),
        Just(Answer::Unknown),
    ];
    let says = (answer, prop_oneof![Just(0_u64), Just(2), Just(1_000_000)]);
    prop_oneof![3 => says.prop_map(|(answer, count)| Lie::Says(answer, count)), 1 => Just(Lie::Forges), 1 => Just(Lie::None)]
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![2 => Just(Fate::Noted), 2 => Just(Fate::LastLost), 1 => Just(Fate::Late)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Queue),
        1 => any::<usize>().prop_map(Op::Drop),
        12 => (any::<usize>(), prop_oneof![4 => Just(0_usize), 1 => 1_usize..3], 0_usize..4, fate())
            .prop_map(|(row, skip, actions, fate)| Op::Work { row, skip, actions, fate }),
        2 => (1_usize..4).prop_map(Op::Hear),
        5 => (0_usize..4).prop_map(Op::Mine),
        2 => (1_usize..5, any::<bool>()).prop_map(|(depth, into_pool)| Op::Reorg { depth, into_pool }),
        1 => any::<usize>().prop_map(Op::Leave),
        1 => any::<usize>().prop_map(Op::Overtake),
        1 => (1_usize..4).prop_map(Op::Resume),
        2 => (0_usize..6).prop_map(Op::Finalize),
        5 => (1_usize..6).prop_map(Op::Read),
        1 => (1_usize..4).prop_map(Op::Forget),
        1 => lie().prop_map(Op::Lie),
        1 => any::<bool>().prop_map(Op::Lag),
        1 => any::<bool>().prop_map(Op::Outage),
        1 => prop_oneof![Just(u128::MAX), Just(23), Just(700)].prop_map(Op::Funds),
        1 => (0_u64..3).prop_map(Op::Foreign),
        4 => (1_u64..40).prop_map(Op::Wait),
        1 => prop_oneof![Just(10_u128), Just(300), Just(9_000), Just(20_000)].prop_map(Op::Price),
    ]
}

/// Some seconds of cases, unless more are asked for.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").map_or(400, |cases| cases.parse().unwrap())
}

/// With a rare one among them.
fn ops_and(rare: impl Strategy<Value = Op>) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(prop_oneof![20 => op(), 1 => rare], 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_is_mined_once_whatever_dies_and_no_nonce_is_left_out(ops in prop::collection::vec(op(), 1..120)) {
        run(&ops);
    }

    /// What a block that is missing had, is known by its receipt or left to a person.
    #[test]
    fn what_a_lost_record_hides_is_not_paid_again(ops in ops_and((1_usize..6).prop_map(Op::Hole))) {
        run(&ops);
    }

    /// What nobody can prevent may be paid twice, but not by us: once a block shows it, nothing that pays is sent.
    #[test]
    fn what_breaks_what_was_final_freezes_it(ops in ops_and((2_usize..12).prop_map(Op::DeepReorg))) {
        run(&ops);
    }
}

fn run(ops: &[Op]) {
    let mut world = World::new();
    ops.iter().for_each(|op| world.run(op));
    world.settle();
    if !world.is_broken {
        world.check_ends();
    }
}
