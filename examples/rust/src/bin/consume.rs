//! Reads payment.events and payment.state to their ends. Prints a JSON object an event, and one a payment of the table that
//! payment.state makes. KAFKA_BROKERS and TOPIC_PREFIX are the pipeline's.
//!
//! `consume TOPIC` reads events of a topic that `forward` writes instead, and no table.

use anyhow::{Context as _, Result, bail};
use examples::{consumer, prefixed};
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use topics::{Amount, Message, Topic, frame, wire};

const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let forwarded = std::env::args().nth(1);
    read(forwarded.as_deref().unwrap_or(Topic::Events.name()), |_, event: wire::PaymentEvent| {
        let line = json!({
            "topic": "payment.events",
            "id": event.id,
            "type": event.r#type,
            "merchant_id": event.merchant_id,
            "payment_id": event.payment_id,
            "sequence": event.sequence,
            "status": event.status,
            "amount": Amount::from_wire(&event.amount)?.to_string(),
            "amount_received": Amount::from_wire(&event.amount_received)?.to_string(),
        });
        println!("{line}");
        Ok(())
    })?;

    if forwarded.is_some() {
        return Ok(());
    }
    let mut table = BTreeMap::new();
    read(Topic::State.name(), |key, state: wire::PaymentState| {
        table.insert(key, state);
        Ok(())
    })?;
    for state in table.values() {
        let line = json!({
            "topic": "payment.state",
            "payment_id": state.payment_id,
            "sequence": state.sequence,
            "status": state.status,
            "amount": Amount::from_wire(&state.amount)?.to_string(),
            "amount_received": Amount::from_wire(&state.amount_received)?.to_string(),
        });
        println!("{line}");
    }
    Ok(())
}

/// Every record of a topic until its end.
fn read<M: Message>(name: &str, mut see: impl FnMut(String, M) -> Result<()>) -> Result<()> {
    let topic = prefixed(name);
    let consumer: BaseConsumer = consumer("rust-example")?.create()?;
    let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).context("Kafka does not answer")?;
    let mut open: BTreeSet<i32> =
        metadata.topics().first().context("no metadata")?.partitions().iter().map(|partition| partition.id()).collect();
    // Assigned by hand, so it is in no group and keeps no offsets: it reads everything, each time.
    let mut from = TopicPartitionList::new();
    for partition in &open {
        from.add_partition_offset(&topic, *partition, Offset::Beginning)?;
    }
    consumer.assign(&from)?;
    while !open.is_empty() {
        match consumer.poll(PATIENCE) {
            None => bail!("{topic}: nothing for {PATIENCE:?}"),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => return Err(error).context(topic),
            Some(Ok(record)) => {
                let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
                see(key, frame::decode(record.payload().unwrap_or_default())?)?;
            }
        }
    }
    Ok(())
}
