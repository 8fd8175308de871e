//! Claiming: which deliveries of which endpoints are sent next.

use super::lease::LEASE_TTL;
use crate::attempt::ClaimedDelivery;
use crate::lane::Lane;
use crate::retry_schedule::MAX_BLOCKING_FAILURES;
use crate::signature::Secret;
use bytes::Bytes;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

/// Of what is due for an endpoint, how many a claim looks at. Of a payment with thousands of events all but one wait, and to
/// look at them all would delay everybody. Those that have waited for long are put behind others ([`super::put_behind()`]).
pub(super) const MAX_LOOKED_AT: i64 = 256;
/// Why an attempt fails that can't be begun, for the merchant to read.
const NO_MESSAGE: &str = "cTrip does not have this message any more";
const BAD_SECRET: &str = "the secret of this webhook can't be read: POST /api/v1/webhooks/{id}/rotate makes another";

/// What may be claimed now.
#[derive(Debug, Clone)]
pub struct ClaimLimits<'a> {
    /// The claimant's `CTRIP_INSTANCE`.
    pub instance: &'a str,
    /// Only endpoints of this lane.
    pub lane: Lane,
    /// Endpoints that may have something due, and before when they have nothing pending, as in [`super::pending`].
    pub fronts: &'a [(Uuid, OffsetDateTime)],
    /// Endpoints that belong to the slow lane, unless they fail.
    pub slow: &'a [Uuid],
    pub max_deliveries: i64,
    /// Of bodies. The last body may exceed it, so that none is too large.
    pub max_bytes: i64,
    /// Includes what is in flight to the endpoint.
    pub max_per_endpoint: i32,
    /// Messages in flight per endpoint.
    pub in_flight: &'a [(Uuid, i32)],
    /// Includes what is in flight to all endpoints of the merchant.
    pub max_per_merchant: i32,
    /// Of bodies; includes what is in flight, and the last one may exceed it.
    pub max_bytes_per_merchant: i64,
    /// What is in flight in the lane, per merchant.
    pub in_flight_of_merchants: &'a [MerchantLoad],
}

/// What a merchant has in flight in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MerchantLoad {
    pub merchant: Uuid,
    pub messages: i32,
    /// Of bodies.
    pub bytes: i64,
}

/// Claims what is due: per endpoint the longest due first, and in place of an event the one of its payment that blocks it, if
/// that is due as well: it may stand behind all that are looked at. The order of endpoints is random, so that none is always last, of
/// a merchant's either: those that come first have its room. Endpoints with nothing pending cost nothing, nor does what was sent before.
///
/// # Errors
/// When the database fails.
pub async fn claim_due(db: &impl GenericClient, limits: ClaimLimits<'_>) -> Result<Vec<ClaimedDelivery>, Failure> {
    let statement = db
        .prepare_cached(
            "WITH waiting AS MATERIALIZED (
                 SELECT f.id, f.since FROM unnest($13::uuid[], $14::timestamptz[]) AS f (id, since)
                 WHERE (SELECT d.id FROM webhook_deliveries d WHERE d.endpoint_id = f.id AND d.state = 'pending'
                     AND d.next_attempt >= f.since AND d.next_attempt <= now() ORDER BY d.next_attempt LIMIT 1) IS NOT NULL
             ), found AS MATERIALIZED (
                 SELECT d.id, e.merchant_id, e.url, e.secret, CASE WHEN e.old_secret_until > now() THEN e.old_secret END AS old_secret,
                     extract(epoch FROM d.next_attempt)::float8 AS due_at, e.bytes_of_merchant,
                     coalesce((SELECT octet_length(m.body) FROM webhook_messages m
                         WHERE m.event_id = d.event_id AND m.merchant_id = e.merchant_id), 0) AS bytes
                 FROM (SELECT e.*, $10::integer - coalesce(busy.count, 0)
                               + e.room - sum(e.room) OVER (PARTITION BY e.merchant_id ORDER BY random(), e.id) AS room_of_merchant,
                           $16::bigint - coalesce(busy.bytes, 0) AS bytes_of_merchant
                       FROM (SELECT e.*, w.since, $5::integer - coalesce(busy.count, 0) AS room
                             FROM waiting w JOIN webhook_endpoints e ON e.id = w.id
                                 LEFT JOIN unnest($2::uuid[], $3::integer[]) AS busy (id, count) ON busy.id = e.id
                             WHERE e.enabled AND (e.paused_until IS NULL OR e.paused_until <= now())
                                 AND (e.resting_until IS NULL OR e.resting_until <= now())
                                 AND CASE WHEN e.failing_since IS NOT NULL THEN 'failing' WHEN e.id = ANY($9) THEN 'slow'
                                     ELSE 'well' END = $1
                                 AND $5::integer > coalesce(busy.count, 0)) e
                           LEFT JOIN unnest($11::uuid[], $12::integer[], $17::bigint[]) AS busy (id, count, bytes)
                               ON busy.id = e.merchant_id
                       -- Else what of it is found would leave no place for others.
                       WHERE $16::bigint > coalesce(busy.bytes, 0)
                       ORDER BY random()) e
                 CROSS JOIN LATERAL (
                     SELECT coalesce(b.id, w.id) AS id FROM (
                         SELECT d.id, d.endpoint_id, d.payment_id, d.sequence, d.next_attempt FROM webhook_deliveries d
                         WHERE d.endpoint_id = e.id AND d.state = 'pending' AND d.next_attempt >= e.since AND d.next_attempt <= now()
                         ORDER BY d.next_attempt, d.id LIMIT $18) w
                     LEFT JOIN LATERAL (
                         SELECT b.id, b.next_attempt FROM webhook_deliveries b WHERE b.endpoint_id = w.endpoint_id
                             AND b.payment_id = w.payment_id AND b.sequence < w.sequence AND b.state = 'pending' AND b.tries < $4
                         ORDER BY b.sequence LIMIT 1) b ON true
                     WHERE b.id IS NULL OR b.next_attempt <= now()
                     GROUP BY 1
                     ORDER BY min(w.next_attempt), 1
                     LIMIT greatest(0, least(e.room, e.room_of_merchant))
                 ) w
                 CROSS JOIN LATERAL (
                     SELECT d.id, d.event_id, d.next_attempt FROM webhook_deliveries d
                     WHERE d.id = w.id AND d.state = 'pending' AND d.next_attempt <= now() FOR UPDATE OF d SKIP LOCKED
                 ) d
                 LIMIT $6
             ), placed AS (
                 SELECT f.*, row_number() OVER () AS place FROM found f
             ), of_merchants AS (
                 SELECT p.*, sum(p.bytes) OVER (PARTITION BY p.merchant_id ORDER BY p.place) - p.bytes AS merchant_before
                 FROM placed p
             ), picked AS MATERIALIZED (
                 SELECT p.* FROM (SELECT p.*, sum(p.bytes) OVER (ORDER BY p.place) - p.bytes AS all_before
                     FROM of_merchants p WHERE p.merchant_before < p.bytes_of_merchant) p
                 WHERE p.all_before < $15::bigint
             )
             UPDATE webhook_deliveries d SET attempts = d.attempts + 1, claimed_by = $7,
                 next_attempt = now() + make_interval(secs => $8)
             FROM picked p WHERE d.id = p.id
             RETURNING d.id, d.endpoint_id, d.attempts, d.tries, d.event_id, p.url, p.secret, p.old_secret,
                 (SELECT m.body FROM webhook_messages m WHERE m.event_id = d.event_id AND m.merchant_id = p.merchant_id),
                 p.due_at, p.merchant_id",
        )
        .await?;
    let (endpoints, counts): (Vec<Uuid>, Vec<i32>) = limits.in_flight.iter().copied().unzip();
    let (fronts, since): (Vec<Uuid>, Vec<OffsetDateTime>) = limits.fronts.iter().copied().unzip();
    let of_merchants = limits.in_flight_of_merchants;
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
                &of_merchants.iter().map(|load| load.merchant).collect::<Vec<_>>(),
                &of_merchants.iter().map(|load| load.messages).collect::<Vec<_>>(),
                &fronts,
                &since,
                &limits.max_bytes,
                &limits.max_bytes_per_merchant,
                &of_merchants.iter().map(|load| load.bytes).collect::<Vec<_>>(),
                &MAX_LOOKED_AT,
            ],
        )
        .await?;
    Ok(rows.iter().map(read_delivery).collect())
}

fn read_delivery(row: &Row) -> ClaimedDelivery {
    let (secret, body) = (Secret::parse(row.get(6)), row.get::<_, Option<String>>(8));
    let unsendable = match (&secret, &body) {
        (_, None) => Some(NO_MESSAGE),
        (Err(_), _) => Some(BAD_SECRET),
        (Ok(_), Some(_)) => None,
    };
    // The former one signs beside the other, and is missed by nobody in a day.
    let old_secret = row.get::<_, Option<&str>>(7).and_then(|secret| Secret::parse(secret).ok());
    ClaimedDelivery {
        delivery_id: row.get(0),
        endpoint_id: row.get(1),
        merchant: row.get(10),
        attempt_number: row.get(2),
        failures: row.get(3),
        event_id: row.get(4),
        url: row.get(5),
        secrets: secret.ok().into_iter().chain(old_secret).collect(),
        body: Bytes::from(body.unwrap_or_default()),
        unsendable,
        due_at: row.get(9),
    }
}
