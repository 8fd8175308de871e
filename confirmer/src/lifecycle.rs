//! A payment's life: [`step`], from a payment and an input to the payment after it and its events. No clock, no IO.
//!
//! An input changes facts; the status follows from the facts ([`Payment::status`]); events come from the difference. So a
//! payment ends where the surviving chain says it ends, whatever the way was: a removed block takes back what it had
//! brought, an expiry included.
//!
//! # The rules
//!
//! **Order.** Within a block: expiry, transfers, the new head. A transfer in the block whose timestamp expires a payment is
//! late by definition, since that is its own block's timestamp.
//!
//! **What counts.** A transfer of the payment's asset on the payment's chain is credited, with what its event says arrived:
//! a token that keeps a fee of it pays less. Parts add up, however many are in a block or in a transaction. A transfer is
//! known by its block's hash, its transaction and its place there ([`TransferId`]), and counts once. Transfers of nothing,
//! and from an address to itself, never come here: the detector leaves them out, as no money moves.
//!
//! **Paid** is a payment whose parts in time reach the amount less [`underpaid_tolerance`](Terms): `detected`. One part that
//! does not get there is announced as `underpaid`. What exceeds the amount by more than [`overpaid_tolerance`](Terms) makes
//! the exception `overpaid`. Whatever arrives once a payment is detected, confirmed or settled is announced as `overpaid`,
//! tolerated or not: it is somebody's money.
//!
//! **Confirmed** is a payment when parts that reach as much are all deep enough under its [`Policy`](crate::Policy): chosen
//! when it was made, by whoever made it, or by its amount, or by its chain. A number of blocks is counted on the canonical
//! chain and goes down with the head. What a tag (`safe`, `finalized`) has covered stays covered as long as its own block is
//! on the chain.
//!
//! **Late** is what a block brings whose timestamp is after `expires_at`. It is kept and announced as `late`. It pays
//! nothing, unless [`accept_late`](Terms): then it counts like any other part, and an expired payment that reaches its amount
//! is detected, and goes on.
//!
//! **Cancelled** is for good. What arrives afterwards is kept and announced as `late`.
//!
//! **Another asset**, or the asset on another chain: kept and announced as `unexpected_transfer`, with what it was and where,
//! whatever the payment's status. Except a token that chains.yaml does not list: anyone can make one and name it like a real
//! one. Its transfers are kept beside the payment, shown as unlisted, and announced to nobody; they are no part of a
//! [`Payment`], so that a flood of them costs nothing but rows. The payment's own token is listed, whatever chains.yaml
//! says by now.
//!
//! **A reorganisation** takes back what its blocks had brought, and says so once a block with `reverted`. The same money in
//! another block, or changed, is another transfer.
//!
//! **Expired** is a payment that is not paid when a block of its chain has a timestamp after `expires_at`. A part paid in
//! time that only a replay of the chain's past brings to light pays it all the same.
//!
//! **A deposit** at a static address is a payment that its transfer makes: its amount is the transfer's, it never expires and
//! can't be cancelled. Its life is the same, under the names `deposit.detected`, `deposit.confirmed` and `deposit.reverted`.
//! When a reorganisation takes its transfer away it is pending, with nothing received, unless the same block comes back.

#[cfg(doc)]
use crate::payment::Terms;
use crate::payment::{Exception, Paid, Payment, Status};
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
    /// A block is put on a chain: if its timestamp is after `expires_at`, the payment's time is over.
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
    /// A part arrived in time; the sum is still short.
    Underpaid,
    /// More arrived than was asked for, or something on top of what was enough.
    Overpaid,
    /// Money arrived after the payment's time, or for a cancelled one.
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
    /// A deposit is there because its transfer is.
    #[error("a deposit can't be cancelled")]
    Deposit,
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
            let over = cause.chain == payment.chain && cause.timestamp > payment.expires_at;
            if over && payment.status() == Status::Pending {
                step.next.expired_by = Some(cause.block.number);
                step.tell(EventKind::Expired, cause.timestamp, Some((cause.chain, cause.block)), None);
            }
        }
        Input::Cancel { at } => {
            if payment.deposit_address.is_some() {
                return Err(Illegal::Deposit);
            }
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
        let credited = before.asks_for(transfer.id.chain, transfer.token);
        if !credited && !transfer.listed {
            return Ok(());
        }
        let transfer = Paid { credited, confirmed: false, ..transfer.clone() };
        self.next.transfers.push(transfer.clone());
        self.next.received().ok_or(Illegal::Overflow)?;

        let late = transfer.timestamp > before.expires_at;
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
            self.tell(*kind, transfer.timestamp, Some((transfer.id.chain, transfer.block)), Some(transfer.clone()));
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
        let about = self.removed.first().cloned();
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
