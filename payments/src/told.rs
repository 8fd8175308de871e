//! Events that Kafka has and a restored database lost.
//!
//! The confirmer applies `chain.matches` again from where the backup stood, and so makes those events again. One that it makes
//! again is known by what it says: its type, its block and its transfer; of many transfers that are told as one, the first, their
//! number and their sum. It keeps the number under which it was told, and is not told twice. An event that was never told gets a
//! number above all that were. A payment that comes back after its blocks have passed, whose transfers were orphans meanwhile, is
//! confirmed or expires at a later block than it was told: that says nothing new as long as its status is the one that was told last.
//!
//! A cancellation comes from no block. It is applied again in its place: when the events of the payment's own chain that were
//! told before it have been made. Some never are, as those of a transfer that does not count any more: so it is once the chain
//! is past all that can be made again, too. In the same way a confirmed payment is settled again, with the transaction that was told:
//! `sweep.events` may be read further by then, or lack it.

use crate::events::{event_record, settlement_of};
use crate::lifecycle::{Event, EventKind, Head, Input, Step, StepError, step};
use crate::payment::Payment;
use crate::status::Status;
use crate::swept::Settlement;
use std::collections::BTreeMap;
use topics::ChainId;
use topics::wire::PaymentEvent;

/// The events of one payment that were told and are not made again yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToldEvents {
    left: BTreeMap<u64, ToldEvent>,
    highest: u64,
    /// The payment's status after the one with the highest number.
    status: String,
    /// Numbers of those that were made again, or given up.
    made: Vec<u64>,
    contradicted: bool,
    /// A block of the payment's chain that is later, in Unix seconds, comes after all that can be made again; none while that
    /// is not known.
    ends: Option<u64>,
    /// There was such a block.
    is_past: bool,
}

/// What an event says, but for its number and the payment's state.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ToldEvent {
    kind: String,
    at: u64,
    /// Chain id and hash.
    block: Option<(u64, Vec<u8>)>,
    transfer: Option<ToldTransfer>,
    /// Of one that tells it.
    settlement: Option<Settlement>,
}

/// The transfer that an event is about, or the first of those that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ToldTransfer {
    chain: u64,
    block: Vec<u8>,
    transaction: Vec<u8>,
    source: String,
    index: u32,
    token: Vec<u8>,
    from: Vec<u8>,
    /// How many it is about, and their sum.
    count: u64,
    amount: Vec<u8>,
}

impl ToldEvents {
    /// Adds an event of `payment.events`.
    pub fn insert(&mut self, record: &PaymentEvent) {
        self.insert_made(record);
        self.left.insert(record.sequence, ToldEvent::read(record));
    }

    /// Adds one that was made again while others were not. As the last one it says still what was told last.
    pub fn insert_made(&mut self, record: &PaymentEvent) {
        if record.sequence >= self.highest {
            self.highest = record.sequence;
            self.status.clone_from(&record.status);
        }
    }

    /// Says which block of the payment's chain comes after all that can be made again: one that is later than `ends`, in Unix
    /// seconds. The chain is at `head`.
    pub fn end_after(&mut self, ends: Option<u64>, head: Option<u64>) {
        self.ends = ends;
        head.into_iter().for_each(|head| self.reach(head));
    }

    /// Says that the payment's chain has come to a block of this time, in Unix seconds.
    fn reach(&mut self, time: u64) {
        self.is_past |= self.ends.is_some_and(|ends| time > ends);
    }

    /// [`step`] for the payment of these events: with the cancellation or settlement that was told before or after the input, and without
    /// the events that were told. One that was told as settled is settled in its place, with the transaction that was told, and whatever
    /// has left before that settles nothing.
    ///
    /// # Errors
    /// As for [`step`].
    pub fn step(&mut self, payment: &Payment, input: &Input) -> Result<Step, StepError> {
        let block = match input {
            Input::Expired(cause) | Input::Head(Head { cause, .. }) => Some(cause),
            Input::Transfer(_) | Input::Transfers(_) | Input::Removed { .. } | Input::Rewound(_) => None,
            Input::Swept { .. } | Input::Cancel { .. } => None,
        };
        if let Some(cause) = block.filter(|cause| cause.chain == payment.chain) {
            self.reach(cause.timestamp);
        }
        let before = self.apply_next(payment.clone());
        // It is cancelled already, and that was told.
        if matches!(input, Input::Cancel { .. }) && before.cancelled && !payment.cancelled {
            return Ok(Step { next: before, events: Vec::new() });
        }
        if matches!(input, Input::Swept { .. }) && self.is_settled_later() {
            return Ok(Step { next: before, events: Vec::new() });
        }
        let made = self.recognise(before.sequence, step(&before, input)?);
        Ok(Step { next: self.apply_next(made.next), events: made.events })
    }

    /// The payment, cancelled or settled if that is what was told next.
    #[must_use]
    pub fn apply_next(&mut self, payment: Payment) -> Payment {
        let Some((sequence, input)) = self.next_without_match(&payment) else { return payment };
        if self.is_past {
            // Those before it are never made again; of other chains nobody knows that.
            self.made.extend(self.left.extract_if(..sequence, |_, told| told.is_of(payment.chain)).map(|(n, _)| n));
        }
        match step(&payment, &input) {
            Ok(step) => self.recognise(payment.sequence, step).next,
            Err(_) => {
                self.contradicted = true;
                self.left.remove(&sequence);
                self.made.push(sequence);
                // Its number stays used: the event was told.
                Payment { sequence: payment.sequence.max(sequence), ..payment }
            }
        }
    }

    /// The number of the cancellation that comes next, or of the settlement if the payment is confirmed, and its input. What happens on
    /// other chains than the payment's own changes no status, so it is not waited for, and nothing is that is never made again.
    fn next_without_match(&self, payment: &Payment) -> Option<(u64, Input)> {
        let input = |told: &ToldEvent| match told.settlement {
            Some(settlement) if payment.status() == Status::Confirmed => {
                Some(Input::Swept { covered: payment.sums.confirmed, settlement })
            }
            _ => told.is_cancellation().then_some(Input::Cancel { at: told.at }),
        };
        let is_next = |told: &ToldEvent| if self.is_past { input(told).is_some() } else { told.is_of(payment.chain) };
        let (sequence, told) = self.left.iter().find(|(_, told)| is_next(told))?;
        Some((*sequence, input(told)?))
    }

    /// Whether a settlement was told that is not made again yet, since something that was told before it is not.
    pub fn is_settled_later(&self) -> bool {
        self.left.values().any(|told| told.settlement.is_some())
    }

    /// Whether an event is to be made again that no record of `chain.matches` brings.
    pub fn has_without_match(&self) -> bool {
        self.left.values().any(|told| told.is_cancellation() || told.settlement.is_some())
    }

    /// Whether a cancellation was told that the payment's state does not allow any more.
    pub const fn is_contradicted(&self) -> bool {
        self.contradicted
    }

    /// Takes the events that were told out of a step, and numbers the others after all that were. `before` is the number of the
    /// payment's last event before the step.
    fn recognise(&mut self, before: u64, step: Step) -> Step {
        let Step { mut next, events } = step;
        if events.is_empty() {
            return Step { next, events };
        }
        let mut sequence = before.max(self.highest);
        let mut untold = Vec::new();
        for event in events {
            let made = ToldEvent::read(&event_record(&next, &event));
            let mut told: Vec<u64> = self.left.iter().filter(|(_, told)| **told == made).map(|(n, _)| *n).take(1).collect();
            let is_news = sequence > self.highest || !self.leads_to(next.status());
            if told.is_empty() && !is_news && matches!(event.kind, EventKind::Confirmed | EventKind::Expired) {
                // With those before it, which the payment has got beyond.
                told.extend(self.left.iter().filter(|(_, told)| told.kind == made.kind).map(|(n, _)| *n));
            }
            if told.is_empty() {
                sequence += 1;
                untold.push(Event { sequence, ..event });
            }
            self.left.retain(|n, _| !told.contains(n));
            self.made.append(&mut told);
        }
        next.sequence = sequence;
        Step { next, events: untold }
    }

    /// Whether what was told last is this status, or one that comes after it by itself.
    fn leads_to(&self, status: Status) -> bool {
        self.status == status.as_str() || (self.status == Status::Settled.as_str() && status == Status::Confirmed)
    }

    /// The numbers of the events that were made again, or given up.
    pub fn made(&self) -> &[u64] {
        &self.made
    }
}

/// A removed block may have brought several transfers; which of them the event names depends on how the batches were cut.
fn is_reverted(kind: &str) -> bool {
    kind.ends_with(".reverted")
}

/// Whether two events of a payment are the same, whatever their numbers are.
pub(crate) fn says_the_same(one: &PaymentEvent, other: &PaymentEvent) -> bool {
    ToldEvent::read(one) == ToldEvent::read(other)
}

impl ToldEvent {
    /// Whether it is of this chain, or of none.
    fn is_of(&self, chain: ChainId) -> bool {
        self.block.as_ref().is_none_or(|(of, _)| *of == chain.0)
    }

    fn is_cancellation(&self) -> bool {
        self.kind == EventKind::Cancelled.as_str()
    }

    fn read(record: &PaymentEvent) -> Self {
        let many = record.summary.as_ref();
        let many = many.and_then(|many| many.first.as_ref().map(|first| (first, many.count, &many.amount)));
        let transfers = record.transfer.as_ref().map(|transfer| (transfer, 1, &transfer.amount)).or(many);
        Self {
            kind: record.r#type.clone(),
            at: record.occurred_at,
            block: record.block.as_ref().map(|block| (block.chain_id, block.hash.to_vec())),
            transfer: transfers.filter(|_| !is_reverted(&record.r#type)).map(|(transfer, count, amount)| ToldTransfer {
                chain: transfer.chain_id,
                block: transfer.block_hash.to_vec(),
                transaction: transfer.transaction_hash.to_vec(),
                source: transfer.source.clone(),
                index: transfer.index,
                token: transfer.token_address.to_vec(),
                from: transfer.from.to_vec(),
                count,
                amount: amount.to_vec(),
            }),
            settlement: Some(record).filter(|record| record.r#type.ends_with(".settled")).and_then(settlement_of),
        }
    }
}
