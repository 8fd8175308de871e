//! What ages is removed, by each instance of the API: every task is safe to run twice, and at the same time elsewhere.

use confirmer::history;
use deadpool_postgres::Pool;
use runtime::{Failure, db, metrics};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_secs(60);
/// Rows a statement: short locks, and a vacuum that keeps up.
const AT_ONCE: i64 = 1000;

/// Rows that are removed when they have an age. Rows that another instance is removing are skipped.
struct Aging {
    table: &'static str,
    /// Removes at most $1 rows.
    sql: &'static str,
}

const AGING: &[Aging] = &[
    Aging {
        table: "idempotency_keys",
        sql: "DELETE FROM idempotency_keys WHERE (merchant_id, key) IN (
                  SELECT merchant_id, key FROM idempotency_keys WHERE created_at < now() - interval '24 hours'
                  ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
    },
    Aging {
        table: "webhook_deliveries",
        sql: "DELETE FROM webhook_deliveries WHERE id IN (
                  SELECT id FROM webhook_deliveries WHERE state <> 'pending' AND created_at < now() - interval '90 days'
                  ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
    },
    Aging {
        table: "webhook_deliveries",
        sql: "DELETE FROM webhook_deliveries WHERE id IN (
                  SELECT d.id FROM webhook_endpoints e CROSS JOIN LATERAL (
                      SELECT d.id FROM webhook_deliveries d WHERE d.endpoint_id = e.id
                      ORDER BY d.endpoint_id, d.id LIMIT $1 FOR UPDATE SKIP LOCKED) d
                  WHERE NOT e.enabled AND e.deleted_at IS NOT NULL LIMIT $1)",
    },
    // An hour: whoever has seen it before it was deleted may still add a delivery.
    Aging {
        table: "webhook_endpoints",
        sql: "DELETE FROM webhook_endpoints WHERE id IN (
                  SELECT e.id FROM webhook_endpoints e WHERE NOT e.enabled AND e.deleted_at < now() - interval '1 hour'
                      AND NOT EXISTS (SELECT FROM webhook_deliveries d WHERE d.endpoint_id = e.id)
                  LIMIT $1 FOR UPDATE SKIP LOCKED)",
    },
];

/// Runs until `stop`. The history of payments is kept for `keep_days`, or for ever.
pub async fn run(pool: Pool, keep_days: Option<u32>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        match partition(&pool, keep_days).await {
            Ok(0) => {}
            Ok(dropped) => tracing::info!("dropped {dropped} months of the payments' history"),
            Err(failure) => tracing::warn!("the partitions of the payments' history: {failure}"),
        }
        for aging in AGING {
            if let Err(failure) = remove(&pool, aging, &stop).await {
                tracing::warn!("removing old rows of {}: {failure}", aging.table);
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

async fn partition(pool: &Pool, keep_days: Option<u32>) -> Result<i32, Failure> {
    history::partition(&mut pool.get().await.map_err(db::unavailable)?, keep_days).await
}

async fn remove(pool: &Pool, Aging { table, sql }: &Aging, stop: &CancellationToken) -> Result<(), Failure> {
    while !stop.is_cancelled() {
        // A connection for each statement: requests come first.
        let client = pool.get().await.map_err(db::unavailable)?;
        let statement = client.prepare_cached(sql).await.map_err(db::failure)?;
        let removed = client.execute(&statement, &[&AT_ONCE]).await.map_err(db::failure)?;
        metrics::ROWS_AGED.counter(&[("table", table)]).increment(removed);
        if i64::try_from(removed).is_ok_and(|removed| removed < AT_ONCE) {
            break;
        }
    }
    Ok(())
}
