//! The outbox, from Postgres to Kafka, each event exactly once.
//!
//! Rows are claimed in numbered batches (committed), a batch and its number go to Kafka in one transaction, then its rows
//! are deleted. After a crash the number that Kafka has tells whether the claimed batch is there. Numbering at claim time
//! needs no order among the writers, who commit in any; the events of one payment are in order because its row is locked
//! from one event to the next.
//!
//! One relay works at a time: whoever holds an advisory lock, on the connection that it claims with. A relay that lost the
//! connection can claim nothing, and the next one's taking over of the transactional id fences what it still sends.

use anyhow::anyhow;
use deadpool_postgres::{Client, Object, Pool};
use runtime::kafka::{Kafka, TransactionalProducer};
use runtime::{Failure, db, metrics, stage};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;
use uuid::Uuid;

const NAME: &str = "outbox";
const MOST: i64 = 1000;
/// How often to look when nobody calls: events of other processes, the API's above all.
const LOOK: Duration = Duration::from_millis(20);

/// A session of its own: it is closed at the end and not given back, since it holds the lock.
struct Leader(Option<Client>);

impl Leader {
    fn db(&self) -> Result<&Client, Failure> {
        self.0.as_ref().ok_or_else(|| Failure::Retry(anyhow!("the relay's connection is closed")))
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}

struct Row {
    id: i64,
    payment: Uuid,
    event: Vec<u8>,
    state: Vec<u8>,
}

/// Runs until `stop`; `called` wakes it when this process has made events.
///
/// # Errors
/// `Retry` when Kafka or Postgres went away.
pub fn run(
    kafka: &Kafka,
    pool: &Pool,
    handle: &Handle,
    called: &Receiver<()>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let Some(leader) = lead(pool, handle, stop)? else {
        return Ok(());
    };
    let producer = TransactionalProducer::open(kafka, NAME)?;
    let group = kafka.bare_group(NAME)?;
    // The number of the next batch, kept as an offset of a partition that no consumer of this group reads.
    let mut batch = kafka.committed(NAME, Topic::Events, 0)?.unwrap_or(1);
    tracing::info!("the relay of payment.events leads, from batch {batch}");
    let mut looked = Instant::now();
    while !stop.is_cancelled() {
        let rows = handle.block_on(claim(leader.db()?, batch))?;
        if rows.is_empty() {
            wait(called);
        } else {
            publish(kafka, &producer, &group, batch, &rows)?;
            batch += 1;
        }
        if looked.elapsed() > Duration::from_secs(2) {
            looked = Instant::now();
            handle.block_on(depth(leader.db()?))?;
            db::observe(pool, "confirmer");
        }
    }
    Ok(())
}

fn wait(called: &Receiver<()>) {
    match called.recv_timeout(LOOK) {
        // One look serves all calls so far.
        Ok(()) => while called.try_recv().is_ok() {},
        Err(RecvTimeoutError::Timeout) => {}
        // Nobody is left to call.
        Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
    }
}

fn lead(pool: &Pool, handle: &Handle, stop: &CancellationToken) -> Result<Option<Leader>, Failure> {
    let leader = Leader(Some(handle.block_on(pool.get()).map_err(db::unavailable)?));
    while !stop.is_cancelled() {
        let row = handle
            .block_on(leader.db()?.query_one("SELECT pg_try_advisory_lock($1)", &[&db::lock::RELAY]))
            .map_err(db::failure)?;
        if row.get(0) {
            return Ok(Some(leader));
        }
        stage::pause(stop, Duration::from_millis(500));
    }
    Ok(None)
}

/// An event tells a payment's address, so those of payments whose intent Kafka has not acknowledged wait.
///
/// Deletes what is published and claims the next rows, or finds those that were claimed under this number before a crash.
async fn claim(db: &Client, batch: i64) -> Result<Vec<Row>, Failure> {
    let statement = db
        .prepare_cached(
            "WITH published AS (DELETE FROM outbox WHERE batch < $1),
                  claimed AS (SELECT id FROM outbox WHERE batch = $1),
                  new AS (SELECT id FROM outbox o WHERE batch IS NULL AND NOT EXISTS (SELECT FROM claimed)
                      AND NOT EXISTS (SELECT FROM unacknowledged_intents i WHERE i.payment_id = o.payment_id)
                      ORDER BY id LIMIT $2)
             UPDATE outbox SET batch = $1 WHERE id IN (SELECT id FROM claimed UNION ALL SELECT id FROM new)
             RETURNING id, payment_id, event, state",
        )
        .await
        .map_err(db::failure)?;
    let rows = db.query(&statement, &[&batch, &MOST]).await.map_err(db::failure)?;
    let mut rows: Vec<Row> =
        rows.iter().map(|row| Row { id: row.get(0), payment: row.get(1), event: row.get(2), state: row.get(3) }).collect();
    rows.sort_unstable_by_key(|row| row.id);
    Ok(rows)
}

fn publish(
    kafka: &Kafka,
    producer: &TransactionalProducer,
    group: &runtime::kafka::GroupMetadata,
    batch: i64,
    rows: &[Row],
) -> Result<(), Failure> {
    let started = Instant::now();
    let transaction = producer.begin()?;
    for row in rows {
        let key = row.payment.to_string();
        transaction.send(Topic::Events, &key, &kafka.frame(Topic::Events, &row.event))?;
        transaction.send(Topic::State, &key, &kafka.frame(Topic::State, &row.state))?;
    }
    transaction.send_offsets(&[(Topic::Events, 0, batch + 1)], group)?;
    transaction.commit()?;
    metrics::OUTBOX_PUBLISHED.counter(&[]).increment(u64::try_from(rows.len()).unwrap_or_default());
    metrics::STAGE_LATENCY.histogram(&[("stage", NAME)]).record(started.elapsed());
    Ok(())
}

async fn depth(db: &Client) -> Result<(), Failure> {
    let row = db.query_one("SELECT count(*) FROM outbox", &[]).await.map_err(db::failure)?;
    #[expect(clippy::cast_precision_loss, reason = "an outbox of 2^52 rows is not met")]
    metrics::OUTBOX_DEPTH.gauge(&[]).set(row.get::<_, i64>(0) as f64);
    Ok(())
}
