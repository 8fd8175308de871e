//! The chain and its three nodes.

use super::{Block, Lie, Record, Signed, World};
use alloy::primitives::B256;
use std::collections::BTreeSet;
use sweeper::engine::agreement::Agreement;
use sweeper::engine::answers::Answer;
use sweeper::engine::fees::Fees;
use sweeper::engine::outgoing::Mined;
use topics::BlockRef;

impl World {
    pub(super) fn count_in(&self, blocks: usize) -> u64 {
        self.chain[..blocks].iter().map(|block| block.transactions.len() as u64).sum()
    }

    pub(super) fn count(&self) -> u64 {
        self.count_in(self.chain.len())
    }

    pub(super) fn mine(&mut self, most: usize) {
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

    pub(super) fn reorg(&mut self, depth: usize, into_pool: bool) {
        let depth = depth.min(self.chain.len().saturating_sub(self.finalized.max(1)));
        for _ in 0..depth {
            let block = self.chain.pop().unwrap();
            for hash in block.transactions.iter().filter(|_| into_pool) {
                self.pool.entry(self.signed[hash].nonce).or_insert(*hash);
            }
            self.chain_blocks.push(Record::Removed(block));
        }
        if depth > 0 {
            self.mine(0);
        }
    }

    pub(super) fn deep_reorg(&mut self, depth: usize) {
        self.is_broken = true;
        self.finalized = self.finalized.min(self.chain.len().saturating_sub(depth));
        self.reorg(depth, false);
        let given_up = self.rows.iter().flat_map(|row| row.attempts.iter().filter(|old| row.nonce != Some(old.nonce)));
        let given_up: Vec<_> = given_up.map(|old| (old.nonce, old.hash)).collect();
        self.pool.extend(given_up);
        self.mine(2);
    }

    pub(super) fn finalize(&mut self, lag: usize) {
        let blocks = self.chain.len().saturating_sub(lag);
        if blocks > self.finalized {
            self.finalized = blocks;
            self.chain_blocks.push(Record::Final(blocks as u64 - 1));
        }
    }

    pub(super) fn check(&self) {
        let mut seen = BTreeSet::new();
        for hash in self.chain.iter().flat_map(|block| &block.transactions) {
            if let Some(row) = self.signed[hash].row.filter(|_| !self.is_broken) {
                assert!(seen.insert(row), "row {row} is on the chain twice: {:?}", self.rows[row]);
            }
        }
    }

    /// Sends it to all nodes. The first that has it counts.
    pub(super) fn send(&mut self, hash: B256) -> Answer {
        let honest = if self.is_out { Answer::Unknown } else { self.send_to_honest(hash) };
        let lying = match self.lie {
            Lie::None => honest,
            Lie::Says(answer, _) => answer,
            Lie::Forges => Answer::Accepted,
        };
        let answer = Answer::best(&[lying, if self.lags { Answer::Unknown } else { honest }, honest]);
        let signed = self.signed.get_mut(&hash).unwrap();
        let is_taken = matches!(answer, Answer::Accepted | Answer::AlreadyThere);
        signed.taken = signed.taken.or(is_taken.then_some(self.blocks));
        answer
    }

    /// What enough of the three nodes say: the liar, one that may lag, and an honest one.
    pub(super) fn agreed<T: Clone + PartialEq>(&self, lie: Option<T>, truth: Option<T>) -> Option<T> {
        let truth = truth.filter(|_| !self.is_out);
        let lagging = truth.clone().filter(|_| !self.lags);
        let lying = if self.lie == Lie::None { truth.clone() } else { lie };
        let mut said = Agreement::new(2);
        let words = [("liar", lying), ("lagging", lagging), ("honest", truth)];
        words.into_iter().find_map(|(provider, word)| said.hear(provider, &word?))
    }

    pub(super) fn receipt_in(&self, block: &Block, hash: B256) -> Mined {
        let succeeded = Some(self.signed[&hash].nonce % 5 != 3);
        Mined { hash, block: block.reference, succeeded, gas_used: Some(21_000), gas_price: Some(1) }
    }

    pub(super) fn receipt(&self, hashes: &[B256]) -> Option<Mined> {
        let forged = hashes.first().map(|hash| Mined { succeeded: Some(true), ..self.receipt_in(&self.chain[0], *hash) });
        let mut blocks = self.chain.iter().flat_map(|block| block.transactions.iter().map(move |hash| (block, *hash)));
        let truth = blocks.find(|(_, hash)| hashes.contains(hash));
        let truth = truth.map(|(block, hash)| self.receipt_in(block, hash));
        self.agreed(forged.filter(|_| self.lie == Lie::Forges), truth)
    }

    pub(super) fn send_to_honest(&mut self, hash: B256) -> Answer {
        let Signed { nonce, fees, .. } = self.signed[&hash];
        if nonce < self.count() {
            return Answer::NonceTooLow;
        }
        if fees.cap > self.funds {
            return Answer::InsufficientFunds { overshot: None };
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

    pub(super) fn foreign(&mut self, above: u64) {
        let (nonce, hash) = (self.count() + above, self.hash());
        self.signed.insert(hash, Signed { row: None, nonce, fees: Fees { tip: 50, cap: 4000 }, cancels: false, taken: None });
        self.pool.insert(nonce, hash);
    }
}
