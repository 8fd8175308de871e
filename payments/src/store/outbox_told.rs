//! Rows of `outbox` beside events that Kafka has: those that say the same are not told again, and no number is told with two contents.

use crate::history;
use crate::told::says_the_same;
use deadpool_postgres::GenericClient;
use prost::Message as _;
use runtime::Failure;
use runtime::db::bigint;
use std::collections::{HashMap, HashSet};
use topics::wire::{PaymentEvent, PaymentState};
use uuid::Uuid;

struct Row {
    id: i64,
    payment: Uuid,
    event: PaymentEvent,
    state: Vec<u8>,
    /// The relay has it in hand, or had before a crash.
    is_claimed: bool,
}

/// Takes events out of the outbox that Kafka has. Where one has the number of a told one and says something else, as after two primaries,
/// it gets a new number, and so do the payment's later ones. Returns the told events whose numbers others had, and that are not among
/// the others.
pub(super) async fn take_out_told<'a>(
    db: &impl GenericClient,
    told: &[&'a (Uuid, PaymentEvent)],
) -> Result<Vec<&'a (Uuid, PaymentEvent)>, Failure> {
    let ids: Vec<Uuid> = told.iter().map(|(id, _)| *id).collect::<HashSet<_>>().into_iter().collect();
    // The relay may delete rows that it has published now.
    let statement = db
        .prepare_cached(
            "SELECT id, payment_id, event, state, batch IS NOT NULL FROM outbox WHERE payment_id = ANY($1) ORDER BY id
             FOR UPDATE SKIP LOCKED",
        )
        .await?;
    let mut rows = Vec::new();
    for row in db.query(&statement, &[&ids]).await? {
        let event = PaymentEvent::decode(row.get::<_, &[u8]>(2)).map_err(|e| Failure::halt(e).context("outbox"))?;
        rows.push(Row { id: row.get(0), payment: row.get(1), event, state: row.get(3), is_claimed: row.get(4) });
    }
    let by_number: HashMap<(Uuid, u64), &'a (Uuid, PaymentEvent)> =
        told.iter().map(|told| ((told.0, told.1.sequence), *told)).collect();
    let told_as = |row: &Row| by_number.get(&(row.payment, row.event.sequence)).copied();
    let (mut out, left): (Vec<Row>, Vec<Row>) =
        rows.into_iter().partition(|row| told_as(row).is_some_and(|(_, told)| says_the_same(told, &row.event)));

    let mut others: Vec<_> = left.iter().filter_map(told_as).collect();
    let mut moved: HashSet<Uuid> = HashSet::new();
    for row in left {
        if told_as(&row).is_some() {
            tracing::error!("{} was told, and the event of that number here says something else", row.event.id);
            moved.insert(row.payment);
        }
        // The relay tells it as it is.
        if row.is_claimed || !moved.contains(&row.payment) {
            continue;
        }
        match others.iter().position(|(id, told)| *id == row.payment && says_the_same(told, &row.event)) {
            Some(same) => {
                others.swap_remove(same);
                out.push(row);
            }
            None => {
                let highest = told.iter().filter(|(id, _)| *id == row.payment).map(|(_, told)| told.sequence).max();
                renumber(db, &row, highest.unwrap_or_default()).await?;
            }
        }
    }
    let out: Vec<i64> = out.iter().map(|row| row.id).collect();
    db.execute(&db.prepare_cached("DELETE FROM outbox WHERE id = ANY($1)").await?, &[&out]).await?;
    Ok(others)
}

/// Gives an event the next number of its payment, after the highest that was told.
async fn renumber(db: &impl GenericClient, row: &Row, highest: u64) -> Result<(), Failure> {
    let sql = "UPDATE payments SET sequence = greatest(sequence, $2) + 1 WHERE id = $1 RETURNING sequence";
    let sequence: i64 = db.query_one(sql, &[&row.payment, &bigint(highest)]).await?.get(0);
    let number = runtime::db::unsigned(sequence);
    let id = format!("evt_{}_{number}", row.payment.simple());
    let event = PaymentEvent { id, sequence: number, ..row.event.clone() };
    let state = PaymentState::decode(row.state.as_slice()).map_err(|e| Failure::halt(e).context("outbox"))?;
    let state = PaymentState { sequence: number, ..state };
    let sql = "UPDATE outbox SET sequence = $2, event = $3, state = $4 WHERE id = $1";
    db.execute(sql, &[&row.id, &sequence, &event.encode_to_vec(), &state.encode_to_vec()]).await?;
    let entry = |event: PaymentEvent| history::trim(event).encode_to_vec();
    let sql = "UPDATE payment_events SET sequence = $3, record = $4 WHERE payment_id = $1 AND sequence = $2 AND record = $5";
    let (old, was, becomes) = (bigint(row.event.sequence), entry(row.event.clone()), entry(event));
    db.execute(sql, &[&row.payment, &old, &sequence, &becomes, &was]).await?;
    Ok(())
}
