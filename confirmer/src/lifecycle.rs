//! A payment's life: [`step`], from a payment and an input to the payment after it and its events. No clock, no IO.
//!
//! An input changes facts; the status follows from the facts ([`Payment::status`]); events come from the difference. So a
//! payment ends where the surviving chain says it ends, whatever the way was: a removed block takes back what it had
//! brought, an expiry included.
//!
//! Within a block the order is: expiry, transfers, the new head. A transfer in the block whose timestamp expires a payment
//! is late by definition, since that is its own block's timestamp.

use crate::payment::{Paid, Payment, Status};
use topics::{BlockRef, ChainId, TransferId};

/// What can happen to a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A transfer to its address, in a block that is now the head of its chain.
    /// `credited` and `confirmed` are not looked at.
    Transfer(Paid),
    /// A block is the head of a chain now.
    Head(Head),
    /// The head of a chain is no longer on it.
    Removed(Cause),
    /// A block of the payment's chain has a timestamp after `expires_at`.
    Expired(Cause),
    /// The merchant calls it off.
    Cancel {
        /// Unix seconds.
        at: u64,
    },
}

/// A chain's head and tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The head itself.
    pub cause: Cause,
    /// Number of the `safe` block.
    pub safe: Option<u64>,
    /// Number of the `finalized` block.
    pub finalized: Option<u64>,
}

/// The block that an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Chain.
    pub chain: ChainId,
    /// Block.
    pub block: BlockRef,
    /// Its timestamp, Unix seconds.
    pub timestamp: u64,
}

/// The kinds of events; the public names are in [`EventKind::as_str`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// The payment exists.
    Created,
    /// Paid in full, in time.
    Detected,
    /// Paid for good.
    Confirmed,
    /// Swept.
    Settled,
    /// Not paid in time.
    Expired,
    /// Called off.
    Cancelled,
    /// A part arrived; the sum is still short.
    Underpaid,
    /// More arrived than was asked for.
    Overpaid,
    /// Money arrived for an expired or cancelled payment.
    Late,
    /// A reorganisation took back what an earlier event said.
    Reverted,
    /// Another asset, or the asset on another chain, arrived.
    UnexpectedTransfer,
}

impl EventKind {
    /// The public name.
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
}

/// An event, to be told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Place among the payment's events, from 1.
    pub sequence: u64,
    /// When, in chain time where a block is the cause.
    pub at: u64,
    /// The block that caused it.
    pub block: Option<(ChainId, BlockRef)>,
    /// The transfer it is about.
    pub transfer: Option<Paid>,
}

/// What an input makes of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The payment after it.
    pub next: Payment,
    /// In order.
    pub events: Vec<Event>,
    /// Transfers that are no longer on the chain.
    pub removed: Vec<Paid>,
}

/// An input that makes no sense for the payment as it is; nothing happens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// Only a pending payment can be called off.
    #[error("a payment that is {0} can't be cancelled, only one that is pending")]
    NotPending(Status),
    /// The same transfer twice: the record was read before, and its offset is not what we think.
    #[error("transfer {0:?} is there already")]
    Twice(TransferId),
    /// More than 256 bits.
    #[error("the transfers of the payment add up to more than 256 bits")]
    Overflow,
}

/// One input.
///
/// # Errors
/// When the input contradicts the payment.
pub fn step(payment: &Payment, input: &Input) -> Result<Step, Illegal> {
    let mut step = Step { next: payment.clone(), events: Vec::new(), removed: Vec::new() };
    match input {
        Input::Transfer(transfer) => step.transfer(payment, transfer)?,
        Input::Head(head) => step.head(payment, head),
        Input::Removed(cause) => step.remove(payment, cause),
        Input::Expired(cause) => {
            if payment.status() == Status::Pending {
                step.next.expired_by = Some(cause.block.number);
                step.tell(EventKind::Expired, cause.timestamp, Some((cause.chain, cause.block)), None);
            }
        }
        Input::Cancel { at } => {
            let status = payment.status();
            if status != Status::Pending {
                return Err(Illegal::NotPending(status));
            }
            step.next.cancelled = true;
            step.tell(EventKind::Cancelled, *at, None, None);
        }
    }
    Ok(step)
}

impl Step {
    fn transfer(&mut self, before: &Payment, transfer: &Paid) -> Result<(), Illegal> {
        if before.transfers.iter().any(|known| known.id == transfer.id) {
            return Err(Illegal::Twice(transfer.id));
        }
        let asset = before.asset.token.as_ref().map(|token| token.address);
        let credited = transfer.id.chain == before.chain && transfer.token == asset;
        let transfer = Paid { credited, confirmed: false, ..transfer.clone() };
        self.next.transfers.push(transfer.clone());
        self.next.received().ok_or(Illegal::Overflow)?;

        let kind = match (credited, before.status(), self.next.status()) {
            (false, _, _) if transfer.listed => Some(EventKind::UnexpectedTransfer),
            (false, _, _) => None,
            (true, Status::Pending, Status::Pending) => Some(EventKind::Underpaid),
            (true, _, Status::Pending) => None,
            (true, Status::Pending, Status::Detected | Status::Confirmed) => Some(EventKind::Detected),
            (true, _, Status::Detected | Status::Confirmed | Status::Settled) => Some(EventKind::Overpaid),
            (true, _, Status::Expired | Status::Cancelled) => Some(EventKind::Late),
        };
        let cause = Some((transfer.id.chain, transfer.block));
        if let Some(kind) = kind {
            self.tell(kind, transfer.timestamp, cause, Some(transfer.clone()));
        }
        // One transfer can both reach the amount and exceed it.
        if kind == Some(EventKind::Detected) && self.next.exception().is_some() {
            self.tell(EventKind::Overpaid, transfer.timestamp, cause, Some(transfer));
        }
        Ok(())
    }

    fn head(&mut self, before: &Payment, head: &Head) {
        if head.cause.chain != before.chain {
            return;
        }
        let reached = match before.policy {
            crate::Policy::Confirmations(_) => Some(head.cause.block.number),
            crate::Policy::Safe => head.safe,
            crate::Policy::Finalized => head.finalized,
        };
        for transfer in self.next.transfers.iter_mut().filter(|t| t.credited && !t.confirmed) {
            transfer.confirmed = reached.is_some_and(|reached| reached >= before.policy.due(transfer.block.number));
        }
        if before.status() != Status::Confirmed && self.next.status() == Status::Confirmed {
            self.tell(EventKind::Confirmed, head.cause.timestamp, Some((before.chain, head.cause.block)), None);
        }
    }

    fn remove(&mut self, before: &Payment, cause: &Cause) {
        let Cause { chain, block, timestamp } = *cause;
        let (removed, kept) =
            self.next.transfers.drain(..).partition(|t: &Paid| t.id.chain == chain && t.block.hash == block.hash);
        self.removed = removed;
        self.next.transfers = kept;
        if chain == before.chain {
            // The head is one lower now. A tag does not follow it down: what it had covered stays covered.
            if let crate::Policy::Confirmations(_) = before.policy {
                let policy = before.policy;
                for transfer in self.next.transfers.iter_mut().filter(|t| t.confirmed) {
                    transfer.confirmed = policy.due(transfer.block.number) < block.number;
                }
            }
            if self.next.expired_by == Some(block.number) {
                self.next.expired_by = None;
            }
        }
        let said = |p: &Payment| (p.status(), p.exception(), p.received());
        let about = self.removed.iter().find(|t| t.credited || t.listed).cloned();
        if said(before) != said(&self.next) || about.is_some() {
            self.tell(EventKind::Reverted, timestamp, Some((chain, block)), about);
        }
    }

    fn tell(&mut self, kind: EventKind, at: u64, block: Option<(ChainId, BlockRef)>, transfer: Option<Paid>) {
        self.next.sequence += 1;
        self.next.updated_at = at;
        self.events.push(Event { kind, sequence: self.next.sequence, at, block, transfer });
    }
}
