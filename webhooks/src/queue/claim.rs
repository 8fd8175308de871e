//! Claiming: which deliveries of which endpoints are sent next.

use super::lease::LEASE_TTL;
use crate::attempt::ClaimedDelivery;
use crate::lane::Lane;
use crate::retry_schedule::MAX_BLOCKING_FAILURES;
use crate::signature::Secret;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use tokio_postgres::Row;
use uuid::Uuid;

/// What may be claimed now.
#[derive(Debug, Clone)]
pub struct ClaimLimits<'a> {
    /// The claimant's `CTRIP_INSTANCE`.
    pub instance: &'a str,
    /// Only endpoints of this lane.
    pub lane: Lane,
    /// Endpoints that belong to the slow lane, unless they fail.
    pub slow: &'a [Uuid],
    pub max_deliveries: i64,
    /// Includes what is in flight to the endpoint.
    pub max_per_endpoint: i32,
    /// Messages in flight per endpoint.
    pub in_flight: &'a [(Uuid, i32)],
    /// Includes what is in flight to all endpoints of the merchant.
    pub max_per_merchant: i32,
    /// Messages in flight in the lane per merchant.
    pub in_flight_of_merchants: &'a [(Uuid, i32)],
}

/// Claims what is due: per endpoint the longest due first, and an event only if no earlier event of its payment blocks it. The
/// order of endpoints is random, so that none is always last, of a merchant's either: those that come first have its room.
/// Endpoints with nothing pending cost nothing.
///
/// # Errors
/// When the database fails, or holds an invalid secret.
pub async fn claim_due(db: &impl GenericClient, limits: ClaimLimits<'_>) -> Result<Vec<ClaimedDelivery>, Failure> {
    let statement = db
        .prepare_cached(
            "WITH RECURSIVE waiting AS (
                 (SELECT endpoint_id, next_attempt FROM webhook_deliveries WHERE state = 'pending'
                  ORDER BY endpoint_id, next_attempt LIMIT 1)
                 UNION ALL
                 SELECT following.* FROM waiting CROSS JOIN LATERAL (
                     SELECT endpoint_id, next_attempt FROM webhook_deliveries
                     WHERE state = 'pending' AND endpoint_id > waiting.endpoint_id
                     ORDER BY endpoint_id, next_attempt LIMIT 1) following
             ), picked AS MATERIALIZED (
                 SELECT d.id, e.merchant_id, e.url, e.secret, CASE WHEN e.old_secret_until > now() THEN e.old_secret END AS old_secret,
                     extract(epoch FROM d.next_attempt)::float8 AS due_at
                 FROM (SELECT e.*, $10::integer - coalesce(busy.count, 0)
                               + e.room - sum(e.room) OVER (PARTITION BY e.merchant_id ORDER BY random(), e.id) AS room_of_merchant
                       FROM (SELECT e.*, $5::integer - coalesce(busy.count, 0) AS room
                             FROM waiting w JOIN webhook_endpoints e ON e.id = w.endpoint_id
                                 LEFT JOIN unnest($2::uuid[], $3::integer[]) AS busy (id, count) ON busy.id = e.id
                             WHERE w.next_attempt <= now() AND e.enabled AND (e.paused_until IS NULL OR e.paused_until <= now())
                                 AND (e.resting_until IS NULL OR e.resting_until <= now())
                                 AND CASE WHEN e.failing_since IS NOT NULL THEN 'failing' WHEN e.id = ANY($9) THEN 'slow'
                                     ELSE 'well' END = $1
                                 AND $5::integer > coalesce(busy.count, 0)) e
                           LEFT JOIN unnest($11::uuid[], $12::integer[]) AS busy (id, count) ON busy.id = e.merchant_id
                       ORDER BY random()) e
                 CROSS JOIN LATERAL (
                     SELECT d.id, d.next_attempt FROM webhook_deliveries d
                     WHERE d.endpoint_id = e.id AND d.state = 'pending' AND d.next_attempt <= now()
                         AND (SELECT b.id FROM webhook_deliveries b WHERE b.endpoint_id = d.endpoint_id
                             AND b.payment_id = d.payment_id AND b.sequence < d.sequence AND b.state = 'pending' AND b.tries < $4
                             ORDER BY b.sequence LIMIT 1) IS NULL
                     ORDER BY d.next_attempt, d.id
                     LIMIT greatest(0, least(e.room, e.room_of_merchant))
                     FOR UPDATE OF d SKIP LOCKED
                 ) d
                 LIMIT $6
             )
             UPDATE webhook_deliveries d SET attempts = d.attempts + 1, claimed_by = $7,
                 next_attempt = now() + make_interval(secs => $8)
             FROM picked p WHERE d.id = p.id
             RETURNING d.id, d.endpoint_id, d.attempts, d.tries, d.event_id, p.url, p.secret, p.old_secret, d.body, p.due_at, p.merchant_id",
        )
        .await?;
    let (endpoints, counts): (Vec<Uuid>, Vec<i32>) = limits.in_flight.iter().copied().unzip();
    let (merchants, their_counts): (Vec<Uuid>, Vec<i32>) = limits.in_flight_of_merchants.iter().copied().unzip();
    let rows = db
        .query(
            &statement,
            &[
                &limits.lane.label(),
                &endpoints,
                &counts,
                &MAX_BLOCKING_FAILURES,
                &limits.max_per_endpoint,
                &limits.max_deliveries,
                &limits.instance,
                &LEASE_TTL.as_secs_f64(),
                &limits.slow,
                &limits.max_per_merchant,
                &merchants,
                &their_counts,
            ],
        )
        .await?;
    rows.iter().map(read_delivery).collect()
}

fn read_delivery(row: &Row) -> Result<ClaimedDelivery, Failure> {
    let secrets = [row.get::<_, Option<&str>>(6), row.get(7)].into_iter().flatten().map(Secret::parse);
    Ok(ClaimedDelivery {
        delivery_id: row.get(0),
        endpoint_id: row.get(1),
        merchant: row.get(10),
        attempt_number: row.get(2),
        failures: row.get(3),
        event_id: row.get(4),
        url: row.get(5),
        secrets: secrets.collect::<Result<_, _>>().map_err(Failure::halt)?,
        body: row.get(8),
        due_at: row.get(9),
    })
}
