//! The topics of a lab as far as they were fetched.

use anyhow::{Context as _, Result, bail};
use rdkafka::Message as _;
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};
use topics::Topic;

const TIMEOUT: Duration = Duration::from_secs(30);

/// The consumers of a lab, and what they have read.
pub(crate) struct Reader {
    connection: ClientConfig,
    prefix: String,
    /// Connected at the first read.
    consumers: Option<Consumers>,
    topics: HashMap<Topic, Seen>,
}

struct Consumers {
    committed: BaseConsumer<Quiet>,
    /// Sees records of open transactions as well: the ends that have to be reached.
    uncommitted: BaseConsumer<Quiet>,
}

#[derive(Default)]
struct Seen {
    payloads: Vec<Vec<u8>>,
    /// The next offset, by partition.
    next: BTreeMap<i32, i64>,
}

impl Reader {
    pub(crate) fn new(connection: ClientConfig, prefix: &str) -> Self {
        Self { connection, prefix: prefix.to_owned(), consumers: None, topics: HashMap::new() }
    }

    fn connect(&self) -> Result<Consumers> {
        let consumer = |isolation: &str| {
            let mut config = self.connection.clone();
            config.set("group.id", format!("{}reader", self.prefix));
            config.set("enable.auto.commit", "false").set("auto.offset.reset", "error").set("isolation.level", isolation);
            // The end of a partition is known from a fetch that finds nothing.
            config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10").set("fetch.error.backoff.ms", "20");
            config.set("reconnect.backoff.max.ms", "1000").set("receive.message.max.bytes", (128 << 20).to_string());
            config.create_with_context(Quiet)
        };
        Ok(Consumers { committed: consumer("read_committed")?, uncommitted: consumer("read_uncommitted")? })
    }

    /// Reads on to the end that the topic has now, in no partition further, since a reader would miss in the others what came
    /// at the same time; gives all payloads.
    pub(crate) fn read(&mut self, topic: Topic) -> Result<&[Vec<u8>]> {
        if self.consumers.is_none() {
            self.consumers = Some(self.connect()?);
        }
        let Consumers { committed, uncommitted } = self.consumers.as_ref().context("consumers")?;
        let name = format!("{}{topic}", self.prefix);
        let seen = self.topics.entry(topic).or_default();
        let deadline = Instant::now() + TIMEOUT;
        let goal = until(deadline, || ends(uncommitted, &name, topic.partitions()).map(Some))?;
        let grown: BTreeMap<i32, i64> =
            goal.into_iter().filter(|(partition, end)| seen.next.get(partition).unwrap_or(&0) < end).collect();
        if grown.is_empty() {
            return Ok(&seen.payloads);
        }
        until(deadline, || {
            let stable = ends(committed, &name, topic.partitions())?;
            Ok(grown.iter().all(|(partition, end)| stable.get(partition).is_some_and(|stable| stable >= end)).then_some(()))
        })
        .with_context(|| format!("an open transaction in {name}"))?;
        let mut list = TopicPartitionList::new();
        for partition in grown.keys() {
            let next = seen.next.get(partition).copied().unwrap_or_default();
            list.add_partition_offset(&name, *partition, Offset::Offset(next))?;
        }
        committed.assign(&list)?;
        let mut open = grown.clone();
        while !open.is_empty() {
            match committed.poll(Duration::from_millis(100)) {
                Some(Ok(record)) if grown.get(&record.partition()).is_some_and(|end| record.offset() < *end) => {
                    seen.payloads.push(record.payload().unwrap_or_default().to_vec());
                    seen.next.insert(record.partition(), record.offset() + 1);
                }
                Some(Ok(record)) => {
                    if let Some(end) = open.remove(&record.partition()) {
                        seen.next.insert(record.partition(), end);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    // The other offsets below the goal belong to no record: markers of transactions, and aborted ones.
                    if let Some(end) = open.remove(&partition) {
                        let next = seen.next.entry(partition).or_default();
                        *next = end.max(*next);
                    }
                }
                // librdkafka goes on by itself, also after a broker's restart.
                Some(Err(error)) if Instant::now() > deadline => return Err(error).with_context(|| format!("reading {name}")),
                None if Instant::now() > deadline => bail!("{name} could not be read to its end in {TIMEOUT:?}"),
                Some(Err(_)) | None => {}
            }
        }
        committed.unassign()?;
        Ok(&seen.payloads)
    }
}

/// Asks again until there is an answer; errors count as none before the deadline, since a new topic has no leader at first.
fn until<T>(deadline: Instant, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    loop {
        match ask() {
            Ok(Some(answer)) => return Ok(answer),
            outcome if Instant::now() > deadline => {
                return outcome.and_then(|none| none.with_context(|| format!("not within {TIMEOUT:?}")));
            }
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The next offset of each partition, as this client's isolation level sees it: one request for all of them.
fn ends(client: &BaseConsumer<Quiet>, name: &str, partitions: i32) -> Result<BTreeMap<i32, i64>> {
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(name, partition, Offset::End)?;
    }
    let answer = client.offsets_for_times(list, Duration::from_secs(10)).with_context(|| format!("the end of {name}"))?;
    let mut ends = BTreeMap::new();
    for element in answer.elements() {
        element.error()?;
        let Offset::Offset(end) = element.offset() else { bail!("{name} has the end {:?}", element.offset()) };
        ends.insert(element.partition(), end);
    }
    Ok(ends)
}

/// rdkafka logs the end of a partition as an error; here it is waited for.
struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            tracing::warn!("librdkafka: {error}: {reason}");
        }
    }
}

impl ConsumerContext for Quiet {}
