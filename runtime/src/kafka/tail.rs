//! The records that are committed to a topic from now on. Every instance reads all of them.

use super::client::Kafka;
use super::offsets::end_offsets;
use super::record::{Record, poll_all};
use crate::failure::Failure;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::Duration;
use topics::Topic;

/// A reader that begins at the end.
pub struct Tail {
    inner: BaseConsumer,
    topic: Topic,
}

impl Tail {
    /// Fixes the position before it returns: [`poll`](Self::poll) shows every record that is committed later.
    ///
    /// # Errors
    /// When the broker does not report the end offsets.
    pub fn open(kafka: &Kafka, topic: Topic) -> Result<Self, Failure> {
        let inner: BaseConsumer = kafka.reader_config("tail").set("group.id", kafka.prefixed("tail")).create()?;
        let name = kafka.name(topic);
        let mut list = TopicPartitionList::new();
        for (partition, end) in end_offsets(&inner, &name, 0..topic.partitions())? {
            list.add_partition_offset(&name, partition, Offset::Offset(end))?;
        }
        inner.assign(&list)?;
        Ok(Self { inner, topic })
    }

    /// Shows every record that has arrived, after waiting up to `wait` for the first.
    ///
    /// # Errors
    /// The broker's error.
    pub fn poll(&mut self, wait: Duration, see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
        poll_all(&self.inner, self.topic, wait, see)
    }
}
