use super::{Kafka, failure};
use crate::failure::Failure;
use crate::metrics;
use anyhow::anyhow;
use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use topics::Topic;

pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A batch of this many bytes is one of a consumer that is behind.
const MUCH: usize = 1024 * 1024;
/// What such a consumer waits for the next fetch: its work in larger pieces costs fewer transactions.
const MORE_WITHIN: Duration = Duration::from_millis(5);

/// Where to begin in a partition that was just assigned; `None` is the beginning.
pub type Position = Box<dyn Fn(Topic, i32) -> Result<Option<i64>, Failure> + Send + Sync>;

/// A record in librdkafka's memory.
pub struct Record<'c> {
    /// Its topic.
    pub topic: Topic,
    pub(super) message: BorrowedMessage<'c>,
}

impl Record<'_> {
    /// Partition.
    pub fn partition(&self) -> i32 {
        self.message.partition()
    }

    /// Offset.
    pub fn offset(&self) -> i64 {
        self.message.offset()
    }

    /// Key; empty if it has none.
    pub fn key(&self) -> &[u8] {
        self.message.key().unwrap_or_default()
    }

    /// Value, frame included; empty if it has none.
    pub fn payload(&self) -> &[u8] {
        self.message.payload().unwrap_or_default()
    }

    /// When it was written, in milliseconds of Unix time.
    pub fn timestamp_ms(&self) -> Option<i64> {
        self.message.timestamp().to_millis()
    }
}

/// What a poll gave.
pub struct Batch<'c> {
    /// In order per partition.
    pub records: Vec<Record<'c>>,
    /// Changes with each assignment. What was kept of an older one must be dropped: it may be read again, here or elsewhere.
    pub assignment: u64,
}

struct Context {
    stage: &'static str,
    topics: Vec<(String, Topic)>,
    positions: Option<Position>,
    assignment: AtomicU64,
    failed: Mutex<Option<Failure>>,
}

impl Context {
    fn topic(&self, name: &str) -> Option<Topic> {
        self.topics.iter().find(|(known, _)| known == name).map(|(_, topic)| *topic)
    }

    fn seek(&self, list: &mut TopicPartitionList) -> Result<(), Failure> {
        let Some(positions) = &self.positions else {
            return Ok(());
        };
        let assigned: Vec<(String, i32)> = list.elements().iter().map(|e| (e.topic().to_owned(), e.partition())).collect();
        for (name, partition) in assigned {
            let topic = self.topic(&name).ok_or_else(|| Failure::Halt(anyhow!("assigned {name}, which was not asked for")))?;
            let offset = positions(topic, partition)?.map_or(Offset::Beginning, Offset::Offset);
            list.set_partition_offset(&name, partition, offset).map_err(failure)?;
        }
        Ok(())
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
        #[expect(clippy::cast_precision_loss, reason = "a lag of 2^52 records is not met")]
        metrics::STAGE_LAG_RECORDS.gauge(&[("stage", self.stage)]).set(lag as f64);
    }
}

impl ConsumerContext for Context {
    // Called from within a poll, on the thread of the stage. The protocol is eager: every assignment is a whole one.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.assignment.fetch_add(1, Ordering::Relaxed);
        let outcome = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            tracing::debug!(stage = self.stage, "assigned {} partitions", list.count());
            self.seek(list).and_then(|()| consumer.assign(list).map_err(failure))
        } else {
            consumer.unassign().map_err(failure)
        };
        if let Err(failure) = outcome {
            self.fail(failure);
            // librdkafka waits for an answer to every rebalance.
            let _ = consumer.unassign();
        }
    }
}

/// A member of a consumer group that reads what is committed. It never commits by itself: offsets go where the work goes.
pub struct Consumer {
    inner: BaseConsumer<Context>,
}

impl Consumer {
    /// Joins `group` under this process's static membership, so that a restart within ten seconds moves no partition.
    /// Partitions start at `positions` if given, else at the group's committed offsets, else at the beginning.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn open(kafka: &Kafka, group: &'static str, topics: &[Topic], positions: Option<Position>) -> Result<Self, Failure> {
        let named: Vec<(String, Topic)> = topics.iter().map(|topic| (kafka.name(*topic), *topic)).collect();
        let names: Vec<String> = named.iter().map(|(name, _)| name.clone()).collect();
        let context =
            Context { stage: group, topics: named, positions, assignment: AtomicU64::new(0), failed: Mutex::new(None) };
        let inner: BaseConsumer<Context> = reader(kafka, group)
            .set("group.id", kafka.prefixed(group))
            .set("group.instance.id", kafka.prefixed(&format!("{group}-{}", kafka.0.instance)))
            .set("session.timeout.ms", "10000")
            .set("heartbeat.interval.ms", "2000")
            // Range gives an instance the same partitions of every topic, which the detector's join needs.
            .set("partition.assignment.strategy", "range")
            .set("statistics.interval.ms", "2000")
            .create_with_context(context)
            .map_err(failure)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        inner.subscribe(&names).map_err(failure)?;
        Ok(Self { inner })
    }

    /// Waits for a first record at most `wait`, then takes what is at hand, at most `most` records or `bytes` of values.
    ///
    /// # Errors
    /// What the broker reports, and what a rebalance could not do.
    pub fn poll(&self, most: usize, bytes: usize, wait: Duration) -> Result<Batch<'_>, Failure> {
        let context = self.inner.context();
        let mut records = Vec::new();
        let mut size = 0;
        let mut assignment = context.assignment.load(Ordering::Relaxed);
        let mut wait = wait;
        while records.len() < most && size < bytes {
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
                Some(Err(error)) => return Err(failure(error).context("reading from Kafka")),
                Some(Ok(message)) => {
                    let Some(topic) = context.topic(message.topic()) else {
                        return Err(Failure::Halt(anyhow!("a record of {}, which was not asked for", message.topic())));
                    };
                    size += message.payload_len();
                    records.push(Record { topic, message });
                    wait = if size < MUCH { Duration::ZERO } else { MORE_WITHIN };
                }
            }
        }
        Ok(Batch { records, assignment })
    }

    /// Fetches nothing more from a partition until it is resumed.
    ///
    /// # Errors
    /// When the partition is not assigned.
    pub fn pause(&self, topic: Topic, partition: i32) -> Result<(), Failure> {
        self.inner.pause(&self.one(topic, partition)).map_err(failure)
    }

    /// Fetches from a partition again.
    ///
    /// # Errors
    /// When the partition is not assigned.
    pub fn resume(&self, topic: Topic, partition: i32) -> Result<(), Failure> {
        self.inner.resume(&self.one(topic, partition)).map_err(failure)
    }

    fn one(&self, topic: Topic, partition: i32) -> TopicPartitionList {
        let context = self.inner.context();
        let name = context.topics.iter().find(|(_, known)| *known == topic).map_or("", |(name, _)| name.as_str());
        let mut list = TopicPartitionList::new();
        list.add_partition(name, partition);
        list
    }

    /// The membership as of now, for the offsets of a transaction: a member that the group has left behind is refused (KIP-447).
    ///
    /// # Errors
    /// When there is no group, which `open` rules out.
    pub fn group_metadata(&self) -> Result<ConsumerGroupMetadata, Failure> {
        self.inner.group_metadata().ok_or_else(|| Failure::Halt(anyhow!("the consumer has no group")))
    }
}

fn reader(kafka: &Kafka, client: &str) -> rdkafka::ClientConfig {
    committed(kafka.config(client))
}

/// What every reader has in common.
pub(super) fn committed(mut config: rdkafka::ClientConfig) -> rdkafka::ClientConfig {
    config
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        // A partition that joins while a fetch waits has to wait with it.
        .set("fetch.wait.max.ms", "100")
        .set("fetch.message.max.bytes", (4 * 1024 * 1024).to_string())
        .set("queued.max.messages.kbytes", (64 * 1024).to_string())
        // The default waits a second before it fills a queue that was full.
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.error.backoff.ms", "100");
    config
}

/// A compacted topic, read whole by every instance.
pub struct Table {
    kafka: Kafka,
    inner: BaseConsumer,
    /// Asks for the ends. A broker serves a connection's requests in order, so on the reader's own one the question would wait
    /// until the fetch before it has found something or timed out.
    asker: BaseConsumer,
    topic: Topic,
    next: HashMap<i32, i64>,
}

impl Table {
    /// [`catch_up`](Self::catch_up) is for a topic whose writers use no transactions: it counts on every offset below the end
    /// holding a record or nothing newer. (The last record of a compacted partition always stays.)
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn open(kafka: &Kafka, topic: Topic) -> Result<Self, Failure> {
        let client = || -> Result<BaseConsumer, Failure> {
            reader(kafka, "table")
                .set("group.id", kafka.prefixed("table"))
                // A partition's queue; what is read ahead stays as the process's memory after a cold start.
                .set("queued.max.messages.kbytes", "2048")
                .set("fetch.message.max.bytes", (1024 * 1024).to_string())
                .create()
                .map_err(failure)
        };
        let (inner, asker) = (client()?, client()?);
        let name = kafka.name(topic);
        let mut list = TopicPartitionList::new();
        for partition in 0..topic.partitions() {
            list.add_partition_offset(&name, partition, Offset::Beginning).map_err(failure)?;
        }
        inner.assign(&list).map_err(failure)?;
        Ok(Self { kafka: kafka.clone(), inner, asker, topic, next: HashMap::new() })
    }

    /// Shows what has arrived, after waiting up to `wait` for the first of it. For topics of transactional writers too.
    ///
    /// # Errors
    /// When the broker answers with one.
    pub fn poll(&mut self, wait: Duration, see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
        poll(&self.inner, self.topic, wait, see)
    }

    /// Reads on until everything that was in the topic when this was called has been seen.
    ///
    /// # Errors
    /// When the broker does not answer within ten seconds, or nothing arrives for thirty.
    pub fn catch_up(&mut self, mut see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
        let ends = ends(&self.asker, &self.kafka.name(self.topic), self.topic.partitions())?;
        let behind = |next: &HashMap<i32, i64>| ends.iter().any(|(p, end)| next.get(p).copied().unwrap_or(0) < *end);
        let mut last = Instant::now();
        while behind(&self.next) {
            match self.inner.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    let record = Record { topic: self.topic, message };
                    see(&record);
                    self.next.insert(record.partition(), record.offset() + 1);
                    last = Instant::now();
                }
                Some(Err(error)) => return Err(failure(error).context(format!("reading {}", self.topic))),
                None if last.elapsed() > Duration::from_secs(30) => {
                    return Err(Failure::Retry(anyhow!("{} has more, up to {ends:?}, and does not arrive", self.topic)));
                }
                None => {}
            }
        }
        Ok(())
    }
}

/// What arrives in a topic from now on, read by every instance.
pub struct Tail {
    inner: BaseConsumer,
    topic: Topic,
}

impl Tail {
    /// When it returns, the place is fixed: [`poll`](Self::poll) shows every record that is committed later.
    ///
    /// # Errors
    /// When the broker does not say where the topic ends.
    pub fn open(kafka: &Kafka, topic: Topic) -> Result<Self, Failure> {
        let inner: BaseConsumer = reader(kafka, "tail").set("group.id", kafka.prefixed("tail")).create().map_err(failure)?;
        let name = kafka.name(topic);
        let mut list = TopicPartitionList::new();
        for (partition, end) in ends(&inner, &name, topic.partitions())? {
            list.add_partition_offset(&name, partition, Offset::Offset(end)).map_err(failure)?;
        }
        inner.assign(&list).map_err(failure)?;
        Ok(Self { inner, topic })
    }

    /// Shows what has arrived, after waiting up to `wait` for the first of it.
    ///
    /// # Errors
    /// When the broker answers with one.
    pub fn poll(&mut self, wait: Duration, see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
        poll(&self.inner, self.topic, wait, see)
    }
}

fn poll(inner: &BaseConsumer, topic: Topic, wait: Duration, mut see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
    let mut patience = wait;
    while let Some(message) = inner.poll(patience) {
        patience = Duration::ZERO;
        let message = message.map_err(|e| failure(e).context(format!("reading {topic}")))?;
        see(&Record { topic, message });
    }
    Ok(())
}

/// Asks again until there is an answer, a failure that does not pass, or the deadline.
fn insist<T>(deadline: Instant, mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    loop {
        match ask() {
            Err(Failure::Retry(_)) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            outcome => return outcome,
        }
    }
}

/// The next offset of each partition, as this client's isolation level sees it: one request for all of them.
pub(super) fn ends<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    name: &str,
    partitions: i32,
) -> Result<HashMap<i32, i64>, Failure> {
    let failed = |e| failure(e).context(format!("the end of {name}"));
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(name, partition, Offset::End).map_err(failed)?;
    }
    let answer = client.offsets_for_times(list, CALL_TIMEOUT).map_err(failed)?;
    let mut ends = HashMap::new();
    for element in answer.elements() {
        element.error().map_err(failed)?;
        if let Offset::Offset(end) = element.offset() {
            ends.insert(element.partition(), end);
        }
    }
    Ok(ends)
}

/// rdkafka logs the end of a partition as an error; here it is what is waited for.
struct Ends;

impl ClientContext for Ends {
    fn error(&self, error: KafkaError, reason: &str) {
        if !matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PartitionEOF)) {
            tracing::warn!("librdkafka: {error}: {reason}");
        }
    }
}

impl ConsumerContext for Ends {}

impl Kafka {
    /// The last committed value under `key` in a compacted topic, all of which is read: it is small. Blocks.
    ///
    /// # Errors
    /// When the topic can't be read to its end.
    pub fn read_last(&self, topic: Topic, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        let mut found = None;
        self.read_all(topic, |record| {
            if record.key() == key.as_bytes() {
                found = Some(record.payload().to_vec());
            }
        })?;
        Ok(found)
    }

    /// Every committed record that is in a topic now, in order per partition. Waits until transactions that are open now are
    /// over: behind one, of whatever producer, what was committed later is not to be seen yet. Blocks.
    ///
    /// # Errors
    /// When the topic can't be read to its end.
    pub fn read_all(&self, topic: Topic, mut see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
        let inner: BaseConsumer<Ends> = reader(self, "lookup")
            .set("group.id", self.prefixed("lookup"))
            .set("enable.partition.eof", "true")
            .create_with_context(Ends)
            .map_err(failure)?;
        let name = self.name(topic);
        self.await_stable(&inner, &name, topic.partitions())?;
        let mut list = TopicPartitionList::new();
        for partition in 0..topic.partitions() {
            list.add_partition_offset(&name, partition, Offset::Beginning).map_err(failure)?;
        }
        inner.assign(&list).map_err(failure)?;
        let mut open: Vec<i32> = (0..topic.partitions()).collect();
        let mut last = Instant::now();
        while !open.is_empty() {
            match inner.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    last = Instant::now();
                    see(&Record { topic, message });
                }
                // A partition that grows meanwhile ends more than once.
                Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|other| *other != partition),
                Some(Err(error)) => return Err(failure(error).context(format!("reading {name}"))),
                None if last.elapsed() > Duration::from_secs(30) => {
                    return Err(Failure::Retry(anyhow!("{name} could not be read to its end in 30 s")));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Waits until the last stable offset of each partition has reached what is its end now.
    fn await_stable(&self, committed: &BaseConsumer<Ends>, name: &str, partitions: i32) -> Result<(), Failure> {
        let all: BaseConsumer = reader(self, "lookup")
            .set("group.id", self.prefixed("lookup"))
            .set("isolation.level", "read_uncommitted")
            .create()
            .map_err(failure)?;
        // A topic made a moment ago may have no leader for a while.
        let deadline = Instant::now() + Duration::from_secs(30);
        let goal = insist(deadline, || ends(&all, name, partitions))?;
        insist(deadline, || {
            let stable = ends(committed, name, partitions)?;
            if goal.iter().all(|(partition, end)| stable.get(partition).is_some_and(|stable| stable >= end)) {
                return Ok(());
            }
            Err(Failure::Retry(anyhow!("{name} has had an open transaction for 30 s")))
        })
    }

    /// The offset that `group` has committed for a partition. Waits until transactions that hold one are over.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn committed(&self, group: &str, topic: Topic, partition: i32) -> Result<Option<i64>, Failure> {
        let inner: BaseConsumer = reader(self, "lookup").set("group.id", self.prefixed(group)).create().map_err(failure)?;
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.name(topic), partition);
        let answer = inner
            .committed_offsets(list, Duration::from_secs(30))
            .map_err(|e| failure(e).context(format!("the committed offset of {group}")))?;
        Ok(answer.elements().first().and_then(|element| match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    }

    /// Group metadata of no member, for offsets that are a cursor of ours and belong to no consumer.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn bare_group(&self, group: &str) -> Result<ConsumerGroupMetadata, Failure> {
        let inner: BaseConsumer = reader(self, "lookup").set("group.id", self.prefixed(group)).create().map_err(failure)?;
        inner.group_metadata().ok_or_else(|| Failure::Halt(anyhow!("the consumer has no group")))
    }
}
