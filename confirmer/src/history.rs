//! The history of payments: every event with its cause, written together with the outbox (`store::announce`), kept when Kafka
//! has it.

use crate::store::bigint;
use deadpool_postgres::GenericClient;
use prost::Message as _;
use runtime::{Failure, db};
use topics::PaymentId;
use topics::wire::PaymentEvent;

/// An event that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The event as its topic has it, but without the payment's transfers so far, its metadata and its reference.
    pub event: PaymentEvent,
    /// The id of the API key that asked for it; none where a block is the cause.
    pub asked_by: Option<String>,
}

/// What is kept of an event. What the payment gathers over its life is left out: anyone can send it a thousand small
/// transfers, and the thousandth event would hold them all.
pub(crate) fn entry(event: PaymentEvent) -> PaymentEvent {
    PaymentEvent { transfers: Vec::new(), metadata: String::new(), external_id: String::new(), ..event }
}

/// At most `limit` events of a payment, in order, after number `after`. `created_at` is the payment's, in Unix seconds: months
/// before it are not looked into.
///
/// # Errors
/// When the database fails, or holds what is no event.
pub async fn events(
    db: &impl GenericClient,
    payment: PaymentId,
    created_at: i64,
    after: u64,
    limit: i64,
) -> Result<Vec<Told>, Failure> {
    let statement = db
        .prepare_cached(
            // The API's clock wrote one, the database's the other.
            "SELECT asked_by, record FROM payment_events
             WHERE payment_id = $1 AND sequence > $2 AND recorded_at >= to_timestamp($3::bigint) - interval '1 day'
             ORDER BY sequence LIMIT $4",
        )
        .await
        .map_err(db::failure)?;
    let rows = db.query(&statement, &[&payment.0, &bigint(after), &created_at, &limit]).await.map_err(db::failure)?;
    let told = |row: &tokio_postgres::Row| {
        let event = PaymentEvent::decode(row.get::<_, &[u8]>(1)).map_err(Failure::halt)?;
        Ok(Told { event, asked_by: row.get(0) })
    };
    rows.iter().map(told).collect()
}

/// Makes the partitions of this and the next months and drops those that were over `keep_days` ago. Safe to run twice and on
/// several instances: they take turns. Returns how many were dropped.
///
/// # Errors
/// When the database fails, or a partition to be dropped is being read for long.
pub async fn partition(db: &mut deadpool_postgres::Client, keep_days: Option<u32>) -> Result<i32, Failure> {
    let transaction = db.transaction().await.map_err(db::failure)?;
    // To wait longer for a lock would hold up whoever comes after us.
    let alone = "SET LOCAL lock_timeout = '2s'; SELECT pg_advisory_xact_lock(hashtextextended('payment_events', 0))";
    transaction.batch_execute(alone).await.map_err(db::failure)?;
    let make = "SELECT make_payment_events_partition(now() + months * interval '1 month') FROM generate_series(0, 2) AS months";
    transaction.execute(make, &[]).await.map_err(db::failure)?;
    let dropped = match keep_days.and_then(|days| i32::try_from(days).ok()) {
        None => 0,
        Some(days) => {
            let drop = "SELECT drop_payment_events_before(now() - make_interval(days => $1))";
            transaction.query_one(drop, &[&days]).await.map_err(db::failure)?.get(0)
        }
    };
    transaction.commit().await.map_err(db::failure)?;
    Ok(dropped)
}
