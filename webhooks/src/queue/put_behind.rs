//! Putting what waits for an earlier event of its payment behind what does not.
//!
//! A claim looks at a bounded number of what is due for an endpoint. If all of these wait for events that are on their way, or
//! that are sent again later, it would find nothing of other payments.

use super::claim::MAX_LOOKED_AT;
use crate::retry_schedule::MAX_BLOCKING_FAILURES;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

/// Per endpoint and statement.
const MAX_PUT_BEHIND: i64 = 2048;
/// What has been due for less is left where it is, so that none is moved at each turn.
const MIN_DUE: Duration = Duration::from_secs(5);
/// It may wait for an event that is sent again later, but no longer than this: by then that may be sent already.
const MAX_POSTPONED: Duration = Duration::from_secs(60);

/// Of the endpoints that have more due than a claim looks at, puts those behind that wait for an earlier event of their
/// payment: behind all that is due now, or to when the earlier one is sent again. Returns how many.
///
/// # Errors
/// When the database fails.
pub async fn put_behind(db: &impl GenericClient, fronts: &[(Uuid, OffsetDateTime)]) -> Result<u64, Failure> {
    let statement = db
        .prepare_cached(
            "WITH full_ones AS MATERIALIZED (
                 SELECT f.id, f.since FROM unnest($1::uuid[], $2::timestamptz[]) AS f (id, since)
                 WHERE (SELECT d.id FROM webhook_deliveries d WHERE d.endpoint_id = f.id AND d.state = 'pending'
                     AND d.next_attempt >= f.since AND d.next_attempt < now() - make_interval(secs => $3)
                     ORDER BY d.next_attempt, d.id OFFSET $4::bigint - 1 LIMIT 1) IS NOT NULL
             ), waiting AS MATERIALIZED (
                 SELECT w.id, b.until FROM full_ones f CROSS JOIN LATERAL (
                     SELECT d.id, d.endpoint_id, d.payment_id, d.sequence FROM webhook_deliveries d
                     WHERE d.endpoint_id = f.id AND d.state = 'pending' AND d.next_attempt >= f.since
                         AND d.next_attempt < now() - make_interval(secs => $3)
                     ORDER BY d.next_attempt, d.id LIMIT $5) w
                 CROSS JOIN LATERAL (
                     SELECT CASE WHEN b.claimed_by IS NULL
                         THEN least(b.next_attempt, now() + make_interval(secs => $6)) END AS until
                     FROM webhook_deliveries b WHERE b.endpoint_id = w.endpoint_id
                         AND b.payment_id = w.payment_id AND b.sequence < w.sequence AND b.state = 'pending' AND b.tries < $7
                     ORDER BY b.sequence LIMIT 1) b
             ), locked AS MATERIALIZED (
                 SELECT d.id, w.until FROM waiting w CROSS JOIN LATERAL (
                     SELECT d.id FROM webhook_deliveries d WHERE d.id = w.id AND d.state = 'pending' AND d.claimed_by IS NULL
                         AND d.next_attempt < now() - make_interval(secs => $3) FOR UPDATE OF d SKIP LOCKED) d
             )
             UPDATE webhook_deliveries d SET next_attempt = greatest(now(), l.until) FROM locked l WHERE d.id = l.id",
        )
        .await?;
    let (ids, since): (Vec<Uuid>, Vec<OffsetDateTime>) = fronts.iter().copied().unzip();
    let put = db
        .execute(
            &statement,
            &[
                &ids,
                &since,
                &MIN_DUE.as_secs_f64(),
                &MAX_LOOKED_AT,
                &MAX_PUT_BEHIND,
                &MAX_POSTPONED.as_secs_f64(),
                &MAX_BLOCKING_FAILURES,
            ],
        )
        .await?;
    Ok(put)
}
