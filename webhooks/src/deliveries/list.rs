//! The list of deliveries, with their last attempts.

use crate::queue::MAX_KEPT_ATTEMPTS;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::collections::HashMap;
use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

/// The states of a delivery.
pub const STATES: [&str; 3] = ["pending", "delivered", "failed"];

/// A row of `webhook_deliveries`, as the API shows it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The cursor of the list.
    pub id: i64,
    /// The header `webhook-id`.
    pub event_id: String,
    pub event_type: String,
    /// `None` for pings and `webhook.disabled`.
    pub payment_id: Option<Uuid>,
    /// One of [`STATES`].
    pub state: String,
    /// Only while it is pending.
    pub next_attempt: Option<OffsetDateTime>,
    pub created_at: OffsetDateTime,
    pub delivered_at: Option<OffsetDateTime>,
    /// `None` if somebody has removed its message.
    pub body: Option<String>,
    /// The last [`MAX_KEPT_ATTEMPTS`], oldest first.
    pub attempts: Vec<Attempt>,
}

/// A row of `webhook_attempts`, as the API shows it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// From 1.
    pub number: i32,
    /// When it was settled.
    pub at: OffsetDateTime,
    pub took_ms: i32,
    /// The HTTP status; `None` if there was no response.
    pub status: Option<i32>,
    /// Why there was no response.
    pub error: Option<String>,
    /// The first kilobyte of the response body.
    pub reply: String,
}

/// Deliveries of an endpoint, newest first, with ids below `before`, and of one of [`STATES`] if one is given. The caller has checked
/// that the endpoint is the merchant's.
///
/// # Errors
/// When the database fails.
pub async fn list(
    db: &impl GenericClient,
    endpoint: Uuid,
    state: Option<&str>,
    before: i64,
    limit: i64,
) -> Result<Vec<Delivery>, Failure> {
    let of_state = |state: &str| {
        format!(
            "(SELECT id, event_id, type, payment_id, state, CASE WHEN state = 'pending' THEN next_attempt END, created_at,
                 delivered_at
             FROM webhook_deliveries WHERE endpoint_id = $1 AND state = '{state}' AND id < $2 ORDER BY id DESC LIMIT $3)"
        )
    };
    // One index serves both: whatever is rare is found at once, and the list of all is put together from one of each state.
    let states = STATES.iter().filter(|one| state.is_none_or(|wanted| wanted == **one));
    let lists: Vec<String> = states.map(|state| of_state(state)).collect();
    let sql = format!(
        "SELECT d.*, (SELECT m.body FROM webhook_messages m WHERE m.event_id = d.event_id
             AND m.merchant_id = (SELECT e.merchant_id FROM webhook_endpoints e WHERE e.id = $1))
         FROM (SELECT * FROM ({}) AS d ORDER BY id DESC LIMIT $3) d ORDER BY id DESC",
        lists.join(" UNION ALL ")
    );
    let statement = db.prepare_cached(&sql).await?;
    let rows = db.query(&statement, &[&endpoint, &before, &limit]).await?;
    let mut attempts = attempts(db, &rows.iter().map(|row| row.get(0)).collect::<Vec<_>>()).await?;
    let delivery = |row: &Row| Delivery {
        id: row.get(0),
        event_id: row.get(1),
        event_type: row.get(2),
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
             CROSS JOIN LATERAL (SELECT * FROM webhook_attempts a WHERE a.delivery_id = d.id ORDER BY number DESC LIMIT $2::integer) a
             ORDER BY a.delivery_id, a.number",
        )
        .await?;
    let mut of: HashMap<i64, Vec<Attempt>> = HashMap::new();
    for row in db.query(&statement, &[&deliveries, &MAX_KEPT_ATTEMPTS]).await? {
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
