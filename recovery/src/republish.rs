//! `payment.intents` from Postgres again, payments first and then static addresses: for a topic that was lost, shortened or made
//! anew. The newest go first, since a topic loses its end. Publishing an intent twice is harmless: the topic is compacted, and its
//! readers keep sets.

use crate::installation::installation;
use anyhow::anyhow;
use deadpool_postgres::{GenericClient, Pool};
use futures::StreamExt as _;
use payments::intents::{Origin, address_intent_record, intent_record};
use payments::store::{self, Page};
use runtime::db::OwnConnection;
use runtime::kafka::{Publisher, is_timeout};
use runtime::{Failure, Kafka, set_aside};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use topics::wire::PaymentIntent;
use topics::{Message as _, Topic};
use uuid::Uuid;

const PAGE: i64 = 1000;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Kafka takes no intents at all when it takes none of so many: they are of all partitions.
const MANY: usize = 500;
/// How long a partition that acknowledges nothing gets no intents: each time, a page waits for it.
const SILENCE: Duration = Duration::from_secs(300);

/// The publishing of intents that Kafka has not acknowledged, as others see what it has set aside.
pub const REPAIRING: &str = "intents";
/// Publishing all of them, as others see what it has set aside.
pub const REPUBLISHING: &str = "republish";

/// Names an intent that is not published.
async fn name(db: &impl GenericClient, kafka: &Kafka, stage: &str, id: Uuid, cause: &str) -> Result<(), Failure> {
    tracing::error!("{cause}");
    // Its partition follows from its address, which is not known.
    set_aside::set_aside(db, stage, (&kafka.name(Topic::Intents), 0), &id.to_string(), 0, cause).await
}

/// Names an intent that nobody can publish, since its row can't be read; the others are.
///
/// # Errors
/// When the database fails.
pub async fn set_intent_aside(db: &impl GenericClient, kafka: &Kafka, id: Uuid, cause: &str) -> Result<(), Failure> {
    let cause = format!(
        "the intent of the payment or static address {id} can't be read ({cause}): its address is shown to nobody, and its events wait. \
         `ctrip intents republish` makes it again"
    );
    name(db, kafka, REPAIRING, id, &cause).await
}

/// Forgets what was set aside of intents that nobody has to publish any more.
///
/// # Errors
/// When the database fails.
pub async fn forget_published(db: &impl GenericClient, kafka: &Kafka) -> Result<(), Failure> {
    let sql = "DELETE FROM set_aside a WHERE stage = $1 AND topic = $2
                   AND NOT EXISTS (SELECT FROM unacknowledged_intents u WHERE u.payment_id::text = a.item)";
    db.execute(sql, &[&REPAIRING, &kafka.name(Topic::Intents)]).await?;
    Ok(())
}

/// Publishes the intents of all payments and static addresses; returns how many. One that fails keeps no other from its turn: it
/// stays as it was, and the next time publishes it. So it is, for a while, with all of a partition that has once acknowledged nothing
/// of a page.
///
/// # Errors
/// When Kafka has not acknowledged some, or rows can't be read, in the end; when Kafka takes none of many, or the database fails,
/// at once.
pub async fn republish(kafka: &Kafka, pool: &Pool) -> Result<u64, Failure> {
    let publisher = Publisher::open(kafka, TIMEOUT).map_err(Failure::Retry)?;
    let mut connection = OwnConnection::open(pool).await?;
    let db = &*connection.db()?;
    let own = installation(db).await?;
    let (mut below, mut so_far) = (Uuid::max(), SoFar::default());
    loop {
        let Page { items: payments, unreadable, last } = store::issued_payments(db, below, PAGE).await?;
        let Some(last) = last else { break };
        below = last;
        let mut origins = store::origins(db, &payments).await?;
        let intents = payments.iter().map(|payment| {
            let origin = origins.remove(&payment.id.0).unwrap_or_default();
            (payment.id.0, intent_record(payment, &Origin { installation: own, ..origin }))
        });
        publish(kafka, db, &publisher, intents.collect(), &mut so_far).await?;
        so_far.set_aside(db, kafka, unreadable).await?;
    }
    let mut below = Uuid::max();
    loop {
        let Page { items: addresses, unreadable, last } = store::issued_addresses(db, below, PAGE).await?;
        let Some(last) = last else { break };
        below = last;
        let intents = addresses.iter().map(|address| (address.id, address_intent_record(address, own)));
        publish(kafka, db, &publisher, intents.collect(), &mut so_far).await?;
        so_far.set_aside(db, kafka, unreadable).await?;
    }
    so_far.end()
}

/// Nobody has to publish them again, nor to read what was set aside of them.
async fn note_acknowledged(db: &impl GenericClient, kafka: &Kafka, ids: &[Uuid]) -> Result<(), Failure> {
    store::delete_intents(db, ids).await?;
    let items: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    for stage in [REPAIRING, REPUBLISHING] {
        set_aside::forget(db, stage, &kafka.name(Topic::Intents), &items).await?;
    }
    Ok(())
}

async fn publish(
    kafka: &Kafka,
    db: &impl GenericClient,
    publisher: &Publisher,
    intents: Vec<(Uuid, PaymentIntent)>,
    so_far: &mut SoFar,
) -> Result<(), Failure> {
    let (ids, records) =
        so_far.leave_out_silent(intents.iter().map(|(id, intent)| (*id, (intent.key(), kafka.encode(intent)))), Instant::now());
    let outcomes = publisher.publish_each(Topic::Intents, &records).map(|(place, outcome)| {
        let partition = records.get(place).map_or(0, |(key, _)| Topic::Intents.partition_of(key));
        let outcome = outcome.map_err(|cause| Unacknowledged { is_timeout: is_timeout(&cause), cause });
        (place, partition, outcome)
    });
    let acknowledged = so_far.count(&ids, outcomes.collect().await);
    let takes_none = acknowledged.is_empty() && intents.len() >= MANY;
    note_acknowledged(db, kafka, &acknowledged).await?;
    if takes_none { Err(so_far.failed_now()) } else { Ok(()) }
}

/// Why an intent was not acknowledged.
struct Unacknowledged {
    is_timeout: bool,
    cause: anyhow::Error,
}

/// What has become of the intents.
#[derive(Default)]
struct SoFar {
    acknowledged: u64,
    failed: u64,
    last_cause: Option<anyhow::Error>,
    unreadable: u64,
    /// Partitions that have acknowledged nothing of a page in time, and when the last page was over. A page waits for all its
    /// intents, so they get no more for a while.
    silent: BTreeMap<i32, Instant>,
}

impl SoFar {
    /// Leaves out records of silent partitions, which have failed then.
    fn leave_out_silent(
        &mut self,
        records: impl Iterator<Item = (Uuid, (String, Vec<u8>))>,
        now: Instant,
    ) -> (Vec<Uuid>, Vec<(String, Vec<u8>)>) {
        let is_silent = |key: &str| {
            let since = self.silent.get(&Topic::Intents.partition_of(key));
            since.is_some_and(|since| now.saturating_duration_since(*since) < SILENCE)
        };
        let (left_out, sent): (Vec<_>, Vec<_>) = records.partition(|(_, (key, _))| is_silent(key));
        self.failed += u64::try_from(left_out.len()).unwrap_or_default();
        sent.into_iter().unzip()
    }

    /// Takes the outcomes by the places of their intents, in any order, each with its partition. Returns those that were
    /// acknowledged.
    fn count(&mut self, ids: &[Uuid], outcomes: Vec<(usize, i32, Result<(), Unacknowledged>)>) -> Vec<Uuid> {
        let (mut acknowledged, mut heard, mut late) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        for (place, partition, outcome) in outcomes {
            match outcome {
                Ok(()) => {
                    acknowledged.extend(ids.get(place));
                    heard.insert(partition);
                }
                Err(Unacknowledged { is_timeout, cause }) => {
                    self.failed += 1;
                    self.last_cause = Some(cause);
                    late.extend(is_timeout.then_some(partition));
                }
            }
        }
        for partition in &late - &heard {
            tracing::error!(
                "partition {partition} of payment.intents acknowledges nothing: it gets none of the intents for {SILENCE:?}, the others do"
            );
            self.silent.insert(partition, Instant::now());
        }
        self.silent.retain(|partition, _| !heard.contains(partition));
        self.acknowledged += u64::try_from(acknowledged.len()).unwrap_or_default();
        acknowledged
    }

    /// Names rows that can't be read.
    async fn set_aside(&mut self, db: &impl GenericClient, kafka: &Kafka, rows: Vec<(Uuid, String)>) -> Result<(), Failure> {
        for (id, cause) in rows {
            self.unreadable += 1;
            let cause = format!(
                "the row of the payment or static address {id} can't be read ({cause}): its intent is not published. Once the row is \
                 mended, `ctrip intents republish` does that"
            );
            name(db, kafka, REPUBLISHING, id, &cause).await?;
        }
        Ok(())
    }

    fn failed_now(&mut self) -> Failure {
        let cause = self.last_cause.take().map(|cause| format!(": {cause:#}")).unwrap_or_default();
        let rows = if self.unreadable > 0 { "; `ctrip set-aside` names the rows" } else { "" };
        let partitions: Vec<String> = self.silent.keys().map(i32::to_string).collect();
        let silent = if partitions.is_empty() {
            String::new()
        } else {
            format!(" (partitions of {} that acknowledge nothing: {})", Topic::Intents, partitions.join(", "))
        };
        Failure::Retry(anyhow!(
            "{} intents were published again, {} were not acknowledged{cause}{silent}, and {} could not be read{rows}",
            self.acknowledged,
            self.failed,
            self.unreadable
        ))
    }

    fn end(mut self) -> Result<u64, Failure> {
        if self.failed + self.unreadable == 0 { Ok(self.acknowledged) } else { Err(self.failed_now()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late() -> Result<(), Unacknowledged> {
        Err(Unacknowledged { is_timeout: true, cause: anyhow!("no leader") })
    }

    /// One partition of `payment.intents` may have no leader.
    #[test]
    fn an_intent_that_kafka_does_not_take_keeps_no_other_from_being_published_again() {
        let [first, second, third] = [1, 2, 3].map(Uuid::from_u128);
        let mut so_far = SoFar::default();
        // The one that fails comes last.
        let outcomes = vec![(2, 5, Ok(())), (0, 4, Ok(())), (1, 4, late())];
        assert_eq!(so_far.count(&[first, second, third], outcomes), [third, first]);
        let failure = so_far.end().unwrap_err().to_string();
        assert!(failure.contains("2 intents") && failure.contains("1 were not acknowledged: no leader"), "{failure}");
        let mut so_far = SoFar::default();
        assert_eq!(so_far.count(&[second], vec![(0, 4, Ok(()))]), [second]);
        assert_eq!(so_far.end().unwrap(), 1);
    }

    /// Each page would wait half a minute for it, and there may be thousands of pages.
    #[test]
    fn a_partition_that_acknowledges_nothing_keeps_one_page_waiting_and_is_named() {
        let records = || (0..64_u128).map(|id| (Uuid::from_u128(id), (id.to_string(), Vec::new())));
        let partition = |key: &str| Topic::Intents.partition_of(key);
        let dead = partition("0");
        let mut so_far = SoFar::default();
        for is_first in [true, false] {
            let (ids, sent) = so_far.leave_out_silent(records(), Instant::now());
            assert_eq!(sent.iter().any(|(key, _)| partition(key) == dead), is_first);
            let outcome = |key: &str| if partition(key) == dead { late() } else { Ok(()) };
            let outcomes = sent.iter().enumerate().map(|(place, (key, _))| (place, partition(key), outcome(key)));
            let acknowledged = so_far.count(&ids, outcomes.collect());
            assert!(acknowledged.iter().all(|id| partition(&id.as_u128().to_string()) != dead));
        }
        // It may have a leader again by then.
        let later = |so_far: &mut SoFar| so_far.leave_out_silent(records(), Instant::now() + SILENCE);
        let mut heard = SoFar { silent: so_far.silent.clone(), ..SoFar::default() };
        let (ids, sent) = later(&mut heard);
        assert_eq!(sent.len(), 64);
        heard.count(&ids, sent.iter().enumerate().map(|(place, (key, _))| (place, partition(key), Ok(()))).collect());
        assert!(heard.silent.is_empty() && heard.end().unwrap() == 64);
        let counted = so_far.acknowledged + so_far.failed;
        let failure = so_far.end().unwrap_err().to_string();
        assert!(counted == 128 && failure.contains(&format!("acknowledge nothing: {dead})")), "{failure}");
        // What one record is refused for says nothing of its partition.
        let mut so_far = SoFar::default();
        let too_large = Err(Unacknowledged { is_timeout: false, cause: anyhow!("too large") });
        so_far.count(&[Uuid::nil()], vec![(0, dead, too_large)]);
        assert_eq!(so_far.leave_out_silent(records(), Instant::now()).1.len(), 64);
    }
}
