//! The process: what the store, the fold and the engine do with the rows.

use super::{Answered, Fate, Lie, PACE, Record, Signed, World};
use alloy::primitives::B256;
use sweeper::engine::fees::Market;
use sweeper::engine::lane::{gaps, next_nonce};
use sweeper::engine::outgoing::{Action, Attempt, Input, Kind, Moment, Notice, Order, Outgoing, Phase};
use sweeper::engine::step::step;

impl World {
    pub(super) fn moment(&self, row: usize) -> Moment {
        let lowest = self.rows.iter().filter(|row| row.waits_for_block()).filter_map(|row| row.nonce).min();
        let market = Some(Market { base: Some(self.price), tip: 2 });
        Moment { time: self.now, market, is_lowest: self.rows[row].nonce == lowest, blocks: self.blocks, pace: PACE }
    }

    pub(super) fn apply(&mut self, row: usize, input: &Input) -> Vec<Action> {
        let step =
            step(&self.rows[row], input, &self.moment(row)).unwrap_or_else(|error| panic!("{error}: {:?}", self.rows[row]));
        self.rows[row] = step.next;
        self.check_told(row);
        step.actions
    }

    /// Nothing is told as over that the chain does not have, and nothing is cancelled that somebody wants.
    fn check_told(&self, row: usize) {
        let outgoing = &self.rows[row];
        assert!(!outgoing.dropping || self.unwanted.contains(&row), "nobody wanted it cancelled: {outgoing:?}");
        let (Phase::Final(told) | Phase::Failed(told) | Phase::Dropped(Some(told))) = outgoing.phase else { return };
        let block = self.chain.get(told.block.number as usize);
        let is_there = block.is_some_and(|block| block.reference == told.block && block.transactions.contains(&told.hash));
        assert!(is_there || self.is_broken, "the chain does not have it: {outgoing:?}");
    }

    /// Notes an answer, or leaves it on its way.
    fn answer(&mut self, answered: Answered, fate: Fate) {
        match fate {
            Fate::Noted => self.note(answered),
            Fate::LastLost => {}
            Fate::Late => self.on_their_way.push(answered),
        }
    }

    fn note(&mut self, answered: Answered) {
        match answered {
            Answered::Input(row, input) => drop(self.apply(row, &input)),
            Answered::Count { at, removals, count } if self.counted.is_none() && self.removals == removals => {
                (self.counted, self.counted_in) = (Some(count), Some(at.hash));
                self.tell_all(&Input::Counted(count));
            }
            Answered::Count { .. } => {}
        }
    }

    pub(super) fn hear(&mut self, answers: usize) {
        let heard: Vec<_> = self.on_their_way.drain(..answers.min(self.on_their_way.len())).collect();
        heard.into_iter().for_each(|answered| self.note(answered));
    }

    /// What the store does in one transaction of Postgres.
    pub(super) fn sign(&mut self, row: usize, order: &Order) {
        let (given, foreign) = (self.given.keys().next_back().copied(), self.foreign.keys().next_back().copied());
        let next = self.counted.map(|counted| next_nonce(counted, given, foreign));
        let Some(nonce) = order.nonce.or(next) else {
            self.apply(row, &Input::InVain(Notice::NotCounted));
            return;
        };
        assert_eq!(*self.given.entry(nonce).or_insert(row), row, "nonce {nonce} is given out twice");
        let (hash, Order { fees, cancels, .. }) = (self.hash(), *order);
        let outgoing = &self.rows[row];
        if let Some(old) = outgoing.live().next_back().filter(|old| old.cancels == cancels && !outgoing.underpriced) {
            let taken = self.signed[&old.hash].taken;
            assert!(taken.is_some_and(|blocks| blocks < self.blocks), "raised, and no block refused it: {outgoing:?}");
        }
        self.signed.insert(hash, Signed { row: Some(row), nonce, fees, cancels, taken: None });
        self.apply(row, &Input::Signed(Attempt::signed(hash, nonce, fees, cancels)));
    }

    /// Does what was to be done for a row as it was when it was `read`.
    pub(super) fn perform(&mut self, row: usize, read: &Outgoing, action: Action, fate: Fate) {
        match action {
            Action::Sign(order) => self.sign(row, &order),
            Action::Publish(hash) => {
                self.records.insert(hash);
                self.answer(Answered::Input(row, Input::Acknowledged(hash)), fate);
            }
            Action::Broadcast(hash) => {
                assert!(self.records.contains(&hash), "it is sent before Kafka has it");
                assert!(self.is_wanted(row, hash), "it pays, and is not wanted: {:?}", self.rows[row]);
                assert!(!self.is_shown_paid(row), "a block shows it paid: {:?}", self.rows[row]);
                let answer = self.send(hash);
                self.answer(Answered::Input(row, Input::Answer(hash, answer)), fate);
            }
            Action::AskReceipt => {
                let (hashes, is_read) = read.asks_receipts_of();
                let is_final = |number: u64| self.read_final.is_some_and(|last| number <= last);
                let receipt = self.receipt(&hashes).filter(|receipt| is_read || is_final(receipt.block.number));
                self.answer(Answered::Input(row, Input::Receipt(receipt)), fate);
            }
            Action::FillGaps => {
                let below = |nonce: u64| {
                    let given = self.given.keys().rfind(|given| **given < nonce);
                    given.max(self.foreign.keys().rfind(|used| **used < nonce)).copied()
                };
                let waiting = self.rows.iter().filter(|row| row.waits_for_block()).filter_map(|row| row.nonce);
                let waiting: Vec<_> = waiting.map(|nonce| (nonce, below(nonce))).collect();
                let fees = (Market { base: Some(self.price), tip: 2 }).fees(PACE.max_fee);
                let (Some(counted), Some(fees)) = (self.counted, fees) else { return };
                for nonce in gaps(counted, &waiting).unwrap_or_default() {
                    let filler = self.rows.len();
                    self.rows.push(Outgoing::queued(Kind::Gap));
                    self.sign(filler, &Order { nonce: Some(nonce), fees, cancels: true });
                }
            }
            Action::Tell(_) => {}
        }
    }

    /// The row is wanted, or the attempt does nothing but take the nonce.
    fn is_wanted(&self, row: usize, hash: B256) -> bool {
        let outgoing = &self.rows[row];
        !outgoing.dropping && outgoing.frozen.is_none() || self.signed[&hash].cancels
    }

    /// A block that was read has another attempt of the row than those that can still be mined.
    pub(super) fn is_shown_paid(&self, row: usize) -> bool {
        let Outgoing { frozen, nonce, attempts, .. } = &self.rows[row];
        let is_paid = |old: &Attempt| Some(old.nonce) != *nonce && !old.cancels && self.shown.contains(&old.hash);
        frozen.is_none() && attempts.iter().any(is_paid)
    }

    /// Asks what the chain counts up to the newest block that was read.
    pub(super) fn count_lane(&mut self, fate: Fate) {
        let (None, Some(head)) = (self.counted, self.read_head) else { return };
        let at = head.number as usize;
        let truth = self.chain.get(at).filter(|block| block.reference == head).map(|_| self.count_in(at + 1));
        let lie = if let Lie::Says(_, count) = self.lie { Some(count) } else { Some(0) };
        let Some(count) = self.agreed(lie, truth) else { return };
        self.answer(Answered::Count { at: head, removals: self.removals, count }, fate);
    }

    pub(super) fn leave(&mut self, row: usize) {
        let actions = self.apply(row, &Input::Tick);
        let others = actions.into_iter().filter(|action| !matches!(action, Action::Sign(_) | Action::FillGaps));
        let read = self.rows[row].clone();
        self.left.extend(others.map(|action| (row, read.clone(), action)));
    }

    pub(super) fn resume(&mut self, actions: usize) {
        for (row, read, action) in self.left.drain(..actions.min(self.left.len())).collect::<Vec<_>>() {
            // What may be sent is read from the rows once more.
            let may_be_sent = |hash: B256| self.is_wanted(row, hash) && !self.is_shown_paid(row);
            match action {
                Action::Broadcast(hash) if !may_be_sent(hash) => {}
                action => self.perform(row, &read, action, Fate::Noted),
            }
        }
    }

    pub(super) fn work(&mut self, row: usize, skip: usize, actions: usize, fate: Fate) {
        self.count_lane(fate);
        // An attempt is signed and stored in the transaction that says so.
        let (sign, due): (Vec<_>, Vec<_>) =
            self.apply(row, &Input::Tick).into_iter().partition(|action| matches!(action, Action::Sign(_)));
        sign.into_iter().for_each(|action| self.perform(row, &self.rows[row].clone(), action, Fate::Noted));
        let due: Vec<Action> = due.into_iter().skip(skip).take(actions).collect();
        let last = due.len();
        for (place, action) in (1..).zip(due) {
            let fate = if fate == Fate::LastLost && place < last { Fate::Noted } else { fate };
            self.perform(row, &self.rows[row].clone(), action, fate);
        }
    }

    pub(super) fn tell_all(&mut self, input: &Input) {
        (0..self.rows.len()).for_each(|row| drop(self.apply(row, input)));
    }

    pub(super) fn lose_records(&mut self, records: usize) {
        self.read = (self.read + records).min(self.chain_blocks.len());
        let above = self.read_final.unwrap_or_default();
        self.foreign.retain(|_, block| block.number <= above);
        (self.counted, self.counted_in, self.read_head) = (None, None, None);
        self.removals += 1;
        let final_blocks = self.chain.iter().take_while(|block| block.reference.number <= above);
        self.shown = final_blocks.flat_map(|block| &block.transactions).copied().collect();
        self.tell_all(&Input::Restarted(above));
    }

    pub(super) fn read_all(&mut self) {
        while self.read < self.chain_blocks.len() {
            self.read_record();
        }
    }

    pub(super) fn read_record(&mut self) {
        let Some(record) = self.chain_blocks.get(self.read).cloned() else { return };
        self.read += 1;
        match record {
            Record::Added(block) => {
                self.read_head = Some(block.reference);
                self.blocks += 1;
                for hash in &block.transactions {
                    let Signed { row, nonce, .. } = self.signed[hash];
                    if let Some(row) = row {
                        self.shown.insert(*hash);
                        let mut mined = self.receipt_in(&block, *hash);
                        if nonce % 3 == 1 {
                            (mined.succeeded, mined.gas_used) = (None, None);
                        }
                        self.apply(row, &Input::SeenInBlock(mined));
                        continue;
                    }
                    self.foreign.insert(nonce, block.reference);
                    if let Some(row) = self.given.get(&nonce).copied() {
                        self.apply(row, &Input::ForeignNonce { nonce, number: block.reference.number });
                    }
                }
            }
            Record::Removed(block) => {
                self.read_head = None;
                self.removals += 1;
                self.foreign.retain(|_, used| *used != block.reference);
                self.shown.retain(|hash| !block.transactions.contains(hash));
                if self.counted_in == Some(block.reference.hash) {
                    (self.counted, self.counted_in) = (None, None);
                }
                self.tell_all(&Input::Removed(block.reference));
            }
            Record::Final(number) => {
                self.read_final = self.read_final.max(Some(number));
                if let Some(counted) = self.counted {
                    let used = self.foreign.iter().rfind(|(_, block)| block.number <= number).map(|(nonce, _)| *nonce);
                    self.foreign.retain(|_, block| block.number > number);
                    self.counted = Some(counted.max(used.map_or(0, |used| used + 1)));
                }
                self.tell_all(&Input::Final(number));
            }
        }
    }
}
