//! Settling: attempts, what they mean for their deliveries, and what for their endpoints, in one transaction.

use super::endpoint_health::update_endpoints;
use super::lease::LEASE_TTL;
use super::payment_order::postpone_later_events;
use crate::attempt::{FinishedAttempt, Verdict};
use deadpool_postgres::{Client, GenericClient};
use runtime::Failure;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use uuid::Uuid;

/// Of a delivery, with which the list shows them. One may be sent again as often as its merchant likes.
pub const MAX_KEPT_ATTEMPTS: i32 = 10;

/// What [`settle`] did.
pub struct Settled {
    pub attempts: Vec<FinishedAttempt>,
    /// How many endpoints it disabled.
    pub disabled: usize,
}

/// Settles attempts and takes them out of the vector. Those stay whose endpoint or delivery another transaction has locked, for
/// however long.
///
/// # Errors
/// When the database fails. Nothing is settled then, and all of them are sent again.
pub async fn settle(db: &mut Client, finished: &mut Vec<FinishedAttempt>) -> Result<Settled, Failure> {
    let tx = db.transaction().await?;
    let urls = lock_endpoints(&tx, finished).await?;
    let is_locked = |attempt: &FinishedAttempt| urls.get(&attempt.delivery.endpoint_id).is_some_and(Option::is_none);
    let (locked, mut attempts): (Vec<_>, Vec<_>) = std::mem::take(finished).into_iter().partition(is_locked);
    *finished = locked;
    let urls: HashMap<Uuid, String> = urls.into_iter().filter_map(|(id, url)| Some((id, url?))).collect();
    for FinishedAttempt { delivery, verdict, .. } in &mut attempts {
        // The 410 is of the endpoint's former URL. The current one has not been asked.
        if *verdict == Verdict::Gone && urls.get(&delivery.endpoint_id).is_some_and(|url| *url != delivery.url) {
            *verdict = Verdict::Retry(Duration::ZERO);
        }
    }
    let locked = record_attempts(&tx, &attempts).await?;
    let is_locked = |attempt: &FinishedAttempt| locked.contains(&attempt.delivery.delivery_id);
    let (locked, attempts): (Vec<_>, Vec<_>) = attempts.into_iter().partition(is_locked);
    finished.extend(locked);
    keep_leases(&tx, finished).await?;
    let attempted: Vec<i64> =
        attempts.iter().filter(|attempt| !is_plain(attempt)).map(|attempt| attempt.delivery.delivery_id).collect();
    if !attempted.is_empty() {
        postpone_later_events(&tx, &attempted).await?;
    }
    let disabled = update_endpoints(&tx, &attempts, &urls).await?;
    tx.commit().await?;
    Ok(Settled { attempts, disabled })
}

/// A success at the first attempt changes nothing but its delivery, so most are settled without a lock on their endpoint.
fn is_plain(attempt: &FinishedAttempt) -> bool {
    attempt.verdict == Verdict::Delivered && attempt.delivery.attempt_number == 1
}

/// Locks the endpoints that the attempts change, and returns their URLs; `None` for one that another transaction has locked.
async fn lock_endpoints(
    db: &impl GenericClient,
    attempts: &[FinishedAttempt],
) -> Result<HashMap<Uuid, Option<String>>, Failure> {
    let all = endpoints(attempts.iter());
    let others = endpoints(attempts.iter().filter(|attempt| !is_plain(attempt)));
    let statement = db
        .prepare_cached(
            "WITH changed AS MATERIALIZED (
                 SELECT id FROM webhook_endpoints WHERE id = ANY($1) AND (id = ANY($2) OR failing_since IS NOT NULL)
             ), locked AS MATERIALIZED (
                 SELECT id, url FROM webhook_endpoints WHERE id IN (SELECT id FROM changed)
                 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
             )
             SELECT c.id, l.url FROM changed c LEFT JOIN locked l ON l.id = c.id",
        )
        .await?;
    let rows = db.query(&statement, &[&all, &others]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn endpoints<'a>(attempts: impl Iterator<Item = &'a FinishedAttempt>) -> Vec<Uuid> {
    let mut endpoints: Vec<Uuid> = attempts.map(|attempt| attempt.delivery.endpoint_id).collect();
    endpoints.sort_unstable();
    endpoints.dedup();
    endpoints
}

/// Keeps deliveries claimed that can't be settled yet, so that they are not sent once more.
async fn keep_leases(db: &impl GenericClient, attempts: &[FinishedAttempt]) -> Result<(), Failure> {
    if attempts.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "WITH kept AS MATERIALIZED (
                 SELECT d.id FROM unnest($1::bigint[], $2::integer[]) AS t (id, number) JOIN webhook_deliveries d ON d.id = t.id
                 WHERE d.state = 'pending' AND d.attempts = t.number AND d.claimed_by IS NOT NULL
                     AND d.next_attempt < now() + make_interval(secs => $3::float8 / 2)
                 ORDER BY d.id FOR UPDATE OF d SKIP LOCKED
             )
             UPDATE webhook_deliveries d SET next_attempt = now() + make_interval(secs => $3) FROM kept k WHERE d.id = k.id",
        )
        .await?;
    let ids: Vec<i64> = attempts.iter().map(|attempt| attempt.delivery.delivery_id).collect();
    let numbers: Vec<i32> = attempts.iter().map(|attempt| attempt.delivery.attempt_number).collect();
    db.execute(&statement, &[&ids, &numbers, &LEASE_TTL.as_secs_f64()]).await?;
    Ok(())
}

/// Writes attempts and the states of their deliveries; nothing for deliveries that were removed meanwhile. Returns the
/// deliveries that another transaction has locked, of which nothing is written.
async fn record_attempts(db: &impl GenericClient, attempts: &[FinishedAttempt]) -> Result<HashSet<i64>, Failure> {
    let statement = db
        .prepare_cached(
            "WITH done AS MATERIALIZED (
                 SELECT t.* FROM unnest($1::bigint[], $2::integer[], $3::integer[], $4::integer[], $5::text[], $6::text[],
                     $7::text[], $8::float8[]) AS t (id, number, took_ms, status, error, reply, state, delay)
                 JOIN webhook_deliveries d ON d.id = t.id ORDER BY d.id FOR UPDATE OF d SKIP LOCKED
             ), recorded AS (
                 INSERT INTO webhook_attempts (delivery_id, number, took_ms, status, error, reply)
                 SELECT id, number, took_ms, status, error, reply FROM done ON CONFLICT DO NOTHING
             ), old AS MATERIALIZED (
                 SELECT o.* FROM done t CROSS JOIN LATERAL (
                     SELECT a.delivery_id, a.number FROM webhook_attempts a
                     WHERE a.delivery_id = t.id AND a.number <= t.number - $9::integer
                     ORDER BY a.delivery_id, a.number LIMIT $9::integer) o
                 WHERE t.number > $9::integer
             ), forgotten AS (
                 DELETE FROM webhook_attempts a USING old o WHERE a.delivery_id = o.delivery_id AND a.number = o.number
             ), settled AS (
                 UPDATE webhook_deliveries d SET state = t.state, claimed_by = NULL,
                     tries = CASE WHEN t.state = 'delivered' THEN d.tries ELSE d.tries + 1 END,
                     next_attempt = CASE WHEN t.state = 'pending' THEN now() + make_interval(secs => t.delay) ELSE d.next_attempt END,
                     delivered_at = CASE WHEN t.state = 'delivered' THEN now() END
                 FROM done t
                 -- A success counts even if another instance holds the claim by now; a failure only if no later attempt has
                 -- begun.
                 WHERE d.id = t.id AND CASE WHEN t.state = 'delivered' THEN d.state <> 'delivered'
                     ELSE d.state = 'pending' AND d.attempts = t.number
                         AND NOT EXISTS (SELECT FROM done o WHERE o.id = t.id AND o.state = 'delivered') END
             )
             SELECT t.id FROM unnest($1::bigint[]) AS t (id) JOIN webhook_deliveries d ON d.id = t.id
             WHERE t.id NOT IN (SELECT id FROM done)",
        )
        .await?;
    let state = |verdict: Verdict| match verdict {
        Verdict::Delivered => "delivered",
        Verdict::Retry(_) => "pending",
        Verdict::Failed | Verdict::Gone => "failed",
    };
    let delay = |verdict: Verdict| match verdict {
        Verdict::Retry(delay) => delay.as_secs_f64(),
        Verdict::Delivered | Verdict::Failed | Verdict::Gone => 0.0,
    };
    let rows = db
        .query(
            &statement,
            &[
                &attempts.iter().map(|a| a.delivery.delivery_id).collect::<Vec<_>>(),
                &attempts.iter().map(|a| a.delivery.attempt_number).collect::<Vec<_>>(),
                &attempts.iter().map(|a| i32::try_from(a.outcome.latency.as_millis()).unwrap_or(i32::MAX)).collect::<Vec<_>>(),
                &attempts.iter().map(|a| a.outcome.head.status.map(i32::from)).collect::<Vec<_>>(),
                &attempts.iter().map(|a| a.outcome.error.as_deref()).collect::<Vec<_>>(),
                &attempts.iter().map(|a| a.outcome.reply.as_str()).collect::<Vec<_>>(),
                &attempts.iter().map(|a| state(a.verdict)).collect::<Vec<_>>(),
                &attempts.iter().map(|a| delay(a.verdict)).collect::<Vec<_>>(),
                &MAX_KEPT_ATTEMPTS,
            ],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
