//! Redelivery: sending deliveries again, under the ids they have.
//!
//! A request goes in batches, each its own transaction, up to a bound of deliveries or of time; a cursor continues it.

use crate::endpoints::wake::wake;
use deadpool_postgres::{Client, Pool};
use runtime::{Failure, db};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

const MAX_DELIVERIES_PER_REQUEST: usize = 100_000;
const MAX_DELIVERIES_PER_TRANSACTION: i64 = 5_000;
/// A request that has taken longer starts no further batch.
const REDELIVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Which deliveries are sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedeliverFilter {
    /// The delivery of this event.
    Event(String),
    /// By time of creation, `from` inclusive, `before` exclusive.
    CreatedBetween { from: OffsetDateTime, before: OffsetDateTime },
    /// All that failed, for good or so far (pending with failures).
    Failed,
}

/// The last delivery that a redelivery has been through. It is a position, so it holds even if that delivery is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RedeliverCursor {
    pub created_at: OffsetDateTime,
    pub id: i64,
}

impl RedeliverCursor {
    /// Before all deliveries.
    pub const START: Self = Self { created_at: OffsetDateTime::UNIX_EPOCH, id: 0 };
}

/// Makes deliveries due again, at the start of their retry schedule. One that waits for its next attempt is sent at once, and
/// so is what waits of the same payment.
///
/// Continues after a cursor. Returns the number of deliveries, and a cursor if there may be more: a request ends after
/// `MAX_DELIVERIES_PER_REQUEST` or `REDELIVER_TIMEOUT`. `None` if there is no such endpoint, or it is disabled.
///
/// # Errors
/// When the database fails before anything is sent again.
pub async fn redeliver(
    pool: &Pool,
    merchant: Uuid,
    endpoint: Uuid,
    filter: &RedeliverFilter,
    mut after: RedeliverCursor,
) -> Result<Option<(usize, Option<RedeliverCursor>)>, Failure> {
    let wake = async |db: &mut Client| wake(db, merchant, endpoint).await;
    if !db::in_time(pool.get().await?, db::WRITE_TIMEOUT, wake).await? {
        return Ok(None);
    }
    let (mut again, started) = (0, Instant::now());
    loop {
        // With a connection taken for it alone, so that other requests get theirs in between.
        let batch = async |db: &mut Client| redeliver_batch(db, endpoint, filter, after).await;
        let found = async { db::in_time(pool.get().await?, db::WRITE_TIMEOUT, batch).await };
        let found = match found.await {
            Ok(found) => found,
            // An error would lose the cursor, and a repeated request would send the same deliveries once more.
            Err(failure) if again > 0 => {
                tracing::warn!(%endpoint, "a redelivery ended early: {failure}");
                return Ok(Some((again, Some(after))));
            }
            Err(failure) => return Err(failure),
        };
        again += found.count;
        match found.last {
            Some(last) if again < MAX_DELIVERIES_PER_REQUEST && started.elapsed() <= REDELIVER_TIMEOUT => after = last,
            last => return Ok(Some((again, last))),
        }
    }
}

struct Batch {
    count: usize,
    /// The last that was found, if there may be more.
    last: Option<RedeliverCursor>,
}

async fn redeliver_batch(
    db: &Client,
    endpoint: Uuid,
    filter: &RedeliverFilter,
    after: RedeliverCursor,
) -> Result<Batch, Failure> {
    // One lower bound: of two, Postgres would begin at the cursor's, which is before all at first.
    let after = match filter {
        RedeliverFilter::CreatedBetween { from, .. } => after.max(RedeliverCursor { created_at: *from, id: 0 }),
        RedeliverFilter::Event(_) | RedeliverFilter::Failed => after,
    };
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&endpoint, &after.id, &MAX_DELIVERIES_PER_TRANSACTION];
    let (condition, order) = match filter {
        RedeliverFilter::Event(event) => {
            values.push(event);
            ("id > $2 AND event_id = $4", "id")
        }
        RedeliverFilter::CreatedBetween { before, .. } => {
            values.extend([before as &(dyn ToSql + Sync), &after.created_at]);
            // The bound that says less lets Postgres see that a range is asked for.
            ("created_at < $4 AND created_at >= $5 AND (created_at, id) > ($5, $2)", "created_at, id")
        }
        RedeliverFilter::Failed => ("id > $2 AND (state = 'failed' OR state = 'pending' AND tries > 0)", "id"),
    };
    // Claimed deliveries are being sent already, and are left alone.
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
    let statement = db.prepare_cached(&sql).await?;
    let row = db.query_one(&statement, &values).await?;
    let count = usize::try_from(row.get::<_, i64>(0)).map_err(Failure::halt)?;
    // Events of the same payments that wait for one of them, or that one of them waits for. This is a statement of its own,
    // since each statement locks its rows in the order of ids.
    let payments = row.get::<_, Option<Vec<Uuid>>>(1).unwrap_or_default();
    let sql = "WITH waiting AS MATERIALIZED (
                   SELECT id FROM webhook_deliveries WHERE endpoint_id = $1 AND payment_id = ANY($2)
                       AND state = 'pending' AND claimed_by IS NULL AND next_attempt > now()
                   ORDER BY id FOR UPDATE
               )
               UPDATE webhook_deliveries d SET next_attempt = now() FROM waiting w WHERE d.id = w.id";
    let statement = db.prepare_cached(sql).await?;
    db.execute(&statement, &[&endpoint, &payments]).await?;
    let last = row.get::<_, Option<i64>>(2).map(|id| RedeliverCursor { id, created_at: row.get(3) });
    Ok(Batch { count, last })
}
