//! The history of payments, rows of `payment_events`: every event with its cause.
//!
//! `store::record_events` writes it in one statement with the outbox. The outbox forgets an event that Kafka has; the history keeps
//! it for `HISTORY_KEEP_DAYS`. The table is partitioned by month, so that old events are dropped and not deleted row by row.

use deadpool_postgres::GenericClient;
use prost::Message as _;
use runtime::Failure;
use runtime::db::{bigint, lock};
use topics::PaymentId;
use topics::wire::PaymentEvent;

/// An event in the history.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedEvent {
    /// The record of `payment.events` without the payment's transfers, metadata and external id, and without `asked_by`.
    pub event: PaymentEvent,
    /// The id of the API key whose request caused it; `None` where a block is the cause.
    pub asked_by: Option<String>,
}

/// The part of an event that the history keeps. The payment's transfers are left out: anyone can send a thousand small ones, and
/// the thousandth event would hold them all. Metadata and external id never change, and stand in the payment's own row;
/// `asked_by` has a column of its own.
pub(crate) fn trim(event: PaymentEvent) -> PaymentEvent {
    PaymentEvent {
        transfers: Vec::new(),
        metadata: String::new(),
        external_id: String::new(),
        asked_by: String::new(),
        ..event
    }
}

/// At most `limit` events of a payment with a sequence above `after`, in order. `created_at` is the payment's, in Unix seconds:
/// partitions from before it are not searched.
///
/// # Errors
/// When the database fails, or a row holds no valid record.
pub async fn list_events(
    db: &impl GenericClient,
    payment: PaymentId,
    created_at: i64,
    after: u64,
    limit: i64,
) -> Result<Vec<RecordedEvent>, Failure> {
    let statement = db
        .prepare_cached(
            // The API's clock set `created_at`, the database's `recorded_at`: a day bounds their skew.
            "SELECT asked_by, record FROM payment_events
             WHERE payment_id = $1 AND sequence > $2 AND recorded_at >= to_timestamp($3::bigint) - interval '1 day'
             ORDER BY sequence LIMIT $4",
        )
        .await?;
    let rows = db.query(&statement, &[&payment.0, &bigint(after), &created_at, &limit]).await?;
    let read = |row: &tokio_postgres::Row| {
        let event = PaymentEvent::decode(row.get::<_, &[u8]>(1)).map_err(Failure::halt)?;
        Ok(RecordedEvent { event, asked_by: row.get(0) })
    };
    rows.iter().map(read).collect()
}

/// Creates the partitions of this month and the next two, and drops those that ended more than `keep_days` ago. Idempotent;
/// instances take turns under an advisory lock. Returns how many were dropped.
///
/// # Errors
/// When the database fails, or a long read of a partition holds its lock.
pub async fn roll_partitions(db: &mut deadpool_postgres::Client, keep_days: Option<u32>) -> Result<i32, Failure> {
    let transaction = db.transaction().await?;
    // A longer wait for a lock would block every query that queues behind it, and so this sets a limit for all of them.
    lock::take_turn(&transaction, lock::PARTITIONS, "payment_events").await?;
    let create =
        "SELECT make_payment_events_partition(now() + months * interval '1 month') FROM generate_series(0, 2) AS months";
    transaction.execute(create, &[]).await?;
    let dropped = match keep_days.and_then(|days| i32::try_from(days).ok()) {
        None => 0,
        Some(days) => {
            let drop = "SELECT drop_payment_events_before(now() - make_interval(days => $1))";
            transaction.query_one(drop, &[&days]).await?.get(0)
        }
    };
    transaction.commit().await?;
    Ok(dropped)
}
