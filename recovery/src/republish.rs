//! `payment.intents` from Postgres again, payments first and then static addresses: for a topic that was lost, shortened or made
//! anew. The newest go first, since a topic loses its end. Publishing an intent twice is harmless: the topic is compacted, and its
//! readers keep sets.

use crate::installation::installation;
use anyhow::anyhow;
use deadpool_postgres::Pool;
use payments::intents::{Origin, address_intent_record, intent_record};
use payments::store;
use runtime::db::OwnConnection;
use runtime::kafka::Publisher;
use runtime::{Failure, Kafka};
use std::time::Duration;
use topics::wire::PaymentIntent;
use topics::{Message as _, Topic};
use uuid::Uuid;

const PAGE: i64 = 1000;
const TIMEOUT: Duration = Duration::from_secs(30);

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
    }
    let mut below = Uuid::max();
    loop {
        let addresses = store::issued_addresses(db, below, PAGE).await?;
        let Some(last) = addresses.last() else { break };
        below = last.id;
        let intents: Vec<_> = addresses.iter().map(|address| address_intent_record(address, own)).collect();
        count += publish(kafka, &publisher, &intents).await?;
    }
    Ok(count)
}

async fn publish(kafka: &Kafka, publisher: &Publisher, intents: &[PaymentIntent]) -> Result<u64, Failure> {
    let records: Vec<(String, Vec<u8>)> = intents.iter().map(|intent| (intent.key(), kafka.encode(intent))).collect();
    for outcome in publisher.publish(Topic::Intents, &records).await {
        outcome.map_err(|cause| Failure::Retry(anyhow!("an intent was not published again: {cause:#}")))?;
    }
    Ok(u64::try_from(intents.len()).unwrap_or_default())
}
