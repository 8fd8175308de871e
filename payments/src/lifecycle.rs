//! The rule book of a payment's life: [`step`] takes a payment and an input to the payment after it and its events. No clock, no
//! IO.
//!
//! An input changes facts; the status follows from the facts ([`Payment::status`]); events follow from the difference. So a
//! payment ends where the surviving chain says it ends, whatever the way there: a removed block takes back all that it had
//! brought, an expiry included.
//!
//! # The rules
//!
//! **Order.** Within a block: expiry, then transfers, then the new head. A transfer in the block whose timestamp expires a
//! payment is late by definition, since that timestamp is its own.
//!
//! **Credited** is a transfer of the payment's asset on the payment's chain, with the amount that arrived according to its event:
//! a fee-on-transfer token pays less. Partial payments add up, within a transaction, within a block and across blocks. A transfer
//! is identified by its block's hash, its transaction and its place there ([`TransferId`]), and counts once. Transfers of zero,
//! and from an address to itself, never come here: the detector drops them, as no money moves.
//!
//! **Many at once.** Of one asset and one block, more than [`MAX_TOLD_SINGLY`] transfers are taken as one, of their sum: a flood of
//! dust costs a payment one event, or one for each part of a block that is in parts. That event has a [`Summary`] in place of a
//! transfer. Sums are exact; one beyond 256 bits is shown as the largest amount.
//!
//! **Below the minimum** is a transfer of less than the `min_transfer` that chains.yaml had for its asset when it was seen. It is
//! kept beside the payment and shown, and does nothing else, unless it pays its payment alone.
//!
//! **Detected** is a payment whose transfers in time reach the amount less [`underpaid_tolerance`](Terms): it is paid. A transfer
//! that leaves it short emits `underpaid`. A sum that exceeds the amount by more than [`overpaid_tolerance`](Terms) is the
//! exception `overpaid`. Every transfer that arrives once a payment is detected, confirmed or settled emits `overpaid`, tolerated
//! or not: it is somebody's money.
//!
//! **Confirmed** is a payment when transfers that reach as much are all deep enough under its [`Policy`]. The policy is fixed when
//! the payment is created: by the request, by its amount or by its chain. Confirmations are counted on the canonical chain, so
//! they go down with the head. A transfer that a tag (`safe`, `finalized`) has covered stays covered as long as its own block is
//! on the chain.
//!
//! **Witnessed** has to be whatever confirms: the blocks that confirmations count, and the block that a tag covers, are at or below
//! the highest block that as many endpoints have given as the chain asks. A block that one endpoint alone shows may be invented,
//! so it can detect a payment and never confirm it. Where nothing is known of witnesses, everything waits.
//!
//! **Settled** is a confirmed payment once final transactions have moved out what confirmed it: what had arrived up to the block with
//! which confirmed transfers reach the amount. A total per chain, address and asset tells what has left, and not which money: so all
//! that has arrived in the asset counts, in the chain's order, what is below the minimum too ([`swept`](crate::swept)). What is not
//! confirmed, expired or cancelled settles nothing. What arrives on top, before or after, emits `overpaid`, leaves in its own time, and
//! changes nothing: else a stranger's unit would keep a payment from being settled. `settled` is told once. A reorg that takes back a
//! confirmation that made it confirmed makes it settled no more. No reorg takes back what is final, but a chain that begins anew may;
//! once the payment is confirmed again, what has left settles it again.
//!
//! **Late** is a transfer in a block whose timestamp is after `expires_at`. It is kept and emits `late`. It pays nothing, unless
//! the terms say [`accept_late`](Terms): then it counts like any other, and an expired payment that reaches its amount is
//! detected, and goes on from there.
//!
//! **Expired** is a payment that is not paid when a block of its chain has a timestamp after `expires_at`. A transfer in time that
//! only a replay of the chain's past brings to light still pays it.
//!
//! **Cancelled** is for good. Transfers that arrive afterwards are kept and emit `late`.
//!
//! **Another asset**, or the asset on another chain, is kept and emits `unexpected_transfer` with its token and chain, whatever
//! the payment's status. A token that chains.yaml does not list is the exception: anyone can deploy one under the name of a real
//! one. Its transfers are kept beside the payment, shown as unlisted, and emit nothing; they are no part of a [`Payment`], so that
//! a flood of them costs nothing but rows. The payment's own token counts as listed, even if chains.yaml has dropped it since.
//!
//! **A reorg** takes back what its removed blocks had brought, and emits `reverted` once per such block. The same money in another
//! block, or in another amount, is another transfer. A chain that begins anew takes back all above the block up to which it stands,
//! and emits `reverted` once. So does a branch that begins below the first block of what it replaces, and what it brings again is
//! told again.
//!
//! **A deposit** at a static address is a payment that its transfer creates: its amount is the transfer's, it never expires and
//! can't be cancelled. Its life is the same, under the names `deposit.detected`, `.confirmed`, `.settled` and `.reverted`.
//! When a reorg removes its transfer, the deposit is pending with nothing received, unless the same block comes back with it. Of one
//! block, one sender and one asset, the transfers beyond the first hundred are one deposit; of a block in parts, those of each part.

#[cfg(doc)]
use crate::payment::Terms;
use crate::payment::{MAX_TRANSFERS_OF_BLOCK, Part, Payment};
use crate::policy::Policy;
use crate::status::{Exception, Status};
use crate::swept::Settlement;
use crate::total::Total;
use crate::transfer::ReceivedTransfer;
use std::sync::Arc;
use topics::{BlockRef, ChainId, TransferId};

/// Transfers of one asset in one block that are inputs of their own, each with its events.
pub const MAX_TOLD_SINGLY: usize = 10;

/// What can happen to a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A transfer to its address, in a block that is now the head of its chain, or in a replayed one. Its `credited` and
    /// `confirmed` are ignored.
    Transfer(ReceivedTransfer),
    /// Transfers of one asset in one such block, taken as one.
    Transfers(Vec<Arc<ReceivedTransfer>>),
    /// A block is now the head of a chain.
    Head(Head),
    /// A reorg took the head off a chain. The head is the block at `below` now: the chain may skip the numbers between.
    Removed { cause: Cause, below: u64 },
    /// A chain begins anew: nothing above this block is known to be on it.
    Rewound(Cause),
    /// Final transactions have moved so much of what was credited to it out of its address, the last of them with this one.
    Swept { covered: Total, settlement: Settlement },
    /// A block was added to a chain. It expires a pending payment if its timestamp is after `expires_at`.
    Expired(Cause),
    /// The merchant cancels it.
    Cancel {
        /// Unix seconds.
        at: u64,
    },
}

/// A chain's head, the blocks that its tags point at, and how far it is witnessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub cause: Cause,
    /// Number of the `safe` block.
    pub safe: Option<u64>,
    /// Number of the `finalized` block.
    pub finalized: Option<u64>,
    /// Number of the highest block that enough endpoints have given.
    pub witnessed: Option<u64>,
}

impl Head {
    /// The block number that counts under a policy.
    pub fn reached(&self, policy: Policy) -> Option<u64> {
        policy.reached(self.cause.block.number, self.safe, self.finalized, self.witnessed)
    }
}

/// The block that causes an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    pub chain: ChainId,
    pub block: BlockRef,
    /// The block's, Unix seconds.
    pub timestamp: u64,
}

/// The kinds of events. Their public names are in [`EventKind::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The payment was created, its address given out.
    Created,
    /// The amount was reached in time, or late under `accept_late`.
    Detected,
    /// The amount was reached by transfers that are deep enough.
    Confirmed,
    /// What was confirmed has left its address in final transactions.
    Settled,
    /// `expires_at` passed in chain time before the payment was paid.
    Expired,
    /// The merchant cancelled it.
    Cancelled,
    /// A transfer arrived in time; the sum is still short.
    Underpaid,
    /// More arrived than was asked for, or a transfer on top of what was enough.
    Overpaid,
    /// A transfer arrived after `expires_at`, or for a cancelled payment.
    Late,
    /// A reorg took back what an earlier event said.
    Reverted,
    /// A transfer of another asset, or on another chain, arrived.
    UnexpectedTransfer,
}

impl EventKind {
    /// The public name of an event of a payment that is no deposit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "payment.created",
            Self::Detected => "payment.detected",
            Self::Confirmed => "payment.confirmed",
            Self::Settled => "payment.settled",
            Self::Expired => "payment.expired",
            Self::Cancelled => "payment.cancelled",
            Self::Underpaid => "payment.underpaid",
            Self::Overpaid => "payment.overpaid",
            Self::Late => "payment.late",
            Self::Reverted => "payment.reverted",
            Self::UnexpectedTransfer => "payment.unexpected_transfer",
        }
    }

    /// The public name of an event of `payment`, which may be a deposit.
    pub const fn name(self, payment: &Payment) -> &'static str {
        match self {
            Self::Detected if payment.deposit_address.is_some() => "deposit.detected",
            Self::Confirmed if payment.deposit_address.is_some() => "deposit.confirmed",
            Self::Settled if payment.deposit_address.is_some() => "deposit.settled",
            Self::Reverted if payment.deposit_address.is_some() => "deposit.reverted",
            Self::Created
            | Self::Detected
            | Self::Confirmed
            | Self::Settled
            | Self::Expired
            | Self::Cancelled
            | Self::Underpaid
            | Self::Overpaid
            | Self::Late
            | Self::Reverted
            | Self::UnexpectedTransfer => self.as_str(),
        }
    }
}

/// What happened to a payment. Published once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// Counts the payment's events from 1, without gaps.
    pub sequence: u64,
    /// Unix seconds: the block's timestamp, or the clock of the API where a request is the cause.
    pub at: u64,
    /// The causing block; `None` if a request is the cause.
    pub block: Option<(ChainId, BlockRef)>,
    /// The transfer that it is about, if it is about one.
    pub transfer: Option<Arc<ReceivedTransfer>>,
    /// The transfers that it is about, if they are many.
    pub summary: Option<Summary>,
}

/// Transfers of one block that one event tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub count: u64,
    /// Of one asset; in a [`Reverted`](EventKind::Reverted), of those that were credited.
    pub sum: Total,
    /// `None` in a [`Reverted`](EventKind::Reverted) of more than [`MAX_TRANSFERS_OF_BLOCK`].
    pub first: Option<Arc<ReceivedTransfer>>,
    pub last: Option<Arc<ReceivedTransfer>>,
}

/// The transfers that an event is about.
#[derive(Default)]
struct About {
    transfer: Option<Arc<ReceivedTransfer>>,
    summary: Option<Summary>,
}

impl About {
    /// One transfer, or the summary of many. `first` and `last` are the ends of those that are at hand.
    fn new(count: u64, sum: Total, first: Option<Arc<ReceivedTransfer>>, last: Option<Arc<ReceivedTransfer>>) -> Self {
        match count {
            0 | 1 => Self { transfer: first, summary: None },
            _ => Self { transfer: None, summary: Some(Summary { count, sum, first, last }) },
        }
    }
}

/// What an input makes of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The payment after the input.
    pub next: Payment,
    /// In order; each is to be published with `next`.
    pub events: Vec<Event>,
}

/// An input that contradicts the payment. Nothing changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Only a pending payment can be cancelled.
    #[error("a payment that is {0} can't be cancelled, only one that is pending")]
    NotPending(Status),
    /// A deposit exists because its transfer does, so there is nothing to cancel.
    #[error("a deposit can't be cancelled")]
    CancelledDeposit,
    /// The transfer is known already: its record was applied before, so the committed offset is wrong.
    #[error("transfer {0:?} was credited already")]
    DuplicateTransfer(TransferId),
}

/// Applies one input to a payment.
///
/// # Errors
/// When the input contradicts the payment.
pub fn step(payment: &Payment, input: &Input) -> Result<Step, StepError> {
    let mut step = Step { next: payment.clone(), events: Vec::new() };
    match input {
        Input::Transfer(transfer) => step.transfers(payment, &[Arc::new(transfer.clone())])?,
        Input::Transfers(transfers) => step.transfers(payment, transfers)?,
        Input::Head(head) => step.head(payment, head),
        Input::Removed { cause, below } => {
            let lowest = below.saturating_add(1).min(cause.block.number);
            step.take_back(payment, cause, lowest, |block| block.hash == cause.block.hash);
        }
        Input::Rewound(cause) => {
            let above = cause.block.number.saturating_add(1);
            step.take_back(payment, cause, above, |block| block.number >= above);
        }
        Input::Swept { covered, settlement } => step.swept(payment, *covered, settlement),
        Input::Expired(cause) => {
            let expired = cause.chain == payment.chain && cause.timestamp > payment.expires_at;
            if expired && payment.status() == Status::Pending {
                step.next.expired_by = Some(cause.block.number);
                step.emit(EventKind::Expired, cause.timestamp, Some((cause.chain, cause.block)), About::default());
            }
        }
        Input::Cancel { at } => {
            if payment.deposit_address.is_some() {
                return Err(StepError::CancelledDeposit);
            }
            let status = payment.status();
            if status != Status::Pending {
                return Err(StepError::NotPending(status));
            }
            step.next.cancelled = true;
            step.emit(EventKind::Cancelled, *at, None, About::default());
        }
    }
    Ok(step)
}

impl Step {
    fn transfers(&mut self, before: &Payment, transfers: &[Arc<ReceivedTransfer>]) -> Result<(), StepError> {
        let Some(one) = transfers.first() else {
            return Ok(());
        };
        let known = || before.transfers.iter().filter(|known| known.block.hash == one.block.hash);
        if let Some(again) = transfers.iter().find(|transfer| known().any(|known| known.id == transfer.id)) {
            return Err(StepError::DuplicateTransfer(again.id));
        }
        let credited = before.asks_for(one.id.chain, one.token);
        if one.below_minimum || (!credited && !one.listed) {
            return Ok(());
        }
        let late = one.timestamp > before.expires_at;
        let sum = transfers.iter().fold(Total::ZERO, |sum, transfer| sum.plus(transfer.amount));
        let count = u64::try_from(transfers.len()).unwrap_or(u64::MAX);
        let taken = |transfer: &Arc<ReceivedTransfer>| {
            Arc::new(ReceivedTransfer { credited, confirmed: false, ..ReceivedTransfer::clone(transfer) })
        };
        self.receive(one, count, if credited { sum } else { Total::ZERO }, late);
        for transfer in transfers.split_at(transfers.len().saturating_sub(MAX_TRANSFERS_OF_BLOCK)).1 {
            self.keep(taken(transfer));
        }

        let paid = match self.next.status() {
            Status::Detected | Status::Confirmed | Status::Settled => true,
            Status::Pending | Status::Expired | Status::Cancelled => false,
        };
        let exceeds = self.next.exception() == Some(Exception::Overpaid);
        let kinds: &[EventKind] = match (credited, before.status()) {
            (false, _) => &[EventKind::UnexpectedTransfer],
            (true, Status::Detected | Status::Confirmed | Status::Settled) => &[EventKind::Overpaid],
            (true, Status::Cancelled) => &[EventKind::Late],
            (true, Status::Pending | Status::Expired) => match (late, paid, exceeds) {
                (true, false, _) => &[EventKind::Late],
                (true, true, false) => &[EventKind::Late, EventKind::Detected],
                (true, true, true) => &[EventKind::Late, EventKind::Detected, EventKind::Overpaid],
                (false, false, _) => &[EventKind::Underpaid],
                (false, true, false) => &[EventKind::Detected],
                (false, true, true) => &[EventKind::Detected, EventKind::Overpaid],
            },
        };
        for kind in kinds {
            let about = About::new(count, sum, Some(taken(one)), transfers.last().map(taken));
            self.emit(*kind, one.timestamp, Some((one.id.chain, one.block)), about);
        }
        Ok(())
    }

    /// Adds transfers to the sums, and to the part of their block. `one` is any of them.
    fn receive(&mut self, one: &ReceivedTransfer, count: u64, credited: Total, late: bool) {
        let sums = &mut self.next.sums;
        sums.received = sums.received.plus(credited);
        if !late {
            sums.in_time = sums.in_time.plus(credited);
        }
        let (chain, block) = (one.id.chain, one.block);
        match self.next.parts.iter_mut().find(|part| part.chain == chain && part.block.hash == block.hash) {
            Some(part) => {
                part.transfers = part.transfers.saturating_add(count);
                part.credited = part.credited.plus(credited);
            }
            None => self.next.parts.push(Part {
                chain,
                block,
                timestamp: one.timestamp,
                transfers: count,
                credited,
                confirmed: Total::ZERO,
            }),
        }
    }

    /// Puts a transfer among those that records show, and drops its block's first if there are too many.
    fn keep(&mut self, transfer: Arc<ReceivedTransfer>) {
        let kept = &mut self.next.transfers;
        let (place, hash) = (transfer.place(), transfer.block.hash);
        let index = kept.iter().rposition(|other| other.place() <= place).map_or(0, |before| before + 1);
        kept.insert(index, transfer);
        if kept.iter().filter(|other| other.block.hash == hash).count() > MAX_TRANSFERS_OF_BLOCK
            && let Some(first) = kept.iter().position(|other| other.block.hash == hash)
        {
            kept.remove(first);
        }
    }

    fn head(&mut self, before: &Payment, head: &Head) {
        if head.cause.chain != before.chain {
            return;
        }
        let reached = head.reached(before.policy);
        let deep_enough = |number| reached.is_some_and(|reached| reached >= before.policy.due(number));
        let Payment { parts, sums, transfers, .. } = &mut self.next;
        for part in parts.iter_mut().filter(|p| p.confirmed != p.credited && deep_enough(p.block.number)) {
            let more = part.credited.minus(part.confirmed);
            part.confirmed = part.credited;
            sums.confirmed = sums.confirmed.plus(more);
            if part.timestamp <= before.expires_at {
                sums.confirmed_in_time = sums.confirmed_in_time.plus(more);
            }
            mark_confirmed(transfers, part, true);
        }
        if before.status() != Status::Confirmed && self.next.status() == Status::Confirmed {
            self.emit(EventKind::Confirmed, head.cause.timestamp, Some((before.chain, head.cause.block)), About::default());
        }
    }

    fn swept(&mut self, before: &Payment, covered: Total, settlement: &Settlement) {
        if before.status() == Status::Confirmed && covered >= before.needed().into() {
            self.next.settlement = Some(*settlement);
            self.emit(EventKind::Settled, settlement.timestamp, Some((before.chain, settlement.block)), About::default());
        }
    }

    /// Takes back what the blocks that are `lost` had brought, confirmed or expired. `lowest` is the lowest number that the
    /// chain does not reach without them.
    fn take_back(&mut self, before: &Payment, cause: &Cause, lowest: u64, lost: impl Fn(BlockRef) -> bool) {
        let Cause { chain, block, timestamp } = *cause;
        let taken = |at: ChainId, block| at == chain && lost(block);
        let Payment { parts, sums, transfers, .. } = &mut self.next;
        let removed: Vec<Arc<ReceivedTransfer>> = transfers.extract_if(.., |t| taken(t.id.chain, t.block)).collect();
        let gone: Vec<Part> = parts.extract_if(.., |part| taken(part.chain, part.block)).collect();
        for part in &gone {
            sums.received = sums.received.minus(part.credited);
            sums.confirmed = sums.confirmed.minus(part.confirmed);
            if part.timestamp <= before.expires_at {
                sums.in_time = sums.in_time.minus(part.credited);
                sums.confirmed_in_time = sums.confirmed_in_time.minus(part.confirmed);
            }
        }
        if chain == before.chain {
            // The head is lower now, and so is the highest witnessed block if it was above. A tag does not go down with it:
            // what it had covered stays covered.
            if let Policy::Confirmations(_) = before.policy {
                let policy = before.policy;
                let too_shallow = |p: &Part| !p.confirmed.is_zero() && policy.due(p.block.number) >= lowest;
                for part in parts.iter_mut().filter(|p| too_shallow(p)) {
                    sums.confirmed = sums.confirmed.minus(part.confirmed);
                    if part.timestamp <= before.expires_at {
                        sums.confirmed_in_time = sums.confirmed_in_time.minus(part.confirmed);
                    }
                    part.confirmed = Total::ZERO;
                    mark_confirmed(transfers, part, false);
                }
            }
            if self.next.expired_by.is_some_and(|number| number >= lowest) {
                self.next.expired_by = None;
            }
        }
        // It has to be confirmed again first.
        self.next.settlement = self.next.settlement.filter(|_| self.next.status() == Status::Settled);
        let announced = |p: &Payment| (p.status(), p.exception(), p.sums.received);
        if announced(before) != announced(&self.next) || !gone.is_empty() {
            let count = gone.iter().fold(0_u64, |count, part| count.saturating_add(part.transfers));
            let sum = gone.iter().fold(Total::ZERO, |sum, part| sum.plus(part.credited));
            // Of more than are kept, the first is not at hand.
            let whole = u64::try_from(removed.len()).is_ok_and(|kept| kept == count);
            let about = About::new(count, sum, removed.first().filter(|_| whole).cloned(), removed.last().cloned());
            self.emit(EventKind::Reverted, timestamp, Some((chain, block)), about);
        }
    }

    fn emit(&mut self, kind: EventKind, at: u64, block: Option<(ChainId, BlockRef)>, about: About) {
        self.next.sequence += 1;
        self.next.updated_at = at;
        let About { transfer, summary } = about;
        self.events.push(Event { kind, sequence: self.next.sequence, at, block, transfer, summary });
    }
}

/// Marks the credited transfers of a part's block.
fn mark_confirmed(transfers: &mut [Arc<ReceivedTransfer>], part: &Part, confirmed: bool) {
    let of_part = |t: &&mut Arc<ReceivedTransfer>| t.credited && t.id.chain == part.chain && t.block.hash == part.block.hash;
    for transfer in transfers.iter_mut().filter(of_part) {
        Arc::make_mut(transfer).confirmed = confirmed;
    }
}
