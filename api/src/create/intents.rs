//! Publishes intents to Kafka. An address is given out only after Kafka has acknowledged its intent.
//!
//! A payment's row comes with one in `unacknowledged_intents`. After the acknowledgement the id goes to the [`forget`] task,
//! which deletes that row. The [`repair`] task publishes again what is left there for seconds. Publishing an intent twice is
//! harmless: the topic is compacted, and its reader keeps a set.

use crate::http::problem::Problem;
use crate::http::share::{self, HeldConnection};
use base::metrics;
use deadpool_postgres::{Client, Pool};
use futures::StreamExt as _;
use payments::intents::ACKNOWLEDGEMENT_TIMEOUT;
use payments::store;
use runtime::kafka::Publisher;
use runtime::{Failure, Kafka, db};
use std::collections::HashSet;
use std::pin::pin;
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
    pub async fn publish(&self, intents: Vec<wire::PaymentIntent>, began: Instant, mut answer: impl FnMut(usize, bool)) {
        let asked = intents.len();
        let outcomes = {
            // librdkafka has copies. A partition without a leader would keep these, of the whole batch, for seconds.
            let encode = |intent: wire::PaymentIntent| (intent.key(), self.kafka.encode(&intent));
            let records: Vec<(String, Vec<u8>)> = intents.into_iter().map(encode).collect();
            self.publisher.publish_each(Topic::Intents, &records)
        };
        let mut outcomes = pin!(outcomes);
        let (mut failed, mut late, mut last_cause) = (0, 0, None);
        while let Some((place, outcome)) = outcomes.next().await {
            let in_time = may_give_out(began);
            answer(place, in_time && outcome.is_ok());
            match outcome {
                Ok(()) if in_time => {}
                Ok(()) => late += 1,
                Err(cause) => {
                    failed += 1;
                    last_cause = Some(cause);
                }
            }
        }
        if let Some(cause) = last_cause {
            tracing::warn!("Kafka did not acknowledge {failed} of {asked} intents: {cause:#}");
        }
        if late > 0 {
            tracing::warn!("{late} addresses are not given out: their intents took {:.1?}", began.elapsed());
        }
    }

    /// Hands acknowledged intents to the [`forget`] task.
    pub fn forget_acknowledged(&self, ids: Vec<Uuid>) {
        if !ids.is_empty() && self.acknowledged.try_send(ids).is_err() {
            tracing::debug!("the forget queue is full; the repair task takes these acknowledged intents");
        }
    }

    /// Needed before addresses that were loaded from the database are shown: publishes again those of their intents that Kafka
    /// has not acknowledged. Returns the payments that it does not acknowledge now either; their addresses stay hidden. The
    /// connection comes back, or another one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn still_unacknowledged(
        &self,
        pool: &Pool,
        db: HeldConnection,
        ids: &[Uuid],
    ) -> Result<(HeldConnection, HashSet<Uuid>), Problem> {
        let unacknowledged = store::unacknowledged_intents(&*db, ids).await?;
        self.publish_unacknowledged(pool, db, unacknowledged).await
    }

    /// [`still_unacknowledged`](Self::still_unacknowledged) for intents that the connection has read.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn publish_unacknowledged(
        &self,
        pool: &Pool,
        db: HeldConnection,
        unacknowledged: Vec<(Uuid, wire::PaymentIntent)>,
    ) -> Result<(HeldConnection, HashSet<Uuid>), Problem> {
        if unacknowledged.is_empty() {
            return Ok((db, HashSet::new()));
        }
        let began = db.began;
        // Kafka may take its time, and other requests need the connection.
        drop(db);
        let (acknowledged, hidden) = self.publish_again(unacknowledged, began).await;
        self.forget_acknowledged(acknowledged);
        Ok((share::connection(pool).await?, hidden.into_iter().collect()))
    }

    /// Returns the ids that Kafka has acknowledged now, and those that it still has not.
    async fn publish_again(&self, unacknowledged: Vec<(Uuid, wire::PaymentIntent)>, began: Instant) -> (Vec<Uuid>, Vec<Uuid>) {
        let (ids, intents): (Vec<Uuid>, Vec<_>) = unacknowledged.into_iter().unzip();
        let (mut acknowledged, mut failed) = (Vec::new(), Vec::new());
        let answer = |place: usize, is_acknowledged| {
            if let Some(id) = ids.get(place) {
                if is_acknowledged { &mut acknowledged } else { &mut failed }.push(*id);
            }
        };
        self.publish(intents, began, answer).await;
        (acknowledged, failed)
    }

    /// [`still_unacknowledged`](Self::still_unacknowledged) for one payment or address.
    ///
    /// # Errors
    /// A 503 when its intent is not acknowledged.
    pub async fn ensure_acknowledged(&self, pool: &Pool, db: HeldConnection, id: Uuid) -> Result<HeldConnection, Problem> {
        let (db, hidden) = self.still_unacknowledged(pool, db, &[id]).await?;
        if hidden.is_empty() { Ok(db) } else { Err(Problem::unacknowledged()) }
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
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REPAIR_INTERVAL) => {}
        }
        match repair_batch(&pool, &intents, after).await {
            Ok(last) => after = last.unwrap_or_default(),
            Err(failure) => tracing::warn!("unacknowledged intents could not be published again: {failure}"),
        }
    }
}

/// Returns the last one if there may be more.
async fn repair_batch(pool: &Pool, intents: &Intents, after: Uuid) -> Result<Option<Uuid>, Failure> {
    let began = Instant::now();
    let repair = async |client: &mut Client| {
        let transaction = client.transaction().await?;
        let overdue = store::lock_overdue_intents(&transaction, after, MAX_REPAIR_BATCH.into()).await?;
        let last = overdue.last().map(|(id, _)| *id).filter(|_| overdue.len() >= usize::from(MAX_REPAIR_BATCH));
        if overdue.is_empty() {
            return Ok((0, None));
        }
        let (repaired, _) = intents.publish_again(overdue, began).await;
        store::delete_intents(&transaction, &repaired).await?;
        transaction.commit().await?;
        Ok((repaired.len(), last))
    };
    let (repaired, last) = db::in_time(pool.get().await?, db::WRITE_TIMEOUT, repair).await?;
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
