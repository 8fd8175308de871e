//! A compacted topic as a table: every instance reads all of it, from the beginning, and keeps following it.

use super::backlog::partitions;
use super::client::Kafka;
use super::offsets::Offsets;
use super::record::{Record, poll_all};
use super::unanswered;
use crate::failure::Failure;
use anyhow::anyhow;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use topics::Topic;

/// How long [`Table::catch_up`] waits for a next record.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the partitions are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// A reader of a compacted topic.
pub struct Table {
    kafka: Kafka,
    inner: BaseConsumer,
    /// Asks for the end offsets. A broker serves a connection's requests in order: on the reader's own connection the request
    /// would wait until the fetch before it has returned or timed out.
    end_client: BaseConsumer,
    topic: Topic,
    next: BTreeMap<i32, i64>,
    /// When the partitions were counted last.
    counted: Option<Instant>,
}

impl Table {
    /// Opens the topic at its beginning. For [`catch_up`](Self::catch_up) its writers must use no transactions: it counts on
    /// every offset below the end holding a record or nothing newer. (The last record of a compacted partition always stays.)
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn open(kafka: &Kafka, topic: Topic) -> Result<Self, Failure> {
        let client = || -> Result<BaseConsumer, Failure> {
            let mut config = kafka.reader_config("table");
            config
                .set("group.id", kafka.prefixed("table"))
                // Per partition. Prefetched records, and the buffers of answers, stay in the process's memory after a cold start.
                .set("queued.max.messages.kbytes", "512")
                .set("fetch.message.max.bytes", (256 * 1024).to_string())
                // Small queues are full more often.
                .set("fetch.queue.backoff.ms", "1");
            Ok(config.create()?)
        };
        let (inner, end_client) = (client()?, client()?);
        let name = kafka.name(topic);
        let mut list = TopicPartitionList::new();
        for partition in 0..topic.partitions() {
            list.add_partition_offset(&name, partition, Offset::Beginning)?;
        }
        inner.assign(&list)?;
        Ok(Self { kafka: kafka.clone(), inner, end_client, topic, next: BTreeMap::new(), counted: None })
    }

    /// Shows every record that has arrived, after waiting up to `wait` for the first. Works for transactional writers too.
    ///
    /// # Errors
    /// The broker's error.
    pub fn poll(&mut self, wait: Duration, see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
        poll_all(&self.inner, self.topic, wait, see)
    }

    /// Reads until every record that was in the topic at the time of the call has been seen.
    ///
    /// # Errors
    /// When the topic is shorter than what was read, or has another number of partitions than its key's hash is taken over.
    /// When the broker does not answer within ten seconds, or nothing arrives for thirty.
    pub fn catch_up(&mut self, mut see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
        let ends = self.ends()?;
        if let Some((partition, end)) = ends.iter().find(|(p, end)| self.next.get(p).is_some_and(|next| next > *end)) {
            let topic = self.topic;
            return Err(Failure::Retry(anyhow!(
                "partition {partition} of {topic} ends at {end}, before what was read: it lost records, or was made anew"
            )));
        }
        self.check_partitions()?;
        // Millions of records come at a start: each costs one look at these few, and no clock.
        let mut behind: Vec<(i32, i64)> = ends.clone().into_iter().filter(|(p, end)| self.next(*p) < *end).collect();
        let mut idle_since = None;
        while !behind.is_empty() {
            match self.inner.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    let record = Record { topic: self.topic, message };
                    see(&record);
                    let (partition, next) = (record.partition(), record.offset() + 1);
                    self.next.insert(partition, next);
                    behind.retain(|(other, end)| *other != partition || next < *end);
                    idle_since = None;
                }
                Some(Err(error)) => return Err(Failure::from(error).context(format!("reading {}", self.topic))),
                None if idle_since.get_or_insert_with(Instant::now).elapsed() > IDLE_TIMEOUT => {
                    let topic = self.topic;
                    return Err(Failure::Retry(anyhow!("{topic} ends at {ends:?}, and no record came for {IDLE_TIMEOUT:?}")));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// The end offsets together: there are as many records, or fewer.
    ///
    /// # Errors
    /// When the broker does not answer within ten seconds.
    pub fn count(&self) -> Result<i64, Failure> {
        Ok(self.ends()?.values().sum())
    }

    fn ends(&self) -> Result<Offsets, Failure> {
        unanswered::all_ends(&self.end_client, &self.kafka.name(self.topic), self.topic)
    }

    fn next(&self, partition: i32) -> i64 {
        self.next.get(&partition).copied().unwrap_or_default()
    }

    /// Another program would look for a key in a partition that is not read here.
    fn check_partitions(&mut self) -> Result<(), Failure> {
        if self.counted.is_some_and(|at| at.elapsed() < COUNT_INTERVAL) {
            return Ok(());
        }
        let (expected, name) = (self.topic.partitions(), self.kafka.name(self.topic));
        let found = partitions(&self.end_client, &name)?;
        if usize::try_from(expected) != Ok(found) {
            return Err(Failure::Retry(anyhow!(
                "{name} has {found} partitions, expected {expected}: somebody added some, and a key may be where nobody reads. Delete it \
                 (`kafka-topics.sh --bootstrap-server $KAFKA_BROKERS --delete --topic {name}`), then make it anew with `ctrip topics \
                 apply` and `ctrip intents republish`"
            )));
        }
        self.counted = Some(Instant::now());
        Ok(())
    }
}
