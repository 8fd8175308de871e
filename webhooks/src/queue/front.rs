//! For which endpoints something is pending, and from when on.

use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::time::Duration;
use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

/// A transaction that makes something due takes the time of its own beginning, and is seen when it ends. One that takes longer
/// is found when all endpoints are looked through.
const MAX_TRANSACTION: Duration = Duration::from_secs(2);

/// All endpoints that something is pending for, each with the time from which on.
///
/// # Errors
/// When the database fails.
pub async fn pending(db: &impl GenericClient) -> Result<Vec<(Uuid, OffsetDateTime)>, Failure> {
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
             )
             SELECT endpoint_id, least(next_attempt, now() - make_interval(secs => $1)) FROM waiting",
        )
        .await?;
    let rows = db.query(&statement, &[&MAX_TRANSACTION.as_secs_f64()]).await?;
    Ok(rows.iter().map(read).collect())
}

/// The same of these endpoints, beginning for each with a time before which nothing is pending. What was sent before is not
/// passed over.
///
/// # Errors
/// When the database fails.
pub async fn pending_since(
    db: &impl GenericClient,
    fronts: &[(Uuid, OffsetDateTime)],
) -> Result<Vec<(Uuid, OffsetDateTime)>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT f.id, least(d.next_attempt, now() - make_interval(secs => $3))
             FROM unnest($1::uuid[], $2::timestamptz[]) AS f (id, since) CROSS JOIN LATERAL (
                 SELECT next_attempt FROM webhook_deliveries
                 WHERE endpoint_id = f.id AND state = 'pending' AND next_attempt >= f.since
                 ORDER BY endpoint_id, next_attempt LIMIT 1) d",
        )
        .await?;
    let (ids, since): (Vec<Uuid>, Vec<OffsetDateTime>) = fronts.iter().copied().unzip();
    let rows = db.query(&statement, &[&ids, &since, &MAX_TRANSACTION.as_secs_f64()]).await?;
    Ok(rows.iter().map(read).collect())
}

fn read(row: &Row) -> (Uuid, OffsetDateTime) {
    (row.get(0), row.get(1))
}
