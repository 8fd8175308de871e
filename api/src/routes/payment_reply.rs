//! A payment as JSON, as every route that replies with one shows it. A new field of the reply begins here.
//!
//! Only payments whose intent Kafka has acknowledged may be shown: callers check that first (`read`, and `create::intents` for a new one).

use crate::chains::catalog::Catalog;
use crate::openapi::schemas;
use crate::read::Snapshot;
use crate::routes::transfer_reply::{Depths, TransferReply};
use base::timestamp::rfc3339;
use payments::{Payment, Settlement, Sums, Token, store};
use runtime::Failure;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use topics::{Amount, derivation_path, payment_uri};
use utoipa::ToSchema;
use uuid::Uuid;

/// Every field is always there. Amounts are decimal strings of base units.
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
    /// i of `derivation_path`.
    address_index: u32,
    /// Of the address, below the account's xpub (BIP-32).
    derivation_path: String,
    /// The static address of a deposit; null for a payment that was created by a request.
    #[schema(required = true, value_type = Option<schemas::PaymentId>)]
    deposit_address_id: Option<String>,
    #[schema(value_type = schemas::Amount)]
    amount: String,
    /// In whole coins or tokens.
    amount_decimal: String,
    #[schema(value_type = schemas::Amount)]
    amount_received: String,
    amount_received_decimal: String,
    /// Of the amounts: a base unit is 10^-decimals of a coin or token.
    decimals: u8,
    #[schema(value_type = schemas::Status)]
    status: &'static str,
    #[schema(required = true, value_type = Option<schemas::Exception>)]
    exception: Option<&'static str>,
    /// How many of the last thousand transfers came in another listed token, or on another chain. They are kept, and not credited.
    unexpected_transfers: u64,
    confirmations: u64,
    confirmations_required: u32,
    #[schema(required = true, value_type = Option<schemas::Finality>)]
    finality: Option<&'static str>,
    /// Base units that may be missing while the payment still counts as paid in full.
    #[schema(value_type = schemas::Amount)]
    underpaid_tolerance: String,
    /// Base units above the amount that do not count as overpaid.
    #[schema(value_type = schemas::Amount)]
    overpaid_tolerance: String,
    /// Whether transfers after the expiry count.
    accept_late: bool,
    /// EIP-681, for a QR code; null for a deposit, which is already paid.
    #[schema(required = true)]
    payment_uri: Option<String>,
    /// Null for a deposit, which never expires.
    #[schema(required = true, value_type = Option<schemas::Time>)]
    expires_at: Option<String>,
    #[schema(value_type = schemas::Time)]
    created_at: String,
    /// While it is settled; else null.
    #[schema(required = true)]
    settlement: Option<SettlementReply>,
    #[schema(required = true)]
    external_id: Option<String>,
    /// As it was written in the request.
    #[schema(required = true, value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
    /// The last hundred, and the last hundred of those that do not count: of unlisted tokens or below the minimum. All are at
    /// `/api/v1/payments/{id}/transfers`.
    transfers: Vec<TransferReply>,
}

/// The transaction with which the last of a payment's confirmed money had left its address. It may have moved the money of others too.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Settlement)]
pub struct SettlementReply {
    #[schema(value_type = schemas::Hash)]
    transaction_hash: String,
    /// Of its block, which is final.
    #[schema(value_type = schemas::Hash)]
    block_hash: String,
    block_number: u64,
    /// Of the whole transaction, in wei; null where nobody could tell.
    #[schema(required = true, value_type = Option<schemas::Amount>)]
    fee: Option<String>,
}

/// Of a transfer; a payment without its transfers and metadata has some more.
const BYTES: usize = 500;

/// Loads payments and shows each with its confirmations so far. Ids in order; those of no payment are left out.
///
/// # Errors
/// When the database fails.
pub async fn load(catalog: &Catalog, db: &Snapshot, ids: &[Uuid]) -> Result<Vec<PaymentReply>, Failure> {
    let mut found: HashMap<Uuid, Payment> = store::load_payments(&**db, ids).await?.into_iter().map(|p| (p.id.0, p)).collect();
    let payments: Vec<Payment> = ids.iter().filter_map(|id| found.remove(id)).collect();
    complete(catalog, db, &payments).await
}

/// Shows payments that were loaded from the snapshot, each with its confirmations so far.
///
/// # Errors
/// When the database fails.
pub async fn complete(catalog: &Catalog, db: &Snapshot, payments: &[Payment]) -> Result<Vec<PaymentReply>, Failure> {
    // Nothing is confirmed of what has received nothing.
    let paid = payments.iter().filter(|payment| !payment.sums.received.is_zero()).map(|payment| payment.chain);
    let transfers = payments.iter().flat_map(|payment| &payment.transfers).map(|transfer| &**transfer);
    // Pipelined, so one round trip.
    let (counted_from, unexpected, depths) = tokio::join!(
        store::counted_from(&**db, payments),
        store::unexpected_transfers(&**db, payments),
        Depths::load(catalog, db, transfers, paid),
    );
    let (counted_from, unexpected, depths) = (counted_from?, unexpected?, depths?);
    let mut replies = Vec::with_capacity(payments.len());
    for payment in payments {
        replies.push(PaymentReply {
            confirmations: confirmations(counted_from.get(&payment.id), depths.witnessed_head(payment.chain)),
            unexpected_transfers: unexpected.get(&payment.id).copied().unwrap_or_default(),
            transfers: payment.transfers.iter().map(|transfer| depths.reply(transfer)).collect(),
            ..PaymentReply::new(payment)
        });
        if payment.transfers.len() > 10 {
            // A page may have tens of thousands, and others wait for this thread.
            tokio::task::yield_now().await;
        }
    }
    Ok(replies)
}

/// About how many bytes a page of payments has.
pub fn size(page: &[PaymentReply]) -> usize {
    let metadata = |payment: &PaymentReply| payment.metadata.as_ref().map_or(0, |metadata| metadata.get().len());
    page.iter().map(|payment| BYTES * (1 + payment.transfers.len()) + metadata(payment)).sum()
}

impl PaymentReply {
    /// The payment as it was right after its creation, whatever happened since: a retried create request gets the first
    /// response again.
    pub fn first(payment: &Payment) -> Self {
        let created = Payment {
            sums: Sums::default(),
            parts: Vec::new(),
            transfers: Vec::new(),
            cancelled: false,
            expired_by: None,
            settlement: None,
            ..payment.clone()
        };
        Self::new(&created)
    }

    /// Without what its transfers and the chains' heads tell.
    fn new(payment: &Payment) -> Self {
        let token = payment.asset.token.as_ref();
        let is_deposit = payment.deposit_address.is_some();
        Self {
            id: payment.id.to_string(),
            chain: payment.chain_name.clone(),
            chain_id: payment.chain.0,
            token: token.map(|t| t.symbol.clone()),
            token_id: token.map(|t| token_id(payment, t)),
            token_contract_address: token.map(|t| t.address.to_string()),
            address: payment.address.to_string(),
            address_index: payment.address_index,
            derivation_path: derivation_path(payment.address_index),
            deposit_address_id: payment.deposit_address.map(|id| id.to_string()),
            amount: payment.amount.to_string(),
            amount_decimal: payment.amount.to_decimal(payment.asset.decimals),
            amount_received: payment.received().to_string(),
            amount_received_decimal: payment.received().to_decimal(payment.asset.decimals),
            decimals: payment.asset.decimals,
            status: payment.status().as_str(),
            exception: payment.exception().map(|e| e.as_str()),
            unexpected_transfers: 0,
            confirmations: 0,
            confirmations_required: payment.policy.confirmations(),
            finality: payment.policy.finality(),
            underpaid_tolerance: payment.terms.underpaid_tolerance.to_string(),
            overpaid_tolerance: payment.terms.overpaid_tolerance.to_string(),
            accept_late: payment.terms.accept_late,
            payment_uri: (!is_deposit)
                .then(|| payment_uri(payment.chain, token.map(|t| t.address), payment.address, payment.amount)),
            expires_at: (!is_deposit).then(|| rfc3339(payment.expires_at)),
            created_at: rfc3339(payment.created_at),
            settlement: payment.settlement.as_ref().map(SettlementReply::new),
            external_id: payment.external_id.clone(),
            metadata: payment.metadata.as_deref().and_then(|text| RawValue::from_string(text.to_owned()).ok()),
            transfers: Vec::new(),
        }
    }
}

impl SettlementReply {
    pub fn new(settlement: &Settlement) -> Self {
        Self {
            transaction_hash: settlement.transaction.to_string(),
            block_hash: settlement.block.hash.to_string(),
            block_number: settlement.block.number,
            fee: settlement.fee.map(|fee| fee.to_string()),
        }
    }
}

fn token_id(payment: &Payment, token: &Token) -> String {
    let Token { symbol, address } = token.clone();
    chain::Token { symbol, address, decimals: payment.asset.decimals, tiers: Vec::new(), min_transfer: Amount::ZERO }
        .id(payment.chain)
}

/// Blocks from the one that reached the amount to the highest witnessed one that the confirmer has processed, both included. While the
/// amount is not reached, they count from the first that brought a part of it.
fn confirmations(counted_from: Option<&u64>, head: Option<u64>) -> u64 {
    let blocks = counted_from.and_then(|number| head.and_then(|head| head.checked_sub(*number)));
    blocks.map_or(0, |blocks| blocks.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use payments::{Asset, Policy, Terms};
    use serde_json::json;
    use topics::{B256, BlockRef, ChainId, PaymentId};
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
            address_index: 7,
            amount: Amount::from(1_500_000_000_000_000_000),
            terms: Terms::default(),
            policy: Policy::Confirmations(3),
            created_at: 1_700_000_000,
            expires_at: 1_700_003_600,
            cancelled: false,
            expired_by: None,
            settlement: None,
            deposit_address: None,
            sums: Sums::default(),
            parts: vec![],
            transfers: vec![],
            sequence: 1,
            updated_at: 1_700_000_000,
        }
    }

    #[test]
    fn confirmations_count_both_ends() {
        assert_eq!(confirmations(None, Some(20)), 0);
        assert_eq!(confirmations(Some(&14), Some(20)), 7);
        assert_eq!(confirmations(Some(&14), Some(13)), 0, "nobody witnesses its block yet");
    }

    #[test]
    fn a_reply_has_every_field_and_amounts_as_strings() {
        let reply = PaymentReply::new(&payment());
        let text = serde_json::to_string(&reply).unwrap();
        assert!(text.contains(r#""metadata":{"n": 12345678901234567890123}"#), "{text}");
        let reply = serde_json::to_value(&reply).unwrap();
        assert_eq!(reply["amount"], "1500000000000000000");
        assert_eq!(reply["amount_decimal"], "1.5");
        assert_eq!((&reply["decimals"], &reply["derivation_path"]), (&18.into(), &"0/7".into()));
        assert_eq!(reply["created_at"], "2023-11-14T22:13:20Z");
        assert_eq!(reply["status"], "pending");
        assert!(reply["token_id"].is_null() && reply["exception"].is_null() && reply["settlement"].is_null());
        assert_eq!(reply["transfers"], serde_json::json!([]));
    }

    #[test]
    fn a_settled_payment_shows_the_transaction_and_no_payment_showed_one_when_it_was_created() {
        let block = BlockRef { number: 9, hash: B256::repeat_byte(2) };
        let settlement = Settlement { transaction: B256::repeat_byte(1), block, timestamp: 0, fee: Some(Amount::from(21_000)) };
        let settled = Payment { settlement: Some(settlement), ..payment() };
        let reply = serde_json::to_value(PaymentReply::new(&settled)).unwrap();
        let hash = |byte: &str| format!("0x{}", byte.repeat(32));
        let shown = json!({ "transaction_hash": hash("01"), "block_hash": hash("02"), "block_number": 9, "fee": "21000" });
        assert_eq!(reply["settlement"], shown);
        assert!(serde_json::to_value(PaymentReply::first(&settled)).unwrap()["settlement"].is_null());
    }

    #[test]
    fn a_page_of_large_metadata_is_large() {
        let page = |metadata: &str| {
            let payment = Payment { metadata: Some(format!(r#"{{"m":"{metadata}"}}"#).into()), ..payment() };
            (0..200).map(|_| PaymentReply::new(&payment)).collect::<Vec<_>>()
        };
        let (small, large) = (size(&page("")), size(&page(&"m".repeat(16_000))));
        assert!(small < 200_000 && large > 3_200_000, "{small} {large}");
    }
}
