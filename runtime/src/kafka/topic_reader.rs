//! A topic from any position on, for people. It joins no group, commits no offset and asks no registry.

use super::client::reader_config;
use super::offsets::{CALL_TIMEOUT, end_offsets, with_leaders};
use super::record::Record;
use crate::settings::Settings;
use anyhow::{Context as _, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::Duration;
use topics::Topic;

/// Where to begin, in every partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the oldest record.
    Beginning,
    /// With the next record that is committed.
    End,
    /// With this offset, or the nearest one that the partition has.
    Offset(i64),
    /// With the first record written at this time or later, in milliseconds of Unix time.
    Time(i64),
}

/// Reads the committed records of a topic, and keeps following it.
pub struct TopicReader {
    inner: BaseConsumer,
    topic: Topic,
}

impl TopicReader {
    /// Fixes the position in every partition before it returns. Blocks.
    ///
    /// # Errors
    /// When Kafka does not answer within ten seconds, or has no such topic.
    pub fn open(settings: &Settings, topic: Topic, start: Start) -> anyhow::Result<Self> {
        let name = settings.topic_name(topic);
        let inner: BaseConsumer = reader_config(settings, "tail")
            // librdkafka asks for a group, although nothing joins it.
            .set("group.id", format!("{}tail", settings.topic_prefix))
            .create()
            .context("the Kafka client")?;
        let partitions = partition_count(&inner, &settings.kafka_brokers, &name)?;
        let positions = positions(&inner, &name, partitions, start)?;
        inner.assign(&positions).with_context(|| format!("reading {name}"))?;
        Ok(Self { inner, topic })
    }

    /// The next record, or none within `wait`. librdkafka reconnects to a broker that is away, so that is no error.
    ///
    /// # Errors
    /// When the topic does not exist any more, or reading it is not authorized.
    pub fn poll(&self, wait: Duration) -> anyhow::Result<Option<Record<'_>>> {
        match self.inner.poll(wait) {
            None => Ok(None),
            Some(Ok(message)) => Ok(Some(Record { topic: self.topic, message })),
            Some(Err(error)) => match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::TopicAuthorizationFailed,
                ) => Err(error).with_context(|| format!("reading {}", self.topic)),
                _ => {
                    tracing::warn!("reading {}, will retry: {error}", self.topic);
                    Ok(None)
                }
            },
        }
    }
}

/// The partitions that the topic has, which may differ from what `topics apply` would create.
fn partition_count(client: &BaseConsumer, brokers: &str, name: &str) -> anyhow::Result<i32> {
    let metadata = client
        .fetch_metadata(Some(name), CALL_TIMEOUT)
        .with_context(|| format!("Kafka at {brokers} (KAFKA_BROKERS) does not answer"))?;
    let topic = metadata.topics().first().with_context(|| format!("Kafka at {brokers} returned no metadata of {name}"))?;
    match topic.error().map(RDKafkaErrorCode::from) {
        None => Ok(i32::try_from(topic.partitions().len())?),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => bail!(
            "there is no topic {name} at {brokers}: check TOPIC_PREFIX and KAFKA_BROKERS, or run `ctrip topics apply` first"
        ),
        Some(code) => bail!("topic {name} at {brokers}: {code}"),
    }
}

fn positions(client: &BaseConsumer, name: &str, partitions: i32, start: Start) -> anyhow::Result<TopicPartitionList> {
    let failed = || format!("the offsets of {name}");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(name, partition, Offset::Beginning)?;
    }
    match start {
        Start::Beginning => {}
        Start::Offset(offset) => {
            for partition in 0..partitions {
                let (low, high) =
                    with_leaders(|| client.fetch_watermarks(name, partition, CALL_TIMEOUT)).with_context(failed)?;
                list.set_partition_offset(name, partition, Offset::Offset(offset.max(low).min(high)))?;
            }
        }
        Start::End | Start::Time(_) => {
            // Before the times are looked up, so that no record falls between both answers.
            let ends = end_offsets(client, name, 0..partitions)?;
            for (partition, end) in &ends {
                list.set_partition_offset(name, *partition, Offset::Offset(*end))?;
            }
            if let Start::Time(time) = start {
                let mut times = TopicPartitionList::new();
                for partition in 0..partitions {
                    times.add_partition_offset(name, partition, Offset::Offset(time))?;
                }
                for found in
                    with_leaders(|| client.offsets_for_times(times.clone(), CALL_TIMEOUT)).with_context(failed)?.elements()
                {
                    // No offset means that no record is as late: the partition is read from its end.
                    if let Offset::Offset(offset) = found.offset() {
                        list.set_partition_offset(name, found.partition(), Offset::Offset(offset))?;
                    }
                }
            }
        }
    }
    Ok(list)
}
