//! Publishes intents to Kafka. An address is given out only after Kafka has acknowledged its intent.
//!
//! A payment's row comes with one in `unacknowledged_intents`. After the acknowledgement the id goes to the [`forget`] task,
//! which deletes that row. The [`repair`] task publishes again what is left there for seconds, and sets aside a row that holds
//! no intent. Publishing an intent twice is harmless: the topic is compacted, and its reader keeps a set.

use crate::http::problem::Problem;
use crate::http::share::{self, HeldConnection};
use base::metrics;
use deadpool_postgres::{Client, Pool};
use futures::{Stream, StreamExt as _};
use payments::intents::ACKNOWLEDGEMENT_TIMEOUT;
use payments::store;
use recovery::republish;
use runtime::kafka::Publisher;
use runtime::{Failure, Kafka, db};
use std::collections::HashSet;
use std::future::ready;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use topics::{Message as _, Topic, wire};
use uuid::Uuid;

/// How long an address may be given out after the connection was asked for that wrote its row: a process that was paused for longer does
/// not know whether the database is still the one that it wrote to. `recovery` waits for as long before it lets a restored one be used.
const GIVE_OUT_TIMEOUT: Duration = ACKNOWLEDGEMENT_TIMEOUT.saturating_add(Duration::from_millis(500));
/// Acknowledged batches that wait for the [`forget`] task. A batch that finds the queue full is left for [`repair`].
const MAX_FORGET_QUEUE: usize = 1024;
const REPAIR_INTERVAL: Duration = Duration::from_secs(2);
/// What is set aside is named anew, if it still is so, and else forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(300);
const MAX_REPAIR_BATCH: u16 = 1000;

/// The publisher of intents. Cheap to clone.
#[derive(Clone)]
pub struct Intents {
    kafka: Kafka,
    publisher: Publisher,
    acknowledged: mpsc::Sender<Vec<Uuid>>,
}

impl Intents {
    /// The receiver is for the [`forget`] task, which ends when all clones of the publisher are gone.
    ///
    /// # Errors
    /// When librdkafka refuses its configuration.
    pub fn open(kafka: Kafka) -> anyhow::Result<(Self, mpsc::Receiver<Vec<Uuid>>)> {
        let publisher = Publisher::open(&kafka, ACKNOWLEDGEMENT_TIMEOUT)?;
        let (acknowledged, forget) = mpsc::channel(MAX_FORGET_QUEUE);
        Ok((Self { kafka, publisher, acknowledged }, forget))
    }

    /// Checks that the brokers respond.
    ///
    /// # Errors
    /// When they do not.
    pub async fn ping(&self) -> anyhow::Result<()> {
        self.publisher.ping().await
    }

    /// Publishes all at once. Tells of each, by its place and as soon as it is known, whether Kafka acknowledged it in time to give its
    /// address out. `began` is from before the connection was taken that wrote their rows, or read them: it was checked then.
    pub fn publish(
        &self,
        intents: Vec<wire::PaymentIntent>,
        began: Instant,
    ) -> impl Stream<Item = (usize, bool)> + Send + use<> {
        let mut tally = Tally { asked: intents.len(), began, failed: 0, late: 0, last_cause: None };
        // librdkafka has copies. A partition without a leader would keep these, of the whole batch, for seconds.
        let encode = |intent: wire::PaymentIntent| (intent.key(), self.kafka.encode(&intent));
        let records: Vec<(String, Vec<u8>)> = intents.into_iter().map(encode).collect();
        let outcomes = self.publisher.publish_each(Topic::Intents, &records);
        outcomes.map(move |(place, outcome)| (place, tally.count(outcome)))
    }

    /// [`publish`](Self::publish) for intents that were read, by their ids.
    pub fn publish_again(
        &self,
        intents: Vec<(Uuid, wire::PaymentIntent)>,
        began: Instant,
    ) -> impl Stream<Item = (Uuid, bool)> + Send + use<> {
        let (ids, intents): (Vec<Uuid>, Vec<_>) = intents.into_iter().unzip();
        let outcomes = self.publish(intents, began);
        outcomes.filter_map(move |(place, is_acknowledged)| ready(ids.get(place).map(|id| (*id, is_acknowledged))))
    }

    /// [`publish_again`](Self::publish_again), to the end. Returns those that Kafka has acknowledged.
    async fn publish_to_end(&self, intents: Vec<(Uuid, wire::PaymentIntent)>, began: Instant) -> Vec<Uuid> {
        self.publish_again(intents, began).filter_map(|(id, is)| ready(is.then_some(id))).collect().await
    }

    /// Publishes intents again. Returns those that Kafka has acknowledged now, whose rows are deleted.
    pub async fn acknowledged_now(&self, intents: Vec<(Uuid, wire::PaymentIntent)>, began: Instant) -> HashSet<Uuid> {
        let acknowledged = self.publish_to_end(intents, began).await;
        let now = acknowledged.iter().copied().collect();
        self.forget_acknowledged(acknowledged);
        now
    }

    /// Hands acknowledged intents to the [`forget`] task.
    pub fn forget_acknowledged(&self, ids: Vec<Uuid>) {
        if !ids.is_empty() && self.acknowledged.try_send(ids).is_err() {
            tracing::debug!("the forget queue is full; the repair task takes these acknowledged intents");
        }
    }

    /// Needed before the address of a payment or customer is shown: publishes its intent again if Kafka has not acknowledged
    /// it. The connection comes back, or another one.
    ///
    /// # Errors
    /// A 503 when Kafka does not acknowledge it now either, or the database fails.
    pub async fn ensure_acknowledged(&self, pool: &Pool, db: HeldConnection, id: Uuid) -> Result<HeldConnection, Problem> {
        let unacknowledged = store::unacknowledged_intents(&*db, &[id]).await?;
        if unacknowledged.is_empty() {
            return Ok(db);
        }
        let began = db.began;
        // Kafka may take its time, and other requests need the connection.
        drop(db);
        if self.acknowledged_now(unacknowledged.items, began).await.contains(&id) {
            share::connection(pool).await
        } else {
            Err(Problem::unacknowledged())
        }
    }
}

/// What became of intents that were published at once; it is told when the last has ended.
struct Tally {
    asked: usize,
    began: Instant,
    failed: usize,
    late: usize,
    last_cause: Option<anyhow::Error>,
}

impl Tally {
    /// Whether the address may be given out.
    fn count(&mut self, outcome: anyhow::Result<()>) -> bool {
        match outcome {
            Ok(()) if may_give_out(self.began) => return true,
            Ok(()) => self.late += 1,
            Err(cause) => {
                self.failed += 1;
                self.last_cause = Some(cause);
            }
        }
        false
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let Self { asked, began, failed, late, last_cause } = self;
        if let Some(cause) = last_cause {
            tracing::warn!("Kafka did not acknowledge {failed} of {asked} intents: {cause:#}");
        }
        if *late > 0 {
            tracing::warn!("{late} addresses are not given out: their intents took {:.1?}", began.elapsed());
        }
    }
}

fn may_give_out(began: Instant) -> bool {
    began.elapsed() < GIVE_OUT_TIMEOUT
}

/// Deletes the rows of acknowledged intents, many per statement, until every [`Intents`] is gone.
pub async fn forget(pool: Pool, mut acknowledged: mpsc::Receiver<Vec<Uuid>>) {
    let mut batches = Vec::new();
    while acknowledged.recv_many(&mut batches, MAX_FORGET_QUEUE).await > 0 {
        let ids: Vec<Uuid> = batches.drain(..).flatten().collect();
        if let Err(failure) = delete(&pool, &ids).await {
            tracing::warn!("{} acknowledged intents will be published again: {failure}", ids.len());
        }
    }
}

async fn delete(pool: &Pool, ids: &[Uuid]) -> Result<(), Failure> {
    let delete = async |client: &mut Client| {
        let transaction = client.transaction().await?;
        // If a crash takes the deletion back, intents are published once more: not worth a flush to the disk.
        transaction.batch_execute("SET LOCAL synchronous_commit TO off").await?;
        store::delete_intents(&transaction, ids).await?;
        Ok(transaction.commit().await?)
    };
    db::in_time(pool.get().await?, db::WRITE_TIMEOUT, delete).await
}

/// Publishes unacknowledged intents again, until `stop`. Safe on several instances: each locks rows that no other has.
pub async fn repair(pool: Pool, intents: Intents, stop: CancellationToken) {
    // Many of a partition without a leader keep no others from their turn.
    let mut after = Uuid::nil();
    let (mut aside, mut forgot) = (HashSet::new(), Instant::now());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REPAIR_INTERVAL) => {}
        }
        if forgot.elapsed() > FORGET_INTERVAL {
            // A restore may have taken their names back.
            aside.clear();
            forgot = Instant::now();
            let forget = async |client: &mut Client| republish::forget_published(&*client, &intents.kafka).await;
            let forgotten = async { db::in_time(pool.get().await?, db::WRITE_TIMEOUT, forget).await };
            if let Err(failure) = forgotten.await {
                tracing::warn!("intents that were set aside and are published could not be forgotten: {failure}");
            }
        }
        match repair_batch(&pool, &intents, after, &mut aside).await {
            Ok(last) => after = last.unwrap_or_default(),
            Err(failure) => tracing::warn!("unacknowledged intents could not be published again: {failure}"),
        }
    }
}

/// Returns the last one if there may be more. `aside` has those that this process has set aside.
async fn repair_batch(pool: &Pool, intents: &Intents, after: Uuid, aside: &mut HashSet<Uuid>) -> Result<Option<Uuid>, Failure> {
    let began = Instant::now();
    let repair = async |client: &mut Client| {
        let transaction = client.transaction().await?;
        let mut overdue = store::lock_overdue_intents(&transaction, after, MAX_REPAIR_BATCH).await?;
        let last = overdue.last;
        overdue.unreadable.retain(|(id, _)| !aside.contains(id));
        if overdue.is_empty() {
            return Ok((0, Vec::new(), last));
        }
        for (id, cause) in &overdue.unreadable {
            republish::set_intent_aside(&transaction, &intents.kafka, *id, cause).await?;
        }
        let repaired = intents.publish_to_end(overdue.items, began).await;
        store::delete_intents(&transaction, &repaired).await?;
        transaction.commit().await?;
        let unreadable: Vec<Uuid> = overdue.unreadable.iter().map(|(id, _)| *id).collect();
        Ok((repaired.len(), unreadable, last))
    };
    let (repaired, unreadable, last) = db::in_time(pool.get().await?, db::WRITE_TIMEOUT, repair).await?;
    aside.extend(unreadable);
    if repaired > 0 {
        metrics::INTENTS_REPAIRED.counter(&[]).increment(u64::try_from(repaired).unwrap_or_default());
        tracing::info!("published {repaired} unacknowledged intents again");
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_paused_gives_out_no_address_that_a_restored_database_may_not_have() {
        assert!(may_give_out(Instant::now()));
        assert!(!may_give_out(Instant::now() - GIVE_OUT_TIMEOUT));
    }
}
