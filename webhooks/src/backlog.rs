//! The backlog: events of merchants that had more than their share of a batch. Their deliveries are made here, one turn of a
//! merchant after the other, so that a flood delays its own merchant alone.
//!
//! A turn is one transaction: it takes a merchant's oldest events out of the backlog, up to [`MAX_DELIVERIES_PER_TURN`], and
//! makes their deliveries. One instance at a time does so, since the events of a payment stay in order.

use crate::fronts::{Fronts, NewDeliveries};
use crate::pace;
use crate::spread::{Deliveries, MAX_DELIVERIES_PER_TURN};
use crate::subscriptions::{Event, Subscriptions};
use deadpool_postgres::{Client, GenericClient, Pool};
use runtime::Failure;
use runtime::db::lock;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often an empty backlog is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Those of the merchants that have events in the backlog.
///
/// # Errors
/// When the database fails.
pub async fn waiting(db: &impl GenericClient, merchants: &[Uuid]) -> Result<HashSet<Uuid>, Failure> {
    let statement = db
        .prepare_cached(
            // The newest first: what was taken out stands at the other end until it is vacuumed.
            "SELECT m.id FROM unnest($1::uuid[]) AS m (id) WHERE (SELECT b.id FROM webhook_backlog b WHERE b.merchant_id = m.id
                 ORDER BY b.merchant_id DESC, b.id DESC LIMIT 1) IS NOT NULL",
        )
        .await?;
    Ok(db.query(&statement, &[&merchants]).await?.iter().map(|row| row.get(0)).collect())
}

/// Puts events into the backlog, in their order. Their messages are there.
///
/// # Errors
/// When the database fails.
pub async fn put(db: &impl GenericClient, events: &[&Event]) -> Result<(), Failure> {
    if events.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "INSERT INTO webhook_backlog (merchant_id, event_id, type, payment_id, sequence, written_ms)
             SELECT t.merchant_id, t.event_id, t.type, t.payment_id, t.sequence, t.written_ms
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::bigint[], $6::bigint[])
                 WITH ORDINALITY AS t (merchant_id, event_id, type, payment_id, sequence, written_ms, place)
             ORDER BY t.place
             ON CONFLICT (event_id) DO NOTHING",
        )
        .await?;
    db.execute(
        &statement,
        &[
            &events.iter().map(|event| event.merchant).collect::<Vec<_>>(),
            &events.iter().map(|event| event.id.as_str()).collect::<Vec<_>>(),
            &events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(),
            &events.iter().map(|event| event.payment).collect::<Vec<_>>(),
            &events.iter().map(|event| event.sequence).collect::<Vec<_>>(),
            &events.iter().map(|event| event.written_ms).collect::<Vec<_>>(),
        ],
    )
    .await?;
    Ok(())
}

/// Makes deliveries of what is in the backlog, until `stop`.
///
/// # Errors
/// When the database fails.
pub async fn run(pool: &Pool, fronts: &Fronts, stop: &CancellationToken) -> Result<(), Failure> {
    let mut turns = Turns::default();
    while !stop.is_cancelled() {
        let (mut db, began) = (pool.get().await?, Instant::now());
        let made = turns.take(&mut db).await?;
        drop(db);
        match made {
            Some(made) => fronts.tell(made),
            None => tokio::select! {
                () = tokio::time::sleep(pace::rest(began.elapsed(), POLL_INTERVAL)) => {}
                () = stop.cancelled() => {}
            },
        }
    }
    Ok(())
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Turns {
    /// Who had the last one.
    last: Option<Uuid>,
    /// Up to which id a merchant's events were taken out. What was deleted is passed over row by row while an older transaction
    /// is open, such as that of a dump. An event below, of a transaction that ended late, is found when there are none above.
    taken: HashMap<Uuid, i64>,
}

impl Turns {
    /// Takes the next merchant's turn. `None` if nobody waits, or another instance takes turns.
    ///
    /// # Errors
    /// When the database fails. Then nothing of the turn has happened.
    pub async fn take(&mut self, db: &mut Client) -> Result<Option<NewDeliveries>, Failure> {
        let tx = db.transaction().await?;
        let statement = tx.prepare_cached("SELECT pg_try_advisory_xact_lock($1)").await?;
        if !tx.query_one(&statement, &[&lock::WEBHOOK_BACKLOG]).await?.get::<_, bool>(0) {
            return Ok(None);
        }
        let Some(merchant) = self.next(&tx).await? else {
            // Whoever has no events has no rows to pass over.
            *self = Self::default();
            return Ok(None);
        };
        let subscriptions = Subscriptions::of(&tx, &[merchant]).await?;
        let limit = MAX_DELIVERIES_PER_TURN / subscriptions.count(merchant).max(1);
        let after = self.taken.get(&merchant).copied().unwrap_or(i64::MIN);
        let found = oldest(&tx, merchant, after, limit.max(1)).await?;
        let mut deliveries = Deliveries::default();
        for (_, event) in &found {
            deliveries.push(event, &subscriptions.wanting(event));
        }
        let ids: Vec<i64> = found.iter().map(|(id, _)| *id).collect();
        let statement = tx.prepare_cached("DELETE FROM webhook_backlog WHERE merchant_id = $1 AND id = ANY($2)").await?;
        tx.execute(&statement, &[&merchant, &ids]).await?;
        let made = deliveries.insert(&tx).await?;
        tx.commit().await?;
        self.last = Some(merchant);
        match ids.last() {
            Some(last) => self.taken.insert(merchant, *last),
            None => self.taken.remove(&merchant),
        };
        Ok(Some(made))
    }

    /// The merchant after the last one, and the first again after all.
    async fn next(&self, db: &impl GenericClient) -> Result<Option<Uuid>, Failure> {
        if let Some(last) = self.last {
            let sql = "SELECT merchant_id FROM webhook_backlog WHERE merchant_id > $1 ORDER BY merchant_id LIMIT 1";
            if let Some(row) = db.query_opt(&db.prepare_cached(sql).await?, &[&last]).await? {
                return Ok(Some(row.get(0)));
            }
        }
        let sql = "SELECT merchant_id FROM webhook_backlog ORDER BY merchant_id LIMIT 1";
        Ok(db.query_opt(&db.prepare_cached(sql).await?, &[]).await?.map(|row| row.get(0)))
    }
}

async fn oldest(db: &impl GenericClient, merchant: Uuid, after: i64, limit: usize) -> Result<Vec<(i64, Event)>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT id, event_id, type, payment_id, sequence, written_ms FROM webhook_backlog
             WHERE merchant_id = $1 AND id > $2 ORDER BY merchant_id, id LIMIT $3",
        )
        .await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = db.query(&statement, &[&merchant, &after, &limit]).await?;
    let event = |row: &tokio_postgres::Row| Event {
        id: row.get(1),
        kind: row.get(2),
        merchant,
        payment: row.get(3),
        sequence: row.get(4),
        written_ms: row.get(5),
    };
    Ok(rows.iter().map(|row| (row.get(0), event(row))).collect())
}
