//! Events of a payment are sent in order: later ones wait for the one that failed.

use crate::retry_schedule::MAX_BLOCKING_FAILURES;
use deadpool_postgres::GenericClient;
use runtime::Failure;

/// Makes later events of a payment wait exactly as long as the event that was attempted. A claim would not take them before it
/// in any case, but would pass over all of them each time.
pub async fn postpone_later_events(db: &impl GenericClient, attempted: &[i64]) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "WITH followers AS MATERIALIZED (
                 SELECT f.id, d.until
                 FROM (SELECT endpoint_id, payment_id, sequence,
                           CASE WHEN state = 'pending' AND tries < $2 THEN next_attempt ELSE now() END AS until
                       FROM webhook_deliveries WHERE id = ANY($1)) d
                 CROSS JOIN LATERAL (
                     SELECT f.id FROM webhook_deliveries f
                     WHERE f.endpoint_id = d.endpoint_id AND f.payment_id = d.payment_id AND f.sequence > d.sequence
                         AND f.state = 'pending' AND f.tries = 0 AND f.claimed_by IS NULL
                         AND CASE WHEN d.until > now() THEN f.next_attempt < d.until ELSE f.next_attempt > now() END
                     ORDER BY f.endpoint_id, f.payment_id, f.sequence
                     -- A transaction that has one of them locked sends it, or makes it due.
                     FOR UPDATE SKIP LOCKED) f
             )
             UPDATE webhook_deliveries d SET next_attempt = f.until FROM followers f WHERE d.id = f.id",
        )
        .await?;
    db.execute(&statement, &[&attempted, &MAX_BLOCKING_FAILURES]).await?;
    Ok(())
}
