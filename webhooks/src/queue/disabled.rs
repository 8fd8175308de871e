//! Failing what is pending for disabled endpoints.
//!
//! It happens after the fact. Disabling an endpoint changes its row alone, however many deliveries it has, and deliveries that
//! are added meanwhile are found as well.

use deadpool_postgres::GenericClient;
use runtime::Failure;

pub const MAX_FAILED_PER_STATEMENT: i64 = 1000;

/// Fails up to [`MAX_FAILED_PER_STATEMENT`] deliveries that are pending for disabled endpoints; returns how many. A merchant
/// that enables the endpoint again can redeliver them.
///
/// # Errors
/// When the database fails.
pub async fn fail_pending(db: &impl GenericClient) -> Result<u64, Failure> {
    let statement = db
        .prepare_cached(
            // A request that enables an endpoint waits for this lock, or this statement notices it.
            "WITH disabled AS MATERIALIZED (
                 SELECT e.id FROM webhook_endpoints e WHERE NOT e.enabled AND e.deleted_at IS NULL
                     AND EXISTS (SELECT FROM webhook_deliveries d WHERE d.endpoint_id = e.id AND d.state = 'pending')
                 ORDER BY e.id FOR SHARE SKIP LOCKED
             ), pending AS MATERIALIZED (
                 SELECT d.id FROM disabled e CROSS JOIN LATERAL (
                     SELECT d.id FROM webhook_deliveries d WHERE d.endpoint_id = e.id AND d.state = 'pending'
                     ORDER BY d.endpoint_id, d.next_attempt, d.id LIMIT $1 FOR UPDATE OF d SKIP LOCKED) d
                 LIMIT $1
             )
             UPDATE webhook_deliveries d SET state = 'failed', claimed_by = NULL FROM pending p WHERE d.id = p.id",
        )
        .await?;
    Ok(db.execute(&statement, &[&MAX_FAILED_PER_STATEMENT]).await?)
}
