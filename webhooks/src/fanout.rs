//! The fan-out: records of `payment.events` become deliveries, one per endpoint that wants the event.
//!
//! A batch is one Postgres transaction, with the offsets it ends at. (endpoint, event) is unique, so a replay adds nothing. An
//! event that can't be told is set aside (`runtime::set_aside`), and the others go on.

use crate::body;
use crate::retry_schedule::MAX_BLOCKING_FAILURES;
use base::json::check_storable_text;
use base::{error_chain, metrics};
use deadpool_postgres::{GenericClient, Pool};
use runtime::kafka::Record;
use runtime::{Failure, FoldStage, Kafka, Span};
use std::collections::HashSet;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_postgres::types::ToSql;
use tokio_util::sync::CancellationToken;
use topics::wire::PaymentEvent;
use topics::{Topic, frame};
use uuid::Uuid;

pub const FOLDING: FoldStage =
    FoldStage { stage: "webhooks", topic: Topic::Events, max_records: 512, max_bytes: 4 * 1024 * 1024, on_return: None };
/// An endpoint gets events written after it was created. The relay's clock says when an event was written, Postgres's when an
/// endpoint was created; they may differ by this.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Of an event's id and type: an index entry has room for some 2,700.
const MAX_NAME_BYTES: usize = 200;
/// For a record without a timestamp: it counts as written after any endpoint was created.
const YEAR_9999_MS: i64 = 253_000_000_000_000;

/// Consumes until `stop`, and notifies the engine of new deliveries.
///
/// # Errors
/// `Retry` when Kafka or the database fails.
pub fn run(
    kafka: &Kafka,
    pool: &Pool,
    handle: &Handle,
    new_deliveries: &Notify,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    handle.block_on(report(kafka, pool))?;
    FOLDING.follow(kafka, pool, handle, stop, |spans| {
        let records = spans.iter().flat_map(|(_, records)| records);
        let (mut events, mut untold) = (Vec::new(), Vec::new());
        for record in records {
            match read(record) {
                Ok(event) => events.push(event),
                Err(event) => untold.push(event),
            }
        }
        let spans: Vec<&Span> = spans.iter().map(|(span, _)| span).collect();
        if handle.block_on(apply(kafka, pool, &spans, &events, untold))? > 0 {
            new_deliveries.notify_one();
        }
        Ok(())
    })
}

/// An event that can be told, with what its delivery needs.
struct ReadEvent {
    event: PaymentEvent,
    /// The record's timestamp in milliseconds.
    written_ms: i64,
    merchant: Uuid,
    payment: Uuid,
    sequence: i64,
    place: (i32, i64),
}

/// An event that can't be told: its item in `set_aside`.
struct UntoldEvent {
    place: (i32, i64),
    id: String,
    cause: String,
}

fn read(record: &Record<'_>) -> Result<ReadEvent, UntoldEvent> {
    let place = (record.partition(), record.offset());
    let unreadable = |cause: String| UntoldEvent { place, id: format!("{}/{}", place.0, place.1), cause };
    let event: PaymentEvent = frame::decode(record.payload()).map_err(|error| unreadable(error.to_string()))?;
    let untold = |cause: String| UntoldEvent { place, id: event.id.clone(), cause };
    for (name, text) in [("id", &event.id), ("type", &event.r#type)] {
        check_storable_text(text).map_err(|error| untold(format!("{name}: {error}")))?;
        if text.len() > MAX_NAME_BYTES {
            return Err(untold(format!("{name}: expected at most {MAX_NAME_BYTES} bytes, got {}", text.len())));
        }
    }
    let merchant = event.merchant_id.parse().map_err(|error| untold(format!("merchant_id: {error}")))?;
    let payment = event.payment_id.parse().map_err(|error| untold(format!("payment_id: {error}")))?;
    let sequence = i64::try_from(event.sequence).map_err(|error| untold(format!("sequence: {error}")))?;
    let written_ms = record.timestamp_ms().unwrap_or(YEAR_9999_MS);
    Ok(ReadEvent { event, written_ms, merchant, payment, sequence, place })
}

/// Returns the number of new deliveries.
async fn apply(
    kafka: &Kafka,
    pool: &Pool,
    spans: &[&Span],
    events: &[ReadEvent],
    mut untold: Vec<UntoldEvent>,
) -> Result<u64, Failure> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    for span in spans {
        FOLDING.claim(&tx, span).await?;
    }
    let inserted = insert_deliveries(&tx, events, &mut untold).await?;
    for UntoldEvent { place: (partition, offset), id, cause } in &untold {
        let cause = format!(
            "no webhook tells it: {cause}; it is in {0}/{partition}, `ctrip tail {0} --from {offset}` shows it",
            FOLDING.topic
        );
        FOLDING.set_aside(&tx, (&kafka.name(FOLDING.topic), *partition), id, *offset, &cause).await?;
    }
    tx.commit().await?;
    if !untold.is_empty() {
        for UntoldEvent { id, cause, .. } in &untold {
            tracing::error!("event {id} is set aside, the others go on: {cause}");
        }
        report(kafka, pool).await?;
    }
    Ok(inserted)
}

async fn report(kafka: &Kafka, pool: &Pool) -> Result<(), Failure> {
    let counts = runtime::set_aside::counts(&pool.get().await?, kafka.topic_prefix()).await?;
    #[expect(clippy::cast_precision_loss, reason = "2^52 events are not met")]
    let count = counts.get(FOLDING.stage).copied().unwrap_or_default() as f64;
    metrics::SET_ASIDE.gauge(&[("kind", "webhook_event")]).set(count);
    Ok(())
}

/// Inserts a delivery per endpoint that wants the event. Disabled endpoints get one too, so that the merchant can redeliver it
/// after enabling the endpoint.
async fn insert_deliveries(
    db: &impl GenericClient,
    events: &[ReadEvent],
    untold: &mut Vec<UntoldEvent>,
) -> Result<u64, Failure> {
    let merchants: Vec<Uuid> = events.iter().map(|read| read.merchant).collect::<HashSet<_>>().into_iter().collect();
    let sql = "SELECT DISTINCT merchant_id FROM webhook_endpoints WHERE merchant_id = ANY($1) AND deleted_at IS NULL";
    let statement = db.prepare_cached(sql).await?;
    let found = db.query(&statement, &[&merchants]).await?;
    // Most merchants have no endpoint, and their events need no body.
    let with_endpoints: HashSet<Uuid> = found.iter().map(|row| row.get(0)).collect();
    let mut rows = DeliveryRows::default();
    for read in events.iter().filter(|read| with_endpoints.contains(&read.merchant)) {
        match body::event_body(&read.event) {
            Ok(body) => rows.push(read, body),
            Err(error) => {
                let cause = error_chain(&error);
                untold.push(UntoldEvent { place: read.place, id: read.event.id.clone(), cause });
            }
        }
    }
    rows.insert(db).await
}

/// Arguments of the INSERT, a vector per column.
#[derive(Default)]
struct DeliveryRows {
    merchants: Vec<Uuid>,
    ids: Vec<String>,
    event_types: Vec<String>,
    payments: Vec<Uuid>,
    sequences: Vec<i64>,
    bodies: Vec<String>,
    /// Unix seconds, with [`MAX_CLOCK_SKEW`] added.
    written: Vec<f64>,
}

impl DeliveryRows {
    fn push(&mut self, read: &ReadEvent, body: String) {
        self.bodies.push(body);
        self.merchants.push(read.merchant);
        self.ids.push(read.event.id.clone());
        self.event_types.push(read.event.r#type.clone());
        self.payments.push(read.payment);
        self.sequences.push(read.sequence);
        let written = Duration::from_millis(u64::try_from(read.written_ms).unwrap_or_default());
        self.written.push((written + MAX_CLOCK_SKEW).as_secs_f64());
    }

    async fn insert(&self, db: &impl GenericClient) -> Result<u64, Failure> {
        if self.ids.is_empty() {
            return Ok(0);
        }
        let statement = db
            .prepare_cached(
                "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, body, state, next_attempt)
                 SELECT e.id, t.event_id, t.type, t.payment_id, t.sequence, t.body,
                     -- For a disabled endpoint queue::disabled fails it.
                     'pending',
                     -- It waits for the earlier event of its payment, as in queue::payment_order.
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
            .await?;
        let values: [&(dyn ToSql + Sync); 8] = [
            &self.merchants,
            &self.ids,
            &self.event_types,
            &self.payments,
            &self.sequences,
            &self.bodies,
            &self.written,
            &MAX_BLOCKING_FAILURES,
        ];
        Ok(db.execute(&statement, &values).await?)
    }
}
