//! Removes old rows: idempotency keys, beats of processes that are gone, webhook deliveries, deleted webhooks, and months of the payments' history.
//!
//! Every instance of the API runs it. Each task is safe to run twice and on several instances at the same time.

use base::metrics;
use deadpool_postgres::Pool;
use payments::history;
use runtime::Failure;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use webhooks::retention;

const INTERVAL: Duration = Duration::from_secs(60);
/// Rows per statement: locks stay short, and autovacuum keeps up.
const MAX_ROWS: i64 = 1000;

/// A retention rule. Rows that another instance is removing are skipped.
struct Retention {
    table: &'static str,
    /// Removes at most $1 rows.
    sql: &'static str,
}

const RETENTIONS: &[Retention] = &[
    Retention {
        table: "idempotency_keys",
        sql: "DELETE FROM idempotency_keys WHERE (merchant_id, key) IN (
                  SELECT merchant_id, key FROM idempotency_keys WHERE created_at < now() - interval '24 hours'
                  ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
    },
    Retention {
        table: "replica_beats",
        sql: "DELETE FROM replica_beats WHERE process IN (
                  SELECT process FROM replica_beats WHERE written_at < now() - interval '24 hours'
                  LIMIT $1 FOR UPDATE SKIP LOCKED)",
    },
    Retention { table: "webhook_deliveries", sql: retention::REMOVE_OLD_DELIVERIES },
    Retention { table: "webhook_deliveries", sql: retention::REMOVE_DELIVERIES_OF_DELETED },
    Retention { table: "webhook_messages", sql: retention::REMOVE_OLD_MESSAGES },
    Retention { table: "webhook_endpoints", sql: retention::REMOVE_DELETED_ENDPOINTS },
];

/// Runs until `stop`. The history of payments is kept for `keep_days`; `None` is for ever.
pub async fn run(pool: Pool, keep_days: Option<u32>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match partition(&pool, keep_days).await {
            Ok(0) => {}
            Ok(dropped) => tracing::info!("dropped {dropped} months of the payments' history"),
            Err(failure) => tracing::warn!("the partitions of the payments' history could not be rotated: {failure}"),
        }
        for retention in RETENTIONS {
            if let Err(failure) = remove(&pool, retention, &stop).await {
                tracing::warn!("old rows of {} could not be removed: {failure}", retention.table);
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn partition(pool: &Pool, keep_days: Option<u32>) -> Result<i32, Failure> {
    history::roll_partitions(&mut pool.get().await?, keep_days).await
}

async fn remove(pool: &Pool, Retention { table, sql }: &Retention, stop: &CancellationToken) -> Result<(), Failure> {
    while !stop.is_cancelled() {
        let client = pool.get().await?;
        let statement = client.prepare_cached(sql).await?;
        let removed = client.execute(&statement, &[&MAX_ROWS]).await?;
        metrics::ROWS_AGED.counter(&[("table", table)]).increment(removed);
        if i64::try_from(removed).is_ok_and(|removed| removed < MAX_ROWS) {
            break;
        }
    }
    Ok(())
}
