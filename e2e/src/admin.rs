//! What happens to a Kafka cluster over the years: groups expire, and retention deletes records.

use crate::lab::Lab;
use crate::wait::eventually;
use anyhow::{Context as _, Result, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;
use std::time::Duration;
use topics::{Cleanup, Topic};

const TIMEOUT: Duration = Duration::from_secs(10);

/// An operator of a lab's topics and groups.
pub struct KafkaAdmin {
    connection: ClientConfig,
    client: AdminClient<DefaultClientContext>,
    prefix: String,
}

impl KafkaAdmin {
    /// Connects at the first call.
    ///
    /// # Errors
    /// When librdkafka refuses its configuration.
    pub fn of(lab: &Lab) -> Result<Self> {
        let connection = lab.kafka_connection();
        let client = connection.create()?;
        Ok(Self { connection, client, prefix: lab.env["TOPIC_PREFIX"].clone() })
    }

    /// Deletes a consumer group with its offsets, if there is one, once its members have left or timed out.
    ///
    /// # Errors
    /// When Kafka refuses for a minute.
    pub async fn delete_group(&self, group: &str) -> Result<()> {
        let name = format!("{}{group}", self.prefix);
        eventually(&format!("group {name} to be deleted"), || async {
            let deleted = self.client.delete_groups(&[&name], &AdminOptions::new()).await?;
            Ok(match deleted.into_iter().next().context("no answer")? {
                Ok(_) | Err((_, RDKafkaErrorCode::GroupIdNotFound)) => Some(()),
                Err(_) => None,
            })
        })
        .await
    }

    /// Commits an offset of the partition that holds a key, for a group without members.
    ///
    /// # Errors
    /// When Kafka refuses.
    pub fn commit(&self, group: &str, topic: Topic, key: &str, offset: i64) -> Result<()> {
        let member: BaseConsumer = self.connection.clone().set("group.id", format!("{}{group}", self.prefix)).create()?;
        let mut list = TopicPartitionList::new();
        let name = format!("{}{topic}", self.prefix);
        list.add_partition_offset(&name, topic.partition_of(key), Offset::Offset(offset))?;
        Ok(member.commit(&list, CommitMode::Sync)?)
    }

    /// The end of the partition that holds a key.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn end(&self, topic: Topic, key: &str) -> Result<i64> {
        let name = format!("{}{topic}", self.prefix);
        Ok(self.client.inner().fetch_watermarks(&name, topic.partition_of(key), TIMEOUT)?.1)
    }

    /// Deletes a topic, and makes it anew and empty.
    ///
    /// # Errors
    /// When Kafka refuses, or does so for a minute.
    pub async fn make_anew(&self, topic: Topic) -> Result<()> {
        let name = format!("{}{topic}", self.prefix);
        for deleted in self.client.delete_topics(&[&name], &AdminOptions::new()).await? {
            deleted.map_err(|(topic, code)| anyhow::anyhow!("deleting {topic}: {code}"))?;
        }
        let max_bytes = topic.max_message_bytes().to_string();
        eventually(&format!("{name} to be anew"), async || {
            let new = NewTopic::new(&name, topic.partitions(), TopicReplication::Fixed(1));
            let mut new = new.set("max.message.bytes", &max_bytes);
            if topic.cleanup() == Cleanup::Compact {
                new = new.set("cleanup.policy", "compact");
            }
            let made = self.client.create_topics(&[new], &AdminOptions::new()).await?;
            Ok(made.into_iter().next().and_then(Result::ok).map(drop))
        })
        .await?;
        eventually(&format!("{name} to have leaders"), || async {
            let end = |partition| self.client.inner().fetch_watermarks(&name, partition, TIMEOUT).ok();
            Ok((0..topic.partitions()).all(|partition| end(partition) == Some((0, 0))).then_some(()))
        })
        .await
    }

    /// Deletes the records before an offset of the partition that holds a key, as retention does.
    ///
    /// # Errors
    /// When Kafka refuses.
    pub async fn delete_before(&self, topic: Topic, key: &str, offset: i64) -> Result<()> {
        let name = format!("{}{topic}", self.prefix);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&name, topic.partition_of(key), Offset::Offset(offset))?;
        let deleted = self.client.delete_records(&list, &AdminOptions::new()).await?;
        let low = deleted.elements().first().map(|element| element.offset());
        ensure!(low == Some(Offset::Offset(offset)), "{name} begins at {low:?} and not at {offset}");
        Ok(())
    }
}
