//! Deliveries in Postgres: what is due is claimed, what came of it is settled.
//!
//! A claim is a lease. It moves `next_attempt` beyond the end of the attempt, so a delivery whose sender was killed is due
//! again by itself, and a sender that comes back under the same `CTRIP_INSTANCE` gives its own claims back at once
//! ([`release`]). Whoever needs an endpoint and its deliveries locks the endpoint first, and several of either by id, so that
//! nobody waits in a circle.
//!
//! A queue's table is planned for before anybody knows how large it will be. So what each statement looks for in it is a subquery
//! in the order of the one index that serves it: a join would be turned around, and read all that an endpoint waits for.

use crate::body;
use crate::schedule::{self, Verdict};
use crate::send::Outcome;
use crate::signature::Secret;
use deadpool_postgres::{Client, GenericClient};
use runtime::{Failure, db};
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// Failures of an event after which later events of its payment no longer wait for it.
pub const ORDER_KEPT: i32 = 3;
/// Deliveries that are ended in one statement.
pub const END_AT_ONCE: i64 = 1000;
/// Longer than any attempt with its settling.
const LEASE: Duration = Duration::from_secs(45);

/// A message to be sent now.
#[derive(Debug, Clone)]
pub struct Due {
    /// The delivery.
    pub id: i64,
    /// To whom.
    pub endpoint: Uuid,
    /// Counts the delivery's attempts from 1.
    pub number: i32,
    /// Attempts that failed before.
    pub tries: i32,
    /// `webhook-id`.
    pub event_id: String,
    /// Where to.
    pub url: String,
    /// All that are live, the newest first.
    pub secrets: Vec<Secret>,
    /// What is sent.
    pub body: String,
    /// When it could have been sent, in Unix seconds, for the delay.
    pub due_at: f64,
}

/// Kinds of endpoints, each with sockets of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// They answer, and soon.
    Well,
    /// They answer, but take their time.
    Slow,
    /// Nothing has arrived since one last failed.
    Failing,
}

impl Health {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Slow => "slow",
            Self::Failing => "failing",
        }
    }
}

/// How much may be claimed.
#[derive(Debug, Clone)]
pub struct Room<'a> {
    /// Who claims.
    pub instance: &'a str,
    /// Of which endpoints.
    pub health: Health,
    /// Those that answer slowly.
    pub slow: &'a [Uuid],
    /// At most so many.
    pub most: i64,
    /// Of one endpoint at most so many, with what is on its way to it.
    pub an_endpoint: i32,
    /// Endpoints that something is on its way to, and how much.
    pub busy: &'a [(Uuid, i32)],
}

/// Claims what is due: of each endpoint the longest due first, and of each of its payments only the first event. Endpoints come
/// in any order, so that none is always the last; those that nothing waits for are not looked at.
///
/// # Errors
/// When the database fails, or holds a secret that is none.
pub async fn claim(db: &impl GenericClient, room: Room<'_>) -> Result<Vec<Due>, Failure> {
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
                 SELECT d.id, e.url, e.secret, CASE WHEN e.old_secret_until > now() THEN e.old_secret END AS old_secret,
                     extract(epoch FROM d.next_attempt)::float8 AS due_at
                 FROM (SELECT e.* FROM waiting w JOIN webhook_endpoints e ON e.id = w.endpoint_id
                       WHERE w.next_attempt <= now() AND e.enabled AND (e.paused_until IS NULL OR e.paused_until <= now())
                           AND (e.resting_until IS NULL OR e.resting_until <= now())
                           AND CASE WHEN e.failing_since IS NOT NULL THEN 'failing' WHEN e.id = ANY($9) THEN 'slow'
                               ELSE 'well' END = $1
                       ORDER BY random()) e
                 CROSS JOIN LATERAL (
                     SELECT d.id, d.next_attempt FROM webhook_deliveries d
                     WHERE d.endpoint_id = e.id AND d.state = 'pending' AND d.next_attempt <= now()
                         AND (SELECT b.id FROM webhook_deliveries b WHERE b.endpoint_id = d.endpoint_id
                             AND b.payment_id = d.payment_id AND b.sequence < d.sequence AND b.state = 'pending' AND b.tries < $4
                             ORDER BY b.sequence LIMIT 1) IS NULL
                     ORDER BY d.next_attempt, d.id
                     LIMIT greatest(0, $5::integer - coalesce((SELECT count FROM unnest($2::uuid[], $3::integer[]) AS busy (id, count)
                         WHERE busy.id = e.id), 0))
                     FOR UPDATE OF d SKIP LOCKED
                 ) d
                 LIMIT $6
             )
             UPDATE webhook_deliveries d SET attempts = d.attempts + 1, claimed_by = $7,
                 next_attempt = now() + make_interval(secs => $8)
             FROM picked p WHERE d.id = p.id
             RETURNING d.id, d.endpoint_id, d.attempts, d.tries, d.event_id, p.url, p.secret, p.old_secret, d.body, p.due_at",
        )
        .await
        .map_err(db::failure)?;
    let (endpoints, counts): (Vec<Uuid>, Vec<i32>) = room.busy.iter().copied().unzip();
    let rows = db
        .query(
            &statement,
            &[
                &room.health.name(),
                &endpoints,
                &counts,
                &ORDER_KEPT,
                &room.an_endpoint,
                &room.most,
                &room.instance,
                &LEASE.as_secs_f64(),
                &room.slow,
            ],
        )
        .await
        .map_err(db::failure)?;
    rows.iter().map(due).collect()
}

fn due(row: &Row) -> Result<Due, Failure> {
    let secrets = [row.get::<_, Option<&str>>(6), row.get(7)].into_iter().flatten().map(Secret::parse);
    Ok(Due {
        id: row.get(0),
        endpoint: row.get(1),
        number: row.get(2),
        tries: row.get(3),
        event_id: row.get(4),
        url: row.get(5),
        secrets: secrets.collect::<Result<_, _>>().map_err(Failure::halt)?,
        body: row.get(8),
        due_at: row.get(9),
    })
}

/// Gives back what an earlier process of this instance had claimed and did not settle.
///
/// # Errors
/// When the database fails.
pub async fn release(db: &impl GenericClient, instance: &str) -> Result<u64, Failure> {
    db.execute(
        "WITH claimed AS MATERIALIZED (
             SELECT id FROM webhook_deliveries WHERE claimed_by = $1 ORDER BY id FOR UPDATE
         )
         UPDATE webhook_deliveries d SET claimed_by = NULL, next_attempt = least(next_attempt, now())
         FROM claimed c WHERE d.id = c.id",
        &[&instance],
    )
    .await
    .map_err(db::failure)
}

/// Settles attempts, all in one transaction. Returns how many endpoints it disabled.
///
/// # Errors
/// When the database fails. Nothing is settled then, and all of it is sent again.
pub async fn settle(db: &mut Client, done: &mut [(Due, Outcome, Verdict)]) -> Result<usize, Failure> {
    // A message that arrives the first time changes nothing else: most are settled without a lock on their endpoint.
    let plain = |(due, _, verdict): &(Due, Outcome, Verdict)| *verdict == Verdict::Delivered && due.number == 1;
    let all = endpoints(done.iter());
    let others = endpoints(done.iter().filter(|done| !plain(done)));
    let tx = db.transaction().await.map_err(db::failure)?;
    let lock = "SELECT id, url FROM webhook_endpoints WHERE id = ANY($1) AND (id = ANY($2) OR failing_since IS NOT NULL)
                ORDER BY id FOR NO KEY UPDATE";
    let statement = tx.prepare_cached(lock).await.map_err(db::failure)?;
    let rows = tx.query(&statement, &[&all, &others]).await.map_err(db::failure)?;
    let urls: HashMap<Uuid, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (due, _, verdict) in done.iter_mut() {
        // Who wants nothing any more is a former server. The one of now has not been asked.
        if *verdict == Verdict::Gone && urls.get(&due.endpoint).is_some_and(|url| *url != due.url) {
            *verdict = Verdict::Again(Duration::ZERO);
        }
    }
    write(&tx, done).await?;
    let tried: Vec<i64> = done.iter().filter(|done| !plain(done)).map(|(due, ..)| due.id).collect();
    if !tried.is_empty() {
        put_off_followers(&tx, &tried).await?;
    }
    let disabled = judge_endpoints(&tx, done, &urls).await?;
    tx.commit().await.map_err(db::failure)?;
    Ok(disabled)
}

fn endpoints<'a>(done: impl Iterator<Item = &'a (Due, Outcome, Verdict)>) -> Vec<Uuid> {
    let mut endpoints: Vec<Uuid> = done.map(|(due, ..)| due.endpoint).collect();
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints
}

/// Later events of a payment wait as long as the one before them, and no longer. They could not be claimed anyway: but a claim
/// would pass over all of them each time.
async fn put_off_followers(db: &impl GenericClient, tried: &[i64]) -> Result<(), Failure> {
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
                     -- Whoever has one of them locked sends it, or makes it due.
                     FOR UPDATE SKIP LOCKED) f
             )
             UPDATE webhook_deliveries d SET next_attempt = f.until FROM followers f WHERE d.id = f.id",
        )
        .await
        .map_err(db::failure)?;
    db.execute(&statement, &[&tried, &ORDER_KEPT]).await.map_err(db::failure)?;
    Ok(())
}

/// Attempts and deliveries; of those that were removed meanwhile nothing is written.
async fn write(db: &impl GenericClient, done: &[(Due, Outcome, Verdict)]) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "WITH done AS MATERIALIZED (
                 SELECT t.* FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::integer[], $5::text[], $6::text[],
                     $7::text[], $8::float8[]) AS t (id, number, took_ms, status, error, reply, state, delay)
                 JOIN webhook_deliveries d ON d.id = t.id ORDER BY d.id FOR UPDATE OF d
             ), told AS (
                 INSERT INTO webhook_attempts (delivery_id, number, took_ms, status, error, reply)
                 SELECT id, number, took_ms, status, error, reply FROM done ON CONFLICT DO NOTHING
             )
             UPDATE webhook_deliveries d SET state = t.state, claimed_by = NULL,
                 tries = CASE WHEN t.state = 'delivered' THEN d.tries ELSE d.tries + 1 END,
                 next_attempt = CASE WHEN t.state = 'pending' THEN now() + make_interval(secs => t.delay) ELSE d.next_attempt END,
                 delivered_at = CASE WHEN t.state = 'delivered' THEN now() END
             FROM done t
             -- It arrived, whoever holds the delivery by now; a failure counts only if nobody tries again already.
             WHERE d.id = t.id AND CASE WHEN t.state = 'delivered' THEN d.state <> 'delivered'
                 ELSE d.state = 'pending' AND d.attempts = t.number END",
        )
        .await
        .map_err(db::failure)?;
    let state = |verdict: &Verdict| match verdict {
        Verdict::Delivered => "delivered",
        Verdict::Again(_) => "pending",
        Verdict::Failed | Verdict::Gone => "failed",
    };
    let delay = |verdict: &Verdict| match verdict {
        Verdict::Again(delay) => delay.as_secs_f64(),
        Verdict::Delivered | Verdict::Failed | Verdict::Gone => 0.0,
    };
    db.execute(
        &statement,
        &[
            &done.iter().map(|(due, ..)| due.id).collect::<Vec<_>>(),
            &done.iter().map(|(due, ..)| due.number).collect::<Vec<_>>(),
            &done.iter().map(|(_, o, _)| i32::try_from(o.took.as_millis()).unwrap_or(i32::MAX)).collect::<Vec<_>>(),
            &done.iter().map(|(_, o, _)| o.answer.status.map(i32::from)).collect::<Vec<_>>(),
            &done.iter().map(|(_, o, _)| o.error.as_deref()).collect::<Vec<_>>(),
            &done.iter().map(|(_, o, _)| o.reply.as_str()).collect::<Vec<_>>(),
            &done.iter().map(|(.., verdict)| state(verdict)).collect::<Vec<_>>(),
            &done.iter().map(|(.., verdict)| delay(verdict)).collect::<Vec<_>>(),
        ],
    )
    .await
    .map_err(db::failure)?;
    Ok(())
}

/// Health of the endpoints, which are locked: one success makes an endpoint healthy, and one that has had none for too long is
/// disabled. What a former server answered tells nothing of it.
async fn judge_endpoints(
    db: &impl GenericClient,
    done: &[(Due, Outcome, Verdict)],
    urls: &HashMap<Uuid, String>,
) -> Result<usize, Failure> {
    let (mut endpoints, mut healthy, mut gone, mut peace) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (endpoint, url) in urls {
        let of: Vec<_> = done.iter().filter(|(due, ..)| due.endpoint == *endpoint && due.url == *url).collect();
        if of.is_empty() {
            continue;
        }
        endpoints.push(*endpoint);
        healthy.push(of.iter().any(|(.., verdict)| *verdict == Verdict::Delivered));
        gone.push(of.iter().any(|(.., verdict)| *verdict == Verdict::Gone));
        let longest = of.iter().filter_map(|(_, outcome, _)| schedule::peace(outcome.answer)).max();
        peace.push(longest.map(|peace| peace.as_secs_f64()));
    }
    if endpoints.is_empty() {
        return Ok(0);
    }
    let statement = db
        .prepare_cached(
            "UPDATE webhook_endpoints e SET
                 failing_since = CASE WHEN t.healthy THEN NULL ELSE coalesce(e.failing_since, now()) END,
                 paused_until = greatest(e.paused_until, now() + make_interval(secs => t.peace)),
                 resting_until = CASE WHEN NOT t.healthy THEN
                     now() + least(coalesce(now() - e.failing_since, interval '0') * $4, make_interval(secs => $5)) END
             FROM unnest($1::uuid[], $2::boolean[], $3::float8[]) AS t (id, healthy, peace)
             WHERE e.id = t.id AND (t.peace IS NOT NULL OR NOT t.healthy OR e.failing_since IS NOT NULL)",
        )
        .await
        .map_err(db::failure)?;
    let longest = schedule::LONGEST_REST.as_secs_f64();
    let values: [&(dyn ToSql + Sync); 5] = [&endpoints, &healthy, &peace, &schedule::REST, &longest];
    db.execute(&statement, &values).await.map_err(db::failure)?;
    if healthy.iter().all(|healthy| *healthy) && !gone.contains(&true) {
        return Ok(0);
    }
    let statement = db
        .prepare_cached(
            "UPDATE webhook_endpoints e SET enabled = false, disabled_at = now(),
                 disabled_reason = CASE WHEN t.gone THEN 'gone' ELSE 'failing' END
             FROM unnest($1::uuid[], $2::boolean[]) AS t (id, gone)
             WHERE e.id = t.id AND e.enabled AND (t.gone OR e.failing_since <= now() - make_interval(secs => $3))
             RETURNING e.id, e.merchant_id, e.disabled_reason",
        )
        .await
        .map_err(db::failure)?;
    let after = schedule::DISABLE_AFTER.as_secs_f64();
    let rows = db.query(&statement, &[&endpoints, &gone, &after]).await.map_err(db::failure)?;
    for row in &rows {
        disabled(db, row.get(0), row.get(1), row.get(2)).await?;
    }
    Ok(rows.len())
}

/// The merchant's other endpoints are told.
async fn disabled(db: &impl GenericClient, endpoint: Uuid, merchant: Uuid, reason: &str) -> Result<(), Failure> {
    tracing::warn!(%endpoint, "a webhook endpoint is disabled: {reason}");
    let data = serde_json::json!({ "webhook_id": endpoint, "reason": reason });
    let body = body::of_service("webhook.disabled", now(), &data).map_err(Failure::halt)?;
    let id = format!("evt_{}_0", Uuid::now_v7().simple());
    db.execute(
        "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, body, state)
         SELECT id, $2::text, 'webhook.disabled', $3::text, 'pending' FROM webhook_endpoints
         WHERE merchant_id = $1 AND enabled AND (events = '{}' OR events && '{webhook.disabled,webhook.*}')",
        &[&merchant, &id, &body],
    )
    .await
    .map_err(db::failure)?;
    Ok(())
}

/// Ends some of what is pending for endpoints that are disabled; gives how many. Whoever enables one again asks for what failed.
/// It comes after the fact, so whoever disables an endpoint has only it to change, and it does not matter who adds what meanwhile.
///
/// # Errors
/// When the database fails.
pub async fn end(db: &impl GenericClient) -> Result<u64, Failure> {
    let statement = db
        .prepare_cached(
            // Whoever enables one waits for this, or is seen.
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
        .await
        .map_err(db::failure)?;
    db.execute(&statement, &[&END_AT_ONCE]).await.map_err(db::failure)
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
