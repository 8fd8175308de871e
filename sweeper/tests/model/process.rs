//! The process: what the store, the fold and the engine do with the rows.

use super::{Lie, PACE, Record, Signed, World};
use alloy::primitives::B256;
use sweeper::engine::fees::Market;
use sweeper::engine::lane::{gaps, next_nonce};
use sweeper::engine::outgoing::{Action, Attempt, Input, Kind, Moment, Notice, Order, Outgoing, Phase};
use sweeper::engine::step::step;

impl World {
    pub(super) fn moment(&self, row: usize) -> Moment {
        let lowest = self.rows.iter().filter(|row| row.waits_for_block()).filter_map(|row| row.nonce).min();
        let market = Some(Market { base: Some(self.price), tip: 2 });
        Moment { time: self.now, market, is_lowest: self.rows[row].nonce == lowest, pace: PACE }
    }

    pub(super) fn apply(&mut self, row: usize, input: &Input) -> Vec<Action> {
        let step =
            step(&self.rows[row], input, &self.moment(row)).unwrap_or_else(|error| panic!("{error}: {:?}", self.rows[row]));
        self.rows[row] = step.next;
        step.actions
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
        self.signed.insert(hash, Signed { row: Some(row), nonce, fees, cancels });
        let (acknowledged, accepted, first_sent, last_sent) = (false, false, None, None);
        let attempt = Attempt { hash, nonce, fees, cancels, acknowledged, accepted, first_sent, last_sent };
        self.apply(row, &Input::Signed(attempt));
    }

    pub(super) fn perform(&mut self, row: usize, action: Action, is_lost: bool) {
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
                let outgoing = &self.rows[row];
                let is_wanted = !outgoing.dropping && outgoing.frozen.is_none();
                assert!(is_wanted || self.signed[&hash].cancels, "it pays, and is not wanted: {outgoing:?}");
                assert!(!self.is_shown_paid(row), "a block shows it paid: {outgoing:?}");
                let answer = self.send(hash);
                if !is_lost {
                    self.apply(row, &Input::Answer(hash, answer));
                }
            }
            Action::AskReceipt => {
                let (hashes, mined) = match self.rows[row].phase {
                    Phase::Mined(mined) => (vec![mined.hash], Some(mined)),
                    _ => (self.rows[row].live().map(|attempt| attempt.hash).collect(), None),
                };
                let receipt = self.receipt(&hashes).filter(|receipt| match mined {
                    Some(mined) => receipt.block == mined.block,
                    None => self.read_final.is_some_and(|number| receipt.block.number <= number),
                });
                let input = receipt.map_or(Input::InVain(Notice::Lost), Input::SeenInBlock);
                self.apply(row, &input);
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

    /// A block that was read has another attempt of the row than those that can still be mined.
    pub(super) fn is_shown_paid(&self, row: usize) -> bool {
        let Outgoing { frozen, nonce, attempts, .. } = &self.rows[row];
        let is_paid = |old: &Attempt| Some(old.nonce) != *nonce && !old.cancels && self.shown.contains(&old.hash);
        frozen.is_none() && attempts.iter().any(is_paid)
    }

    /// Asks what the chain counts up to the newest block that was read.
    pub(super) fn count_lane(&mut self) {
        let (None, Some(head)) = (self.counted, self.read_head) else { return };
        let at = head.number as usize;
        let truth = self.chain.get(at).filter(|block| block.reference == head).map(|_| self.count_in(at + 1));
        let lie = if let Lie::Says(_, count) = self.lie { Some(count) } else { Some(0) };
        let Some(count) = self.agreed(lie, truth) else { return };
        (self.counted, self.counted_in) = (Some(count), Some(head.hash));
        (0..self.rows.len()).for_each(|row| drop(self.apply(row, &Input::Counted(count))));
    }

    pub(super) fn leave(&mut self, row: usize) {
        let actions = self.apply(row, &Input::Tick);
        let others = actions.into_iter().filter(|action| !matches!(action, Action::Sign(_) | Action::FillGaps));
        self.left.extend(others.map(|action| (row, action)));
    }

    pub(super) fn resume(&mut self, actions: usize) {
        for (row, action) in self.left.drain(..actions.min(self.left.len())).collect::<Vec<_>>() {
            // What may be sent is read from the rows once more.
            let may_be_sent = |hash: B256| {
                let outgoing = &self.rows[row];
                let is_wanted = !outgoing.dropping && outgoing.frozen.is_none();
                (is_wanted || self.signed[&hash].cancels) && !self.is_shown_paid(row)
            };
            match action {
                Action::Broadcast(hash) if !may_be_sent(hash) => {}
                Action::AskReceipt if !matches!(self.rows[row].phase, Phase::Mined(_) | Phase::Lost) => {}
                action => self.perform(row, action, false),
            }
        }
    }

    pub(super) fn work(&mut self, row: usize, skip: usize, actions: usize, is_lost: bool) {
        self.count_lane();
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

    pub(super) fn tell_all(&mut self, input: &Input) {
        (0..self.rows.len()).for_each(|row| drop(self.apply(row, input)));
    }

    pub(super) fn lose_records(&mut self, records: usize) {
        self.read = (self.read + records).min(self.chain_blocks.len());
        let above = self.read_final.unwrap_or_default();
        self.foreign.retain(|_, block| block.number <= above);
        (self.counted, self.counted_in, self.read_head) = (None, None, None);
        let final_blocks = self.chain.iter().take_while(|block| block.reference.number <= above);
        self.shown = final_blocks.flat_map(|block| &block.transactions).copied().collect();
        self.tell_all(&Input::Restarted(above));
    }

    pub(super) fn read_record(&mut self) {
        let Some(record) = self.chain_blocks.get(self.read).cloned() else { return };
        self.read += 1;
        match record {
            Record::Added(block) => {
                self.read_head = Some(block.reference);
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
                self.foreign.retain(|_, used| *used != block.reference);
                self.shown.retain(|hash| !block.transactions.contains(hash));
                if self.counted_in == Some(block.reference.hash) {
                    (self.counted, self.counted_in) = (None, None);
                }
                self.tell_all(&Input::Removed(block.reference));
            }
            Record::Final(number) => {
                self.read_final = self.read_final.max(Some(number));
                let used = self.foreign.iter().rfind(|(_, block)| block.number <= number).map(|(nonce, _)| *nonce);
                self.foreign.retain(|_, block| block.number > number);
                self.counted = self.counted.map(|counted| counted.max(used.map_or(0, |used| used + 1)));
                self.tell_all(&Input::Final(number));
            }
        }
    }
}
