//! Leases: how long a claim holds, and how a restarted instance releases its own.

use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::time::Duration;

/// Longer than any attempt and its settling.
pub const LEASE_TTL: Duration = Duration::from_secs(45);

/// Releases what an earlier process of this instance claimed and did not settle; returns how many. One that another
/// transaction has locked, for however long, is due when its lease ends.
///
/// # Errors
/// When the database fails.
pub async fn release_claims(db: &impl GenericClient, instance: &str) -> Result<u64, Failure> {
    let sql = "WITH claimed AS MATERIALIZED (
                   SELECT id FROM webhook_deliveries WHERE claimed_by = $1 ORDER BY id FOR UPDATE SKIP LOCKED
               )
               UPDATE webhook_deliveries d SET claimed_by = NULL, next_attempt = least(next_attempt, now())
               FROM claimed c WHERE d.id = c.id";
    Ok(db.execute(sql, &[&instance]).await?)
}
