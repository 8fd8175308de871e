//! Intents on their way to Kafka. An address is given out only after its intent was acknowledged there.
//!
//! A payment's row comes with one in `unacknowledged_intents`. Whoever gets Kafka's acknowledgement hands the id to the
//! [`forget`] task, which deletes the row; what is left for seconds, the [`repair`] task publishes again. To publish an
//! intent twice is harmless: the topic is compacted and its reader keeps a set.

use crate::problem::Problem;
use deadpool_postgres::{GenericClient, Pool};
use prost::Message as _;
use runtime::kafka::Publisher;
use runtime::{Failure, Kafka, db, metrics};
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use topics::{Message as _, Topic, wire};
use uuid::Uuid;

/// How long Kafka has to acknowledge a record before its request is answered with 503.
pub const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(5);
/// Acknowledged batches that wait for the [`forget`] task. One that finds no room is left for [`repair`].
const FORGET_QUEUE: usize = 1024;
const REPAIR_EVERY: Duration = Duration::from_secs(2);
const REPAIR_AT_ONCE: i64 = 1000;

/// Publishes intents. Cheap to clone.
#[derive(Clone)]
pub struct Intents {
    kafka: Kafka,
    publisher: Publisher,
    acknowledged: mpsc::Sender<Vec<Uuid>>,
}

impl Intents {
    /// The second is for the [`forget`] task; it ends when all clones of the first are gone.
    ///
    /// # Errors
    /// When librdkafka refuses its configuration.
    pub fn open(kafka: Kafka) -> anyhow::Result<(Self, mpsc::Receiver<Vec<Uuid>>)> {
        let publisher = Publisher::open(&kafka, ACKNOWLEDGED_WITHIN)?;
        let (acknowledged, forget) = mpsc::channel(FORGET_QUEUE);
        Ok((Self { kafka, publisher, acknowledged }, forget))
    }

    /// Whether the brokers answer.
    ///
    /// # Errors
    /// When they do not.
    pub async fn ping(&self) -> anyhow::Result<()> {
        self.publisher.ping().await
    }

    /// Sends all at once; says for each, in order, whether Kafka has it.
    pub async fn publish(&self, intents: &[wire::PaymentIntent]) -> Vec<bool> {
        let records: Vec<(String, Vec<u8>)> = intents.iter().map(|intent| (intent.key(), self.kafka.encode(intent))).collect();
        let outcomes = self.publisher.publish(Topic::Intents, &records).await;
        let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        if let Some(Err(cause)) = outcomes.iter().find(|outcome| outcome.is_err()) {
            tracing::warn!("Kafka did not acknowledge {failed} of {} intents: {cause:#}", outcomes.len());
        }
        outcomes.iter().map(Result::is_ok).collect()
    }

    /// Their rows may go.
    pub fn acknowledged(&self, ids: Vec<Uuid>) {
        if !ids.is_empty() && self.acknowledged.try_send(ids).is_err() {
            tracing::debug!("acknowledged intents are left to the repair task");
        }
    }

    /// Before addresses of payments that were read from the database are shown: publishes the intents among them that Kafka
    /// has not acknowledged yet, and returns the payments whose it does not acknowledge now either. Those stay hidden.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hidden(&self, db: &impl GenericClient, ids: &[Uuid]) -> Result<HashSet<Uuid>, Failure> {
        let statement = db
            .prepare_cached("SELECT payment_id, intent FROM unacknowledged_intents WHERE payment_id = ANY($1)")
            .await
            .map_err(db::failure)?;
        let rows = db.query(&statement, &[&ids]).await.map_err(db::failure)?;
        if rows.is_empty() {
            return Ok(HashSet::new());
        }
        let intents = rows.iter().map(|row| decode(row.get(1))).collect::<Result<Vec<_>, _>>()?;
        let outcomes = self.publish(&intents).await;
        let (acknowledged, hidden): (Vec<_>, Vec<_>) = rows.iter().zip(outcomes).partition(|(_, acknowledged)| *acknowledged);
        self.acknowledged(acknowledged.into_iter().map(|(row, _)| row.get(0)).collect());
        Ok(hidden.into_iter().map(|(row, _)| row.get(0)).collect())
    }

    /// [`hidden`](Self::hidden) for one payment that is asked for by name.
    ///
    /// # Errors
    /// A 503 when its intent is not acknowledged.
    pub async fn ensure(&self, db: &impl GenericClient, id: Uuid) -> Result<(), Problem> {
        if self.hidden(db, &[id]).await?.is_empty() { Ok(()) } else { Err(Problem::unacknowledged()) }
    }
}

fn decode(bytes: &[u8]) -> Result<wire::PaymentIntent, Failure> {
    wire::PaymentIntent::decode(bytes).map_err(|e| Failure::halt(e).context("reading unacknowledged_intents"))
}

/// Deletes the rows of acknowledged intents, many in one statement, until every [`Intents`] is gone.
pub async fn forget(pool: Pool, mut acknowledged: mpsc::Receiver<Vec<Uuid>>) {
    let mut batches = Vec::new();
    while acknowledged.recv_many(&mut batches, FORGET_QUEUE).await > 0 {
        let ids: Vec<Uuid> = batches.drain(..).flatten().collect();
        if let Err(failure) = delete(&pool, &ids).await {
            tracing::warn!("{} acknowledged intents will be published again: {failure}", ids.len());
        }
    }
}

async fn delete(pool: &Pool, ids: &[Uuid]) -> Result<(), Failure> {
    let mut client = pool.get().await.map_err(db::unavailable)?;
    let transaction = client.transaction().await.map_err(db::failure)?;
    // If a crash takes the deletion back, intents are published once more: not worth a flush to the disk.
    transaction.batch_execute("SET LOCAL synchronous_commit TO off").await.map_err(db::failure)?;
    let statement = transaction
        .prepare_cached("DELETE FROM unacknowledged_intents WHERE payment_id = ANY($1)")
        .await
        .map_err(db::failure)?;
    transaction.execute(&statement, &[&ids]).await.map_err(db::failure)?;
    transaction.commit().await.map_err(db::failure)
}

/// Publishes what was not acknowledged, until `stop`. Safe on several instances: each takes rows that no other has.
pub async fn repair(pool: Pool, intents: Intents, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REPAIR_EVERY) => {}
        }
        if let Err(failure) = repair_some(&pool, &intents).await {
            tracing::warn!("publishing unacknowledged intents: {failure}");
        }
    }
}

async fn repair_some(pool: &Pool, intents: &Intents) -> Result<(), Failure> {
    let mut client = pool.get().await.map_err(db::unavailable)?;
    let transaction = client.transaction().await.map_err(db::failure)?;
    let statement = transaction
        .prepare_cached(
            "SELECT payment_id, intent FROM unacknowledged_intents WHERE created_at < now() - interval '5 seconds'
             ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED",
        )
        .await
        .map_err(db::failure)?;
    let rows = transaction.query(&statement, &[&REPAIR_AT_ONCE]).await.map_err(db::failure)?;
    if rows.is_empty() {
        return Ok(());
    }
    let records = rows.iter().map(|row| decode(row.get(1))).collect::<Result<Vec<_>, _>>()?;
    let outcomes = intents.publish(&records).await;
    let repaired: Vec<Uuid> =
        rows.iter().zip(outcomes).filter(|(_, acknowledged)| *acknowledged).map(|(row, _)| row.get(0)).collect();
    if repaired.is_empty() {
        return Ok(());
    }
    let statement = transaction
        .prepare_cached("DELETE FROM unacknowledged_intents WHERE payment_id = ANY($1)")
        .await
        .map_err(db::failure)?;
    transaction.execute(&statement, &[&repaired]).await.map_err(db::failure)?;
    transaction.commit().await.map_err(db::failure)?;
    metrics::INTENTS_REPAIRED.counter(&[]).increment(u64::try_from(repaired.len()).unwrap_or_default());
    tracing::info!("published {} intents that Kafka had not acknowledged", repaired.len());
    Ok(())
}
