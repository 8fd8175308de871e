//! `payment.intents` from Postgres again, payments first and then static addresses: for a topic that was lost, shortened or made
//! anew. The newest go first, since a topic loses its end. Publishing an intent twice is harmless: the topic is compacted, and its
//! readers keep sets.

use crate::installation::installation;
use anyhow::anyhow;
use deadpool_postgres::{GenericClient, Pool};
use payments::intents::{Origin, address_intent_record, intent_record};
use payments::store;
use runtime::db::OwnConnection;
use runtime::kafka::Publisher;
use runtime::{Failure, FoldStage, Kafka, set_aside};
use std::time::Duration;
use topics::wire::PaymentIntent;
use topics::{Message as _, Topic};
use uuid::Uuid;

const PAGE: i64 = 1000;
const TIMEOUT: Duration = Duration::from_secs(30);

/// The publishing of intents that Kafka has not acknowledged, as others see what it has set aside.
pub const REPAIRING: FoldStage =
    FoldStage { stage: "intents", topic: Topic::Intents, max_records: 1000, max_bytes: 64 * 1024 * 1024, on_return: None };

/// Names an intent that nobody can publish, since its row can't be read; the others are.
///
/// # Errors
/// When the database fails.
pub async fn set_intent_aside(db: &impl GenericClient, kafka: &Kafka, id: Uuid, cause: &str) -> Result<(), Failure> {
    let cause = format!(
        "the intent of the payment or static address {id} can't be read ({cause}): its address is shown to nobody, and its events wait. \
         `ctrip intents republish` makes it again"
    );
    tracing::error!("{cause}");
    // Its partition follows from its address, which is not known.
    REPAIRING.set_aside(db, (&kafka.name(Topic::Intents), 0), &id.to_string(), 0, &cause).await
}

/// Publishes the intents of all payments and static addresses; returns how many.
///
/// # Errors
/// When Kafka does not acknowledge one, or the database fails.
pub async fn republish(kafka: &Kafka, pool: &Pool) -> Result<u64, Failure> {
    let publisher = Publisher::open(kafka, TIMEOUT).map_err(Failure::Retry)?;
    let mut connection = OwnConnection::open(pool).await?;
    let db = &*connection.db()?;
    let own = installation(db).await?;
    let (mut below, mut count) = (Uuid::max(), 0);
    loop {
        let payments = store::issued_payments(db, below, PAGE).await?;
        let Some(last) = payments.last() else { break };
        below = last.id.0;
        let mut origins = store::origins(db, &payments).await?;
        let intents = payments.iter().map(|payment| {
            let origin = origins.remove(&payment.id.0).unwrap_or_default();
            intent_record(payment, &Origin { installation: own, ..origin })
        });
        count += publish(kafka, &publisher, &intents.collect::<Vec<_>>()).await?;
        note_acknowledged(db, kafka, payments.iter().map(|payment| payment.id.0).collect()).await?;
    }
    let mut below = Uuid::max();
    loop {
        let addresses = store::issued_addresses(db, below, PAGE).await?;
        let Some(last) = addresses.last() else { break };
        below = last.id;
        let intents: Vec<_> = addresses.iter().map(|address| address_intent_record(address, own)).collect();
        count += publish(kafka, &publisher, &intents).await?;
        note_acknowledged(db, kafka, addresses.iter().map(|address| address.id).collect()).await?;
    }
    Ok(count)
}

/// Nobody has to publish them again, nor to read what was set aside of them.
async fn note_acknowledged(db: &impl GenericClient, kafka: &Kafka, ids: Vec<Uuid>) -> Result<(), Failure> {
    store::delete_intents(db, &ids).await?;
    let items: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    set_aside::forget(db, REPAIRING.stage, &kafka.name(Topic::Intents), &items).await
}

async fn publish(kafka: &Kafka, publisher: &Publisher, intents: &[PaymentIntent]) -> Result<u64, Failure> {
    let records: Vec<(String, Vec<u8>)> = intents.iter().map(|intent| (intent.key(), kafka.encode(intent))).collect();
    for outcome in publisher.publish(Topic::Intents, &records).await {
        outcome.map_err(|cause| Failure::Retry(anyhow!("an intent was not published again: {cause:#}")))?;
    }
    Ok(u64::try_from(intents.len()).unwrap_or_default())
}
