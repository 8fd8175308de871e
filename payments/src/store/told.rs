//! Rows of `told_events`: events that Kafka has and this database lost. [`told`](crate::told) says how they are known again.

use super::outbox_told::take_out_told;
use super::payments::{lock_payments, save_payments};
use crate::history;
use crate::payment::Payment;
use crate::told::ToldEvents;
use deadpool_postgres::GenericClient;
use prost::Message as _;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::{HashMap, HashSet};
use topics::PaymentId;
use topics::wire::PaymentEvent;
use uuid::Uuid;

/// How far a block's timestamp may be ahead of the clock of Postgres: a minute of ingest's clock, and as much between the two.
const MAX_AHEAD_SECONDS: i64 = 120;

/// Compares events of `payment.events` with the database, under the lock [`CATCH_UP`](runtime::db::lock::CATCH_UP), which folds and
/// cancellations share. Those that it lost are written down as told, and into the history; those
/// that it knows and has still in the outbox are taken out of it. Returns how many were lost.
///
/// # Errors
/// When the database fails.
pub async fn keep_told_events(db: &impl GenericClient, events: &[(Uuid, PaymentEvent)]) -> Result<u64, Failure> {
    if events.is_empty() {
        return Ok(0);
    }
    let ids: Vec<Uuid> = events.iter().map(|(id, _)| *id).collect::<HashSet<_>>().into_iter().collect();
    let statement = db.prepare_cached("SELECT id, sequence FROM payments WHERE id = ANY($1)").await?;
    let rows = db.query(&statement, &[&ids]).await?;
    let known: HashMap<Uuid, u64> = rows.iter().map(|row| (row.get(0), unsigned(row.get(1)))).collect();
    let (known, lost): (Vec<_>, Vec<_>) =
        events.iter().partition(|(id, event)| known.get(id).is_some_and(|last| event.sequence <= *last));

    let others = take_out_told(db, &known, events).await?;
    let lost: Vec<_> = lost.into_iter().chain(others).collect();
    if lost.is_empty() {
        return Ok(0);
    }

    let statement = db
        .prepare_cached(
            "WITH lost AS (
                 -- Two primaries may have told two events under one number.
                 SELECT DISTINCT ON (payment_id, sequence) *
                 FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bytea[]) WITH ORDINALITY
                   AS t (payment_id, sequence, asked_by, record, place)
                 ORDER BY payment_id, sequence, place
             ), told AS (
                 INSERT INTO told_events (payment_id, sequence, record) SELECT payment_id, sequence, record FROM lost
                 ON CONFLICT DO NOTHING RETURNING payment_id, sequence
             )
             INSERT INTO payment_events (payment_id, sequence, asked_by, record)
             SELECT payment_id, sequence, nullif(asked_by, ''), record FROM lost JOIN told USING (payment_id, sequence)",
        )
        .await?;
    let ids: Vec<Uuid> = lost.iter().map(|(id, _)| *id).collect();
    let sequences: Vec<i64> = lost.iter().map(|(_, event)| bigint(event.sequence)).collect();
    // A text of Postgres has no NUL.
    let asked_by: Vec<String> = lost.iter().map(|(_, event)| event.asked_by.replace('\0', "")).collect();
    let records: Vec<Vec<u8>> = lost.iter().map(|(_, event)| history::trim(event.clone()).encode_to_vec()).collect();
    let written = db.execute(&statement, &[&ids, &sequences, &asked_by, &records]).await?;
    apply_told(db, &ids).await?;
    Ok(written)
}

/// A payment `p` has orphans, whose events may be made again whenever they are credited.
const HAS_ORPHANS: &str =
    "EXISTS (SELECT FROM orphan_transfers o WHERE o.address = p.address AND o.chain_id = p.chain_id AND NOT o.in_doubt)";

/// The told events of payments, also of deposits that have no row yet.
///
/// # Errors
/// When the database fails, or a row holds no valid event.
pub async fn told_events(db: &impl GenericClient, ids: &[Uuid]) -> Result<HashMap<PaymentId, ToldEvents>, Failure> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = format!(
        "SELECT t.payment_id, t.record, t.made,
             CASE WHEN NOT {HAS_ORPHANS}
                 THEN extract(epoch FROM max(t.compared_at) OVER (PARTITION BY t.payment_id))::bigint + $2::bigint END,
             h.block_timestamp
         FROM told_events t LEFT JOIN payments p ON p.id = t.payment_id LEFT JOIN chain_heads h ON h.chain_id = p.chain_id
         WHERE t.payment_id = ANY($1)"
    );
    let mut told: HashMap<PaymentId, ToldEvents> = HashMap::new();
    for row in db.query(&db.prepare_cached(&sql).await?, &[&ids, &MAX_AHEAD_SECONDS]).await? {
        let record = PaymentEvent::decode(row.get::<_, &[u8]>(1)).map_err(|e| Failure::halt(e).context("told_events"))?;
        let told = told.entry(PaymentId(row.get(0))).or_default();
        if row.get(2) {
            told.insert_made(&record)
        } else {
            told.insert(&record)
        }
        told.end_after(row.get::<_, Option<i64>>(3).map(unsigned), row.get::<_, Option<i64>>(4).map(unsigned));
    }
    Ok(told)
}

/// Marks told events that were made again, and deletes those of payments of which all were. Those that were given up are logged.
///
/// # Errors
/// When the database fails.
pub async fn forget_told_events<'a>(
    db: &impl GenericClient,
    told: impl Iterator<Item = (&'a PaymentId, &'a ToldEvents)>,
) -> Result<(), Failure> {
    let mut made: Vec<(Uuid, i64)> = Vec::new();
    for (id, told) in told {
        if told.is_contradicted() {
            tracing::error!("payment {id} was cancelled before the database was restored, and its state does not allow it now");
        }
        made.extend(told.made().iter().map(|sequence| (id.0, bigint(*sequence))));
    }
    if made.is_empty() {
        return Ok(());
    }
    let (ids, sequences): (Vec<Uuid>, Vec<i64>) = made.into_iter().unzip();
    let sql = "UPDATE told_events SET made = true
               WHERE (payment_id, sequence) IN (SELECT * FROM unnest($1::uuid[], $2::bigint[]))";
    db.execute(&db.prepare_cached(sql).await?, &[&ids, &sequences]).await?;
    let sql = "DELETE FROM told_events t WHERE payment_id = ANY($1)
               AND NOT EXISTS (SELECT FROM told_events o WHERE o.payment_id = t.payment_id AND NOT o.made)";
    db.execute(&db.prepare_cached(sql).await?, &[&ids]).await?;
    Ok(())
}

/// Whether the confirmer may have events of this payment to make again, so that its state is behind what was told. Some are never made
/// again, such as those of a transfer that does not count any more. So it waits until the payment's chain is at a block that was not there
/// when they were compared, and none of its transfers is an orphan.
///
/// # Errors
/// When the database fails.
pub async fn is_behind_told_events(db: &impl GenericClient, id: PaymentId) -> Result<bool, Failure> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM told_events t JOIN payments p ON p.id = t.payment_id
             LEFT JOIN chain_heads h ON h.chain_id = p.chain_id
             WHERE t.payment_id = $1 AND NOT t.made
                 AND (h.block_timestamp > extract(epoch FROM t.compared_at) + $2::bigint IS NOT TRUE OR {HAS_ORPHANS}))"
    );
    Ok(db.query_one(&db.prepare_cached(&sql).await?, &[&id.0, &MAX_AHEAD_SECONDS]).await?.get(0))
}

/// Takes the events of these payments' creation out of the told ones; returns the payments that had one.
///
/// # Errors
/// When the database fails.
pub(super) async fn forget_told_creations(db: &impl GenericClient, ids: &[Uuid]) -> Result<HashSet<Uuid>, Failure> {
    let statement =
        db.prepare_cached("DELETE FROM told_events WHERE payment_id = ANY($1) AND sequence = 1 RETURNING payment_id").await?;
    Ok(db.query(&statement, &[&ids]).await?.iter().map(|row| row.get(0)).collect())
}

/// Applies the cancellations and settlements that were told next. Those that were told after an event of a block wait for it, in the
/// confirmer.
///
/// # Errors
/// When the database fails.
pub(super) async fn apply_told(db: &impl GenericClient, ids: &[Uuid]) -> Result<(), Failure> {
    let mut told = told_events(db, ids).await?;
    let ids: Vec<Uuid> = told.iter().filter(|(_, told)| told.has_without_match()).map(|(id, _)| id.0).collect();
    let apply = |payment: Payment| told.get_mut(&payment.id).map(|told| told.apply_next(payment));
    let applied: Vec<Payment> = lock_payments(db, &ids).await?.into_iter().filter_map(apply).collect();
    save_payments(db, &applied.iter().collect::<Vec<_>>()).await?;
    forget_told_events(db, told.iter()).await
}
