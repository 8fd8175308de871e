//! What an input makes of an outgoing transaction, and what is to be done then. Pure.
//!
//! The rules, which the model in `tests/model/` holds against a simulated chain:
//!
//! 1. All attempts that can be mined have one nonce, so that one of them is mined at most. Another nonce is taken only when a
//!    block that was read has a transaction that is none of ours with the first one, and is final. No answer of a node does it.
//! 2. An attempt is sent only after Kafka has acknowledged its record.
//! 3. A nonce that was given out stays in flight until a block has it: what is not wanted any more is replaced by a transaction
//!    that does nothing, and never left out. From then on what pays is sent no more.
//! 4. Blocks alone say what became of one. No answer of a node makes it failed; what a node did not say leaves it as it is.
//!    A receipt says what a block was read without, and nothing of a block that has left the chain meanwhile.
//! 5. Where blocks say what can't be, it is frozen: nothing that pays is signed or sent, and it is not over until a person says
//!    so.
//! 6. What no node has taken is not raised, and what one took only once a block was read since.
//! 7. What is to be done follows from the state and the moment: after a crash a [`Input::Tick`] says all of it again.

use super::answers::Answer;
use super::fees::Replacement;
use super::outgoing::{Action, Attempt, Contradiction, Input, Kind, Mined, Moment, Notice, Order, Outgoing, Pace, Phase};
use alloy::primitives::B256;
use topics::BlockRef;

/// How many times longer than usual what its sender can't pay for waits at most.
const MAX_UNPAID_PAUSES: u64 = 20;

/// What an input led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub next: Outgoing,
    pub actions: Vec<Action>,
}

/// Applies an input.
///
/// # Errors
/// If the input contradicts what is known, which is never changed by it.
pub fn step(outgoing: &Outgoing, input: &Input, moment: &Moment) -> Result<Step, Contradiction> {
    let mut next = outgoing.clone();
    let mut actions: Vec<Action> = next.apply(input, moment)?.map(Action::Tell).into_iter().collect();
    actions.extend(next.due(moment));
    let is_signed = actions.iter().any(|action| matches!(action, Action::Sign(_)));
    if matches!(input, Input::Tick) && next.awaits_signature() && !is_signed {
        next.tried = Some(moment.time);
    }
    let told = next.told.map(|told| std::mem::discriminant(&told));
    actions.retain(|action| !matches!(action, Action::Tell(notice) if told == Some(std::mem::discriminant(notice))));
    if let Some(Action::Tell(notice)) = actions.iter().rfind(|action| matches!(action, Action::Tell(_))) {
        next.told = Some(*notice);
    }
    Ok(Step { next, actions })
}

impl Outgoing {
    fn apply(&mut self, input: &Input, moment: &Moment) -> Result<Option<Notice>, Contradiction> {
        match input {
            Input::Signed(attempt) => self.signed(attempt)?,
            Input::Acknowledged(hash) => self.attempt(*hash)?.acknowledged = true,
            Input::Answer(hash, answer) => return self.answered(*hash, *answer, moment),
            Input::SeenInBlock(mined) => return self.seen(mined),
            Input::Receipt(receipt) => return Ok(self.received(*receipt, moment)),
            Input::Removed(block) => return Ok(self.left(block.number, |left| left == block)),
            Input::Restarted(above) => return Ok(self.left(above.saturating_add(1), |left| left.number > *above)),
            Input::Final(number) => self.finalized(*number),
            Input::ForeignNonce { nonce, number } => return Ok(self.replaced(*nonce, *number)),
            Input::Counted(count) => return Ok(self.counted(*count)),
            Input::InVain(notice) => {
                self.tried = Some(moment.time);
                return Ok(Some(*notice));
            }
            Input::Drop => self.drop_it(),
            Input::Tick => {}
        }
        Ok(None)
    }

    fn attempt(&mut self, hash: B256) -> Result<&mut Attempt, Contradiction> {
        self.attempts.iter_mut().find(|attempt| attempt.hash == hash).ok_or(Contradiction::UnknownAttempt(hash))
    }

    fn signed(&mut self, attempt: &Attempt) -> Result<(), Contradiction> {
        let Attempt { hash, nonce, .. } = *attempt;
        match (self.phase, self.nonce) {
            (Phase::Queued, _) => (self.phase, self.nonce) = (Phase::Signed, Some(nonce)),
            (Phase::Signed | Phase::Broadcast, expected) if expected != Some(nonce) => {
                return Err(Contradiction::OtherNonce { hash, nonce, expected });
            }
            (Phase::Signed | Phase::Broadcast, _) => {}
            _ => return Err(Contradiction::NotToBeSigned),
        }
        self.attempts.push(attempt.clone());
        (self.underpriced, self.tried, self.told) = (false, None, None);
        Ok(())
    }

    fn answered(&mut self, hash: B256, answer: Answer, moment: &Moment) -> Result<Option<Notice>, Contradiction> {
        let is_taken = matches!(answer, Answer::Accepted | Answer::AlreadyThere);
        let attempt = self.attempt(hash)?;
        let since = *attempt.first_sent.get_or_insert(moment.time);
        attempt.last_sent = Some(moment.time);
        attempt.accepted = attempt.accepted.or(is_taken.then_some(moment.blocks));
        if self.phase == Phase::Signed {
            self.phase = Phase::Broadcast;
        }
        // An answer about what is in a block by now is late, and one about an older attempt says nothing of the newest.
        let is_newest = self.sendable().next_back().is_some_and(|newest| newest.hash == hash);
        if !self.waits_for_block() || !is_newest {
            return Ok(None);
        }
        Ok(match answer {
            Answer::Accepted | Answer::AlreadyThere => {
                self.told = self.told.filter(|told| *told == Notice::AtCap);
                None
            }
            // Whose it was, blocks will tell.
            Answer::NonceTooLow => Some(Notice::NonceUsed),
            Answer::Underpriced | Answer::ReplacementUnderpriced => {
                let asks_more = self.newest().is_some_and(|newest| newest.hash == hash);
                self.underpriced |= asks_more;
                None
            }
            Answer::InsufficientFunds { overshot } => Some(Notice::InsufficientFunds { overshot }),
            Answer::Reverted => Some(Notice::Reverted),
            Answer::RevertedByAll => {
                let has_waited = moment.time.saturating_sub(since) >= moment.pace.stuck_after;
                let is_hopeless = has_waited && moment.is_lowest && self.live().all(|attempt| attempt.accepted.is_none());
                self.dropping |= is_hopeless;
                Some(if is_hopeless { Notice::GivenUp } else { Notice::Reverted })
            }
            // It is sent again: what holds it up passes, or the answer was lost.
            Answer::NonceTooHigh | Answer::AlreadyReserved | Answer::InFlightLimit | Answer::Unknown => None,
        })
    }

    fn seen(&mut self, mined: &Mined) -> Result<Option<Notice>, Contradiction> {
        let nonce = self.attempt(mined.hash)?.nonce;
        match &mut self.phase {
            Phase::Mined(before) | Phase::Final(before) | Phase::Failed(before) | Phase::Dropped(Some(before)) => {
                if (before.block, before.hash) != (mined.block, mined.hash) {
                    let (before, after) = (before.block, mined.block);
                    return Ok(Some(self.freeze(format!("it is in block {after} and in block {before} at once"))));
                }
                // Told again, after a restart.
                if before.succeeded.is_none() && mined.succeeded.is_some() {
                    *before = *mined;
                }
                return Ok(None);
            }
            // A stranger's final transaction had the nonce, and left the chain. The money is out.
            Phase::Dropped(None) => {
                self.nonce = Some(nonce);
                self.set_mined(mined);
                return Ok(Some(self.freeze(format!("it was dropped, and block {} has it", mined.block))));
            }
            // Nor is anything else signed.
            Phase::Queued => self.nonce = Some(nonce),
            _ if self.nonce != Some(nonce) => {
                let Mined { hash, block, .. } = mined;
                return Ok(Some(self.freeze(format!("{hash} with nonce {nonce}, which was given up, is in block {block}"))));
            }
            // Whoever said that somebody else has used the nonce was wrong.
            Phase::Signed | Phase::Broadcast | Phase::Replaced(_) | Phase::Lost => {}
        }
        self.set_mined(mined);
        Ok(None)
    }

    /// One that comes late says nothing: its block may have left the chain, and nobody takes it back once more.
    fn received(&mut self, receipt: Option<Mined>, moment: &Moment) -> Option<Notice> {
        if !self.awaits_receipt() {
            return None;
        }
        let answers_it = |receipt: &Mined| match self.phase {
            Phase::Mined(mined) => (mined.block, mined.hash) == (receipt.block, receipt.hash) && receipt.succeeded.is_some(),
            _ => self.live().any(|attempt| attempt.hash == receipt.hash),
        };
        match (self.phase, receipt.filter(answers_it)) {
            (Phase::Mined(_), Some(receipt)) => self.phase = Phase::Mined(receipt),
            (_, Some(receipt)) => self.set_mined(&receipt),
            (phase, None) => {
                self.tried = Some(moment.time);
                return Some(if phase == Phase::Lost { Notice::Lost } else { Notice::StatusUnknown });
            }
        }
        None
    }

    fn set_mined(&mut self, mined: &Mined) {
        (self.phase, self.told, self.tried, self.underpriced) = (Phase::Mined(*mined), None, None, false);
    }

    fn freeze(&mut self, reason: String) -> Notice {
        self.frozen.get_or_insert(reason);
        Notice::Frozen
    }

    /// Blocks have left the chain: those of which `has_left` says so, from the number `lowest` on.
    fn left(&mut self, lowest: u64, has_left: impl Fn(&BlockRef) -> bool) -> Option<Notice> {
        match self.phase {
            Phase::Mined(mined) if has_left(&mined.block) => self.send_again(),
            Phase::Replaced(number) if number >= lowest => self.send_again(),
            Phase::Final(mined) | Phase::Failed(mined) | Phase::Dropped(Some(mined)) if has_left(&mined.block) => {
                return Some(self.freeze(format!("block {} was final and has left the chain", mined.block)));
            }
            _ => {}
        }
        None
    }

    /// Nodes forget the transactions of blocks that leave the chain.
    fn send_again(&mut self) {
        self.phase = Phase::Broadcast;
        (self.told, self.tried) = (None, None);
        let nonce = self.nonce;
        for attempt in self.attempts.iter_mut().filter(|attempt| nonce == Some(attempt.nonce)) {
            (attempt.first_sent, attempt.last_sent) = (None, None);
        }
    }

    fn finalized(&mut self, number: u64) {
        match self.phase {
            Phase::Mined(mined) if mined.block.number <= number && self.frozen.is_none() => {
                self.phase = match mined.succeeded {
                    _ if self.is_cancel(mined.hash) => Phase::Dropped(Some(mined)),
                    Some(true) => Phase::Final(mined),
                    Some(false) => Phase::Failed(mined),
                    None => self.phase,
                };
            }
            Phase::Replaced(used) if used <= number => {
                self.nonce = None;
                // A filler has nothing to fill any more.
                let is_wanted = !self.dropping && self.kind != Kind::Gap;
                self.phase = if is_wanted { Phase::Queued } else { Phase::Dropped(None) };
            }
            _ => {}
        }
    }

    fn replaced(&mut self, nonce: u64, number: u64) -> Option<Notice> {
        let can_be = self.waits_for_block() || self.phase == Phase::Lost;
        if !can_be || self.nonce != Some(nonce) {
            return None;
        }
        self.phase = Phase::Replaced(number);
        Some(Notice::ForeignNonce)
    }

    fn counted(&mut self, count: u64) -> Option<Notice> {
        let is_used = self.nonce.is_some_and(|nonce| nonce < count);
        if self.phase == Phase::Lost && !is_used {
            self.send_again();
        }
        if !self.waits_for_block() || !is_used {
            return None;
        }
        (self.phase, self.tried) = (Phase::Lost, None);
        Some(Notice::Lost)
    }

    fn drop_it(&mut self) {
        // It is not to be signed any more, whoever asked for it.
        self.told = self.told.take().filter(|told| !matches!(told, Notice::NotAllowed(_)));
        match self.phase {
            Phase::Queued => self.phase = Phase::Dropped(None),
            Phase::Signed | Phase::Broadcast | Phase::Replaced(_) | Phase::Lost => self.dropping = true,
            Phase::Mined(_) | Phase::Final(_) | Phase::Failed(_) | Phase::Dropped(_) => {}
        }
    }

    /// Whether what pays is not to be mined any more.
    fn is_unwanted(&self) -> bool {
        self.dropping || self.frozen.is_some()
    }

    fn is_cancel(&self, hash: B256) -> bool {
        self.attempts.iter().any(|attempt| attempt.hash == hash && attempt.cancels)
    }

    fn newest(&self) -> Option<&Attempt> {
        self.live().next_back()
    }

    /// The attempts that may be sent, oldest first.
    fn sendable(&self) -> impl DoubleEndedIterator<Item = &Attempt> {
        self.live().filter(|attempt| attempt.acknowledged && (attempt.cancels || !self.is_unwanted()))
    }

    /// Whether it can't go on without a signature.
    fn awaits_signature(&self) -> bool {
        match self.phase {
            Phase::Queued => self.frozen.is_none(),
            Phase::Signed | Phase::Broadcast => self.is_unwanted() && self.newest().is_some_and(|newest| !newest.cancels),
            _ => false,
        }
    }

    /// Whether a receipt has to say what became of it.
    fn awaits_receipt(&self) -> bool {
        match self.phase {
            Phase::Lost => true,
            Phase::Mined(mined) => mined.succeeded.is_none() && !self.is_cancel(mined.hash),
            _ => false,
        }
    }

    /// When there is something to do without another input, in Unix seconds; `None` where a block has to come first. Not later
    /// than needed: whoever comes too early finds nothing to do.
    pub fn due_at(&self, pace: &Pace) -> Option<u64> {
        if self.awaits_signature() || self.awaits_receipt() {
            return Some(self.tried.map_or(0, |tried| tried.saturating_add(pace.resend_after)));
        }
        if !self.waits_for_block() {
            return None;
        }
        let wait = self.resend_after(pace).min(if self.underpriced && !self.is_unpaid() { pace.raise_after } else { u64::MAX });
        let last_sent = self.sendable().next_back().and_then(|attempt| attempt.last_sent);
        let last_sent = last_sent.filter(|_| self.newest().is_some_and(|newest| newest.acknowledged));
        Some(last_sent.map_or(0, |sent| sent.saturating_add(wait)))
    }

    /// All that is to be done now.
    fn due(&self, moment: &Moment) -> Vec<Action> {
        if self.awaits_receipt() {
            let pause = moment.pace.resend_after;
            let is_due = self.tried.is_none_or(|tried| moment.time.saturating_sub(tried) >= pause);
            return is_due.then_some(Action::AskReceipt).into_iter().collect();
        }
        match self.phase {
            Phase::Queued if self.frozen.is_none() => self.first_order(moment).into_iter().collect(),
            Phase::Signed | Phase::Broadcast => {
                let unsent = self.unsent(moment);
                // Pools take a transaction above a gap, and say nothing of it.
                let is_held_up = moment.is_lowest && unsent.iter().any(|attempt| attempt.last_sent.is_some());
                let mut actions: Vec<Action> = self.unpublished().map(Action::Publish).into_iter().collect();
                actions.extend(unsent.iter().map(|attempt| Action::Broadcast(attempt.hash)));
                actions.extend(is_held_up.then_some(Action::FillGaps));
                actions.extend(self.next_order(moment));
                actions
            }
            _ => Vec::new(),
        }
    }

    fn first_order(&self, moment: &Moment) -> Option<Action> {
        let market = moment.market?;
        Some(match market.fees(self.max_payload_fee(&moment.pace)) {
            Some(fees) => Action::Sign(Order { nonce: None, fees, cancels: false }),
            None => Action::Tell(Notice::TooDear),
        })
    }

    fn unpublished(&self) -> Option<B256> {
        let newest = self.newest().filter(|newest| newest.cancels || !self.is_unwanted())?;
        (!newest.acknowledged).then_some(newest.hash)
    }

    /// The newest that may be sent, if it was not sent for long. Where no node has taken that one, say since the sender can't
    /// pay for it, the last that one took comes first: pools that have forgotten it take it again.
    fn unsent(&self, moment: &Moment) -> Vec<&Attempt> {
        let Some(newest) = self.sendable().next_back() else { return Vec::new() };
        let pause = self.resend_after(&moment.pace);
        if newest.last_sent.is_some_and(|sent| moment.time.saturating_sub(sent) < pause) {
            return Vec::new();
        }
        self.taken_before(newest).into_iter().chain([newest]).collect()
    }

    /// The last that a node took, if it is not this one.
    fn taken_before(&self, newest: &Attempt) -> Option<&Attempt> {
        self.sendable().rfind(|attempt| attempt.accepted.is_some()).filter(|taken| taken.hash != newest.hash)
    }

    /// When the newest is sent again. What its sender can't pay for waits longer and longer, unless another one waits in pools:
    /// thousands of such would keep the engine from all else.
    fn resend_after(&self, pace: &Pace) -> u64 {
        let newest = self.sendable().next_back();
        // One word of a node that lags does not take from pools what they took.
        let newest = newest.filter(|newest| newest.accepted.is_none() && self.taken_before(newest).is_none());
        let sent = newest.and_then(|newest| newest.first_sent.zip(newest.last_sent));
        match sent.filter(|_| self.is_unpaid()) {
            Some((first, last)) => {
                let longest = pace.resend_after.saturating_mul(MAX_UNPAID_PAUSES);
                last.saturating_sub(first).clamp(pace.resend_after, longest.max(pace.resend_after))
            }
            None => pace.resend_after,
        }
    }

    /// Whether nodes said that its sender can't pay for it.
    fn is_unpaid(&self) -> bool {
        matches!(self.told, Some(Notice::InsufficientFunds { .. }))
    }

    /// What replaces the newest attempt, if it is time for it. One that was not sent yet is waited for.
    fn next_order(&self, moment: &Moment) -> Option<Action> {
        let newest = self.newest()?;
        let pace = &moment.pace;
        let cancels = newest.cancels || self.is_unwanted();
        let max_fee = if cancels { pace.max_fee } else { self.max_payload_fee(pace) };
        let waited = newest.first_sent.map(|sent| moment.time.saturating_sub(sent));
        // What no pool takes for another reason is not in one: to raise it would only make it dearer. Nor does it say anything
        // of the price that no node answers, or that no block comes.
        let is_in_pool = !matches!(self.told, Some(Notice::InsufficientFunds { .. } | Notice::Reverted | Notice::NonceUsed))
            && newest.accepted.is_some_and(|blocks| blocks < moment.blocks);
        let is_stuck = moment.is_lowest && is_in_pool && waited.is_some_and(|waited| waited >= pace.stuck_after);
        let is_refused = self.underpriced && waited.is_some_and(|waited| waited >= pace.raise_after);
        if !(is_stuck || is_refused || self.awaits_signature()) {
            return None;
        }
        Some(match newest.fees.replacement(moment.market.as_ref(), pace.raise, max_fee) {
            Replacement::Raise(fees) => Action::Sign(Order { nonce: Some(newest.nonce), fees, cancels }),
            Replacement::AtCap => Action::Tell(Notice::AtCap),
        })
    }
}
