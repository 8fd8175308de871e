//! What `payment.events` has of the relay's batches, and what becomes of rows that are claimed under a number that it has, or may have.

use anyhow::anyhow;
use deadpool_postgres::Client;
use payments::store::{self, events_partition};
use recovery::{LeftOut, Recovery};
use runtime::db;
use runtime::kafka::{Kafka, PartitionReader, Record, Wait};
use runtime::{Failure, Found, HeldPartitions};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use topics::wire::PaymentEvent;
use topics::{Topic, frame};
use uuid::Uuid;

/// The header of an event that holds the number of its batch, in decimal.
pub const BATCH: &str = "ctrip-batch";
/// How long the start waits for open transactions in all. What lasts longer holds its partition.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a batch is written to. A payment's records have one key, and so are in one partition of each.
const WRITTEN: [Topic; 2] = [Topic::Events, Topic::State];

/// The number after those of the batches that Kafka has, as far as it can be read. Holds the partitions that can't be, or not be written.
pub fn told_batches(kafka: &Kafka, group: &str, held: &mut HeldPartitions<i64>) -> Result<i64, Failure> {
    let all: Vec<i32> = (0..Topic::Events.partitions()).collect();
    let mut unanswered = kafka.unanswered(&WRITTEN, &all)?;
    let (mut next, began) = (1, Instant::now());
    for partition in all {
        if let Some(wait) = unanswered.remove(&partition) {
            held.hold(partition, wait);
            continue;
        }
        let patience = PATIENCE.saturating_sub(began.elapsed());
        match PartitionReader::open_within(kafka, Topic::Events, partition, patience)? {
            Ok(reader) => next = next.max(after_told(&reader)?),
            Err(open) => held.hold(partition, Wait::Transaction(open)),
        }
    }
    // The offset of a partition that no consumer of this group reads.
    Ok(kafka.committed(group, Topic::Events, 0)?.unwrap_or(1).max(next))
}

/// The number after those of the batches that a partition has.
fn after_told(events: &PartitionReader) -> Result<i64, Failure> {
    let mut last = None;
    read_batches_back(events, |records| {
        // The last record has the highest number.
        last = records.iter().rev().find_map(batch_of);
        last.is_some()
    })?;
    Ok(last.map_or(1, |last| last + 1))
}

/// Decides about what is claimed, and returns the number of the first batch. `told` is the one after those that Kafka has.
pub fn begin(kafka: &Kafka, db: &mut Client, handle: &Handle, told: i64, held: &HeldPartitions<i64>) -> Result<i64, Failure> {
    let claims = handle.block_on(store::claims(db))?;
    let (in_doubt, claims): (Vec<_>, Vec<_>) =
        claims.into_iter().partition(|(payment, _)| held.holds(events_partition(*payment)));
    let next = after_several(first_batch(told, in_doubt.iter().map(|(_, batch)| *batch)), &claims);
    release_claims(kafka, db, handle, &claims, next)?;
    // Claims go up one by one: a claim beyond means that Kafka has lost the batches before, and is published all the same.
    let claimed = claims.iter().map(|(_, batch)| *batch).filter(|batch| *batch >= next).min().unwrap_or(next);
    if claimed > next {
        tracing::warn!("payment.events does not have the batches {next} to {claimed} of the outbox");
    }
    Ok(claimed)
}

/// Decides about what is claimed for a partition that can be read again, and returns the number of the next batch. It was to be
/// `next`; `told` is the one after those of the batches that the partition has.
///
/// # Errors
/// `Retry` when it has to be held still.
pub fn release(kafka: &Kafka, db: &mut Client, handle: &Handle, partition: i32, next: i64, told: i64) -> Result<i64, Failure> {
    let mut claims = handle.block_on(db::answered(db::WRITE_TIMEOUT, store::claims(&*db)))?;
    let next = next_batch(next, told, &claims)?;
    claims.retain(|(payment, _)| events_partition(*payment) == partition);
    release_claims(kafka, db, handle, &claims, next)?;
    Ok(next)
}

/// The number of the next batch once a partition is released. Rows that are claimed under a number that would be passed over, since
/// Kafka has lost the end of another partition, are published first.
fn next_batch(next: i64, told: i64, claims: &[(Uuid, i64)]) -> Result<i64, Failure> {
    match claims.iter().find(|(_, batch)| (next..told).contains(batch)) {
        Some((_, batch)) => Err(Failure::Retry(anyhow!("the batch {batch} has to be published first"))),
        None => Ok(next.max(told)),
    }
}

/// The first number after those of the batches that Kafka has, and of those that are in doubt.
fn first_batch(told: i64, in_doubt: impl Iterator<Item = i64>) -> i64 {
    in_doubt.map(|batch| batch + 1).fold(told, i64::max)
}

/// A claim that Kafka does not have, under the next number, is published as it is. If there are several, as where Kafka has lost the batches
/// before one that was in doubt, all are claimed anew: what was written after the first might be told between them.
fn after_several(next: i64, claims: &[(Uuid, i64)]) -> i64 {
    let ahead: BTreeSet<i64> = claims.iter().map(|(_, batch)| *batch).filter(|batch| *batch >= next).collect();
    ahead.last().filter(|_| ahead.len() > 1).map_or(next, |last| last + 1)
}

/// Lets rows be claimed anew that are among these claims, under a lower number than `next`, and that Kafka does not have.
fn release_claims(kafka: &Kafka, db: &mut Client, handle: &Handle, claims: &[(Uuid, i64)], next: i64) -> Result<(), Failure> {
    let before: Vec<_> = claims.iter().copied().filter(|(_, batch)| *batch < next).collect();
    let payments: HashSet<Uuid> = before.iter().map(|(payment, _)| *payment).collect();
    if payments.is_empty() {
        return Ok(());
    }
    let mut told = Vec::new();
    for (partition, first) in first_claims(&before) {
        // It was read to its end before, and nobody else publishes.
        let reader = PartitionReader::open_at_once(kafka, Topic::Events, partition)?;
        read_batches_back(&reader, |records| {
            let events = records.iter().filter_map(|record| frame::decode::<PaymentEvent>(record.payload()).ok());
            let ids = events.filter_map(|event| Some((event.payment_id.parse().ok()?, event)));
            told.extend(ids.filter(|(payment, _)| payments.contains(payment)));
            records.iter().filter_map(batch_of).any(|batch| batch < first)
        })?;
    }
    // The commit of an old primary may take for ever.
    let release = db::answered(db::WRITE_TIMEOUT, store::release_claims(db, &payments, next, &told));
    let released = handle.block_on(release)?;
    if released > 0 {
        tracing::warn!(
            "{released} events were claimed before another database took over, or while their partition was held, and never \
             told: they are told now"
        );
    }
    Ok(())
}

/// The lowest number that is claimed for each partition: it is read back no further.
fn first_claims(claims: &[(Uuid, i64)]) -> BTreeMap<i32, i64> {
    let mut first = BTreeMap::new();
    for (payment, batch) in claims {
        first.entry(events_partition(*payment)).and_modify(|first: &mut i64| *first = (*first).min(*batch)).or_insert(*batch);
    }
    first
}

/// The partitions that are held, none yet. Of one that can be read again all is compared with Postgres, and the number found that comes
/// after those of its batches.
pub fn held(kafka: &Kafka, stage: &'static str, recovery: &Recovery, handle: &Handle) -> HeldPartitions<i64> {
    let (events, recovery, handle) = (kafka.clone(), recovery.clone(), handle.clone());
    HeldPartitions::of(stage, "its events wait, those of other partitions go on", kafka, move |partition, waited| {
        find(&events, partition, waited, || recovery.catch_up_events(&handle))
    })
}

/// The number after those of the batches of a partition that can be read again, once Postgres is compared with it.
fn find(kafka: &Kafka, partition: i32, waited: &Wait, compare: impl FnOnce() -> Result<LeftOut, Failure>) -> Found<i64> {
    let told = match readable(kafka, partition, waited)? {
        Ok(events) => after_told(&events)?,
        Err(open) => return Ok(Err(open)),
    };
    match compare()?.get(&(Topic::Events, partition)) {
        Some(cause) => Err(Failure::Retry(anyhow!("it is not compared with Postgres: {cause}"))),
        None => Ok(Ok(told)),
    }
}

/// Reads a partition for whose answer, or transaction, was `waited`.
fn readable(kafka: &Kafka, partition: i32, waited: &Wait) -> Result<Result<PartitionReader, Wait>, Failure> {
    if let Wait::Silence { .. } = waited {
        // It is seen for the first time: a transaction that is open now may have been so when the relay began.
        let opened = PartitionReader::open_within(kafka, Topic::Events, partition, Duration::ZERO)?;
        return Ok(opened.map_err(Wait::Transaction));
    }
    Ok(Ok(PartitionReader::open_at_once(kafka, Topic::Events, partition)?))
}

fn batch_of(event: &Record<'_>) -> Option<i64> {
    std::str::from_utf8(event.header(BATCH)?).ok()?.parse().ok()
}

/// Shows the records of a partition of `payment.events` from its end backwards, in chunks, until `see` has seen enough of it.
fn read_batches_back(events: &PartitionReader, mut see: impl FnMut(&[Record<'_>]) -> bool) -> Result<(), Failure> {
    events.read_back(|records| Ok(if see(records) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;
    use runtime::kafka::TransactionalProducer;
    use runtime::stage;

    /// A cluster with what a relay writes, and a batch under this number in each partition.
    fn with_batch(number: &str) -> (MockCluster<'static, rdkafka::producer::DefaultProducerContext>, Kafka) {
        let cluster = MockCluster::new(1).unwrap();
        WRITTEN.iter().for_each(|topic| cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap());
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let producer = TransactionalProducer::open(&kafka, "lab").unwrap();
        let transaction = producer.begin().unwrap();
        (0..64).for_each(|key| {
            transaction.send_with_headers(Topic::Events, &key.to_string(), b"event", &[(BATCH, number)]).unwrap();
        });
        transaction.commit().unwrap();
        (cluster, kafka)
    }

    #[test]
    fn a_relay_begins_though_a_partition_has_no_leader_and_holds_that_one_until_it_has() {
        const WITHOUT: [(Topic, i32); 2] = [(Topic::Events, 3), (Topic::State, 5)];
        let (cluster, kafka) = with_batch("7");
        let lead = |broker| {
            WITHOUT.iter().for_each(|(topic, partition)| cluster.partition_leader(topic.name(), *partition, broker).unwrap());
        };
        let events = kafka.clone();
        let find = move |partition, waited: &Wait| find(&events, partition, waited, || Ok(LeftOut::new()));
        let mut held = HeldPartitions::of("leaders", "the others go on", &kafka, find);
        lead(None);
        assert_eq!(told_batches(&kafka, "leaders", &mut held).unwrap(), 8);
        assert_eq!(held.partitions(), [3, 5], "what can't be read, and what can't be written");
        let started = Instant::now();
        let told = loop {
            assert!(held.take_turn().unwrap().is_none());
            if let Some(told) = stage::cause_of("leaders: partition 5") {
                break told;
            }
            assert!(started.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(told.contains("the others go on") && told.contains("payment.state/5"), "{told}");
        lead(Some(1));
        let started = Instant::now();
        while !held.partitions().is_empty() {
            if let Some((partition, next)) = held.take_turn().unwrap() {
                assert_eq!(next, 8);
                held.release(partition);
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{:?}", held.partitions());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(stage::cause_of("leaders: partition 5"), None);
    }

    /// Without that its events would be published again.
    #[test]
    fn a_partition_is_held_until_postgres_is_compared_with_it() {
        let (_cluster, kafka) = with_batch("7");
        let silence = Wait::Silence { topics: WRITTEN.to_vec(), cause: "no leader".to_owned() };
        let found = |left_out| find(&kafka, 3, &silence, || Ok(LeftOut::from([(left_out, "no leader".to_owned())])));
        let refused = found((Topic::Events, 3));
        assert!(matches!(&refused, Err(Failure::Retry(cause)) if cause.to_string().contains("no leader")), "{refused:?}");
        for other in [(Topic::Events, 4), (Topic::Intents, 3)] {
            assert!(matches!(found(other), Ok(Ok(8))));
        }
        assert!(find(&kafka, 3, &silence, || Err(Failure::Retry(anyhow!("Postgres is away")))).is_err());
    }

    #[test]
    fn no_batch_gets_the_number_of_one_that_is_in_doubt() {
        assert_eq!(first_batch(7, std::iter::empty()), 7);
        assert_eq!(first_batch(7, [7, 8, 8].into_iter()), 9, "nobody knows whether Kafka has them");
        assert_eq!(first_batch(7, [3].into_iter()), 7);
    }

    #[test]
    fn claims_under_several_numbers_that_kafka_does_not_have_are_claimed_anew_in_order() {
        let claims = |batches: &[i64]| batches.iter().map(|batch| (Uuid::nil(), *batch)).collect::<Vec<_>>();
        for (batches, next) in [(&[][..], 7), (&[7, 7], 7), (&[90], 7), (&[3, 90], 7), (&[50, 90], 91), (&[7, 8, 8], 9)] {
            assert_eq!(after_several(7, &claims(batches)), next, "{batches:?}");
        }
    }

    #[test]
    fn no_claim_is_passed_over_when_a_partition_is_released_that_has_later_batches() {
        let claims = [(Uuid::nil(), 6), (Uuid::nil(), 8)];
        assert!(matches!(next_batch(7, 9, &claims), Err(Failure::Retry(_))), "its rows would be taken for published");
        assert_eq!(next_batch(9, 12, &claims).unwrap(), 12);
        assert_eq!(next_batch(7, 3, &claims).unwrap(), 7);
    }

    /// What was held for hours has a low number, and the others' partitions have much behind it.
    #[test]
    fn a_partition_is_read_back_no_further_than_to_its_own_claims() {
        let payments: Vec<Uuid> = (0..64).map(Uuid::from_u128).collect();
        let old = events_partition(payments[0]);
        let number = |payment: Uuid| if events_partition(payment) == old { 7 } else { 90_000 };
        let claims: Vec<_> = payments.iter().flat_map(|id| [(*id, number(*id) + 1), (*id, number(*id))]).collect();
        let first = first_claims(&claims);
        assert!(first.len() > 1 && first.iter().all(|(partition, first)| *first == if *partition == old { 7 } else { 90_000 }));
    }
}
