//! A payment as the API shows it.

use crate::openapi::schemas;
use confirmer::{Paid, Payment, Token};
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use topics::{Address, Amount};
use utoipa::ToSchema;

/// The public form. Every field is always there; amounts are decimal strings of base units.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Payment)]
pub struct PaymentReply {
    #[schema(value_type = schemas::PaymentId)]
    id: String,
    chain: String,
    chain_id: u64,
    #[schema(required = true)]
    token: Option<String>,
    #[schema(required = true, value_type = Option<schemas::TokenId>)]
    token_id: Option<String>,
    #[schema(required = true, value_type = Option<schemas::Address>)]
    token_contract_address: Option<String>,
    #[schema(value_type = schemas::Address)]
    address: String,
    /// The static address that it is a deposit to; null for a payment that was asked for.
    #[schema(required = true, value_type = Option<schemas::PaymentId>)]
    deposit_address_id: Option<String>,
    #[schema(value_type = schemas::Amount)]
    amount: String,
    amount_decimal: String,
    #[schema(value_type = schemas::Amount)]
    amount_received: String,
    #[schema(value_type = schemas::Status)]
    status: &'static str,
    #[schema(required = true, value_type = Option<schemas::Exception>)]
    exception: Option<&'static str>,
    confirmations: u64,
    confirmations_required: u32,
    #[schema(required = true, value_type = Option<schemas::Finality>)]
    finality: Option<&'static str>,
    /// By how much less it is still paid in full.
    #[schema(value_type = schemas::Amount)]
    underpaid_tolerance: String,
    /// By how much more nothing is off.
    #[schema(value_type = schemas::Amount)]
    overpaid_tolerance: String,
    /// What arrives after its expiry counts.
    accept_late: bool,
    /// EIP-681, for a QR code; null for a deposit, which is there already.
    #[schema(required = true)]
    payment_uri: Option<String>,
    /// Null for a deposit, which never expires.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    expires_at: Option<String>,
    #[schema(value_type = schemas::Time)]
    created_at: String,
    #[schema(required = true)]
    external_id: Option<String>,
    /// As it was given.
    #[schema(required = true, value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    transfers: Vec<TransferReply>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Transfer)]
struct TransferReply {
    chain_id: u64,
    block_number: u64,
    #[schema(value_type = schemas::Hash)]
    block_hash: String,
    #[schema(value_type = schemas::Hash)]
    transaction_hash: String,
    #[schema(value_type = schemas::Source)]
    source: &'static str,
    index: u32,
    #[schema(value_type = schemas::Time)]
    timestamp: String,
    #[schema(required = true, value_type = Option<schemas::Address>)]
    token_contract_address: Option<String>,
    #[schema(value_type = schemas::Address)]
    from: String,
    #[schema(value_type = schemas::Amount)]
    amount: String,
    credited: bool,
    listed: bool,
    confirmed: bool,
}

impl PaymentReply {
    /// As it was when it was made, whatever happened since: a request that comes again gets the first answer again.
    pub fn first(payment: &Payment) -> Self {
        let made = Payment { transfers: Vec::new(), cancelled: false, expired_by: None, ..payment.clone() };
        Self::new(&made, None)
    }

    /// `head` is the number of the canonical head of the payment's chain as far as the confirmer has come, if it has.
    pub fn new(payment: &Payment, head: Option<u64>) -> Self {
        let token = payment.asset.token.as_ref();
        let asked = payment.deposit_address.is_none();
        Self {
            id: payment.id.to_string(),
            chain: payment.chain_name.clone(),
            chain_id: payment.chain.0,
            token: token.map(|t| t.symbol.clone()),
            token_id: token.map(|t| token_id(payment, t)),
            token_contract_address: token.map(|t| t.address.to_string()),
            address: payment.address.to_string(),
            deposit_address_id: payment.deposit_address.map(|id| id.to_string()),
            amount: payment.amount.to_string(),
            amount_decimal: payment.amount.to_decimal(payment.asset.decimals),
            amount_received: payment.received().unwrap_or_default().to_string(),
            status: payment.status().as_str(),
            exception: payment.exception().map(|e| e.as_str()),
            confirmations: head.map_or(0, |head| confirmations(payment, head)),
            confirmations_required: payment.policy.confirmations(),
            finality: payment.policy.finality(),
            underpaid_tolerance: payment.terms.underpaid_tolerance.to_string(),
            overpaid_tolerance: payment.terms.overpaid_tolerance.to_string(),
            accept_late: payment.terms.accept_late,
            payment_uri: asked.then(|| payment_uri(payment)),
            expires_at: asked.then(|| rfc3339(payment.expires_at)),
            created_at: rfc3339(payment.created_at),
            external_id: payment.external_id.clone(),
            metadata: payment.metadata.clone().and_then(|text| RawValue::from_string(text).ok()),
            transfers: payment.transfers.iter().map(TransferReply::new).collect(),
        }
    }
}

impl TransferReply {
    fn new(paid: &Paid) -> Self {
        Self {
            chain_id: paid.id.chain.0,
            block_number: paid.block.number,
            block_hash: paid.block.hash.to_string(),
            transaction_hash: paid.id.transaction.to_string(),
            source: paid.id.source.as_str(),
            index: paid.id.index,
            timestamp: rfc3339(paid.timestamp),
            token_contract_address: paid.token.map(|a: Address| a.to_string()),
            from: paid.from.to_string(),
            amount: paid.amount.to_string(),
            credited: paid.credited,
            listed: paid.listed,
            confirmed: paid.confirmed,
        }
    }
}

fn token_id(payment: &Payment, token: &Token) -> String {
    let Token { symbol, address } = token.clone();
    chain::Token { symbol, address, decimals: payment.asset.decimals, tiers: Vec::new() }.id(payment.chain)
}

/// Blocks from the credited transfer with which the amount was reached, its own and the head included; while the amount is
/// not reached, from the first credited one.
fn confirmations(payment: &Payment, head: u64) -> u64 {
    let mut credited: Vec<&Paid> = payment.transfers.iter().filter(|t| t.credited).collect();
    credited.sort_by_key(|t| t.block.number);
    let reached = credited.iter().scan(Amount::ZERO, |sum, transfer| {
        *sum = sum.checked_add(transfer.amount)?;
        Some((transfer.block.number, *sum))
    });
    let reached = reached.skip_while(|(_, sum)| *sum < payment.needed()).map(|(number, _)| number).next();
    let first = credited.first().map(|t| t.block.number);
    reached.or(first).and_then(|number| head.checked_sub(number)).map_or(0, |blocks| blocks.saturating_add(1))
}

/// [EIP-681](https://eips.ethereum.org/EIPS/eip-681), as wallets read it from a QR code.
fn payment_uri(payment: &Payment) -> String {
    let Payment { chain, address, amount, .. } = payment;
    match &payment.asset.token {
        None => format!("ethereum:{address}@{chain}?value={amount}"),
        Some(token) => format!("ethereum:{}@{chain}/transfer?address={address}&uint256={amount}", token.address),
    }
}

/// Unix seconds as RFC 3339 in UTC; the epoch for a time past year 9999, which no clock here says.
pub fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    self::time(time.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// A time of the database as RFC 3339, to the second.
pub fn time(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use confirmer::{Asset, Label, Policy, Terms};
    use topics::{B256, BlockRef, ChainId, PaymentId, Source, TransferId};
    use uuid::Uuid;

    fn payment() -> Payment {
        Payment {
            id: PaymentId(Uuid::nil()),
            merchant: Uuid::nil(),
            external_id: None,
            metadata: Some(r#"{"n": 12345678901234567890123}"#.into()),
            chain: ChainId(31337),
            chain_name: "anvil".into(),
            asset: Asset { token: None, decimals: 18 },
            address: "0x9858effd232b4033e47d90003d41ec34ecaeda94".parse().unwrap(),
            xpub: "f".into(),
            address_index: 0,
            amount: Amount::from(1_500_000_000_000_000_000),
            terms: Terms::default(),
            policy: Policy::Confirmations(3),
            created_at: 1_700_000_000,
            expires_at: 1_700_003_600,
            cancelled: false,
            expired_by: None,
            deposit_address: None,
            transfers: vec![],
            sequence: 1,
            updated_at: 1_700_000_000,
        }
    }

    fn paid(block: u64, amount: u64, credited: bool) -> Paid {
        let hash = B256::with_last_byte(u8::try_from(block).unwrap());
        Paid {
            id: TransferId { chain: ChainId(31337), block: hash, transaction: hash, source: Source::Transaction, index: 0 },
            block: BlockRef { number: block, hash },
            timestamp: 1_700_000_100,
            transaction_index: 0,
            token: None,
            from: Address::ZERO,
            amount: Amount::from(amount),
            credited,
            listed: true,
            confirmed: false,
            label: Label::default(),
        }
    }

    #[test]
    fn uris_are_those_of_eip_681() {
        let mut payment = payment();
        assert_eq!(
            payment_uri(&payment),
            "ethereum:0x9858EfFD232B4033E47d90003D41EC34EcaEda94@31337?value=1500000000000000000"
        );
        let token = "0xdac17f958d2ee523a2206206994597c13d831ec7".parse().unwrap();
        payment.asset = Asset { token: Some(Token { symbol: "USDT".into(), address: token }), decimals: 6 };
        payment.amount = Amount::from(1_500_000);
        assert_eq!(
            payment_uri(&payment),
            "ethereum:0xdAC17F958D2ee523a2206206994597C13D831ec7@31337/transfer\
             ?address=0x9858EfFD232B4033E47d90003D41EC34EcaEda94&uint256=1500000"
        );
    }

    #[test]
    fn confirmations_count_from_the_transfer_that_reached_the_amount() {
        let mut payment = payment();
        payment.amount = Amount::from(10);
        assert_eq!(confirmations(&payment, 20), 0);
        payment.transfers = vec![paid(11, 5, true), paid(12, 9, false)];
        assert_eq!(confirmations(&payment, 20), 10);
        payment.transfers.push(paid(14, 5, true));
        payment.transfers.push(paid(18, 1, true));
        assert_eq!(confirmations(&payment, 20), 7);
        assert_eq!(confirmations(&payment, 13), 0, "the head is not there yet");
    }

    #[test]
    fn a_reply_has_every_field_and_amounts_as_strings() {
        let reply = PaymentReply::new(&payment(), None);
        let text = serde_json::to_string(&reply).unwrap();
        assert!(text.contains(r#""metadata":{"n": 12345678901234567890123}"#), "{text}");
        let reply = serde_json::to_value(&reply).unwrap();
        assert_eq!(reply["amount"], "1500000000000000000");
        assert_eq!(reply["amount_decimal"], "1.5");
        assert_eq!(reply["created_at"], "2023-11-14T22:13:20Z");
        assert_eq!(reply["status"], "pending");
        assert!(reply["token_id"].is_null() && reply["exception"].is_null());
        assert_eq!(reply["transfers"], serde_json::json!([]));
    }
}
