//! A member of a consumer group, for stages.
//!
//! - It never commits: offsets go where the work goes, into a Kafka or a Postgres transaction.
//! - The group protocol is eager, so an assignment is always a whole one. Work that was kept from before an assignment must be
//!   dropped ([`Batch::assignment`]): its records may be read again, here or by another member. No partition of a new assignment
//!   is paused.
//! - A failure within a rebalance callback surfaces at the next poll.

use super::client::Kafka;
use super::hanging::{OpenTransactions, Unfetched};
use super::record::Record;
use crate::failure::Failure;
use crate::stage;
use anyhow::anyhow;
use base::{locked, metrics};
use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::message::Message as _;
use rdkafka::statistics::{Partition, Statistics};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use topics::Topic;

/// A batch of at least so many bytes means that the consumer is behind.
const BACKLOG_BYTES: usize = 1024 * 1024;
/// How long a consumer that is behind waits for its next fetch: larger batches cost fewer transactions.
const BACKLOG_WAIT: Duration = Duration::from_millis(5);

/// Where to begin in partitions that were just assigned; `None` is the beginning. One that is left out is not read.
pub type Positions = Box<dyn Fn(&[(Topic, i32)]) -> Result<BTreeMap<(Topic, i32), Option<i64>>, Failure> + Send + Sync>;

/// The records of a poll.
pub struct Batch<'c> {
    /// In order per partition.
    pub records: Vec<Record<'c>>,
    /// Changes with each assignment.
    pub assignment: u64,
}

/// The state that a consumer shares with librdkafka's callbacks.
struct Context {
    stage: &'static str,
    topics: Vec<(String, Topic)>,
    positions: Option<Positions>,
    assignment: AtomicU64,
    /// Where `positions` told to begin.
    begun: Mutex<HashMap<(Topic, i32), i64>>,
    open: Mutex<OpenTransactions>,
    unfetched: Mutex<Unfetched>,
    failed: Mutex<Option<Failure>>,
}

impl Context {
    fn topic(&self, name: &str) -> Option<Topic> {
        self.topics.iter().find(|(known, _)| known == name).map(|(_, topic)| *topic)
    }

    /// What was assigned, with the place where each partition begins.
    fn begin(&self, list: &TopicPartitionList) -> Result<TopicPartitionList, Failure> {
        let Some(positions) = &self.positions else {
            return Ok(list.clone());
        };
        let topic =
            |name: &str| self.topic(name).ok_or_else(|| Failure::Halt(anyhow!("assigned {name}, without a subscription")));
        let elements = list.elements();
        let assigned: Vec<(Topic, i32)> =
            elements.iter().map(|e| Ok((topic(e.topic())?, e.partition()))).collect::<Result<_, Failure>>()?;
        let places = positions(&assigned)?;
        let mut begins = TopicPartitionList::new();
        for ((topic, partition), place) in &places {
            begins.add_partition_offset(self.name(*topic), *partition, place.map_or(Offset::Beginning, Offset::Offset))?;
        }
        *self.begun() = places.into_iter().map(|(partition, place)| (partition, place.unwrap_or_default())).collect();
        Ok(begins)
    }

    /// Takes an assignment over.
    fn take(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), Failure> {
        let begins = self.begin(list)?;
        tracing::debug!(stage = self.stage, "assigned {} partitions, begins {}", list.count(), begins.count());
        self.watch(&begins);
        consumer.assign(&begins)?;
        // librdkafka keeps a pause beyond the assignment. Whoever paused has dropped its work with the old one.
        Ok(consumer.resume(&begins)?)
    }

    /// Notes which partitions are to be fetched from now on.
    fn watch(&self, list: &TopicPartitionList) {
        let partitions = list.elements().into_iter().map(|e| (e.topic().to_owned(), e.partition()));
        locked(&self.unfetched).assign(partitions, Instant::now());
    }

    fn name(&self, topic: Topic) -> &str {
        self.topics.iter().find(|(_, known)| *known == topic).map_or("", |(name, _)| name)
    }

    fn begun(&self) -> MutexGuard<'_, HashMap<(Topic, i32), i64>> {
        locked(&self.begun)
    }

    fn fail(&self, failure: Failure) {
        // A poisoned lock would mean that this very line panicked before.
        if let Ok(mut failed) = self.failed.lock() {
            failed.get_or_insert(failure);
        }
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let lag: i64 = statistics
            .topics
            .values()
            .flat_map(|topic| topic.partitions.values())
            .filter(|partition| partition.app_offset >= 0 && partition.ls_offset >= 0)
            .map(|partition| (partition.ls_offset - partition.app_offset).max(0))
            .sum();
        #[expect(clippy::cast_precision_loss, reason = "no lag reaches 2^52 records")]
        metrics::STAGE_LAG_RECORDS.gauge(&[("stage", self.stage)]).set(lag as f64);
        let (mut open, now) = (locked(&self.open), Instant::now());
        let is_active = |partition: &Partition| partition.fetch_state == "active";
        for (name, topic) in &statistics.topics {
            // The ends of a partition that is not read up to there are old.
            let read = topic.partitions.values().filter(|p| is_active(p) && p.next_offset >= p.ls_offset);
            open.see(name, read.map(|p| (p.partition, p.ls_offset, p.hi_offset)), now);
        }
        let partition = |name: &str, partition: i32| statistics.topics.get(name)?.partitions.get(&partition);
        let is_fetched = |name: &str, number: i32| partition(name, number).is_some_and(is_active);
        locked(&self.unfetched).see(is_fetched, now);
    }
}

impl ConsumerContext for Context {
    // librdkafka calls this from within a poll, on the stage's thread.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.assignment.fetch_add(1, Ordering::Relaxed);
        let outcome = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.take(consumer, list)
        } else {
            self.watch(&TopicPartitionList::new());
            consumer.unassign().map_err(Failure::from)
        };
        if let Err(failure) = outcome {
            self.fail(failure);
            // librdkafka waits for an answer to every rebalance.
            let _ = consumer.unassign();
        }
    }
}

/// A member of a consumer group that reads committed records.
pub struct Consumer {
    inner: BaseConsumer<Context>,
}

impl Consumer {
    /// Joins `group` under this process's static membership, so that a restart within ten seconds moves no partition.
    /// Partitions start at `positions` if given, else at the group's committed offsets, else at the beginning.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn open(kafka: &Kafka, group: &'static str, topics: &[Topic], positions: Option<Positions>) -> Result<Self, Failure> {
        let named: Vec<(String, Topic)> = topics.iter().map(|topic| (kafka.name(*topic), *topic)).collect();
        let names: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
        let context = Context {
            stage: group,
            topics: named,
            positions,
            assignment: AtomicU64::new(0),
            begun: Mutex::default(),
            open: Mutex::default(),
            unfetched: Mutex::new(Unfetched::of(group)),
            failed: Mutex::new(None),
        };
        let inner: BaseConsumer<Context> = kafka
            .reader_config(group)
            .set("group.id", kafka.prefixed(group))
            .set("group.instance.id", kafka.prefixed(&format!("{group}-{}", kafka.instance())))
            .set("session.timeout.ms", "10000")
            .set("heartbeat.interval.ms", "2000")
            // A stage may look for its place in what it wrote for longer than the default of five minutes; thrown out of its
            // group for that, it would look again for ever. `stage` tells of one that does not poll.
            .set("max.poll.interval.ms", "3600000")
            // The range assignor gives an instance the same partitions of every topic, which the detector's join needs.
            .set("partition.assignment.strategy", "range")
            .set("statistics.interval.ms", "2000")
            .create_with_context(context)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        inner.subscribe(&names)?;
        Ok(Self { inner })
    }

    /// Waits for a first record at most `wait`, then takes what has been fetched, up to `max_records` or `max_bytes` of values.
    ///
    /// # Errors
    /// The broker's error, or the failure of a rebalance.
    pub fn poll(&self, max_records: usize, max_bytes: usize, wait: Duration) -> Result<Batch<'_>, Failure> {
        let context = self.inner.context();
        stage::asks(context.stage);
        let mut records = Vec::new();
        let mut bytes = 0;
        let mut assignment = context.assignment.load(Ordering::Relaxed);
        let mut wait = wait;
        while records.len() < max_records && bytes < max_bytes {
            let polled = self.inner.poll(wait);
            let now = context.assignment.load(Ordering::Relaxed);
            if now != assignment {
                assignment = now;
                records.clear();
            }
            if let Some(failure) = context.failed.lock().ok().and_then(|mut failed| failed.take()) {
                return Err(failure);
            }
            match polled {
                None => break,
                Some(Err(error)) => return Err(Failure::from(error).context("reading from Kafka")),
                Some(Ok(message)) => {
                    let Some(topic) = context.topic(message.topic()) else {
                        return Err(Failure::Halt(anyhow!("a record of {}, without a subscription", message.topic())));
                    };
                    bytes += message.payload_len();
                    records.push(Record { topic, message });
                    wait = if bytes < BACKLOG_BYTES { Duration::ZERO } else { BACKLOG_WAIT };
                }
            }
        }
        Ok(Batch { records, assignment })
    }

    /// Where a partition was begun, if that was told to [`open`](Self::open).
    pub fn begun(&self, topic: Topic, partition: i32) -> Option<i64> {
        self.inner.context().begun().get(&(topic, partition)).copied()
    }

    /// Stops fetching a partition until it is resumed, or assigned anew.
    ///
    /// # Errors
    /// When the partition is not assigned.
    pub fn pause(&self, topic: Topic, partition: i32) -> Result<(), Failure> {
        Ok(self.inner.pause(&self.single(topic, partition))?)
    }

    /// Fetches a paused partition again.
    ///
    /// # Errors
    /// When the partition is not assigned.
    pub fn resume(&self, topic: Topic, partition: i32) -> Result<(), Failure> {
        Ok(self.inner.resume(&self.single(topic, partition))?)
    }

    fn single(&self, topic: Topic, partition: i32) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(self.inner.context().name(topic), partition);
        list
    }

    /// The membership as of now, for the offsets of a transaction. Kafka refuses a member of an older generation (KIP-447).
    ///
    /// # Errors
    /// When there is no group, which `open` rules out.
    pub fn group_metadata(&self) -> Result<ConsumerGroupMetadata, Failure> {
        self.inner.group_metadata().ok_or_else(|| Failure::Halt(anyhow!("the consumer has no group")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Publisher;
    use rdkafka::mocking::MockCluster;

    #[tokio::test]
    async fn partitions_that_are_left_out_are_not_read_and_the_others_begin_where_they_are_told() {
        let (cluster, topic) = (MockCluster::new(1).unwrap(), Topic::Events);
        cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap();
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let publisher = Publisher::open(&kafka, Duration::from_secs(10)).unwrap();
        // So many keys are in every partition, with several records each.
        let records: Vec<_> = (0..200).map(|key| (key.to_string(), b"value".to_vec())).collect();
        assert!(publisher.publish(topic, &records).await.iter().all(Result::is_ok));
        let read = tokio::task::spawn_blocking(move || {
            let read = |group: &'static str, begun: i32| {
                let positions = move |assigned: &[(Topic, i32)]| {
                    let begun = assigned.iter().filter(|(_, partition)| *partition < begun);
                    Ok(begun.map(|(topic, partition)| ((*topic, *partition), Some(1))).collect())
                };
                let consumer = Consumer::open(&kafka, group, &[topic], Some(Box::new(positions))).unwrap();
                let (deadline, mut first, mut quiet) = (Instant::now() + Duration::from_secs(30), BTreeMap::new(), 0);
                while quiet < 5 {
                    let batch = consumer.poll(1000, 1 << 20, Duration::from_millis(100)).unwrap();
                    quiet = if batch.assignment > 0 && batch.records.is_empty() { quiet + 1 } else { 0 };
                    for record in batch.records {
                        first.entry(record.partition()).or_insert(record.offset());
                    }
                    assert!(Instant::now() < deadline, "{first:?}");
                }
                assert_eq!((consumer.begun(topic, 0), consumer.begun(topic, 7)), ((begun > 0).then_some(1), None));
                first
            };
            (read("some", 3), read("none", 0))
        });
        let (some, none) = read.await.unwrap();
        assert_eq!(some, BTreeMap::from([(0, 1), (1, 1), (2, 1)]));
        assert!(none.is_empty(), "{none:?}");
    }

    #[test]
    fn a_partition_without_records_counts_as_fetched_once_it_has_an_offset() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(Topic::Events.name(), Topic::Events.partitions(), 1).unwrap();
        let consumer =
            Consumer::open(&Kafka::on_brokers(&cluster.bootstrap_servers()), "idle", &[Topic::Events], None).unwrap();
        let context = consumer.inner.context();
        let (deadline, mut assigned) = (Instant::now() + Duration::from_secs(30), None);
        let told = || stage::cause_of("idle: offsets").is_some();
        // Until the statistics, of every two seconds, say that it is fetched.
        loop {
            consumer.poll(1, 1, Duration::from_millis(100)).unwrap();
            let is_assigned = context.assignment.load(Ordering::Relaxed) > 0;
            if let Some(assigned) = is_assigned.then(|| *assigned.get_or_insert_with(Instant::now)) {
                locked(&context.unfetched).see(|_, _| false, assigned + Duration::from_secs(41));
                if !told() {
                    break;
                }
            }
            assert!(Instant::now() < deadline, "it is never fetched");
        }
    }
}
