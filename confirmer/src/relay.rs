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
//! Somebody may have left a transaction open in a partition of `payment.events`. What that one has behind it can't be read, so
//! nobody knows whether a batch in it was published: its events are kept back until it can be read to its end, and those of the
//! other partitions go on. What was claimed before for a partition that is held is in doubt: it keeps its number, and no batch
//! gets that one again.
//!
//! One relay works at a time: the leader holds an advisory lock, on the connection that it claims with. A relay that lost that
//! connection can claim nothing. Its late transactions are fenced once the next leader takes over the transactional id.

use anyhow::anyhow;
use base::metrics;
use deadpool_postgres::{Client, Pool};
use payments::store::{self, OutboxFront, OutboxRow};
use recovery::Recovery;
use runtime::db::{self, Gate, OwnConnection};
use runtime::kafka::{Kafka, OpenTransaction, PartitionReader, Record, TransactionalProducer};
use runtime::{Failure, HeldPartitions, stage};
use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::wire::PaymentEvent;
use topics::{Topic, frame};
use uuid::Uuid;

const STAGE: &str = "outbox";
/// The header of an event that holds the number of its batch, in decimal.
const BATCH: &str = "ctrip-batch";
const MAX_ROWS_PER_BATCH: i64 = 1000;
/// How often to poll the outbox without a wake-up, for the events of other processes, the API's above all.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How long the start waits for open transactions in all. What lasts longer holds its partition.
const PATIENCE: Duration = Duration::from_secs(2);
/// The lead of a process that is frozen ends after this, which is longer than a Kafka transaction takes.
const MAX_IDLE: Duration = Duration::from_secs(30);
/// How often another instance tries to become the leader.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often the depth of the outbox and the use of the pool are measured, and the outbox's front moves on.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// Leads and publishes until `stop`. A message on `wake` means that this process has written events.
///
/// # Errors
/// `Retry` when Kafka or Postgres is not reachable, and when a partition can be read again that was held.
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
    let mut held = HeldPartitions::of(STAGE);
    let told = told_batches(kafka, &mut held)?;
    // What Kafka has is taken out of an outbox that came from a backup.
    recovery.catch_up(handle)?;
    let mut batch = begin(kafka, leader.db()?, handle, told, &held)?;
    let group = kafka.bare_group(STAGE)?;
    // What is read before may take longer.
    handle.block_on(leader.end_if_idle(MAX_IDLE))?;
    tracing::info!("the relay is the leader and publishes payment.events from batch {batch}");
    let (mut front, mut reported) = (OutboxFront::of(batch, &held.partitions()), Instant::now());
    while !stop.is_cancelled() {
        check_database(&leader, recovery.gate())?;
        look(kafka, &mut held)?;
        let claim = front.claim(leader.db()?, batch, MAX_ROWS_PER_BATCH);
        // The commit of an old primary may take for ever.
        let rows = handle.block_on(db::answered(db::WRITE_TIMEOUT, claim))?;
        if rows.is_empty() {
            wait(wake);
        }
        let (kept, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| held.holds(partition_of(row.payment)));
        if !kept.is_empty() {
            let kept: Vec<_> = kept.iter().map(|row| (row.id, partition_of(row.payment))).collect();
            handle.block_on(db::answered(db::WRITE_TIMEOUT, store::keep_back(leader.db()?, &kept)))?;
        }
        if !rows.is_empty() {
            publish(kafka, &producer, &group, batch, &rows)?;
            batch += 1;
        }
        if reported.elapsed() > REPORT_INTERVAL {
            reported = Instant::now();
            handle.block_on(report_depth(leader.db()?, &mut front))?;
            db::observe(pool, "confirmer");
        }
    }
    Ok(())
}

/// The number after those of the batches that Kafka has, as far as it can be read. Holds the partitions that can't be.
fn told_batches(kafka: &Kafka, held: &mut HeldPartitions<OpenTransaction>) -> Result<i64, Failure> {
    let (mut last, began) = (None, Instant::now());
    for partition in 0..Topic::Events.partitions() {
        let patience = PATIENCE.saturating_sub(began.elapsed());
        let reader = match PartitionReader::open_within(kafka, Topic::Events, partition, patience)? {
            Ok(reader) => reader,
            Err(open) => {
                tracing::warn!(
                    "the events of partition {partition} wait for a transaction on payment.events, the others go on"
                );
                held.hold(partition, open);
                continue;
            }
        };
        read_batches_back(&reader, |records| {
            // Each partition's last record has its highest number.
            last = last.max(records.iter().rev().find_map(batch_of));
            records.iter().any(|record| batch_of(record).is_some())
        })?;
    }
    let in_topic = last.map_or(1, |last| last + 1);
    // The offset of a partition that no consumer of this group reads.
    Ok(kafka.committed(STAGE, Topic::Events, 0)?.unwrap_or(1).max(in_topic))
}

/// Decides about what is claimed, and returns the number of the first batch. `told` is the one after those that Kafka has.
fn begin(
    kafka: &Kafka,
    db: &mut Client,
    handle: &Handle,
    told: i64,
    held: &HeldPartitions<OpenTransaction>,
) -> Result<i64, Failure> {
    let claims = handle.block_on(store::claims(db))?;
    let (in_doubt, claims): (Vec<_>, Vec<_>) = claims.into_iter().partition(|(payment, _)| held.holds(partition_of(*payment)));
    let next = first_batch(told, in_doubt.iter().map(|(_, batch)| *batch));
    let before = claims.iter().filter(|(_, batch)| *batch < next);
    if let Some(first) = before.clone().map(|(_, batch)| *batch).min() {
        release_claims(kafka, db, handle, &before.map(|(payment, _)| *payment).collect(), first, next)?;
    }
    // Claims go up one by one: a claim beyond means that Kafka has lost the batches before, and is published all the same.
    let claimed = claims.iter().map(|(_, batch)| *batch).filter(|batch| *batch >= next).min().unwrap_or(next);
    if claimed > next {
        tracing::warn!("payment.events does not have the batches {next} to {claimed} of the outbox");
    }
    Ok(claimed)
}

/// The first number after those of the batches that Kafka has, and of those that are in doubt.
fn first_batch(told: i64, in_doubt: impl Iterator<Item = i64>) -> i64 {
    in_doubt.map(|batch| batch + 1).max().map_or(told, |after| told.max(after))
}

/// Lets rows of these payments be claimed anew that were claimed under a number from `first` up to `next`, and that Kafka does
/// not have.
fn release_claims(
    kafka: &Kafka,
    db: &mut Client,
    handle: &Handle,
    payments: &HashSet<Uuid>,
    first: i64,
    next: i64,
) -> Result<(), Failure> {
    let mut told = Vec::new();
    for partition in payments.iter().map(|payment| partition_of(*payment)).collect::<BTreeSet<_>>() {
        // It was read to its end before, and nobody else publishes.
        let reader = PartitionReader::open_at_once(kafka, Topic::Events, partition)?;
        read_batches_back(&reader, |records| {
            let events = records.iter().filter_map(|record| frame::decode::<PaymentEvent>(record.payload()).ok());
            let ids = events.filter_map(|event| Some((event.payment_id.parse().ok()?, event)));
            told.extend(ids.filter(|(payment, _)| payments.contains(payment)));
            records.iter().filter_map(batch_of).any(|batch| batch < first)
        })?;
    }
    let released = handle.block_on(store::release_claims(db, payments, next, &told))?;
    if released > 0 {
        tracing::warn!(
            "{released} events were claimed before another database took over, or while their partition was held, and never \
             told: they are told now"
        );
    }
    Ok(())
}

/// Looks whether a partition that is held can be read again.
fn look(kafka: &Kafka, held: &mut HeldPartitions<OpenTransaction>) -> Result<(), Failure> {
    let remedy =
        |open: &OpenTransaction, lasts| format!("its events wait, those of other partitions go on: {}", open.remedy(lasts));
    match held.due(remedy) {
        Some((partition, open)) if open.is_over(kafka)? => {
            let cause = "the transaction is over for which its events waited";
            Err(Failure::Retry(anyhow!("partition {partition} of payment.events can be read: {cause}")))
        }
        _ => Ok(()),
    }
}

fn partition_of(payment: Uuid) -> i32 {
    Topic::Events.partition_of(&payment.to_string())
}

fn batch_of(event: &Record<'_>) -> Option<i64> {
    std::str::from_utf8(event.header(BATCH)?).ok()?.parse().ok()
}

/// Shows the records of a partition of `payment.events` from its end backwards, in chunks, until `see` has seen enough of it.
fn read_batches_back(events: &PartitionReader, mut see: impl FnMut(&[Record<'_>]) -> bool) -> Result<(), Failure> {
    events.read_back(|records| Ok(if see(records) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_batch_gets_the_number_of_one_that_is_in_doubt() {
        assert_eq!(first_batch(7, std::iter::empty()), 7);
        assert_eq!(first_batch(7, [7, 8, 8].into_iter()), 9, "nobody knows whether Kafka has them");
        assert_eq!(first_batch(7, [3].into_iter()), 7);
    }
}
