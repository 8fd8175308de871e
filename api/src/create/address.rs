//! Creates static deposit addresses, one per customer.
//!
//! As with payments, an address is shown only after Kafka has acknowledged its intent, and a retried request gets the same
//! address: the customer's reference (`external_id`) is the idempotency key. Addresses are few beside payments, so each is
//! created in a transaction of its own.

use crate::clock;
use crate::create::intents::Intents;
use crate::http::problem::Problem;
use crate::http::share;
use deadpool_postgres::Pool;
use merchants::accounts::{self, Account};
use payments::{DepositAddress, intents as intent_records, store};
use std::collections::VecDeque;
use topics::PaymentId;
use uuid::Uuid;

/// A request for the deposit address of a customer.
pub struct AddressRequest {
    /// The id of the merchant.
    pub merchant: Uuid,
    /// The account that a new address is derived from, or why the merchant gets none now.
    pub account: Result<Account, Problem>,
    /// The merchant's reference of the customer.
    pub external_id: String,
    /// Kept only when the address is new.
    pub metadata: Option<String>,
    /// The id of the API key.
    pub asked_by: String,
    /// The installation that the database belongs to.
    pub installation: Uuid,
}

/// The customer's address, and whether this request created it. Kafka has acknowledged its intent.
///
/// # Errors
/// That of the account when the address would be new; a 503 when Kafka does not acknowledge the intent: a retry gets the same address.
pub async fn create(pool: &Pool, intents: &Intents, request: AddressRequest) -> Result<(DepositAddress, bool), Problem> {
    let AddressRequest { merchant, account, external_id, metadata, asked_by, installation } = request;
    let mut db = share::connection(pool).await?;
    let began = db.began;
    let transaction = db.transaction().await?;
    if let Some(known) = store::lock_customer_address(&transaction, merchant, &external_id).await? {
        transaction.commit().await?;
        drop(intents.ensure_acknowledged(pool, db, known.id).await?);
        return Ok((known, false));
    }
    let account = account?;
    if account.is_replaced() {
        return Err(Problem::replaced());
    }
    let fingerprint = account.fingerprint().to_owned();
    let taken = accounts::take_addresses(&transaction, vec![(account.clone(), 1)]).await;
    let mut taken = taken.map_err(|failure| if account.is_exhausted() { Problem::exhausted() } else { failure.into() })?;
    let (address_index, address) = taken.get_mut(&fingerprint).and_then(VecDeque::pop_front).ok_or_else(Problem::internal)?;
    let new = DepositAddress {
        id: PaymentId::generate().0,
        merchant,
        external_id: Some(external_id),
        metadata: metadata.map(Into::into),
        address,
        xpub: fingerprint,
        address_index,
        created_at: clock::now()?,
        asked_by: Some(asked_by),
    };
    store::insert_addresses(&transaction, std::slice::from_ref(&new), installation).await?;
    transaction.commit().await?;
    // Kafka may take its time, and other requests need the connection.
    drop(db);
    let intent = intent_records::address_intent_record(&new, installation);
    if !intents.acknowledged_now(vec![(new.id, intent)], began).await.contains(&new.id) {
        return Err(Problem::unavailable(5, "Kafka did not acknowledge the address. Retry: you get the same one"));
    }
    Ok((new, true))
}
