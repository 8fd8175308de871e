//! What the API does with endpoints and deliveries. Every function is of one merchant, and finds nothing of another's.

use crate::body;
use crate::queue;
use crate::signature::Secret;
use deadpool_postgres::{Client, GenericClient, Pool};
use runtime::{Failure, db};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// Endpoints that a merchant may have: each event is kept once for each.
pub const MOST: i64 = 20;
/// Deliveries that one request sends again.
const AGAIN_AT_MOST: usize = 100_000;
/// And one transaction of it.
const AGAIN_AT_ONCE: i64 = 5_000;
const AGAIN_WITHIN: Duration = Duration::from_secs(5);
/// For so long the secret before signs as well.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

const COLUMNS: &str = "id, url, description, events, enabled, disabled_reason, disabled_at, failing_since,
    nullif(greatest(paused_until, resting_until, now()), now()), secret_since,
    CASE WHEN old_secret_until > now() THEN old_secret_until END, created_at";

/// An endpoint as the API shows it, without its secrets.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Identity.
    pub id: Uuid,
    /// Where messages go.
    pub url: String,
    /// The merchant's words.
    pub description: Option<String>,
    /// Event types; none is all.
    pub events: Vec<String>,
    /// Whether it is sent anything.
    pub enabled: bool,
    /// gone, failing or asked.
    pub disabled_reason: Option<String>,
    /// Since when it is not.
    pub disabled_at: Option<OffsetDateTime>,
    /// Of the first failure since the last success.
    pub failing_since: Option<OffsetDateTime>,
    /// Until when it is left in peace: it asked for that, or it fails.
    pub paused_until: Option<OffsetDateTime>,
    /// When its secret was made.
    pub secret_since: OffsetDateTime,
    /// Until when the secret before signs as well.
    pub old_secret_until: Option<OffsetDateTime>,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

impl Endpoint {
    fn read(row: &Row) -> Self {
        Self {
            id: row.get(0),
            url: row.get(1),
            description: row.get(2),
            events: row.get(3),
            enabled: row.get(4),
            disabled_reason: row.get(5),
            disabled_at: row.get(6),
            failing_since: row.get(7),
            paused_until: row.get(8),
            secret_since: row.get(9),
            old_secret_until: row.get(10),
            created_at: row.get(11),
        }
    }
}

/// What is set of an endpoint; what is `None` stays as it is, or is left out of a new one.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Checked by the guard.
    pub url: Option<String>,
    /// The merchant's words; empty is none.
    pub description: Option<String>,
    /// Event types; none is all.
    pub events: Option<Vec<String>>,
    /// To enable it makes it healthy; to disable it ends what is pending, within a second or a few.
    pub enabled: Option<bool>,
}

/// Makes an endpoint; `None` when the merchant has [`MOST`] already. `url` has been checked.
///
/// # Errors
/// When the database fails, or the system has no random numbers.
pub async fn create(db: &mut Client, merchant: Uuid, url: &str, new: Changes) -> Result<Option<(Endpoint, Secret)>, Failure> {
    let secret = Secret::generate().map_err(Failure::retry)?;
    let tx = db.transaction().await.map_err(db::failure)?;
    // Two requests take turns, so that they don't both make the last one.
    let turn = "SELECT pg_advisory_xact_lock(hashtextextended('webhooks/' || $1::uuid::text, 0))";
    tx.execute(turn, &[&merchant]).await.map_err(db::failure)?;
    let sql = format!(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, description, events, secret)
         SELECT $1::uuid, $2::uuid, $3::text, nullif($4::text, ''), $5::text[], $6::text
         WHERE (SELECT count(*) FROM webhook_endpoints WHERE merchant_id = $2 AND deleted_at IS NULL) < $7
         RETURNING {COLUMNS}"
    );
    let statement = tx.prepare_cached(&sql).await.map_err(db::failure)?;
    let events = new.events.unwrap_or_default();
    let row = tx
        .query_opt(&statement, &[&Uuid::now_v7(), &merchant, &url, &new.description, &events, &secret.reveal(), &MOST])
        .await
        .map_err(db::failure)?;
    tx.commit().await.map_err(db::failure)?;
    Ok(row.map(|row| (Endpoint::read(&row), secret)))
}

/// All of a merchant's, the oldest first.
///
/// # Errors
/// When the database fails.
pub async fn list(db: &impl GenericClient, merchant: Uuid) -> Result<Vec<Endpoint>, Failure> {
    let sql = format!(
        "SELECT {COLUMNS} FROM webhook_endpoints WHERE merchant_id = $1 AND deleted_at IS NULL ORDER BY created_at, id"
    );
    let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
    let rows = db.query(&statement, &[&merchant]).await.map_err(db::failure)?;
    Ok(rows.iter().map(Endpoint::read).collect())
}

/// One.
///
/// # Errors
/// When the database fails.
pub async fn get(db: &impl GenericClient, merchant: Uuid, id: Uuid) -> Result<Option<Endpoint>, Failure> {
    let sql = format!("SELECT {COLUMNS} FROM webhook_endpoints WHERE merchant_id = $1 AND id = $2 AND deleted_at IS NULL");
    let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
    Ok(db.query_opt(&statement, &[&merchant, &id]).await.map_err(db::failure)?.as_ref().map(Endpoint::read))
}

/// Changes one.
///
/// # Errors
/// When the database fails.
pub async fn update(db: &impl GenericClient, merchant: Uuid, id: Uuid, changes: Changes) -> Result<Option<Endpoint>, Failure> {
    let sql = format!(
        "UPDATE webhook_endpoints SET url = coalesce($3, url), events = coalesce($5, events), enabled = coalesce($6, enabled),
             description = CASE WHEN $4::text IS NULL THEN description ELSE nullif($4, '') END,
             disabled_reason = CASE WHEN coalesce($6, enabled) THEN NULL ELSE coalesce(disabled_reason, 'asked') END,
             disabled_at = CASE WHEN coalesce($6, enabled) THEN NULL ELSE coalesce(disabled_at, now()) END,
             failing_since = CASE WHEN $6 AND NOT enabled OR $3 <> url THEN NULL ELSE failing_since END,
             paused_until = CASE WHEN $6 AND NOT enabled OR $3 <> url THEN NULL ELSE paused_until END,
             resting_until = CASE WHEN $6 AND NOT enabled OR $3 <> url THEN NULL ELSE resting_until END
         WHERE merchant_id = $1 AND id = $2 AND deleted_at IS NULL RETURNING {COLUMNS}"
    );
    let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
    let Changes { url, description, events, enabled } = changes;
    let row = db.query_opt(&statement, &[&merchant, &id, &url, &description, &events, &enabled]).await.map_err(db::failure)?;
    Ok(row.as_ref().map(Endpoint::read))
}

/// A new secret; the one before signs as well for [`GRACE`], and the one before that no more.
///
/// # Errors
/// When the database fails, or the system has no random numbers.
pub async fn rotate(db: &impl GenericClient, merchant: Uuid, id: Uuid) -> Result<Option<(Endpoint, Secret)>, Failure> {
    let secret = Secret::generate().map_err(Failure::retry)?;
    let sql = format!(
        "UPDATE webhook_endpoints SET old_secret = secret, old_secret_until = now() + make_interval(secs => $4), secret = $3,
             secret_since = now()
         WHERE merchant_id = $1 AND id = $2 AND deleted_at IS NULL RETURNING {COLUMNS}"
    );
    let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
    let values: [&(dyn ToSql + Sync); 4] = [&merchant, &id, &secret.reveal(), &GRACE.as_secs_f64()];
    let row = db.query_opt(&statement, &values).await.map_err(db::failure)?;
    Ok(row.map(|row| (Endpoint::read(&row), secret)))
}

/// Removes one; whether it was there. Its deliveries go after it, by housekeeping.
///
/// # Errors
/// When the database fails.
pub async fn delete(db: &impl GenericClient, merchant: Uuid, id: Uuid) -> Result<bool, Failure> {
    let sql = "UPDATE webhook_endpoints SET deleted_at = now(), enabled = false, disabled_at = coalesce(disabled_at, now()),
                   disabled_reason = coalesce(disabled_reason, 'asked')
               WHERE merchant_id = $1 AND id = $2 AND deleted_at IS NULL";
    Ok(db.execute(sql, &[&merchant, &id]).await.map_err(db::failure)? > 0)
}

/// Sends a `webhook.ping`, whatever its filter; gives the event's id. `None` if there is no such endpoint, or it is disabled.
///
/// # Errors
/// When the database fails.
pub async fn ping(db: &impl GenericClient, merchant: Uuid, id: Uuid) -> Result<Option<String>, Failure> {
    if !wake(db, merchant, id).await? {
        return Ok(None);
    }
    let event = format!("evt_{}_0", Uuid::now_v7().simple());
    let data = serde_json::json!({ "webhook_id": id });
    let body = body::of_service("webhook.ping", queue::now(), &data).map_err(Failure::halt)?;
    let statement = db
        .prepare_cached(
            "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, body, state) VALUES ($1, $2, 'webhook.ping', $3, 'pending')",
        )
        .await
        .map_err(db::failure)?;
    db.execute(&statement, &[&id, &event, &body]).await.map_err(db::failure)?;
    Ok(Some(event))
}

/// A delivery as the API shows it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its place in the list.
    pub id: i64,
    /// `webhook-id`.
    pub event_id: String,
    /// Event type.
    pub kind: String,
    /// None of what is of no payment.
    pub payment_id: Option<Uuid>,
    /// pending, delivered or failed.
    pub state: String,
    /// While it is pending.
    pub next_attempt: Option<OffsetDateTime>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it arrived.
    pub delivered_at: Option<OffsetDateTime>,
    /// What was sent.
    pub body: String,
    /// The last ten, in order.
    pub attempts: Vec<Attempt>,
}

/// An attempt as the API shows it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// From 1.
    pub number: i32,
    /// When it ended.
    pub at: OffsetDateTime,
    /// Milliseconds.
    pub took_ms: i32,
    /// None if there was no answer.
    pub status: Option<i32>,
    /// Then why.
    pub error: Option<String>,
    /// The first kilobyte.
    pub reply: String,
}

/// Deliveries of an endpoint of the caller's, newest first, below `before`, of one state if it is given.
///
/// # Errors
/// When the database fails.
pub async fn deliveries(
    db: &impl GenericClient,
    endpoint: Uuid,
    state: Option<&str>,
    before: i64,
    limit: i64,
) -> Result<Vec<Delivery>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT id, event_id, type, payment_id, state, CASE WHEN state = 'pending' THEN next_attempt END, created_at,
                 delivered_at, body
             FROM webhook_deliveries WHERE endpoint_id = $1 AND ($2::text IS NULL OR state = $2) AND id < $3
             ORDER BY id DESC LIMIT $4",
        )
        .await
        .map_err(db::failure)?;
    let rows = db.query(&statement, &[&endpoint, &state, &before, &limit]).await.map_err(db::failure)?;
    let mut attempts = attempts(db, &rows.iter().map(|row| row.get(0)).collect::<Vec<_>>()).await?;
    let delivery = |row: &Row| Delivery {
        id: row.get(0),
        event_id: row.get(1),
        kind: row.get(2),
        payment_id: row.get(3),
        state: row.get(4),
        next_attempt: row.get(5),
        created_at: row.get(6),
        delivered_at: row.get(7),
        body: row.get(8),
        attempts: attempts.remove(&row.get::<_, i64>(0)).unwrap_or_default(),
    };
    Ok(rows.iter().map(delivery).collect())
}

async fn attempts(db: &impl GenericClient, deliveries: &[i64]) -> Result<HashMap<i64, Vec<Attempt>>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT a.delivery_id, a.number, a.at, a.took_ms, a.status, a.error, a.reply FROM unnest($1::bigint[]) AS d (id)
             CROSS JOIN LATERAL (SELECT * FROM webhook_attempts a WHERE a.delivery_id = d.id ORDER BY number DESC LIMIT 10) a
             ORDER BY a.delivery_id, a.number",
        )
        .await
        .map_err(db::failure)?;
    let mut of: HashMap<i64, Vec<Attempt>> = HashMap::new();
    for row in db.query(&statement, &[&deliveries]).await.map_err(db::failure)? {
        of.entry(row.get(0)).or_default().push(Attempt {
            number: row.get(1),
            at: row.get(2),
            took_ms: row.get(3),
            status: row.get(4),
            error: row.get(5),
            reply: row.get(6),
        });
    }
    Ok(of)
}

/// What is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The one of this event.
    Event(String),
    /// Those that were made in this time, themselves of `from` and not of `before`.
    Made {
        /// First.
        from: OffsetDateTime,
        /// End.
        before: OffsetDateTime,
    },
    /// All that failed, for good or so far.
    Failed,
}

/// Sends deliveries again, from the begin of their schedule, under the ids they have; one that waits for its next attempt is
/// sent at once, and so is what waits of the same payment. Goes on after a place, and gives how many it was, with the place of the
/// last of them if there may be more: a request is [`AGAIN_AT_MOST`], or takes [`AGAIN_WITHIN`]. `None` if there is no such
/// endpoint, or it is disabled.
///
/// # Errors
/// When the database fails, and nothing is sent again.
pub async fn redeliver(
    pool: &Pool,
    merchant: Uuid,
    endpoint: Uuid,
    which: &Which,
    mut after: Place,
) -> Result<Option<(usize, Option<Place>)>, Failure> {
    if !wake(&pool.get().await.map_err(db::unavailable)?, merchant, endpoint).await? {
        return Ok(None);
    }
    let (mut again, started) = (0, Instant::now());
    loop {
        let found = match redeliver_some(pool, endpoint, which, after).await {
            Ok(found) => found,
            // Or the same would be sent again once more.
            Err(failure) if again > 0 => {
                tracing::warn!(%endpoint, "a redelivery broke off: {failure}");
                return Ok(Some((again, Some(after))));
            }
            Err(failure) => return Err(failure),
        };
        again += found.count;
        match found.last {
            Some(last) if again < AGAIN_AT_MOST && started.elapsed() <= AGAIN_WITHIN => after = last,
            last => return Ok(Some((again, last))),
        }
    }
}

/// Where a delivery is among an endpoint's: when it was made, and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// When it was made.
    pub made: OffsetDateTime,
    /// Its id.
    pub id: i64,
}

impl Place {
    /// Before all.
    pub const FIRST: Self = Self { made: OffsetDateTime::UNIX_EPOCH, id: 0 };
}

struct Found {
    count: usize,
    /// The last that was looked at, if there may be more.
    last: Option<Place>,
}

/// One batch, on a connection of its own: others want one too.
async fn redeliver_some(pool: &Pool, endpoint: Uuid, which: &Which, after: Place) -> Result<Found, Failure> {
    let db = pool.get().await.map_err(db::unavailable)?;
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&endpoint, &after.id, &AGAIN_AT_ONCE];
    let (condition, order) = match which {
        Which::Event(event) => {
            values.push(event);
            ("id > $2 AND event_id = $4", "id")
        }
        Which::Made { from, before } => {
            values.extend([from as &(dyn ToSql + Sync), before, &after.made]);
            ("created_at >= $4 AND created_at < $5 AND (created_at, id) > ($6, $2)", "created_at, id")
        }
        Which::Failed => ("id > $2 AND (state = 'failed' OR state = 'pending' AND tries > 0)", "id"),
    };
    // What is on its way is on its way.
    let sql = format!(
        "WITH found AS MATERIALIZED (
             SELECT id, created_at FROM webhook_deliveries WHERE endpoint_id = $1 AND {condition} ORDER BY {order} LIMIT $3
         ), again AS MATERIALIZED (
             SELECT d.id FROM found JOIN webhook_deliveries d ON d.id = found.id WHERE d.claimed_by IS NULL
             ORDER BY d.id FOR UPDATE OF d
         ), sent AS (
             UPDATE webhook_deliveries d SET state = 'pending', tries = 0, next_attempt = now(), delivered_at = NULL
             FROM again WHERE d.id = again.id RETURNING d.payment_id
         )
         SELECT (SELECT count(*) FROM sent), (SELECT array_agg(DISTINCT payment_id) FROM sent WHERE payment_id IS NOT NULL),
             last.id, last.created_at
         FROM (SELECT) AS one LEFT JOIN (SELECT id, created_at FROM found ORDER BY {order} OFFSET $3 - 1) AS last ON true"
    );
    let statement = db.prepare_cached(&sql).await.map_err(db::failure)?;
    let row = db.query_one(&statement, &values).await.map_err(db::failure)?;
    let count = usize::try_from(row.get::<_, i64>(0)).map_err(Failure::halt)?;
    // In a statement of its own, since what is locked is locked in the order of ids. What waits for one of them, or what one of
    // them waits for.
    let payments = row.get::<_, Option<Vec<Uuid>>>(1).unwrap_or_default();
    let sql = "WITH waiting AS MATERIALIZED (
                   SELECT id FROM webhook_deliveries WHERE endpoint_id = $1 AND payment_id = ANY($2)
                       AND state = 'pending' AND claimed_by IS NULL AND next_attempt > now()
                   ORDER BY id FOR UPDATE
               )
               UPDATE webhook_deliveries d SET next_attempt = now() FROM waiting w WHERE d.id = w.id";
    let statement = db.prepare_cached(sql).await.map_err(db::failure)?;
    db.execute(&statement, &[&endpoint, &payments]).await.map_err(db::failure)?;
    let last = row.get::<_, Option<i64>>(2).map(|id| Place { id, made: row.get(3) });
    Ok(Found { count, last })
}

/// Whoever asks for something wants it now: an endpoint is left in peace no longer. Whether there is such a one that is enabled.
async fn wake(db: &impl GenericClient, merchant: Uuid, endpoint: Uuid) -> Result<bool, Failure> {
    let statement = db
        .prepare_cached(
            "UPDATE webhook_endpoints SET paused_until = NULL, resting_until = NULL
             WHERE merchant_id = $1 AND id = $2 AND enabled",
        )
        .await
        .map_err(db::failure)?;
    Ok(db.execute(&statement, &[&merchant, &endpoint]).await.map_err(db::failure)? > 0)
}
