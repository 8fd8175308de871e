use crate::Lab;
use anyhow::{Context as _, Result};
use runtime::Kafka;
use std::collections::BTreeMap;
use topics::{Message, frame, wire};

/// Every event of `payment.events`, as a read_committed consumer sees them now, in order per payment.
///
/// # Errors
/// When the topic can't be read.
pub async fn events(lab: &Lab) -> Result<Vec<wire::PaymentEvent>> {
    let kafka = lab.kafka().await?;
    tokio::task::spawn_blocking(move || read_events(&kafka)).await?
}

/// [`events`], blocking.
///
/// # Errors
/// When the topic can't be read.
pub fn read_events(kafka: &Kafka) -> Result<Vec<wire::PaymentEvent>> {
    read_records(kafka)
}

/// Every record of a topic, as a read_committed consumer sees them now, in order per partition. Blocks.
///
/// # Errors
/// When the topic can't be read.
pub fn read_records<M: Message>(kafka: &Kafka) -> Result<Vec<M>> {
    let mut records = Vec::new();
    kafka
        .read_all(M::TOPIC, |record| records.push(frame::decode::<M>(record.payload())))
        .map_err(|failure| anyhow::anyhow!("{failure}"))?;
    records.into_iter().collect::<Result<_, _>>().with_context(|| M::TOPIC.to_string())
}

/// A payment as Postgres has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Status.
    pub status: String,
    /// Base units asked for.
    pub amount: String,
    /// Base units received.
    pub received: String,
    /// Transfers on the chain.
    pub transfers: i64,
    /// Number of the last event.
    pub sequence: i64,
}

/// All payments by id, as Postgres has them.
///
/// # Errors
/// When the database does not answer.
pub async fn ledger(lab: &Lab) -> Result<BTreeMap<String, Row>> {
    let rows = lab
        .database()
        .await?
        .query(
            "SELECT id::text, status, amount::text, amount_received::text,
                 (SELECT count(*) FROM transfers WHERE payment_id = payments.id AND NOT removed), sequence
             FROM payments",
            &[],
        )
        .await?;
    let row = |row: &tokio_postgres::Row| Row {
        status: row.get(1),
        amount: row.get(2),
        received: row.get(3),
        transfers: row.get(4),
        sequence: row.get(5),
    };
    Ok(rows.iter().map(|r| (r.get(0), row(r))).collect())
}
