//! The relay: publishes the outbox from Postgres to Kafka, each event exactly once.
//!
//! Rows are claimed in numbered batches, and the claim is committed. A batch goes to Kafka in one transaction, its number in the
//! header [`BATCH`] of each event; then its rows are deleted. After a crash, the last number in `payment.events` tells whether the
//! claimed batch was published. Rows that were claimed under a number that Kafka has, and are not there, were claimed before another
//! database took over for a while, and are claimed anew. Because batches are numbered when they are claimed, writers may commit in any
//! order. The events of one payment are in order because its row is locked from one event to the next.
//!
//! The number is committed as an offset of the relay's group too. A group expires, and is not copied with a topic; so it only
//! counts where it is ahead of the topic, whose retention may have deleted the last events.
//!
//! Somebody may have left a transaction open in a partition of `payment.events`, or it has no leader. Nobody can read its events
//! then, so nobody knows whether a batch among them was published: its events are kept back until all can be read that was there when the
//! relay began, and those of the other partitions go on. So it is where `payment.state` can't be written. What was claimed before
//! for a partition that is held is in doubt: it keeps its number, and no batch gets that one again. Once the partition can be read
//! it is compared and released in place. Only what was there at the beginning counts, so a row of transactions of others keeps it
//! for no longer than the first of them.
//!
//! One relay works at a time: the leader holds an advisory lock, on the connection that it claims with. A relay that lost that
//! connection can claim nothing. Its late transactions are fenced once the next leader takes over the transactional id.

use crate::batches::{self, BATCH, begin, told_batches};
use anyhow::anyhow;
use base::metrics;
use deadpool_postgres::{Client, Pool};
use payments::store::{Claim, OutboxFront, OutboxRow};
use recovery::Recovery;
use runtime::db::{self, Gate, OwnConnection};
use runtime::kafka::{Kafka, TransactionalProducer};
use runtime::{Failure, stage};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;

const STAGE: &str = "outbox";
const MAX_ROWS_PER_BATCH: i64 = 1000;
/// How often to poll the outbox without a wake-up, for the events of other processes, the API's above all.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The lead of a process that is frozen ends after this, which is longer than a Kafka transaction takes.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// How often another instance tries to become the leader.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often the depth of the outbox and the use of the pool are measured, and the outbox's front moves on.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// Leads and publishes until `stop`. A message on `wake` means that this process has written events.
///
/// # Errors
/// `Retry` when Kafka or Postgres is not reachable.
pub fn run(
    kafka: &Kafka,
    pool: &Pool,
    recovery: &Recovery,
    handle: &Handle,
    wake: &Receiver<()>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let Some(mut leader) = become_leader(pool, recovery.gate(), handle, stop)? else {
        return Ok(());
    };
    // The producer would fence that of the relay that reads the right one.
    check_database(&leader, recovery.gate())?;
    let producer = TransactionalProducer::open(kafka, STAGE)?;
    // After the fencing: no predecessor publishes any more.
    let mut held = batches::held(kafka, STAGE, recovery, handle);
    let told = told_batches(kafka, STAGE, &mut held)?;
    // What Kafka has is taken out of an outbox that came from a backup.
    let left_out = recovery.catch_up_events(handle)?;
    if let Some((_, cause)) = left_out.iter().find(|((topic, partition), _)| *topic == Topic::Events && !held.holds(*partition))
    {
        return Err(Failure::Retry(anyhow!("payment.events is not compared with Postgres: {cause}")));
    }
    let mut batch = begin(kafka, leader.db()?, handle, told, &held)?;
    let group = kafka.bare_group(STAGE)?;
    // What is read before may take longer.
    handle.block_on(leader.end_if_idle(MAX_IDLE))?;
    tracing::info!("the relay is the leader and publishes payment.events from batch {batch}");
    let (mut front, mut reported) = (OutboxFront::of(batch, &held.partitions()), Instant::now());
    while !stop.is_cancelled() {
        check_database(&leader, recovery.gate())?;
        if let Some((partition, told)) = held.take_turn()? {
            match batches::release(kafka, leader.db()?, handle, partition, batch, told) {
                Ok(next) => {
                    tracing::info!("the events of partition {partition} go on: that is over for which they waited");
                    batch = next;
                    front.release(partition);
                    held.release(partition);
                }
                Err(failure) => held.keep(partition, failure)?,
            }
        }
        let claim = front.claim(leader.db()?, batch, MAX_ROWS_PER_BATCH);
        // The commit of an old primary may take for ever.
        let Claim { rows, kept } = handle.block_on(db::answered(db::WRITE_TIMEOUT, claim))?;
        if !rows.is_empty() {
            publish(kafka, &producer, &group, batch, &rows)?;
            batch += 1;
        } else if kept == 0 {
            wait(wake);
        }
        if reported.elapsed() > REPORT_INTERVAL {
            reported = Instant::now();
            handle.block_on(report_depth(leader.db()?, &mut front))?;
            db::observe(pool, "confirmer");
        }
    }
    Ok(())
}

fn wait(wake: &Receiver<()>) {
    match wake.recv_timeout(POLL_INTERVAL) {
        // One poll serves all wake-ups so far.
        Ok(()) => while wake.try_recv().is_ok() {},
        Err(RecvTimeoutError::Timeout) => {}
        // No sender is left.
        Err(RecvTimeoutError::Disconnected) => std::thread::sleep(POLL_INTERVAL),
    }
}

fn become_leader(
    pool: &Pool,
    gate: &Gate,
    handle: &Handle,
    stop: &CancellationToken,
) -> Result<Option<OwnConnection>, Failure> {
    // It holds the leader's lock.
    let mut leader = handle.block_on(OwnConnection::open(pool))?;
    while !stop.is_cancelled() {
        // Who leads on an old primary may never end.
        check_database(&leader, gate)?;
        // The name tells whoever looks at the server's sessions which one waits.
        let sql = "SELECT pg_try_advisory_lock($1) AS leads_the_relay";
        let row = handle.block_on(leader.db()?.query_one(sql, &[&db::lock::RELAY]))?;
        if row.get(0) {
            return Ok(Some(leader));
        }
        stage::pause(stop, LOCK_RETRY_INTERVAL);
    }
    Ok(None)
}

/// An old primary may still answer; what its outbox has is not to be told.
fn check_database(leader: &OwnConnection, gate: &Gate) -> Result<(), Failure> {
    if leader.created().is_some_and(|created| gate.admits(created)) {
        return Ok(());
    }
    Err(Failure::Retry(anyhow!("another database has taken the place of the one that the relay reads")))
}

fn publish(
    kafka: &Kafka,
    producer: &TransactionalProducer,
    group: &runtime::kafka::GroupMetadata,
    batch: i64,
    rows: &[OutboxRow],
) -> Result<(), Failure> {
    let started = Instant::now();
    let number = batch.to_string();
    let transaction = producer.begin()?;
    for row in rows {
        let key = row.payment.to_string();
        transaction.send_with_headers(Topic::Events, &key, &kafka.frame(Topic::Events, &row.event), &[(BATCH, &number)])?;
        transaction.send(Topic::State, &key, &kafka.frame(Topic::State, &row.state))?;
    }
    transaction.send_offsets(&[(Topic::Events, 0, batch + 1)], group)?;
    transaction.commit()?;
    metrics::OUTBOX_PUBLISHED.counter(&[]).increment(u64::try_from(rows.len()).unwrap_or_default());
    metrics::STAGE_LATENCY.histogram(&[("stage", STAGE)]).record(started.elapsed());
    Ok(())
}

async fn report_depth(db: &Client, front: &mut OutboxFront) -> Result<(), Failure> {
    #[expect(clippy::cast_precision_loss, reason = "an outbox of 2^52 rows is not met")]
    metrics::OUTBOX_DEPTH.gauge(&[]).set(front.move_on(db).await? as f64);
    Ok(())
}
