//! Rows of `outbox` beside events that Kafka has: those that say the same are not told again, and no number is told with two contents.

use super::outbox::read_event;
use crate::history;
use crate::told::says_the_same;
use deadpool_postgres::{Client, GenericClient};
use prost::Message as _;
use runtime::Failure;
use runtime::db::{bigint, lock, unsigned};
use std::collections::{BTreeMap, HashMap, HashSet};
use topics::PaymentId;
use topics::wire::{PaymentEvent, PaymentState};
use uuid::Uuid;

/// The events that are claimed: the payment of each, and the number that it is claimed under.
///
/// # Errors
/// When the database fails.
pub async fn claims(db: &impl GenericClient) -> Result<Vec<(Uuid, i64)>, Failure> {
    let rows = db.query("SELECT payment_id, batch FROM outbox WHERE batch > 0", &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Lets rows of these payments be claimed anew that were claimed under a lower number than `next` and never told: a database
/// that took the place of this one for a while has told others under their number, or nobody knew whether Kafka had them. They
/// are held against all events of their payments that were `told` since the lowest of those numbers, and that were compared
/// with this database before: no number is told with two contents. Returns how many will be told now.
///
/// # Errors
/// When the database fails, or a row holds no valid event.
pub async fn release_claims(
    db: &mut Client,
    payments: &HashSet<Uuid>,
    next: i64,
    told: &[(Uuid, PaymentEvent)],
) -> Result<i64, Failure> {
    let transaction = db.transaction().await?;
    lock::begin_comparison(&transaction).await?;
    let sql = "UPDATE outbox SET batch = NULL WHERE batch > 0 AND batch < $1 AND payment_id = ANY($2) RETURNING id";
    let payments: Vec<Uuid> = payments.iter().copied().collect();
    let released: Vec<i64> = transaction.query(sql, &[&next, &payments]).await?.iter().map(|row| row.get(0)).collect();
    take_out_told(&transaction, &told.iter().collect::<Vec<_>>(), told).await?;
    let left = transaction.query_one("SELECT count(*) FROM outbox WHERE id = ANY($1)", &[&released]).await?.get(0);
    transaction.commit().await?;
    Ok(left)
}

struct Row {
    id: i64,
    payment: Uuid,
    event: PaymentEvent,
    state: Vec<u8>,
    /// The relay has it in hand, or had before a crash.
    is_claimed: bool,
}

/// Takes events out of the outbox that Kafka has. Where one has the number of a told one and says something else, as after two primaries,
/// it gets a new number, above all that were `read`, and so do the payment's later ones. Returns the told events whose numbers others
/// had, and that are not among the others.
pub(super) async fn take_out_told<'a>(
    db: &impl GenericClient,
    told: &[&'a (Uuid, PaymentEvent)],
    read: &[(Uuid, PaymentEvent)],
) -> Result<Vec<&'a (Uuid, PaymentEvent)>, Failure> {
    let ids: Vec<Uuid> = told.iter().map(|(id, _)| *id).collect::<HashSet<_>>().into_iter().collect();
    // The relay may delete rows that it has published now.
    let statement = db
        .prepare_cached(
            "SELECT id, payment_id, event, state, coalesce(batch > 0, false) FROM outbox WHERE payment_id = ANY($1) ORDER BY id
             FOR UPDATE SKIP LOCKED",
        )
        .await?;
    let mut rows = Vec::new();
    for row in db.query(&statement, &[&ids]).await? {
        let event = read_event(row.get(2))?;
        rows.push(Row { id: row.get(0), payment: row.get(1), event, state: row.get(3), is_claimed: row.get(4) });
    }
    let by_number: HashMap<(Uuid, u64), &'a (Uuid, PaymentEvent)> =
        told.iter().map(|told| ((told.0, told.1.sequence), *told)).collect();
    let told_as = |row: &Row| by_number.get(&(row.payment, row.event.sequence)).copied();
    let (mut out, left): (Vec<Row>, Vec<Row>) =
        rows.into_iter().partition(|row| told_as(row).is_some_and(|(_, told)| says_the_same(told, &row.event)));

    let mut others: Vec<_> = left.iter().filter_map(told_as).collect();
    let mut later: BTreeMap<Uuid, Later<'_>> = BTreeMap::new();
    for row in left {
        let disputed = told_as(&row).is_some();
        if disputed {
            tracing::error!("{} was told, and the event of that number here says something else", row.event.id);
        }
        let same = |(id, told): &&(Uuid, PaymentEvent)| *id == row.payment && says_the_same(told, &row.event);
        let of_payment = later.entry(row.payment).or_default();
        of_payment.disputed |= disputed;
        // The relay tells it as it is.
        if row.is_claimed || !of_payment.disputed {
            of_payment.stays.insert(row.event.sequence);
        } else if let Some(same) = others.iter().position(same) {
            of_payment.told.push((row, &others.swap_remove(same).1));
        } else {
            of_payment.moved.push(row);
        }
    }
    for (payment, later) in later.into_iter().filter(|(_, later)| later.disputed) {
        let highest = read.iter().filter(|(id, _)| *id == payment).map(|(_, told)| told.sequence).max();
        out.extend(later.renumber(db, payment, highest.unwrap_or_default()).await?);
    }
    let out: Vec<i64> = out.iter().map(|row| row.id).collect();
    db.execute(&db.prepare_cached("DELETE FROM outbox WHERE id = ANY($1)").await?, &[&out]).await?;
    Ok(others)
}

/// A payment's rows of which none was told under its own number.
#[derive(Default)]
struct Later<'a> {
    /// One of them has a number that was told with another content.
    disputed: bool,
    /// Numbers of those that keep them.
    stays: HashSet<u64>,
    /// From the disputed one on, in order: they get new numbers.
    moved: Vec<Row>,
    /// Those that were told under other numbers.
    told: Vec<(Row, &'a PaymentEvent)>,
}

impl Later<'_> {
    /// Numbers what moves one after another, behind all that stays and all that was told: a payment's numbers have no gap. Returns
    /// the rows that were told.
    async fn renumber(self, db: &impl GenericClient, payment: Uuid, highest: u64) -> Result<Vec<Row>, Failure> {
        let Self { mut stays, moved, told, .. } = self;
        let sql = "SELECT sequence, (SELECT max(sequence) FROM told_events WHERE payment_id = $1)
                   FROM payments WHERE id = $1 FOR UPDATE";
        let row = db.query_one(sql, &[&payment]).await?;
        let (last, kept) = (unsigned(row.get(0)), row.get::<_, Option<i64>>(1).map(unsigned));
        let mut history = Vec::new();
        for (row, told) in &told {
            // Its number here may be that of a row that the relay has.
            if stays.contains(&told.sequence) {
                stays.insert(row.event.sequence);
            } else {
                history.push((row, (*told).clone()));
            }
        }
        let ours = moved.iter().chain(told.iter().map(|(row, _)| row)).map(|row| row.event.sequence).max();
        // The relay has the rows beyond, and may delete them now.
        let beyond = Some(last).filter(|last| ours.is_none_or(|ours| ours < *last));
        let before = stays.into_iter().chain(kept).chain(beyond).fold(highest, u64::max);
        for (row, number) in moved.iter().zip(before + 1..) {
            let id = PaymentId(payment).event_id(number);
            let event = PaymentEvent { id, sequence: number, ..row.event.clone() };
            let state = PaymentState::decode(row.state.as_slice()).map_err(|e| Failure::halt(e).context("outbox"))?;
            let state = PaymentState { sequence: number, ..state };
            let sql = "UPDATE outbox SET sequence = $2, event = $3, state = $4 WHERE id = $1";
            db.execute(sql, &[&row.id, &bigint(number), &event.encode_to_vec(), &state.encode_to_vec()]).await?;
            history.push((row, event));
        }
        let last = before + u64::try_from(moved.len()).unwrap_or_default();
        db.execute("UPDATE payments SET sequence = $2 WHERE id = $1", &[&payment, &bigint(last)]).await?;
        rewrite_history(db, payment, &history).await?;
        Ok(told.into_iter().map(|(row, _)| row).collect())
    }
}

/// Gives events of the history other numbers. First each gets one that no event has, since one may take another's.
async fn rewrite_history(db: &impl GenericClient, payment: Uuid, events: &[(&Row, PaymentEvent)]) -> Result<(), Failure> {
    let entry = |event: &PaymentEvent| history::trim(event.clone()).encode_to_vec();
    for (row, _) in events {
        let sql = "UPDATE payment_events SET sequence = -sequence WHERE payment_id = $1 AND sequence = $2 AND record = $3";
        db.execute(sql, &[&payment, &bigint(row.event.sequence), &entry(&row.event)]).await?;
    }
    for (row, becomes) in events {
        let sql = "UPDATE payment_events SET sequence = $3, record = $4 WHERE payment_id = $1 AND sequence = $2";
        let (old, new) = (-bigint(row.event.sequence), bigint(becomes.sequence));
        db.execute(sql, &[&payment, &old, &new, &entry(becomes)]).await?;
    }
    Ok(())
}
