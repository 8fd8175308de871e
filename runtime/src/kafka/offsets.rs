//! Offsets that are not a consumer's position: the ends of a topic, and cursors of ours that Kafka keeps as a group's offset.

use super::client::Kafka;
use crate::failure::Failure;
use anyhow::anyhow;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use topics::Topic;

/// Timeout of a call for offsets or metadata.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a call that waits for open transactions.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(30);

/// For the offsets of one partition, on a connection that is there.
const SINGLE_TIMEOUT: Duration = Duration::from_secs(1);

/// An offset that a group has committed, and what was noted beside it.
pub type NotedOffset = (i64, String);

/// An offset per partition.
pub type Offsets = BTreeMap<i32, i64>;

/// The next offset of each of these partitions under this client's isolation level. One request asks for all of them, and fails if one
/// has no leader.
pub(super) fn end_offsets<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    name: &str,
    partitions: impl IntoIterator<Item = i32>,
) -> Result<HashMap<i32, i64>, Failure> {
    end_offsets_within(client, name, partitions, CALL_TIMEOUT)
}

/// [`end_offsets`], whose requests take no longer than `patience` each. They are made anew for as long where one has no leader.
pub(super) fn end_offsets_within<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    name: &str,
    partitions: impl IntoIterator<Item = i32>,
    patience: Duration,
) -> Result<HashMap<i32, i64>, Failure> {
    let failed = |e| Failure::from(e).context(format!("the end offsets of {name}"));
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(name, partition, Offset::End).map_err(failed)?;
    }
    let answer = with_leaders_within(patience, || client.offsets_for_times(list.clone(), patience));
    let answer = answer.map_err(|error| failed(cause(client, name, error)))?;
    let mut ends = HashMap::new();
    for element in answer.elements() {
        element.error().map_err(failed)?;
        if let Offset::Offset(end) = element.offset() {
            ends.insert(element.partition(), end);
        }
    }
    Ok(ends)
}

pub(super) fn end_of<C: ConsumerContext>(client: &BaseConsumer<C>, name: &str, partition: i32) -> Result<i64, Failure> {
    let ends = end_offsets(client, name, [partition])?;
    Ok(ends.get(&partition).copied().unwrap_or_default())
}

/// Why a partition is unknown: a topic that we may not see looks like one that is not there.
fn cause<C: ConsumerContext>(client: &BaseConsumer<C>, name: &str, error: KafkaError) -> KafkaError {
    use RDKafkaErrorCode::{TopicAuthorizationFailed, UnknownPartition, UnknownTopic, UnknownTopicOrPartition};
    let is_unknown = matches!(error.rdkafka_error_code(), Some(UnknownPartition | UnknownTopic | UnknownTopicOrPartition));
    if !is_unknown {
        return error;
    }
    let metadata = client.fetch_metadata(Some(name), CALL_TIMEOUT).ok();
    let told = metadata.as_ref().and_then(|metadata| metadata.topics().first()?.error()).map(RDKafkaErrorCode::from);
    if told == Some(TopicAuthorizationFailed) { KafkaError::MetadataFetch(TopicAuthorizationFailed) } else { error }
}

impl Kafka {
    /// The offset that `group` has committed for a partition, once every transaction that holds one is over. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn committed(&self, group: &str, topic: Topic, partition: i32) -> Result<Option<i64>, Failure> {
        let inner: BaseConsumer = self.lookup_config(group).create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.name(topic), partition);
        let answer = inner.committed_offsets(list, COMMITTED_TIMEOUT).map_err(|e| uncommitted(e, group))?;
        Ok(answer.elements().first().and_then(|element| match element.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }))
    }

    /// The offsets that `group` has committed for these partitions, each with what was noted beside it; `None` for none. Those that a
    /// transaction holds for longer than `patience` are left out. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer, or tells none of them.
    pub fn committed_within(
        &self,
        group: &'static str,
        partitions: &[(Topic, i32)],
        patience: Duration,
    ) -> Result<BTreeMap<(Topic, i32), Option<NotedOffset>>, Failure> {
        if partitions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let offsets = &GroupOffsets::open(self, group)?;
        let mut refused = match offsets.told(partitions, patience) {
            Err(error) if is_late(&error) => error,
            outcome => return outcome.map_err(|e| uncommitted(e, group)),
        };
        // Kafka tells nothing of any of them while a transaction holds one.
        let ask = |partition| offsets.told(&[partition], SINGLE_TIMEOUT);
        let mut told = BTreeMap::new();
        for (_, answer) in ask_each(partitions, &format!("a committed offset of {group}"), ask)? {
            match answer {
                Ok(offset) => told.extend(offset),
                Err(error) if is_late(&error) => refused = error,
                Err(error) => return Err(uncommitted(error, group)),
            }
        }
        if told.is_empty() { Err(uncommitted(refused, group)) } else { Ok(told) }
    }

    /// The offset of the first record of each of these partitions that was written at its time, in milliseconds of Unix time, or
    /// later; the partition's end if there is none. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn first_since(&self, topic: Topic, times: &BTreeMap<i32, i64>) -> Result<Offsets, Failure> {
        if times.is_empty() {
            return Ok(Offsets::new());
        }
        let inner: BaseConsumer = self.lookup_config("lookup").create()?;
        let name = self.name(topic);
        let failed = |e| Failure::from(e).context(format!("the offsets of {name}"));
        let mut list = TopicPartitionList::new();
        for (partition, time) in times {
            list.add_partition_offset(&name, *partition, Offset::Offset((*time).max(0))).map_err(failed)?;
        }
        let found = with_leaders(|| inner.offsets_for_times(list.clone(), CALL_TIMEOUT)).map_err(failed)?;
        // Afterwards, so that no record is beyond the end.
        let ends = end_offsets(&inner, &name, times.keys().copied())?;
        let mut first = Offsets::new();
        for element in found.elements() {
            element.error().map_err(failed)?;
            let end = ends.get(&element.partition()).copied();
            let offset = if let Offset::Offset(offset) = element.offset() { Some(offset) } else { end };
            first.extend(offset.map(|offset| (element.partition(), offset)));
        }
        Ok(first)
    }

    /// Up to where committed records can be read in a partition, and its end, which is beyond that while a transaction is open. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn ends(&self, topic: Topic, partition: i32) -> Result<(i64, i64), Failure> {
        Ends::open(self)?.with_stable(&self.lookup_config("lookup").create()?, topic, partition)
    }

    /// Group metadata without a member, for a group that no consumer joins: its offset is a cursor of ours.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn bare_group(&self, group: &str) -> Result<ConsumerGroupMetadata, Failure> {
        let inner: BaseConsumer = self.lookup_config(group).create()?;
        inner.group_metadata().ok_or_else(|| Failure::Halt(anyhow!("the consumer has no group")))
    }
}

/// Asks for the offsets of a group on a connection that it keeps: one that is new may take longer than a call.
pub(super) struct GroupOffsets {
    kafka: Kafka,
    group: &'static str,
    inner: BaseConsumer,
}

impl GroupOffsets {
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn open(kafka: &Kafka, group: &'static str) -> Result<Self, Failure> {
        let inner = kafka.lookup_config(group).create()?;
        Ok(Self { kafka: kafka.clone(), group, inner })
    }

    /// What the group has committed for these partitions.
    fn told(
        &self,
        partitions: &[(Topic, i32)],
        patience: Duration,
    ) -> KafkaResult<BTreeMap<(Topic, i32), Option<NotedOffset>>> {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in partitions {
            list.add_partition(&self.kafka.name(*topic), *partition);
        }
        let answer = self.inner.committed_offsets(list, patience)?;
        let told = partitions.iter().map(|(topic, partition)| {
            let element = answer.find_partition(&self.kafka.name(*topic), *partition);
            let offset = element.and_then(|element| match element.offset() {
                Offset::Offset(offset) => Some((offset, readable(|| element.metadata().to_owned()))),
                _ => None,
            });
            ((*topic, *partition), offset)
        });
        Ok(told.collect())
    }

    /// Whether Kafka tells what the group has committed for these partitions within `patience`: it does not while a transaction
    /// holds one. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn are_told(&self, partitions: &[(Topic, i32)], patience: Duration) -> Result<bool, Failure> {
        match self.told(partitions, patience) {
            Err(error) if is_late(&error) => Ok(false),
            outcome => outcome.map(|_| true).map_err(|e| uncommitted(e, self.group)),
        }
    }
}

/// Asks for the ends of partitions on a connection that it keeps, whatever is open there.
pub struct Ends {
    kafka: Kafka,
    pub(super) inner: BaseConsumer,
}

impl Ends {
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn open(kafka: &Kafka) -> Result<Self, Failure> {
        let inner = kafka.lookup_config("lookup").set("isolation.level", "read_uncommitted").create()?;
        Ok(Self { kafka: kafka.clone(), inner })
    }

    /// The end that a partition has now. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer within ten seconds.
    pub fn of(&self, topic: Topic, partition: i32) -> Result<i64, Failure> {
        end_of(&self.inner, &self.kafka.name(topic), partition)
    }

    /// As [`Kafka::ends`], with a client that reads `committed` records.
    pub(super) fn with_stable(&self, committed: &BaseConsumer, topic: Topic, partition: i32) -> Result<(i64, i64), Failure> {
        // In this order, so that what was committed between the two does not look open.
        let end = self.of(topic, partition)?;
        Ok((end_of(committed, &self.kafka.name(topic), partition)?, end))
    }
}

/// Asks for each of these at the same time, since each that is not answered takes as long as it may. Blocks until all have ended.
///
/// # Errors
/// When one of them panics.
pub fn ask_each<P: Copy + Send + Sync, T: Send>(
    all: &[P],
    what: &str,
    ask: impl Fn(P) -> T + Sync,
) -> Result<Vec<(P, T)>, Failure> {
    let ask = &ask;
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = all.iter().map(|one| (*one, scope.spawn(move || ask(*one)))).collect();
        asked.into_iter().map(|(one, answer)| (one, answer.join())).collect()
    });
    let told = |(one, answer): (P, std::thread::Result<T>)| {
        Ok((one, answer.map_err(|_| Failure::Retry(anyhow!("asking for {what} panicked")))?))
    };
    answers.into_iter().map(told).collect()
}

/// A note, or none if another program has written bytes that are not UTF-8, at which rdkafka panics.
fn readable(note: impl FnOnce() -> String) -> String {
    catch_unwind(AssertUnwindSafe(note)).unwrap_or_default()
}

fn is_late(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut)
}

fn uncommitted(error: KafkaError, group: &str) -> Failure {
    let remedy = if is_late(&error) { format!(" ({})", group_remedy(group)) } else { String::new() };
    Failure::from(error).context(format!("the committed offsets of {group}{remedy}"))
}

/// Asks again for a while if a partition has no leader: its topic was created, or its broker restarted, a moment ago.
pub(super) fn with_leaders<T>(ask: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    with_leaders_within(CALL_TIMEOUT, ask)
}

fn with_leaders_within<T>(patience: Duration, mut ask: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    let deadline = Instant::now() + patience;
    loop {
        let outcome = ask();
        let code = outcome.as_ref().err().and_then(KafkaError::rdkafka_error_code);
        let moving = matches!(code, Some(RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable));
        if !moving || Instant::now() > deadline {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a person can do if Kafka does not tell a group's offsets.
pub(super) fn group_remedy(group: &str) -> String {
    let tool = "kafka-transactions.sh --bootstrap-server $KAFKA_BROKERS";
    format!(
        "a transaction may hold offsets of the group {group}. If `{tool} find-hanging --topic __consumer_offsets \
         --max-transaction-timeout 1` shows one, `{tool} abort --topic __consumer_offsets` with its --partition and --start-offset ends it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;

    /// A detector that begins with all partitions waits for this.
    #[tokio::test]
    async fn offsets_that_are_not_told_take_no_longer_for_many_partitions_than_for_one() {
        let cluster = MockCluster::new(1).unwrap();
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        cluster.broker_round_trip_time(1, Duration::from_secs(60)).unwrap();
        let asked = tokio::task::spawn_blocking(move || {
            let partitions: Vec<_> = (0..8).flat_map(|p| [(Topic::Blocks, p), (Topic::Logs, p)]).collect();
            let started = Instant::now();
            let told = kafka.committed_within("lab", &partitions, Duration::from_millis(500));
            assert!(told.is_err(), "{told:?}");
            started.elapsed()
        });
        let took = asked.await.unwrap();
        assert!(took < Duration::from_secs(8), "{took:?}");
    }

    #[test]
    fn a_foreign_note_that_nobody_can_read_is_none() {
        assert_eq!(readable(|| "of ours".to_owned()), "of ours");
        assert_eq!(readable(|| String::from_utf8(vec![0xff]).expect("Metadata is not UTF-8")), "");
    }
}
