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
use runtime::db::{LowestId, lock};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound::{Excluded, Unbounded};
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
             ON CONFLICT (event_id, merchant_id) DO NOTHING",
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
            None => pace::pause(began, POLL_INTERVAL, stop).await,
        }
    }
    Ok(())
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub struct Turns {
    /// Merchants that have events here, as far as this process knows, and whether a turn has found any since a look did.
    waiting: BTreeMap<Uuid, bool>,
    /// Below which id each has none.
    lowest: HashMap<Uuid, LowestId>,
    /// Who had the last one.
    last: Option<Uuid>,
    /// When others are looked for.
    look_at: Option<Instant>,
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
        self.look(&tx).await?;
        while let Some(merchant) = self.next() {
            self.last = Some(merchant);
            let subscriptions = Subscriptions::of(&tx, &[merchant]).await?;
            let limit = MAX_DELIVERIES_PER_TURN / subscriptions.count(merchant).max(1);
            let lowest = self.lowest.entry(merchant).or_default();
            let Found { mut events, oldest } = oldest(&tx, merchant, lowest.id(), limit.max(1)).await?;
            let ids: Vec<i64> = events.iter().map(|(id, _)| *id).collect();
            lowest.see(ids.first().copied(), oldest);
            let (taken, own) = take_out(&tx, merchant, &ids).await?;
            events.truncate(taken);
            let Some((last, _)) = events.last() else {
                // It has none, or somebody keeps the first one locked. If it has some below, as after a failover that lost some
                // ids, the next look finds it again.
                if self.waiting.remove(&merchant) == Some(false) && ids.is_empty() {
                    self.lowest.remove(&merchant);
                }
                continue;
            };
            let next = *last + 1;
            let mut deliveries = Deliveries::default();
            for (_, event) in &events {
                deliveries.push(event, &subscriptions.wanting(event));
            }
            let made = deliveries.insert(&tx).await?;
            tx.commit().await?;
            lowest.move_to(next, own);
            self.waiting.insert(merchant, true);
            return Ok(Some(made));
        }
        Ok(None)
    }

    /// The merchant after the last one, and the first again after all.
    fn next(&self) -> Option<Uuid> {
        let after = self.last.and_then(|last| self.waiting.range((Excluded(last), Unbounded)).next());
        after.or_else(|| self.waiting.first_key_value()).map(|(merchant, _)| *merchant)
    }

    /// Looks for merchants that have events here, as often as that is cheap, and whenever none is known.
    async fn look(&mut self, db: &impl GenericClient) -> Result<(), Failure> {
        let began = Instant::now();
        if !self.waiting.is_empty() && self.look_at.is_some_and(|at| began < at) {
            return Ok(());
        }
        let statement = db
            .prepare_cached(
                "WITH RECURSIVE waiting AS (
                     (SELECT merchant_id FROM webhook_backlog ORDER BY merchant_id LIMIT 1)
                     UNION ALL
                     SELECT (SELECT b.merchant_id FROM webhook_backlog b WHERE b.merchant_id > w.merchant_id
                             ORDER BY b.merchant_id LIMIT 1)
                     FROM waiting w WHERE w.merchant_id IS NOT NULL
                 )
                 SELECT merchant_id FROM waiting WHERE merchant_id IS NOT NULL",
            )
            .await?;
        for row in db.query(&statement, &[]).await? {
            self.waiting.entry(row.get(0)).or_insert(false);
        }
        self.look_at = Some(Instant::now() + pace::rest(began.elapsed(), POLL_INTERVAL));
        Ok(())
    }
}

struct Found {
    /// In the order of their ids.
    events: Vec<(i64, Event)>,
    /// The oldest transaction that was open then.
    oldest: i64,
}

async fn oldest(db: &impl GenericClient, merchant: Uuid, from: i64, limit: usize) -> Result<Found, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT id, event_id, type, payment_id, sequence, written_ms, pg_snapshot_xmin(pg_current_snapshot())::text::bigint
             FROM webhook_backlog WHERE merchant_id = $1 AND id >= $2 ORDER BY merchant_id, id LIMIT $3",
        )
        .await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = db.query(&statement, &[&merchant, &from, &limit]).await?;
    let event = |row: &tokio_postgres::Row| Event {
        id: row.get(1),
        kind: row.get(2),
        merchant,
        payment: row.get(3),
        sequence: row.get(4),
        written_ms: row.get(5),
    };
    Ok(Found {
        events: rows.iter().map(|row| (row.get(0), event(row))).collect(),
        oldest: rows.first().map_or(0, |row| row.get(6)),
    })
}

/// Takes a merchant's events out of the backlog, up to the first that somebody keeps locked. Returns how many, and the number
/// of this transaction, which is above those of all that drew one of their ids, or a lower one.
async fn take_out(db: &impl GenericClient, merchant: Uuid, ids: &[i64]) -> Result<(usize, i64), Failure> {
    if ids.is_empty() {
        return Ok((0, 0));
    }
    let statement = db
        .prepare_cached(
            "SELECT id, pg_current_xact_id()::text::bigint FROM webhook_backlog WHERE merchant_id = $1 AND id = ANY($2)
             ORDER BY merchant_id, id FOR UPDATE SKIP LOCKED",
        )
        .await?;
    let rows = db.query(&statement, &[&merchant, &ids]).await?;
    let taken = rows.iter().zip(ids).take_while(|(row, id)| row.get::<_, i64>(0) == **id).count();
    let statement = db.prepare_cached("DELETE FROM webhook_backlog WHERE merchant_id = $1 AND id = ANY($2)").await?;
    db.execute(&statement, &[&merchant, &ids.get(..taken).unwrap_or_default()]).await?;
    Ok((taken, rows.first().map_or(0, |row| row.get(1))))
}
