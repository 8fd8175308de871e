//! A topic from any place on, for people who look: no group, no offset is kept, no registry is asked.

use super::base_config;
use super::consumer::{CALL_TIMEOUT, Record, committed, ends};
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
    /// With the oldest record that is there.
    Beginning,
    /// With the next record that is committed.
    End,
    /// With this offset, or what is nearest to it.
    Offset(i64),
    /// With the first record written at this time or later, in milliseconds of Unix time.
    Time(i64),
}

/// Reads what is committed in a topic, and goes on when more comes.
pub struct Follower {
    inner: BaseConsumer,
    topic: Topic,
}

impl Follower {
    /// When it returns, the place is fixed. Blocks.
    ///
    /// # Errors
    /// When Kafka does not answer within ten seconds, or has no such topic.
    pub fn open(settings: &Settings, topic: Topic, start: Start) -> anyhow::Result<Self> {
        let name = format!("{}{}", settings.topic_prefix, topic.name());
        let mut config = committed(base_config(&settings.kafka_brokers, "tail"));
        // It is not used as a group, but librdkafka wants a name.
        let inner: BaseConsumer =
            config.set("group.id", format!("{}tail", settings.topic_prefix)).create().context("the Kafka client")?;
        let partitions = partitions(&inner, &settings.kafka_brokers, &name)?;
        let from = places(&inner, &name, partitions, start)?;
        inner.assign(&from).with_context(|| format!("reading {name}"))?;
        Ok(Self { inner, topic })
    }

    /// The next record, or none within `wait`. A broker that went away is waited for.
    ///
    /// # Errors
    /// When the topic is gone, or may not be read.
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
                    tracing::warn!("reading {}: {error}; going on", self.topic);
                    Ok(None)
                }
            },
        }
    }
}

/// As many as there are, which need not be as many as a new topic would get.
fn partitions(client: &BaseConsumer, brokers: &str, name: &str) -> anyhow::Result<i32> {
    let metadata = client
        .fetch_metadata(Some(name), CALL_TIMEOUT)
        .with_context(|| format!("Kafka at {brokers} (KAFKA_BROKERS) does not answer"))?;
    let topic = metadata.topics().first().with_context(|| format!("Kafka at {brokers} says nothing of {name}"))?;
    match topic.error().map(RDKafkaErrorCode::from) {
        None => Ok(i32::try_from(topic.partitions().len())?),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition) => bail!(
            "there is no topic {name} at {brokers}: look at TOPIC_PREFIX and KAFKA_BROKERS, or run `ctrip topics apply` first"
        ),
        Some(code) => bail!("topic {name} at {brokers}: {code}"),
    }
}

fn places(client: &BaseConsumer, name: &str, partitions: i32, start: Start) -> anyhow::Result<TopicPartitionList> {
    let failed = || format!("the offsets of {name}");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(name, partition, Offset::Beginning)?;
    }
    match start {
        Start::Beginning => {}
        Start::Offset(offset) => {
            for partition in 0..partitions {
                let (low, high) = client.fetch_watermarks(name, partition, CALL_TIMEOUT).with_context(failed)?;
                list.set_partition_offset(name, partition, Offset::Offset(offset.max(low).min(high)))?;
            }
        }
        Start::End | Start::Time(_) => {
            // Asked for before the times, so that no record falls between both answers.
            let ends = ends(client, name, partitions).map_err(|failure| anyhow::anyhow!("{failure}"))?;
            for (partition, end) in &ends {
                list.set_partition_offset(name, *partition, Offset::Offset(*end))?;
            }
            if let Start::Time(time) = start {
                let mut times = TopicPartitionList::new();
                for partition in 0..partitions {
                    times.add_partition_offset(name, partition, Offset::Offset(time))?;
                }
                for found in client.offsets_for_times(times, CALL_TIMEOUT).with_context(failed)?.elements() {
                    // None is as late: the partition is read from its end.
                    if let Offset::Offset(offset) = found.offset() {
                        list.set_partition_offset(name, found.partition(), Offset::Offset(offset))?;
                    }
                }
            }
        }
    }
    Ok(list)
}
