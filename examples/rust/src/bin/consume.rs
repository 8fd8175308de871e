//! Reads payment.events and payment.state to their ends. Prints a JSON object per event, and one per payment of the table that
//! payment.state makes. KAFKA_BROKERS, SCHEMA_REGISTRY_URL and TOPIC_PREFIX are the pipeline's.
//!
//! `consume TOPIC` reads the events of a topic that `forward` writes instead, and no table.

use anyhow::{Context as _, Result, bail};
use examples::{Decoder, consumer, prefixed};
use prost_reflect::{DynamicMessage, Value};
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Map, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use topics::{Amount, Topic};

const TIMEOUT: Duration = Duration::from_secs(30);
const EVENT_FIELDS: [&str; 8] = ["id", "type", "merchant_id", "payment_id", "sequence", "status", "amount", "amount_received"];
const STATE_FIELDS: [&str; 5] = ["payment_id", "sequence", "status", "amount", "amount_received"];

fn main() -> Result<()> {
    let forwarded = std::env::args().nth(1);
    let decoder = Decoder::new()?;
    read(&decoder, forwarded.as_deref().unwrap_or(Topic::Events.name()), |_, event| {
        println!("{}", line(Topic::Events, &event, &EVENT_FIELDS)?);
        Ok(())
    })?;

    if forwarded.is_some() {
        return Ok(());
    }
    let mut table = BTreeMap::new();
    read(&decoder, Topic::State.name(), |key, state| {
        table.insert(key, state);
        Ok(())
    })?;
    for state in table.values() {
        println!("{}", line(Topic::State, state, &STATE_FIELDS)?);
    }
    Ok(())
}

/// Fields of a record as a JSON object. The bytes among them are amounts.
fn line(topic: Topic, record: &DynamicMessage, fields: &[&str]) -> Result<serde_json::Value> {
    let mut line = Map::new();
    line.insert("topic".to_owned(), json!(topic.name()));
    for name in fields {
        let field = record.get_field_by_name(name).with_context(|| format!("the schema of {topic} has no field {name}"))?;
        let value = match field.as_ref() {
            Value::String(text) => json!(text),
            Value::U64(number) => json!(number),
            Value::Bytes(amount) => json!(Amount::from_wire(amount)?.to_string()),
            other => bail!("{topic}: field {name} is {other:?}"),
        };
        line.insert((*name).to_owned(), value);
    }
    Ok(line.into())
}

/// Shows every record of a topic, with its key, until its end.
fn read(decoder: &Decoder, name: &str, mut see: impl FnMut(String, DynamicMessage) -> Result<()>) -> Result<()> {
    let topic = prefixed(name);
    let consumer: BaseConsumer = consumer("rust-example")?.create()?;
    let metadata = consumer.fetch_metadata(Some(&topic), TIMEOUT).context("Kafka does not answer")?;
    let mut open: BTreeSet<i32> =
        metadata.topics().first().context("no metadata")?.partitions().iter().map(|partition| partition.id()).collect();
    // Assigned by hand, so it joins no group and commits no offset: every run reads everything.
    let mut from = TopicPartitionList::new();
    for partition in &open {
        from.add_partition_offset(&topic, *partition, Offset::Beginning)?;
    }
    consumer.assign(&from)?;
    while !open.is_empty() {
        match consumer.poll(TIMEOUT) {
            None => bail!("{topic}: no record for {TIMEOUT:?}"),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => return Err(error).context(topic),
            Some(Ok(record)) => {
                let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
                see(key, decoder.decode(record.payload().unwrap_or_default())?)?;
            }
        }
    }
    Ok(())
}
