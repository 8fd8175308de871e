//! An event of a payment as JSON, in the list and in the stream.

use crate::openapi::schemas;
use crate::routes::payment_reply::SettlementReply;
use crate::routes::transfer_reply::{EventTransferReply, SummaryReply, from_wire, non_empty};
use base::timestamp::rfc3339;
use payments::events::settlement_of;
use runtime::Failure;
use serde::Serialize;
use topics::wire::PaymentEvent;
use topics::wire::payment_event::Block;
use topics::{Amount, ChainId, PaymentId, payment_uri};
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
    /// In whole coins or tokens; null in events from before it was recorded, as `decimals`.
    #[schema(required = true)]
    amount_decimal: Option<String>,
    #[schema(value_type = schemas::Amount)]
    amount_received: String,
    #[schema(required = true)]
    amount_received_decimal: Option<String>,
    #[schema(required = true)]
    decimals: Option<u8>,
    /// EIP-681; null for a deposit, which is already paid.
    #[schema(required = true)]
    payment_uri: Option<String>,
    /// While the payment is settled; else null.
    #[schema(required = true)]
    settlement: Option<SettlementReply>,
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
        let (amount, received) = (from_wire(&event.amount)?, from_wire(&event.amount_received)?);
        let decimals = event.decimals.map(u8::try_from).transpose().map_err(Failure::halt)?;
        let whole = |amount: Amount| decimals.map(|decimals| amount.to_decimal(decimals));
        let payment_uri = if event.deposit_address_id.is_empty() { Some(uri(&event, amount)?) } else { None };
        let settlement = settlement_of(&event).as_ref().map(SettlementReply::new);
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
            amount: amount.to_string(),
            amount_decimal: whole(amount),
            amount_received: received.to_string(),
            amount_received_decimal: whole(received),
            decimals,
            payment_uri,
            settlement,
        })
    }
}

fn uri(event: &PaymentEvent, amount: Amount) -> Result<String, Failure> {
    let address = |name, bytes: &[u8]| topics::address(name, bytes).map_err(Failure::halt);
    let token = Some(&event.token_address).filter(|token| !token.is_empty());
    let token = token.map(|token| address("token_address", token)).transpose()?;
    Ok(payment_uri(ChainId(event.chain_id), token, address("address", &event.address)?, amount))
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
    fn an_event_has_its_amounts_in_whole_tokens_and_the_uri_of_its_payment() {
        let event = PaymentEvent {
            chain_id: 31337,
            address: vec![0x11; 20].into(),
            token_address: vec![0xab; 20].into(),
            amount: Amount::from(1_500_000).to_wire().into(),
            decimals: Some(6),
            ..PaymentEvent::default()
        };
        let shown = |event: PaymentEvent| serde_json::to_value(EventReply::new(event, None).unwrap()).unwrap();
        let reply = shown(event.clone());
        assert_eq!(
            (&reply["amount"], &reply["amount_decimal"], &reply["decimals"]),
            (&"1500000".into(), &"1.5".into(), &6.into())
        );
        assert_eq!(reply["amount_received_decimal"], "0");
        assert!(reply["payment_uri"].as_str().unwrap().ends_with("&uint256=1500000"), "{reply}");
        let old = shown(PaymentEvent { decimals: None, deposit_address_id: "x".into(), ..event });
        assert!(
            ["amount_decimal", "amount_received_decimal", "decimals", "payment_uri"].iter().all(|name| old[name].is_null())
        );
    }

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
