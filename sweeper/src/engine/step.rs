//! What an input makes of an outgoing transaction, and what is to be done then. Pure.
//!
//! The rules, which the model in `tests/model.rs` holds against a simulated chain:
//!
//! 1. All attempts that can be mined have one nonce, so that one of them is mined at most. Another nonce is taken only when a
//!    transaction that is none of ours has used the first one in a final block.
//! 2. An attempt is sent only after Kafka has acknowledged its record.
//! 3. A nonce that was given out stays in flight until a block has it: what is not wanted any more is replaced by a transaction
//!    that does nothing, and never left out.
//! 4. Blocks alone say what became of one. No answer of a node makes it failed; what a node did not say leaves it as it is.
//! 5. What is to be done follows from the state and the moment: after a crash a [`Input::Tick`] says all of it again.

use super::answers::Answer;
use super::fees::{Fees, Replacement};
use super::outgoing::{Action, Attempt, Contradiction, Input, Kind, Mined, Moment, Notice, Order, Outgoing, Pace, Phase};
use alloy::primitives::B256;
use topics::BlockRef;

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
    let mut actions = next.apply(input, moment)?;
    actions.extend(next.due(moment));
    let told = next.told.map(|told| std::mem::discriminant(&told));
    actions.retain(|action| !matches!(action, Action::Tell(notice) if told == Some(std::mem::discriminant(notice))));
    if let Some(Action::Tell(notice)) = actions.iter().rfind(|action| matches!(action, Action::Tell(_))) {
        next.told = Some(*notice);
    }
    Ok(Step { next, actions })
}

impl Outgoing {
    fn apply(&mut self, input: &Input, moment: &Moment) -> Result<Vec<Action>, Contradiction> {
        match input {
            Input::Signed(attempt) => self.signed(attempt)?,
            Input::Acknowledged(hash) => self.attempt(*hash)?.acknowledged = true,
            Input::Answer(hash, answer) => return self.answered(*hash, *answer, moment),
            Input::SeenInBlock(mined) => self.seen(mined)?,
            Input::Removed(block) => self.removed(block)?,
            Input::Final(number) => return Ok(self.finalized(*number)),
            Input::ForeignNonce { nonce, number } => return Ok(self.replaced(*nonce, *number)),
            Input::Drop => self.drop_it(),
            Input::Tick => {}
        }
        Ok(Vec::new())
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
        (self.underpriced, self.told) = (false, None);
        Ok(())
    }

    fn answered(&mut self, hash: B256, answer: Answer, moment: &Moment) -> Result<Vec<Action>, Contradiction> {
        let attempt = self.attempt(hash)?;
        attempt.first_sent.get_or_insert(moment.time);
        attempt.last_sent = Some(moment.time);
        if self.phase == Phase::Signed {
            self.phase = Phase::Broadcast;
        }
        // An answer about what is in a block by now is late.
        if !self.waits_for_block() {
            return Ok(Vec::new());
        }
        let is_newest = self.live().next_back().is_some_and(|newest| newest.hash == hash);
        Ok(match answer {
            Answer::Accepted | Answer::AlreadyThere => {
                if self.told != Some(Notice::AtCap) {
                    self.told = None;
                }
                Vec::new()
            }
            // Whose it was, blocks will tell; only if they don't, nodes are asked.
            Answer::NonceTooLow => vec![Action::AskNonce],
            Answer::NonceTooHigh => vec![Action::FillGaps],
            Answer::Underpriced | Answer::ReplacementUnderpriced => {
                self.underpriced |= is_newest;
                Vec::new()
            }
            Answer::InsufficientFunds { overshot } => vec![Action::Tell(Notice::InsufficientFunds { overshot })],
            Answer::Reverted => vec![Action::Tell(Notice::Reverted)],
            // It is sent again: what holds it up passes, or the answer was lost.
            Answer::AlreadyReserved | Answer::InFlightLimit | Answer::Unknown => Vec::new(),
        })
    }

    fn seen(&mut self, mined: &Mined) -> Result<(), Contradiction> {
        let nonce = self.attempt(mined.hash)?.nonce;
        match self.phase {
            Phase::Mined(before) | Phase::Final(before) | Phase::Failed(before) | Phase::Dropped(Some(before)) => {
                // Told again, after a restart.
                if before.block == mined.block && before.hash == mined.hash {
                    return Ok(());
                }
                Err(Contradiction::TwoBlocks { before: before.block, after: mined.block })
            }
            _ if self.nonce != Some(nonce) => Err(Contradiction::NonceTwice(nonce)),
            // Whoever said that somebody else has used the nonce was wrong.
            Phase::Signed | Phase::Broadcast | Phase::Replaced(_) => {
                (self.phase, self.told, self.underpriced) = (Phase::Mined(*mined), None, false);
                Ok(())
            }
            Phase::Queued | Phase::Dropped(None) => Err(Contradiction::NonceTwice(nonce)),
        }
    }

    fn removed(&mut self, block: &BlockRef) -> Result<(), Contradiction> {
        match self.phase {
            Phase::Mined(mined) if mined.block == *block => self.send_again(),
            Phase::Replaced(number) if number >= block.number => self.send_again(),
            Phase::Final(mined) | Phase::Failed(mined) | Phase::Dropped(Some(mined)) if mined.block == *block => {
                return Err(Contradiction::FinalRemoved(*block));
            }
            _ => {}
        }
        Ok(())
    }

    /// Nodes forget the transactions of blocks that leave the chain.
    fn send_again(&mut self) {
        self.phase = Phase::Broadcast;
        self.told = None;
        let nonce = self.nonce;
        for attempt in self.attempts.iter_mut().filter(|attempt| nonce == Some(attempt.nonce)) {
            (attempt.first_sent, attempt.last_sent) = (None, None);
        }
    }

    fn finalized(&mut self, number: u64) -> Vec<Action> {
        match self.phase {
            Phase::Mined(mined) if mined.block.number <= number => {
                let cancels = self.attempts.iter().any(|attempt| attempt.hash == mined.hash && attempt.cancels);
                self.phase = match mined.succeeded {
                    _ if cancels => Phase::Dropped(Some(mined)),
                    true => Phase::Final(mined),
                    false => Phase::Failed(mined),
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
        Vec::new()
    }

    fn replaced(&mut self, nonce: u64, number: u64) -> Vec<Action> {
        if !self.waits_for_block() || self.nonce != Some(nonce) {
            return Vec::new();
        }
        self.phase = Phase::Replaced(number);
        vec![Action::Tell(Notice::ForeignNonce)]
    }

    fn drop_it(&mut self) {
        match self.phase {
            Phase::Queued => self.phase = Phase::Dropped(None),
            Phase::Signed | Phase::Broadcast | Phase::Replaced(_) => self.dropping = true,
            Phase::Mined(_) | Phase::Final(_) | Phase::Failed(_) | Phase::Dropped(_) => {}
        }
    }

    /// When there is something to do without another input, in Unix seconds; `None` where a block has to come first. Not later
    /// than needed: whoever comes too early finds nothing to do.
    pub fn due_at(&self, pace: &Pace) -> Option<u64> {
        match self.phase {
            Phase::Queued => Some(0),
            Phase::Signed | Phase::Broadcast => {
                let newest = self.live().next_back();
                let is_urgent = newest.is_none_or(|newest| !newest.acknowledged || self.dropping && !newest.cancels);
                let last_sent = self.live().rfind(|attempt| attempt.acknowledged).and_then(|attempt| attempt.last_sent);
                let wait = if self.underpriced { pace.resend_after.min(pace.raise_after) } else { pace.resend_after };
                Some(last_sent.filter(|_| !is_urgent).map_or(0, |sent| sent.saturating_add(wait)))
            }
            Phase::Mined(_) | Phase::Replaced(_) | Phase::Final(_) | Phase::Failed(_) | Phase::Dropped(_) => None,
        }
    }

    /// All that is to be done now.
    fn due(&self, moment: &Moment) -> Vec<Action> {
        match self.phase {
            Phase::Queued => self.first_order(moment).into_iter().collect(),
            Phase::Signed | Phase::Broadcast => {
                let unsent = self.unsent(moment);
                // Pools take a transaction above a gap, and say nothing of it.
                let is_held_up = unsent.is_some_and(|attempt| moment.is_lowest && attempt.last_sent.is_some());
                let publish = self.unpublished().map(Action::Publish);
                let broadcast = unsent.map(|attempt| Action::Broadcast(attempt.hash));
                let fill = is_held_up.then_some(Action::FillGaps);
                [publish, broadcast, fill, self.next_order(moment)].into_iter().flatten().collect()
            }
            Phase::Mined(_) | Phase::Replaced(_) | Phase::Final(_) | Phase::Failed(_) | Phase::Dropped(_) => Vec::new(),
        }
    }

    fn first_order(&self, moment: &Moment) -> Option<Action> {
        let market = moment.market?;
        Some(match market.fees(moment.pace.max_fee) {
            Some(fees) => Action::Sign(Order { nonce: None, fees, cancels: false }),
            None => Action::Tell(Notice::TooDear),
        })
    }

    fn unpublished(&self) -> Option<B256> {
        self.live().next_back().filter(|newest| !newest.acknowledged).map(|newest| newest.hash)
    }

    /// The newest that may be sent, if it was not sent for long.
    fn unsent(&self, moment: &Moment) -> Option<&Attempt> {
        let attempt = self.live().rfind(|attempt| attempt.acknowledged)?;
        let is_due = attempt.last_sent.is_none_or(|sent| moment.time.saturating_sub(sent) >= moment.pace.resend_after);
        is_due.then_some(attempt)
    }

    /// What replaces the newest attempt, if it is time for it. One that was not sent yet is waited for.
    fn next_order(&self, moment: &Moment) -> Option<Action> {
        let newest = self.live().next_back()?;
        let pace = &moment.pace;
        let order = |fees: Fees, cancels| Action::Sign(Order { nonce: Some(newest.nonce), fees, cancels });
        let replacement = newest.fees.replacement(moment.market.as_ref(), pace.raise, pace.max_fee);
        let waited = newest.first_sent.map(|sent| moment.time.saturating_sub(sent));
        // What no pool takes for another reason is not in one: to raise it would only make it dearer.
        let is_in_pool = !matches!(self.told, Some(Notice::InsufficientFunds { .. } | Notice::Reverted));
        let is_stuck = moment.is_lowest && is_in_pool && waited.is_some_and(|waited| waited >= pace.stuck_after);
        let is_refused = self.underpriced && waited.is_some_and(|waited| waited >= pace.raise_after);
        let is_to_cancel = self.dropping && !newest.cancels;
        if !(is_stuck || is_refused || is_to_cancel) {
            return None;
        }
        Some(match replacement {
            Replacement::Raise(fees) => order(fees, newest.cancels || self.dropping),
            Replacement::AtCap => Action::Tell(Notice::AtCap),
        })
    }
}
