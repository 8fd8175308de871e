//! Events' ids, and the records of `payment.events` and `payment.state`.
//!
//! Both records come from the payment as it is right after the event. The proto files in `topics` document the fields.

use crate::lifecycle::{Event, EventKind, Summary};
use crate::payment::{MAX_TRANSFERS_OF_BLOCK, NEVER, Payment};
use crate::swept::Settlement;
use crate::transfer::ReceivedTransfer;
use std::sync::Arc;
use topics::{Amount, BlockRef, wire};

/// Builds a record's `Transfer`: both records have one of their own, generated from the same fields.
macro_rules! transfer_fields {
    ($record:path, $transfer:expr) => {{
        use $record as Record;
        let t: &ReceivedTransfer = $transfer;
        Record {
            chain_id: t.id.chain.0,
            block_number: t.block.number,
            block_hash: t.block.hash.to_vec().into(),
            transaction_hash: t.id.transaction.to_vec().into(),
            source: t.id.source.as_str().to_owned(),
            index: t.id.index,
            token_address: t.token.map(|a| a.to_vec()).unwrap_or_default().into(),
            from: t.from.to_vec().into(),
            amount: t.amount.to_wire().into(),
            timestamp: t.timestamp,
            credited: t.credited,
            confirmed: t.confirmed,
            chain: t.label.chain.clone().unwrap_or_default(),
            token: t.label.token.clone().unwrap_or_default(),
            decimals: t.label.decimals.map(u32::from).unwrap_or_default(),
        }
    }};
}

/// A record holds the last transfers of a payment, so that dust makes no record too large for Kafka.
fn last_transfers(payment: &Payment) -> &[Arc<ReceivedTransfer>] {
    payment.transfers.split_at(payment.transfers.len().saturating_sub(MAX_TRANSFERS_OF_BLOCK)).1
}

/// The payment with no more than its records need: a batch may hold thousands of its transfers, and as many of its events.
pub fn state_for_records(payment: &Payment) -> Payment {
    let mut state = payment.clone();
    state.parts = Vec::new();
    state.transfers = last_transfers(payment).to_vec();
    state
}

/// An event's public id.
pub fn event_id(payment: &Payment, event: &Event) -> String {
    payment.id.event_id(event.sequence)
}

/// `payment.created`, the first event of a new payment.
pub fn created_event(payment: &Payment) -> Event {
    Event {
        kind: EventKind::Created,
        sequence: payment.sequence,
        at: payment.created_at,
        block: None,
        transfer: None,
        summary: None,
    }
}

/// An event as a record of `payment.events`; `payment` is the state right after it.
pub fn event_record(payment: &Payment, event: &Event) -> wire::PaymentEvent {
    use wire::payment_event as e;
    let state = state_record(payment);
    wire::PaymentEvent {
        id: event_id(payment, event),
        r#type: event.kind.name(payment).to_owned(),
        sequence: event.sequence,
        payment_id: state.payment_id,
        merchant_id: state.merchant_id,
        external_id: state.external_id,
        metadata: state.metadata,
        chain_id: state.chain_id,
        chain: state.chain,
        token: state.token,
        token_address: state.token_address,
        address: state.address,
        amount: state.amount,
        amount_received: state.amount_received,
        status: state.status,
        exception: state.exception,
        confirmations_required: state.confirmations_required,
        created_at: state.created_at,
        expires_at: state.expires_at,
        transfers: last_transfers(payment).iter().map(|t| transfer_fields!(e::Transfer, t)).collect(),
        occurred_at: event.at,
        block: event.block.map(|(chain, block)| e::Block {
            chain_id: chain.0,
            number: block.number,
            hash: block.hash.to_vec().into(),
        }),
        transfer: event.transfer.as_ref().map(|t| transfer_fields!(e::Transfer, t)),
        deposit_address_id: state.deposit_address_id,
        asked_by: String::new(),
        summary: event.summary.as_ref().map(summary),
        amount_received_saturated: state.amount_received_saturated,
        decimals: state.decimals,
        address_index: state.address_index,
        finality: state.finality,
        settlement: payment.settlement.as_ref().map(settlement),
    }
}

/// The settlement that a record tells of a payment that is settled; none if it can't be read.
pub fn settlement_of(record: &wire::PaymentEvent) -> Option<Settlement> {
    let told = record.settlement.as_ref()?;
    Some(Settlement {
        transaction: topics::hash("transaction_hash", &told.transaction_hash).ok()?,
        block: BlockRef { number: told.block_number, hash: topics::hash("block_hash", &told.block_hash).ok()? },
        timestamp: record.occurred_at,
        fee: told.fee.as_ref().map(|fee| Amount::from_wire(fee)).transpose().ok()?,
    })
}

fn settlement(settlement: &Settlement) -> wire::payment_event::Settlement {
    wire::payment_event::Settlement {
        transaction_hash: settlement.transaction.to_vec().into(),
        block_number: settlement.block.number,
        block_hash: settlement.block.hash.to_vec().into(),
        fee: settlement.fee.map(|fee| fee.to_wire().into()),
    }
}

fn summary(summary: &Summary) -> wire::payment_event::Summary {
    use wire::payment_event as e;
    e::Summary {
        count: summary.count,
        amount: summary.sum.saturated().to_wire().into(),
        first: summary.first.as_ref().map(|t| transfer_fields!(e::Transfer, t)),
        last: summary.last.as_ref().map(|t| transfer_fields!(e::Transfer, t)),
    }
}

/// A payment as a record of `payment.state`.
pub fn state_record(payment: &Payment) -> wire::PaymentState {
    use wire::payment_state as s;
    let token = payment.asset.token.as_ref();
    wire::PaymentState {
        sequence: payment.sequence,
        payment_id: payment.id.to_string(),
        merchant_id: payment.merchant.to_string(),
        external_id: payment.external_id.clone().unwrap_or_default(),
        metadata: payment.metadata.as_deref().unwrap_or_default().to_owned(),
        chain_id: payment.chain.0,
        chain: payment.chain_name.clone(),
        token: token.map(|t| t.symbol.clone()).unwrap_or_default(),
        token_address: token.map(|t| t.address.to_vec()).unwrap_or_default().into(),
        address: payment.address.to_vec().into(),
        amount: payment.amount.to_wire().into(),
        amount_received: payment.received().to_wire().into(),
        status: payment.status().as_str().to_owned(),
        exception: payment.exception().map(|e| e.as_str().to_owned()).unwrap_or_default(),
        confirmations_required: payment.policy.confirmations(),
        created_at: payment.created_at,
        expires_at: if payment.expires_at == NEVER { 0 } else { payment.expires_at },
        transfers: last_transfers(payment).iter().map(|t| transfer_fields!(s::Transfer, t)).collect(),
        updated_at: payment.updated_at,
        deposit_address_id: payment.deposit_address.map(|id| id.to_string()).unwrap_or_default(),
        amount_received_saturated: payment.sums.received.is_saturated(),
        decimals: Some(payment.asset.decimals.into()),
        address_index: Some(payment.address_index),
        finality: payment.policy.finality().unwrap_or_default().to_owned(),
    }
}
