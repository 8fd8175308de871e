//! All payments and static addresses in pages, the newest first, with the requests that they were issued for: what their intents
//! are made from again.

use super::deposit_addresses::all_addresses;
use super::page::Page;
use super::payments::all_payments;
use crate::deposit::DepositAddress;
use crate::intents::{IdempotencyClaim, Origin};
use crate::payment::Payment;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::collections::HashMap;
use uuid::Uuid;

/// At most `limit` payments with ids below `below`, without their transfers, by falling id: ids tell their time. Deposits are left
/// out.
///
/// # Errors
/// When the database fails.
pub async fn issued_payments(db: &impl GenericClient, below: Uuid, limit: i64) -> Result<Page<Payment>, Failure> {
    all_payments(db, below, limit).await
}

/// [`issued_payments`] for static addresses.
///
/// # Errors
/// When the database fails.
pub async fn issued_addresses(db: &impl GenericClient, below: Uuid, limit: i64) -> Result<Page<DepositAddress>, Failure> {
    all_addresses(db, below, limit).await
}

/// The requests of payments, as far as they are still known: keys are kept for a day, who asked for as long as the history.
///
/// # Errors
/// When the database fails.
pub async fn origins(db: &impl GenericClient, payments: &[Payment]) -> Result<HashMap<Uuid, Origin>, Failure> {
    let ids: Vec<Uuid> = payments.iter().map(|payment| payment.id.0).collect();
    let mut origins: HashMap<Uuid, Origin> = HashMap::new();
    let asked =
        "SELECT payment_id, asked_by FROM payment_events WHERE payment_id = ANY($1) AND sequence = 1 AND asked_by IS NOT NULL";
    for row in db.query(&db.prepare_cached(asked).await?, &[&ids]).await? {
        origins.entry(row.get(0)).or_default().asked_by = row.get(1);
    }
    // A key is as old as its payment, but for the skew of two clocks; there is no index by payment.
    let times = payments.iter().map(|payment| runtime::db::bigint(payment.created_at));
    let (Some(first), Some(last)) = (times.clone().min(), times.max()) else {
        return Ok(origins);
    };
    let keys = "SELECT payment_id, key, request_hash FROM idempotency_keys
                WHERE created_at BETWEEN to_timestamp($2::bigint) - interval '10 minutes' AND to_timestamp($3::bigint) + interval '10 minutes'
                    AND payment_id = ANY($1)";
    for row in db.query(&db.prepare_cached(keys).await?, &[&ids, &first, &last]).await? {
        let claim = IdempotencyClaim { key: row.get(1), request_hash: row.get(2) };
        origins.entry(row.get(0)).or_default().idempotency = Some(claim);
    }
    Ok(origins)
}
