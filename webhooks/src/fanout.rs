//! Records of `payment.events` into deliveries: one Postgres transaction a batch, with the offsets it ends at.

use crate::{body, queue};
use deadpool_postgres::{GenericClient, Pool};
use runtime::kafka::Record;
use runtime::{Failure, Folding, Kafka, Span, db};
use std::collections::HashSet;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use topics::wire::PaymentEvent;
use topics::{Topic, frame};
use uuid::Uuid;

/// The stage.
pub const FOLDING: Folding = Folding { stage: "webhooks", topic: Topic::Events, most: 512, most_bytes: 4 * 1024 * 1024 };
/// An endpoint gets what was written after it was made, give or take the difference of the relay's clock and Postgres's.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);
/// The year 9999: a record without a time was written after any endpoint was made.
const NEVER_OVER: i64 = 253_000_000_000_000;

/// Reads until `stop`, and calls the engine when there is something to send.
///
/// # Errors
/// `Retry` when Kafka or the database fails; `Halt` at a record that is no event, since to leave one out is to lose it.
pub fn run(kafka: &Kafka, pool: &Pool, handle: &Handle, call: &Notify, stop: &CancellationToken) -> Result<(), Failure> {
    FOLDING.follow(kafka, pool, handle, stop, |spans| {
        let records = spans.iter().flat_map(|(_, records)| records);
        let events = records.map(|record| read(record)).collect::<Result<Vec<_>, _>>()?;
        let spans: Vec<Span> = spans.iter().map(|(span, _)| *span).collect();
        if handle.block_on(apply(pool, &spans, &events))? > 0 {
            call.notify_one();
        }
        Ok(())
    })
}

/// An event, with the time of its record in milliseconds.
fn read(record: &Record<'_>) -> Result<(PaymentEvent, i64), Failure> {
    let event = frame::decode(record.payload()).map_err(|error| Failure::halt(error).context(FOLDING.place(record)))?;
    Ok((event, record.timestamp_ms().unwrap_or(NEVER_OVER)))
}

/// Returns how many deliveries it made.
async fn apply(pool: &Pool, spans: &[Span], events: &[(PaymentEvent, i64)]) -> Result<u64, Failure> {
    let mut client = pool.get().await.map_err(db::unavailable)?;
    let tx = client.transaction().await.map_err(db::failure)?;
    for span in spans {
        FOLDING.claim(&tx, *span).await?;
    }
    let made = deliveries(&tx, events).await?;
    tx.commit().await.map_err(db::failure)?;
    Ok(made)
}

/// A delivery for each endpoint that wants the event; for one that is disabled too, so that whoever enables it again can ask for
/// it.
async fn deliveries(db: &impl GenericClient, events: &[(PaymentEvent, i64)]) -> Result<u64, Failure> {
    let merchants = events.iter().map(|(event, _)| event.merchant_id.parse::<Uuid>()).collect::<Result<HashSet<_>, _>>();
    let merchants: Vec<Uuid> = merchants.map_err(Failure::halt)?.into_iter().collect();
    let sql = "SELECT DISTINCT merchant_id FROM webhook_endpoints WHERE merchant_id = ANY($1) AND deleted_at IS NULL";
    let statement = db.prepare_cached(sql).await.map_err(db::failure)?;
    let rows = db.query(&statement, &[&merchants]).await.map_err(db::failure)?;
    // Most merchants have none, and their events need no body.
    let listening: HashSet<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    let mut columns = Columns::default();
    for (event, written) in events {
        let merchant: Uuid = event.merchant_id.parse().map_err(Failure::halt)?;
        if listening.contains(&merchant) {
            columns.push(merchant, event, *written).map_err(|failure| failure.context(event.id.clone()))?;
        }
    }
    columns.insert(db).await
}

#[derive(Default)]
struct Columns {
    merchants: Vec<Uuid>,
    ids: Vec<String>,
    kinds: Vec<String>,
    payments: Vec<Uuid>,
    sequences: Vec<i64>,
    bodies: Vec<String>,
    /// Seconds.
    written: Vec<f64>,
}

impl Columns {
    fn push(&mut self, merchant: Uuid, event: &PaymentEvent, written_ms: i64) -> Result<(), Failure> {
        self.bodies.push(body::of_event(event).map_err(Failure::halt)?);
        self.merchants.push(merchant);
        self.ids.push(event.id.clone());
        self.kinds.push(event.r#type.clone());
        self.payments.push(event.payment_id.parse().map_err(Failure::halt)?);
        self.sequences.push(i64::try_from(event.sequence).map_err(Failure::halt)?);
        let written = Duration::from_millis(u64::try_from(written_ms).unwrap_or_default());
        self.written.push((written + CLOCKS_DIFFER).as_secs_f64());
        Ok(())
    }

    async fn insert(&self, db: &impl GenericClient) -> Result<u64, Failure> {
        if self.ids.is_empty() {
            return Ok(0);
        }
        let statement = db
            .prepare_cached(
                "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, body, state, next_attempt)
                 SELECT e.id, t.event_id, t.type, t.payment_id, t.sequence, t.body,
                     -- If it is disabled, queue::end ends it.
                     'pending',
                     -- It waits as long as the one before it, as queue::put_off_followers has it.
                     greatest(now(), (SELECT b.next_attempt FROM webhook_deliveries b WHERE b.endpoint_id = e.id
                         AND b.payment_id = t.payment_id AND b.sequence < t.sequence AND b.state = 'pending'
                         AND b.tries > 0 AND b.tries < $8 AND b.claimed_by IS NULL
                         ORDER BY b.sequence DESC LIMIT 1 FOR SHARE SKIP LOCKED))
                 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::bigint[], $6::text[], $7::float8[])
                     WITH ORDINALITY AS t (merchant_id, event_id, type, payment_id, sequence, body, written, place)
                 JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.deleted_at IS NULL
                     AND e.created_at <= to_timestamp(t.written)
                     AND (e.events = '{}' OR t.type = ANY(e.events) OR split_part(t.type, '.', 1) || '.*' = ANY(e.events))
                 ORDER BY t.place
                 ON CONFLICT (endpoint_id, event_id) DO NOTHING",
            )
            .await
            .map_err(db::failure)?;
        db.execute(
            &statement,
            &[
                &self.merchants,
                &self.ids,
                &self.kinds,
                &self.payments,
                &self.sequences,
                &self.bodies,
                &self.written,
                &queue::ORDER_KEPT,
            ],
        )
        .await
        .map_err(db::failure)
    }
}
