//! The JSON body of a message: `type`, `timestamp` and `data`, as Standard Webhooks says; `data` has the API's names and
//! formats. Pure, so that a replayed event has the same body, byte for byte.

use base::timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use topics::wire::PaymentEvent;
use topics::wire::payment_event::{Block, Settlement, Summary, Transfer};
use topics::{Amount, AmountError, ChainId, MalformedField, derivation_path, payment_uri};

/// An event that does not hold what its schema says.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("invalid address or hash")]
    Field(#[from] MalformedField),
    #[error("invalid amount")]
    Amount(#[from] AmountError),
    /// A time out of range, or metadata that is not JSON.
    #[error("{0}")]
    Text(String),
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    r#type: &'a str,
    timestamp: String,
    data: T,
}

/// The payment right after the event, and the block, transfer or transfers that the event is about.
#[derive(Serialize)]
struct Data<'a> {
    event_id: &'a str,
    sequence: u64,
    payment_id: &'a str,
    deposit_address_id: Option<&'a str>,
    external_id: Option<&'a str>,
    metadata: Option<&'a RawValue>,
    chain: &'a str,
    chain_id: u64,
    token: Option<&'a str>,
    token_contract_address: Option<String>,
    address: String,
    address_index: Option<u32>,
    derivation_path: Option<String>,
    amount: String,
    amount_decimal: Option<String>,
    amount_received: String,
    amount_received_decimal: Option<String>,
    decimals: Option<u8>,
    payment_uri: Option<String>,
    status: &'a str,
    exception: Option<&'a str>,
    confirmations_required: u32,
    finality: Option<&'a str>,
    created_at: String,
    expires_at: Option<String>,
    settlement: Option<SettlementData>,
    block: Option<BlockData>,
    transfer: Option<TransferData<'a>>,
    summary: Option<SummaryData<'a>>,
    transfers: Vec<TransferData<'a>>,
}

/// Many transfers of one block that are told as one.
#[derive(Serialize)]
struct SummaryData<'a> {
    count: u64,
    amount: String,
    first: Option<TransferData<'a>>,
    last: Option<TransferData<'a>>,
}

/// The transaction with which the last of the payment's confirmed money had left.
#[derive(Serialize)]
struct SettlementData {
    transaction_hash: String,
    block_hash: String,
    block_number: u64,
    fee: Option<String>,
}

#[derive(Serialize)]
struct BlockData {
    chain_id: u64,
    number: u64,
    hash: String,
}

#[derive(Serialize)]
struct TransferData<'a> {
    chain_id: u64,
    chain: Option<&'a str>,
    block_number: u64,
    block_hash: String,
    transaction_hash: String,
    source: &'a str,
    index: u32,
    timestamp: String,
    token: Option<&'a str>,
    token_contract_address: Option<String>,
    from: String,
    amount: String,
    amount_decimal: Option<String>,
    decimals: Option<u8>,
    credited: bool,
    confirmed: bool,
}

/// The body of a payment event's message.
///
/// # Errors
/// When a field is invalid.
pub fn event_body(event: &PaymentEvent) -> Result<String, BodyError> {
    let metadata = non_empty(&event.metadata).map(serde_json::from_str::<&RawValue>).transpose();
    let address = topics::address("address", &event.address)?;
    let token = topics::contract("token_address", &event.token_address)?;
    let (amount, received) = (Amount::from_wire(&event.amount)?, Amount::from_wire(&event.amount_received)?);
    let decimals = event.decimals.map(u8::try_from).transpose();
    let decimals = decimals.map_err(|error| BodyError::Text(format!("decimals: {error}")))?;
    let whole = |amount: Amount| decimals.map(|decimals| amount.to_decimal(decimals));
    // A deposit is paid already.
    let is_payment = event.deposit_address_id.is_empty();
    let data = Data {
        event_id: &event.id,
        sequence: event.sequence,
        payment_id: &event.payment_id,
        deposit_address_id: non_empty(&event.deposit_address_id),
        external_id: non_empty(&event.external_id),
        metadata: metadata.map_err(|error| BodyError::Text(format!("metadata: {error}")))?,
        chain: &event.chain,
        chain_id: event.chain_id,
        token: non_empty(&event.token),
        token_contract_address: token.map(|token| token.to_string()),
        address: address.to_string(),
        address_index: event.address_index,
        derivation_path: event.address_index.map(derivation_path),
        amount: amount.to_string(),
        amount_decimal: whole(amount),
        amount_received: received.to_string(),
        amount_received_decimal: whole(received),
        decimals,
        payment_uri: is_payment.then(|| payment_uri(ChainId(event.chain_id), token, address, amount)),
        status: &event.status,
        exception: non_empty(&event.exception),
        confirmations_required: event.confirmations_required,
        finality: non_empty(&event.finality),
        created_at: time(event.created_at)?,
        expires_at: Some(event.expires_at).filter(|at| *at > 0).map(time).transpose()?,
        settlement: event.settlement.as_ref().map(settlement).transpose()?,
        block: event.block.as_ref().map(block).transpose()?,
        transfer: event.transfer.as_ref().map(transfer).transpose()?,
        summary: event.summary.as_ref().map(summary).transpose()?,
        transfers: event.transfers.iter().map(transfer).collect::<Result<_, _>>()?,
    };
    message(&event.r#type, time(event.occurred_at)?, data)
}

/// The body of a message without a payment. `at` is in Unix seconds.
///
/// # Errors
/// When `at` is out of range.
pub fn service_body(kind: &str, at: u64, data: &serde_json::Value) -> Result<String, BodyError> {
    message(kind, time(at)?, data)
}

fn message(kind: &str, timestamp: String, data: impl Serialize) -> Result<String, BodyError> {
    let message = Envelope { r#type: kind, timestamp, data };
    serde_json::to_string(&message).map_err(|error| BodyError::Text(error.to_string()))
}

fn block(block: &Block) -> Result<BlockData, BodyError> {
    let hash = topics::hash("hash", &block.hash)?.to_string();
    Ok(BlockData { chain_id: block.chain_id, number: block.number, hash })
}

fn settlement(settlement: &Settlement) -> Result<SettlementData, BodyError> {
    let fee = settlement.fee.as_ref().map(|fee| Amount::from_wire(fee)).transpose()?;
    Ok(SettlementData {
        transaction_hash: topics::hash("transaction_hash", &settlement.transaction_hash)?.to_string(),
        block_hash: topics::hash("block_hash", &settlement.block_hash)?.to_string(),
        block_number: settlement.block_number,
        fee: fee.map(|fee| fee.to_string()),
    })
}

fn summary(summary: &Summary) -> Result<SummaryData<'_>, BodyError> {
    Ok(SummaryData {
        count: summary.count,
        amount: Amount::from_wire(&summary.amount)?.to_string(),
        first: summary.first.as_ref().map(transfer).transpose()?,
        last: summary.last.as_ref().map(transfer).transpose()?,
    })
}

fn transfer(transfer: &Transfer) -> Result<TransferData<'_>, BodyError> {
    let (amount, decimals) = (Amount::from_wire(&transfer.amount)?, transfer.known_decimals());
    Ok(TransferData {
        chain_id: transfer.chain_id,
        chain: non_empty(&transfer.chain),
        block_number: transfer.block_number,
        block_hash: topics::hash("block_hash", &transfer.block_hash)?.to_string(),
        transaction_hash: topics::hash("transaction_hash", &transfer.transaction_hash)?.to_string(),
        source: &transfer.source,
        index: transfer.index,
        timestamp: time(transfer.timestamp)?,
        token: non_empty(&transfer.token),
        token_contract_address: topics::contract("token_address", &transfer.token_address)?.map(|token| token.to_string()),
        from: topics::address("from", &transfer.from)?.to_string(),
        amount: amount.to_string(),
        amount_decimal: decimals.map(|decimals| amount.to_decimal(decimals)),
        decimals,
        credited: transfer.credited,
        confirmed: transfer.confirmed,
    })
}

/// Protobuf says "none" with an empty string.
fn non_empty(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// Stricter than `base::timestamp::rfc3339`: a time out of range fails, rather than to reach a merchant as the epoch.
fn time(seconds: u64) -> Result<String, BodyError> {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.map(timestamp::truncated).ok_or_else(|| BodyError::Text(format!("{seconds} is out of range for a Unix time")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn event() -> PaymentEvent {
        PaymentEvent {
            id: "evt_0198c5a27b1e7c3a9d1f3b2a1c0d9e8f_2".into(),
            r#type: "payment.detected".into(),
            sequence: 2,
            payment_id: "0198c5a2-7b1e-7c3a-9d1f-3b2a1c0d9e8f".into(),
            metadata: r#"{"n": 12345678901234567890123}"#.into(),
            chain_id: 31337,
            chain: "anvil".into(),
            address: vec![0x11; 20].into(),
            address_index: Some(7),
            amount: vec![0xff; 32].into(),
            decimals: Some(6),
            status: "detected".into(),
            confirmations_required: 3,
            created_at: 1_700_000_000,
            occurred_at: 1_700_000_100,
            block: Some(Block { chain_id: 31337, number: 7, hash: vec![2; 32].into() }),
            ..PaymentEvent::default()
        }
    }

    #[test]
    fn the_envelope_is_standard_and_no_number_is_rounded() {
        let text = event_body(&event()).unwrap();
        assert!(text.contains(r#""metadata":{"n": 12345678901234567890123}"#), "{text}");
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["type"], "payment.detected");
        assert_eq!(body["timestamp"], "2023-11-14T22:15:00Z");
        let data = &body["data"];
        assert_eq!(data["amount"], "115792089237316195423570985008687907853269984665640564039457584007913129639935");
        assert_eq!(data["amount_decimal"], "115792089237316195423570985008687907853269984665640564039457584007913129.639935");
        assert_eq!(
            (&data["amount_received"], &data["decimals"], &data["derivation_path"]),
            (&"0".into(), &6.into(), &"0/7".into())
        );
        assert!(
            data["payment_uri"]
                .as_str()
                .unwrap()
                .starts_with("ethereum:0x1111111111111111111111111111111111111111@31337?value=115")
        );
        assert_eq!(data["block"]["number"], 7);
        let old = event_body(&PaymentEvent { decimals: None, address_index: None, ..event() }).unwrap();
        let unknown = [r#""derivation_path":null"#, r#""amount_decimal":null"#, r#""decimals":null"#];
        assert!(unknown.iter().all(|field| old.contains(field)), "an event from before these fields: {old}");
        let deposit = event_body(&PaymentEvent { deposit_address_id: "x".into(), ..event() }).unwrap();
        assert!(deposit.contains(r#""payment_uri":null"#), "a deposit is paid already: {deposit}");
        for none in
            ["token", "token_contract_address", "external_id", "exception", "expires_at", "settlement", "transfer", "summary"]
        {
            assert_eq!(data[none], Value::Null, "{none}");
        }
    }

    #[test]
    fn a_settled_payment_is_told_with_the_transaction_and_its_fee() {
        let settlement = Settlement {
            transaction_hash: vec![1; 32].into(),
            block_hash: vec![2; 32].into(),
            block_number: 9,
            fee: Some(vec![0x52, 0x08].into()),
        };
        let hash = |byte: &str| format!("0x{}", byte.repeat(32));
        for (fee, shown) in [(settlement.fee.clone(), json!("21000")), (None, Value::Null)] {
            let told = event_body(&PaymentEvent { settlement: Some(Settlement { fee, ..settlement.clone() }), ..event() });
            let body: Value = serde_json::from_str(&told.unwrap()).unwrap();
            let expected = json!({
                "transaction_hash": hash("01"), "block_hash": hash("02"), "block_number": 9, "fee": shown
            });
            assert_eq!(body["data"]["settlement"], expected);
        }
        let broken = Settlement { block_hash: vec![2; 31].into(), ..settlement };
        assert!(event_body(&PaymentEvent { settlement: Some(broken), ..event() }).is_err());
    }

    #[test]
    fn a_transfer_of_a_token_that_nobody_knew_has_no_whole_amount() {
        let transfer = |token: &str| Transfer {
            chain: "anvil".into(),
            token: token.into(),
            block_hash: vec![1; 32].into(),
            transaction_hash: vec![2; 32].into(),
            token_address: vec![3; 20].into(),
            from: vec![4; 20].into(),
            amount: vec![150].into(),
            decimals: if token.is_empty() { 0 } else { 2 },
            ..Transfer::default()
        };
        for (token, whole) in [("", Value::Null), ("X", "1.5".into())] {
            let body = event_body(&PaymentEvent { transfer: Some(transfer(token)), ..event() }).unwrap();
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["data"]["transfer"]["amount_decimal"], whole);
        }
    }

    #[test]
    fn an_invalid_event_has_no_body() {
        assert!(event_body(&PaymentEvent { address: vec![1; 19].into(), ..event() }).is_err());
        assert!(event_body(&PaymentEvent { amount: vec![1; 33].into(), ..event() }).is_err());
        assert!(event_body(&PaymentEvent { metadata: "{".into(), ..event() }).is_err());
        assert!(service_body("webhook.ping", 0, &json!({})).unwrap().contains("1970-01-01T00:00:00Z"));
    }
}
