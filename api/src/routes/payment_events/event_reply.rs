//! An event of a payment as JSON, in the list and in the stream.

use crate::openapi::schemas;
use crate::routes::transfer_reply::{EventTransferReply, SummaryReply, decimal, non_empty};
use base::timestamp::rfc3339;
use runtime::Failure;
use serde::Serialize;
use topics::PaymentId;
use topics::wire::PaymentEvent;
use topics::wire::payment_event::Block;
use utoipa::ToSchema;

/// Something that happened to a payment, with the payment's state right after it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub struct EventReply {
    /// The same id as in `payment.events` and in webhooks.
    #[schema(value_type = schemas::EventId)]
    pub id: String,
    /// `payment.created`, `payment.detected` and so on; new types may be added.
    #[schema(example = "payment.detected")]
    pub r#type: String,
    /// Numbers the events of a payment from 1, without gaps.
    pub sequence: u64,
    #[schema(value_type = schemas::PaymentId)]
    payment_id: String,
    /// The timestamp of the causing block, or the time of the causing request.
    #[schema(value_type = schemas::Time)]
    occurred_at: String,
    cause: Cause,
    #[schema(value_type = schemas::Status)]
    status: String,
    #[schema(required = true, value_type = Option<schemas::Exception>)]
    exception: Option<String>,
    #[schema(value_type = schemas::Amount)]
    amount: String,
    #[schema(value_type = schemas::Amount)]
    amount_received: String,
}

/// Why it happened: a request, a block, or transfers in a block.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventCause)]
struct Cause {
    /// `request`, `block` or `transfer`.
    kind: CauseKind,
    /// The id of the API key of the request; null for other causes, and where it was not recorded.
    #[schema(required = true)]
    api_key: Option<String>,
    #[schema(required = true)]
    block: Option<BlockReply>,
    #[schema(required = true)]
    transfer: Option<EventTransferReply>,
    /// In place of `transfer` where many of one block are told as one.
    #[schema(required = true)]
    summary: Option<SummaryReply>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum CauseKind {
    Request,
    Block,
    Transfer,
}

/// A block.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventBlock)]
struct BlockReply {
    chain_id: u64,
    number: u64,
    #[schema(value_type = schemas::Hash)]
    hash: String,
}

impl EventReply {
    /// From the record of the history; `api_key` is the id of the key whose request was the cause.
    ///
    /// # Errors
    /// When the record holds a value of the wrong length.
    pub fn new(event: PaymentEvent, api_key: Option<String>) -> Result<Self, Failure> {
        let kind = match (&event.block, &event.transfer, &event.summary) {
            (_, Some(_), _) | (_, _, Some(_)) => CauseKind::Transfer,
            (Some(_), None, None) => CauseKind::Block,
            (None, None, None) => CauseKind::Request,
        };
        let block = event.block.map(BlockReply::new).transpose()?;
        let transfer = event.transfer.map(EventTransferReply::new).transpose()?;
        let summary = event.summary.map(SummaryReply::new).transpose()?;
        Ok(Self {
            id: event.id,
            r#type: event.r#type,
            sequence: event.sequence,
            payment_id: event.payment_id,
            occurred_at: rfc3339(event.occurred_at),
            cause: Cause { kind, api_key, block, transfer, summary },
            status: event.status,
            exception: non_empty(event.exception),
            amount: decimal(&event.amount)?,
            amount_received: decimal(&event.amount_received)?,
        })
    }
}

impl BlockReply {
    fn new(block: Block) -> Result<Self, Failure> {
        let hash = topics::hash("hash", &block.hash).map_err(Failure::halt)?;
        Ok(Self { chain_id: block.chain_id, number: block.number, hash: hash.to_string() })
    }
}

/// The sequence number in an event's id; `None` if it is no id of an event of this payment.
pub fn sequence_in_id(payment: PaymentId, event_id: &str) -> Option<u64> {
    let (id, sequence) = event_id.strip_prefix("evt_")?.split_once('_')?;
    (id == payment.0.simple().to_string()).then(|| sequence.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_another_payment_is_no_place_in_this_one() {
        let id = PaymentId::generate();
        let own = format!("evt_{}_7", id.0.simple());
        assert_eq!(sequence_in_id(id, &own), Some(7));
        for other in ["", "7", "evt_", &format!("evt_{}_7", PaymentId::generate().0.simple()), &format!("{own}x"), &own[..36]] {
            assert_eq!(sequence_in_id(id, other), None, "{other}");
        }
    }
}
