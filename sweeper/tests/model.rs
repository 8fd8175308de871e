//! The engine's rules against a simulated chain: reorgs, pools that forget, answers and processes that are lost between any two
//! steps, a stranger who signs with the same key, people who change their mind. What is kept is what Postgres and Kafka keep.
//!
//! However it went: no id is ever in two transactions of the chain, nothing is sent before Kafka has it, and once the
//! faults end, each id ends, with a receipt of its own, and no nonce is left out.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and its numbers are small"
)]

use alloy::primitives::B256;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use sweeper::engine::answers::Answer;
use sweeper::engine::fees::{Fees, MIN_RAISE, Market};
use sweeper::engine::lane::{gaps, next_nonce};
use sweeper::engine::outgoing::{Action, Attempt, Input, Kind, Mined, Moment, Order, Outgoing, Pace, Phase};
use sweeper::engine::step::step;
use topics::BlockRef;

const PACE: Pace = Pace { max_fee: 10_000, raise: MIN_RAISE, resend_after: 10, stuck_after: 30, raise_after: 2 };
/// Rounds in which all has to end once nothing fails any more. A chain at the cap needs some.
const MAX_ROUNDS: usize = 400;

#[derive(Clone, Debug)]
enum Op {
    Queue,
    Drop(usize),
    /// Says what is to be done for one, and does so many of it after the first so many. The last may be lost after it took
    /// effect.
    Work {
        row: usize,
        skip: usize,
        actions: usize,
        is_lost: bool,
    },
    /// A block with the first so many transactions that can be mined.
    Mine(usize),
    /// Takes so many blocks off; their transactions go back into the pool, or are lost.
    Reorg {
        depth: usize,
        into_pool: bool,
    },
    /// Everything below the head less so many is final.
    Finalize(usize),
    /// The process reads so many records of the chain.
    Read(usize),
    /// The pool forgets every so-manieth transaction.
    Forget(usize),
    /// A stranger with the same key sends one, with the nonce that the chain asks for next or one above.
    Foreign(u64),
    Wait(u64),
    Price(u128),
}

#[derive(Clone, Debug)]
struct Block {
    reference: BlockRef,
    transactions: Vec<B256>,
}

#[derive(Clone, Debug)]
enum Record {
    Added(Block),
    Removed(BlockRef),
    Final(u64),
}

/// What a transaction is: of which row, or of a stranger.
#[derive(Clone, Copy, Debug)]
struct Signed {
    row: Option<usize>,
    nonce: u64,
    fees: Fees,
    cancels: bool,
}

#[derive(Default)]
struct World {
    now: u64,
    price: u128,
    counter: u64,
    // Postgres.
    rows: Vec<Outgoing>,
    born: Option<u64>,
    given: BTreeMap<u64, usize>,
    read_final: Option<u64>,
    // Kafka.
    records: BTreeSet<B256>,
    chain_blocks: Vec<Record>,
    read: usize,
    // The chain and a node.
    signed: BTreeMap<B256, Signed>,
    chain: Vec<Block>,
    finalized: usize,
    pool: BTreeMap<u64, B256>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { price: 10, ..Self::default() };
        world.mine(0);
        world
    }

    fn hash(&mut self) -> B256 {
        self.counter += 1;
        B256::left_padding_from(&self.counter.to_be_bytes())
    }

    // The chain.

    fn count_in(&self, blocks: usize) -> u64 {
        self.chain[..blocks].iter().map(|block| block.transactions.len() as u64).sum()
    }

    fn count(&self) -> u64 {
        self.count_in(self.chain.len())
    }

    fn mine(&mut self, most: usize) {
        let (mut transactions, mut nonce) = (Vec::new(), self.count());
        while transactions.len() < most {
            // A cap below the base fee is not mined.
            let Some(hash) = self.pool.get(&nonce).copied().filter(|hash| self.signed[hash].fees.cap >= self.price) else {
                break;
            };
            self.pool.remove(&nonce);
            transactions.push(hash);
            nonce += 1;
        }
        let reference = BlockRef { number: self.chain.len() as u64, hash: self.hash() };
        let block = Block { reference, transactions };
        self.chain_blocks.push(Record::Added(block.clone()));
        self.chain.push(block);
        self.pool = self.pool.split_off(&self.count());
        self.check();
    }

    fn reorg(&mut self, depth: usize, into_pool: bool) {
        let depth = depth.min(self.chain.len().saturating_sub(self.finalized.max(1)));
        for _ in 0..depth {
            let block = self.chain.pop().unwrap();
            for hash in block.transactions.iter().filter(|_| into_pool) {
                self.pool.entry(self.signed[hash].nonce).or_insert(*hash);
            }
            self.chain_blocks.push(Record::Removed(block.reference));
        }
        if depth > 0 {
            self.mine(0);
        }
    }

    fn finalize(&mut self, lag: usize) {
        let blocks = self.chain.len().saturating_sub(lag);
        if blocks > self.finalized {
            self.finalized = blocks;
            self.chain_blocks.push(Record::Final(blocks as u64 - 1));
        }
    }

    fn check(&self) {
        let mut seen = BTreeMap::new();
        for hash in self.chain.iter().flat_map(|block| &block.transactions) {
            if let Some(row) = self.signed[hash].row {
                assert!(seen.insert(row, *hash).is_none(), "row {row} is on the chain twice: {:?}", self.rows[row]);
            }
        }
    }

    fn send(&mut self, hash: B256) -> Answer {
        let Signed { nonce, fees, .. } = self.signed[&hash];
        if self.chain.iter().any(|block| block.transactions.contains(&hash)) || nonce < self.count() {
            return Answer::NonceTooLow;
        }
        match self.pool.get(&nonce) {
            Some(there) if *there == hash => Answer::AlreadyThere,
            Some(there) => {
                let old = self.signed[there].fees;
                if fees.tip * 10 < old.tip * 11 || fees.cap * 10 < old.cap * 11 {
                    return Answer::ReplacementUnderpriced;
                }
                self.pool.insert(nonce, hash);
                Answer::Accepted
            }
            None if fees.cap < self.price / 2 => Answer::Underpriced,
            None => {
                self.pool.insert(nonce, hash);
                Answer::Accepted
            }
        }
    }

    fn foreign(&mut self, above: u64) {
        let (nonce, hash) = (self.count() + above, self.hash());
        self.signed.insert(hash, Signed { row: None, nonce, fees: Fees { tip: 50, cap: 4000 }, cancels: false });
        self.pool.insert(nonce, hash);
    }

    // The process.

    fn moment(&self, row: usize) -> Moment {
        let lowest = self.rows.iter().filter(|row| row.waits_for_block()).filter_map(|row| row.nonce).min();
        let market = Some(Market { base: Some(self.price), tip: 2 });
        Moment { time: self.now, market, is_lowest: self.rows[row].nonce == lowest, pace: PACE }
    }

    fn apply(&mut self, row: usize, input: &Input) -> Vec<Action> {
        let step =
            step(&self.rows[row], input, &self.moment(row)).unwrap_or_else(|error| panic!("{error}: {:?}", self.rows[row]));
        self.rows[row] = step.next;
        step.actions
    }

    /// What the store does in one transaction of Postgres.
    fn sign(&mut self, row: usize, order: &Order) {
        let count = self.count();
        let born = *self.born.get_or_insert(count);
        let highest = self.given.last_key_value().map(|(nonce, _)| *nonce);
        let nonce = order.nonce.unwrap_or_else(|| next_nonce(born, highest));
        assert_eq!(*self.given.entry(nonce).or_insert(row), row, "nonce {nonce} is given out twice");
        let (hash, Order { fees, cancels, .. }) = (self.hash(), *order);
        self.signed.insert(hash, Signed { row: Some(row), nonce, fees, cancels });
        let attempt = Attempt { hash, nonce, fees, cancels, acknowledged: false, first_sent: None, last_sent: None };
        self.apply(row, &Input::Signed(attempt));
    }

    fn perform(&mut self, row: usize, action: Action, is_lost: bool) {
        match action {
            Action::Sign(order) => self.sign(row, &order),
            Action::Publish(hash) => {
                self.records.insert(hash);
                if !is_lost {
                    self.apply(row, &Input::Acknowledged(hash));
                }
            }
            Action::Broadcast(hash) => {
                assert!(self.records.contains(&hash), "it is sent before Kafka has it");
                let answer = self.send(hash);
                if !is_lost {
                    for action in self.apply(row, &Input::Answer(hash, answer)) {
                        if matches!(action, Action::AskNonce | Action::FillGaps) {
                            self.perform(row, action, false);
                        }
                    }
                }
            }
            Action::AskNonce => {
                let (Some(number), Some(nonce)) = (self.read_final, self.rows[row].nonce) else { return };
                if self.count_in(number as usize + 1) > nonce {
                    self.apply(row, &Input::ForeignNonce { nonce, number });
                }
            }
            Action::FillGaps => {
                let given: BTreeSet<u64> = self.given.keys().copied().collect();
                let waiting = self.rows.iter().filter(|row| row.waits_for_block()).filter_map(|row| row.nonce).collect();
                let Some(fees) = (Market { base: Some(self.price), tip: 2 }).fees(PACE.max_fee) else { return };
                for nonce in gaps(self.count(), &given, &waiting) {
                    let filler = self.rows.len();
                    self.rows.push(Outgoing::queued(Kind::Gap));
                    self.sign(filler, &Order { nonce: Some(nonce), fees, cancels: true });
                }
            }
            Action::Tell(_) => {}
        }
    }

    fn work(&mut self, row: usize, skip: usize, actions: usize, is_lost: bool) {
        // An attempt is signed and stored in the transaction that says so.
        let (sign, due): (Vec<_>, Vec<_>) =
            self.apply(row, &Input::Tick).into_iter().partition(|action| matches!(action, Action::Sign(_)));
        sign.into_iter().for_each(|action| self.perform(row, action, false));
        let due: Vec<Action> = due.into_iter().skip(skip).take(actions).collect();
        let last = due.len();
        for (place, action) in (1..).zip(due) {
            self.perform(row, action, is_lost && place == last);
        }
    }

    fn read_record(&mut self) {
        let Some(record) = self.chain_blocks.get(self.read).cloned() else { return };
        self.read += 1;
        match record {
            Record::Added(block) => {
                for hash in &block.transactions {
                    let Signed { row, nonce, .. } = self.signed[hash];
                    if let Some(row) = row {
                        let mined = Mined {
                            hash: *hash,
                            block: block.reference,
                            succeeded: nonce % 5 != 3,
                            gas_used: 21_000,
                            gas_price: 1,
                        };
                        self.apply(row, &Input::SeenInBlock(mined));
                    } else if let Some(row) = self.given.get(&nonce).copied() {
                        self.apply(row, &Input::ForeignNonce { nonce, number: block.reference.number });
                    }
                }
            }
            Record::Removed(block) => (0..self.rows.len()).for_each(|row| drop(self.apply(row, &Input::Removed(block)))),
            Record::Final(number) => {
                self.read_final = Some(number);
                (0..self.rows.len()).for_each(|row| drop(self.apply(row, &Input::Final(number))));
            }
        }
    }

    fn run(&mut self, op: &Op) {
        let rows = self.rows.len();
        match *op {
            Op::Queue => self.rows.push(Outgoing::queued(Kind::Payout)),
            Op::Drop(row) if rows > 0 => drop(self.apply(row % rows, &Input::Drop)),
            Op::Work { row, skip, actions, is_lost } if rows > 0 => self.work(row % rows, skip, actions, is_lost),
            Op::Drop(_) | Op::Work { .. } => {}
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

    /// Nothing fails any more.
    fn settle(&mut self) {
        self.price = 10;
        for _ in 0..MAX_ROUNDS {
            self.now += 40;
            (0..self.rows.len()).for_each(|row| self.work(row, 0, usize::MAX, false));
            self.mine(usize::MAX);
            self.finalize(0);
            while self.read < self.chain_blocks.len() {
                self.read_record();
            }
            if self.rows.iter().all(|row| row.phase.is_over()) {
                return;
            }
        }
        panic!("no end: {:#?}\npool {:?}, count {}", self.rows, self.pool, self.count());
    }

    fn check_ends(&self) {
        let mut mined: BTreeMap<usize, Vec<(B256, bool)>> = BTreeMap::new();
        for hash in self.chain.iter().flat_map(|block| &block.transactions) {
            let Signed { row, cancels, .. } = self.signed[hash];
            row.into_iter().for_each(|row| mined.entry(row).or_default().push((*hash, cancels)));
        }
        for (row, outgoing) in self.rows.iter().enumerate() {
            let on_chain = mined.remove(&row).unwrap_or_default();
            match outgoing.phase {
                Phase::Final(told) | Phase::Failed(told) => assert_eq!(on_chain, [(told.hash, false)], "{outgoing:?}"),
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

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Queue),
        1 => any::<usize>().prop_map(Op::Drop),
        12 => (any::<usize>(), prop_oneof![4 => Just(0_usize), 1 => 1_usize..3], 0_usize..4, any::<bool>())
            .prop_map(|(row, skip, actions, is_lost)| Op::Work { row, skip, actions, is_lost }),
        5 => (0_usize..4).prop_map(Op::Mine),
        2 => (1_usize..5, any::<bool>()).prop_map(|(depth, into_pool)| Op::Reorg { depth, into_pool }),
        2 => (0_usize..6).prop_map(Op::Finalize),
        5 => (1_usize..6).prop_map(Op::Read),
        1 => (1_usize..4).prop_map(Op::Forget),
        1 => (0_u64..3).prop_map(Op::Foreign),
        4 => (1_u64..40).prop_map(Op::Wait),
        1 => prop_oneof![Just(10_u128), Just(300), Just(9_000), Just(20_000)].prop_map(Op::Price),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        max_shrink_iters: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_is_mined_once_whatever_dies_and_no_nonce_is_left_out(ops in prop::collection::vec(op(), 1..120)) {
        let mut world = World::new();
        ops.iter().for_each(|op| world.run(op));
        world.settle();
        world.check_ends();
    }
}
