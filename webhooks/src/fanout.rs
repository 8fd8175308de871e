//! Records of `payment.events` into deliveries: one Postgres transaction a batch and partition, with the offset it ends at.

use crate::body;
use anyhow::anyhow;
use deadpool_postgres::{GenericClient, Pool};
use runtime::kafka::{Consumer, Record};
use runtime::{Failure, Kafka, db, metrics};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use topics::wire::PaymentEvent;
use topics::{Topic, frame};
use uuid::Uuid;

/// Also the name of the consumer group.
pub const STAGE: &str = "webhooks";
const MOST: usize = 512;
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// An endpoint gets what was written after it was made, give or take the difference of Kafka's clock and Postgres's.
const CLOCKS_DIFFER: Duration = Duration::from_secs(60);

/// Reads until `stop`, and calls the engine when there is something to send.
///
/// # Errors
/// `Retry` when Kafka or the database fails; `Halt` at a record that is no event, since to leave one out is to lose it.
pub fn run(kafka: &Kafka, pool: &Pool, handle: &Handle, call: &Notify, stop: &CancellationToken) -> Result<(), Failure> {
    let (position_pool, position_handle) = (pool.clone(), handle.clone());
    let position = move |_: Topic, partition: i32| position_handle.block_on(position(&position_pool, partition));
    let consumer = Consumer::open(kafka, STAGE, &[Topic::Events], Some(Box::new(position)))?;
    let mut next: HashMap<i32, i64> = HashMap::new();
    let mut assignment = 0;
    while !stop.is_cancelled() {
        let batch = consumer.poll(MOST, MOST_BYTES, Duration::from_millis(100))?;
        if batch.assignment != assignment {
            assignment = batch.assignment;
            next.clear();
        }
        let mut partitions: BTreeMap<i32, Vec<&Record<'_>>> = BTreeMap::new();
        for record in &batch.records {
            partitions.entry(record.partition()).or_default().push(record);
        }
        for (partition, records) in partitions {
            let started = Instant::now();
            let from = match next.get(&partition) {
                Some(from) => *from,
                // First records since the assignment: they begin where the database stands.
                None => handle.block_on(self::position(pool, partition))?.unwrap_or(0),
            };
            let ours = read(partition, from, &records)?;
            if handle.block_on(apply(pool, &ours))? > 0 {
                call.notify_one();
            }
            next.insert(partition, ours.next);
            report(&records, started);
        }
    }
    Ok(())
}

/// Events of one partition, in order.
struct Batch {
    partition: i32,
    /// Where the database should stand.
    from: i64,
    /// Where it will stand.
    next: i64,
    /// With the time of their records, in milliseconds.
    events: Vec<(PaymentEvent, i64)>,
}

fn read(partition: i32, from: i64, records: &[&Record<'_>]) -> Result<Batch, Failure> {
    let mut events = Vec::with_capacity(records.len());
    let mut next = from;
    for record in records {
        let place = || format!("{} partition {partition} offset {}", Topic::Events, record.offset());
        if record.offset() < next {
            return Err(Failure::Retry(anyhow!("{}: read again, the database stands at {next}", place())));
        }
        let event = frame::decode(record.payload()).map_err(|error| Failure::halt(error).context(place()))?;
        events.push((event, record.timestamp_ms().unwrap_or(i64::MAX)));
        next = record.offset() + 1;
    }
    Ok(Batch { partition, from, next, events })
}

/// Where the stage stands in a partition.
async fn position(pool: &Pool, partition: i32) -> Result<Option<i64>, Failure> {
    let db = pool.get().await.map_err(db::unavailable)?;
    let sql = "SELECT next_offset FROM stage_offsets WHERE stage = $1 AND topic = $2 AND partition = $3";
    let row = db.query_opt(sql, &[&STAGE, &Topic::Events.name(), &partition]).await.map_err(db::failure)?;
    Ok(row.map(|row| row.get(0)))
}

/// Returns how many deliveries it made.
async fn apply(pool: &Pool, batch: &Batch) -> Result<u64, Failure> {
    let mut client = pool.get().await.map_err(db::unavailable)?;
    let tx = client.transaction().await.map_err(db::failure)?;
    claim_offset(&tx, batch).await?;
    let made = deliveries(&tx, &batch.events).await?;
    tx.commit().await.map_err(db::failure)?;
    Ok(made)
}

/// Moves the offset on and keeps its row locked until the commit. A zombie finds it elsewhere than it left it.
async fn claim_offset(db: &impl GenericClient, batch: &Batch) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "INSERT INTO stage_offsets (stage, topic, partition, next_offset) VALUES ($1, $2, $3, $5)
             ON CONFLICT (stage, topic, partition) DO UPDATE SET next_offset = EXCLUDED.next_offset, updated_at = now()
                 WHERE stage_offsets.next_offset = $4",
        )
        .await
        .map_err(db::failure)?;
    let moved = db
        .execute(&statement, &[&STAGE, &Topic::Events.name(), &batch.partition, &batch.from, &batch.next])
        .await
        .map_err(db::failure)?;
    if moved == 0 {
        let (partition, from) = (batch.partition, batch.from);
        return Err(Failure::Retry(anyhow!(
            "partition {partition} of {} is no longer at {from}: another instance has read on",
            Topic::Events
        )));
    }
    Ok(())
}

/// A delivery for each endpoint that wants the event. For one that is disabled it has failed already, so that whoever enables
/// it again can ask for it.
async fn deliveries(db: &impl GenericClient, events: &[(PaymentEvent, i64)]) -> Result<u64, Failure> {
    let merchants = events.iter().map(|(event, _)| event.merchant_id.parse::<Uuid>()).collect::<Result<HashSet<_>, _>>();
    let merchants: Vec<Uuid> = merchants.map_err(Failure::halt)?.into_iter().collect();
    let statement = db
        .prepare_cached("SELECT DISTINCT merchant_id FROM webhook_endpoints WHERE merchant_id = ANY($1)")
        .await
        .map_err(db::failure)?;
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
                "INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, body, state)
                 SELECT e.id, t.event_id, t.type, t.payment_id, t.sequence, t.body,
                     CASE WHEN e.enabled THEN 'pending' ELSE 'failed' END
                 FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::bigint[], $6::text[], $7::float8[])
                     WITH ORDINALITY AS t (merchant_id, event_id, type, payment_id, sequence, body, written, place)
                 JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.created_at <= to_timestamp(t.written)
                     AND (e.events = '{}' OR t.type = ANY(e.events) OR split_part(t.type, '.', 1) || '.*' = ANY(e.events))
                 ORDER BY t.place
                 ON CONFLICT (endpoint_id, event_id) DO NOTHING",
            )
            .await
            .map_err(db::failure)?;
        db.execute(
            &statement,
            &[&self.merchants, &self.ids, &self.kinds, &self.payments, &self.sequences, &self.bodies, &self.written],
        )
        .await
        .map_err(db::failure)
    }
}

fn report(records: &[&Record<'_>], started: Instant) {
    let stage = [("stage", STAGE)];
    metrics::STAGE_RECORDS.counter(&stage).increment(u64::try_from(records.len()).unwrap_or_default());
    metrics::STAGE_LATENCY.histogram(&stage).record(started.elapsed());
    if let Some(written) = records.last().and_then(|record| record.timestamp_ms()) {
        metrics::stage_lag(STAGE, written);
    }
}
