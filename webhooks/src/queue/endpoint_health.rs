//! What attempts mean for their endpoints: healthy, failing and backed off, paused by `Retry-After`, or disabled, and what
//! the merchant's other webhooks are told of that.

use crate::attempt::{FinishedAttempt, Verdict};
use crate::retry_schedule;
use crate::service_event::ServiceEvent;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::collections::HashMap;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// Updates endpoints, whose rows the caller has locked; returns how many it disabled. One success makes an endpoint healthy;
/// one that fails whenever it is asked, for [`retry_schedule::DISABLE_AFTER`], is disabled. `urls` are the current ones: responses of
/// a former URL don't count.
pub async fn update_endpoints(
    db: &impl GenericClient,
    attempts: &[FinishedAttempt],
    urls: &HashMap<Uuid, String>,
) -> Result<usize, Failure> {
    let (mut endpoints, mut healthy, mut gone, mut pause) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (endpoint, url) in urls {
        let of = |attempt: &&FinishedAttempt| attempt.delivery.endpoint_id == *endpoint && attempt.delivery.url == *url;
        let of: Vec<_> = attempts.iter().filter(of).collect();
        if of.is_empty() {
            continue;
        }
        endpoints.push(*endpoint);
        healthy.push(of.iter().any(|attempt| attempt.verdict == Verdict::Delivered));
        gone.push(of.iter().any(|attempt| attempt.verdict == Verdict::Gone));
        let longest = of.iter().filter_map(|attempt| retry_schedule::requested_pause(attempt.outcome.head)).max();
        pause.push(longest.map(|pause| pause.as_secs_f64()));
    }
    if endpoints.is_empty() {
        return Ok(0);
    }
    let statement = db
        .prepare_cached(
            "UPDATE webhook_endpoints e SET
                 failing_since = t.since,
                 last_failed_at = CASE WHEN NOT t.healthy THEN now() END,
                 paused_until = greatest(e.paused_until, now() + make_interval(secs => t.pause)),
                 resting_until = CASE WHEN NOT t.healthy THEN now() + least((now() - t.since) * $4, make_interval(secs => $5)) END
             FROM (SELECT t.*, CASE
                       WHEN t.healthy THEN NULL
                       -- It was sent nothing since, so nobody knows that it has failed all the while.
                       WHEN o.last_failed_at < now() - make_interval(secs => $6) THEN now()
                       ELSE coalesce(o.failing_since, now()) END AS since
                   FROM unnest($1::uuid[], $2::boolean[], $3::float8[]) AS t (id, healthy, pause)
                   JOIN webhook_endpoints o ON o.id = t.id) t
             WHERE e.id = t.id AND (t.pause IS NOT NULL OR NOT t.healthy OR e.failing_since IS NOT NULL)",
        )
        .await?;
    let longest = retry_schedule::MAX_ENDPOINT_BACKOFF.as_secs_f64();
    let quiet = retry_schedule::QUIET_AFTER.as_secs_f64();
    let values: [&(dyn ToSql + Sync); 6] =
        [&endpoints, &healthy, &pause, &retry_schedule::ENDPOINT_BACKOFF_FRACTION, &longest, &quiet];
    db.execute(&statement, &values).await?;
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
        .await?;
    let after = retry_schedule::DISABLE_AFTER.as_secs_f64();
    let rows = db.query(&statement, &[&endpoints, &gone, &after]).await?;
    for row in &rows {
        announce_disabled(db, row.get(0), row.get(1), row.get(2)).await?;
    }
    Ok(rows.len())
}

/// Sends `webhook.disabled` to the merchant's other endpoints.
async fn announce_disabled(db: &impl GenericClient, endpoint: Uuid, merchant: Uuid, reason: &str) -> Result<(), Failure> {
    tracing::warn!(%endpoint, "disabled a webhook endpoint: {reason}");
    let data = serde_json::json!({ "webhook_id": endpoint, "reason": reason });
    let sql = "SELECT id FROM webhook_endpoints
               WHERE merchant_id = $1 AND enabled AND (events = '{}' OR events && '{webhook.disabled,webhook.*}')";
    let others: Vec<Uuid> = db.query(sql, &[&merchant]).await?.iter().map(|row| row.get(0)).collect();
    if others.is_empty() {
        return Ok(());
    }
    ServiceEvent::new("webhook.disabled", &data)?.queue_for(db, &others).await
}
