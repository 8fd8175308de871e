//! What topics have gained since given offsets, read as often as asked. It joins no group and keeps no position: the offsets are
//! the caller's.

use super::client::Kafka;
use super::offsets::{CALL_TIMEOUT, Offsets, with_leaders};
use super::read_all::EofContext;
use super::record::{Mark, Record};
use super::unanswered::{self, Unanswered};
use crate::failure::Failure;
use anyhow::anyhow;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use topics::{Cleanup, Topic};

/// How long to wait for a next record.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A reader of whatever lies between two sets of offsets. Its calls block.
pub struct Backlog {
    kafka: Kafka,
    inner: BaseConsumer<EofContext>,
}

impl Backlog {
    /// # Errors
    /// When librdkafka refuses the configuration.
    pub fn open(kafka: &Kafka) -> Result<Self, Failure> {
        let inner = kafka
            .reader_config("backlog")
            .set("group.id", kafka.prefixed("backlog"))
            .set("enable.partition.eof", "true")
            .create_with_context(EofContext)?;
        Ok(Self { kafka: kafka.clone(), inner })
    }

    /// The end of each partition, before which all is committed.
    ///
    /// # Errors
    /// When the broker does not answer; it names the partitions for which it does not.
    pub fn ends(&self, topic: Topic) -> Result<Offsets, Failure> {
        unanswered::all_ends(&self.inner, &self.kafka.name(topic), topic)
    }

    /// The end of each partition that answers, and why others don't.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn answered_ends(&self, topic: Topic) -> Result<(Offsets, Unanswered), Failure> {
        self.answered_ends_of(topic, &Vec::from_iter(0..topic.partitions()))
    }

    /// [`answered_ends`](Self::answered_ends) of these partitions alone.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn answered_ends_of(&self, topic: Topic, partitions: &[i32]) -> Result<(Offsets, Unanswered), Failure> {
        unanswered::ends(&self.inner, &self.kafka.name(topic), partitions)
    }

    /// How many partitions the topic has now.
    ///
    /// # Errors
    /// When the broker does not answer, or has no such topic.
    pub fn partitions(&self, topic: Topic) -> Result<usize, Failure> {
        partitions(&self.inner, &self.kafka.name(topic))
    }

    /// Kafka's id of the cluster; none if its brokers give none. It is asked for `seen`, a topic that this process may see.
    ///
    /// # Errors
    /// As for [`partitions`](Self::partitions).
    pub fn cluster_id(&self, seen: Topic) -> Result<Option<String>, Failure> {
        // Before an answer, none would only say that it is not known yet.
        self.partitions(seen)?;
        Ok(self.inner.client().fetch_cluster_id(CALL_TIMEOUT))
    }

    /// The partitions that have another record at the offset of one that was read, or none. One that retention or compaction has deleted
    /// tells nothing, and neither does one beyond the topic's `ends`.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn changed(&self, topic: Topic, read: &BTreeMap<i32, Mark>, ends: &Offsets) -> Result<BTreeSet<i32>, Failure> {
        let has_end = |(partition, mark): &(&i32, &Mark)| ends.get(partition).is_some_and(|end| mark.offset < *end);
        let from: Offsets = read.iter().filter(has_end).map(|(partition, mark)| (*partition, mark.offset)).collect();
        let after = from.iter().map(|(partition, offset)| (*partition, offset + 1)).collect();
        let (mut changed, mut gone) = (BTreeSet::new(), from.clone());
        self.read(topic, &from, &after, (usize::MAX, usize::MAX), |record| {
            gone.remove(&record.partition());
            if read.get(&record.partition()) != Some(&record.mark()) {
                changed.insert(record.partition());
            }
        })?;
        if topic.cleanup() != Cleanup::Compact {
            for (partition, offset) in gone {
                let name = self.kafka.name(topic);
                let (low, _) = with_leaders(|| self.inner.fetch_watermarks(&name, partition, CALL_TIMEOUT))
                    .map_err(|e| Failure::from(e).context(format!("the offsets of {name}")))?;
                changed.extend((low <= offset).then_some(partition));
            }
        }
        Ok(changed)
    }

    /// Shows the records from `from` to `ends`, in order per partition, until there are `max_records` of them, or `max_bytes` of values.
    /// Returns the offsets up to which all were shown: those of `ends`, unless a limit came first.
    ///
    /// # Errors
    /// When no record arrives for 30 s before the end, the partition has lost its end meanwhile, or the broker fails.
    pub fn read(
        &self,
        topic: Topic,
        from: &Offsets,
        ends: &Offsets,
        (max_records, max_bytes): (usize, usize),
        mut see: impl FnMut(&Record<'_>),
    ) -> Result<Offsets, Failure> {
        let start = |partition: &i32| from.get(partition).copied().unwrap_or(0);
        let mut reached: Offsets = ends.keys().map(|partition| (*partition, start(partition))).collect();
        let mut open: Offsets = ends.iter().filter(|(p, end)| start(p) < **end).map(|(p, end)| (*p, *end)).collect();
        if open.is_empty() {
            return Ok(reached);
        }
        let name = self.kafka.name(topic);
        let mut list = TopicPartitionList::new();
        for partition in open.keys() {
            list.add_partition_offset(&name, *partition, Offset::Offset(start(partition)))?;
        }
        self.inner.assign(&list)?;
        let (mut last, mut seen, mut bytes) = (Instant::now(), 0, 0);
        while !open.is_empty() && seen < max_records && bytes < max_bytes {
            match self.inner.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    let record = Record { topic, message };
                    let (partition, offset) = (record.partition(), record.offset());
                    last = Instant::now();
                    let Some(end) = open.get(&partition).copied() else { continue };
                    if offset < start(&partition) {
                        // librdkafka begins at the first record where the one that it was sent to is beyond the end.
                        return Err(Failure::Retry(anyhow!(
                            "{name}/{partition} ends before offset {}, where it had not ended a moment ago",
                            start(&partition)
                        )));
                    }
                    if offset < end {
                        see(&record);
                        seen += 1;
                        bytes += record.payload().len();
                    }
                    reached.insert(partition, end.min(offset + 1));
                    if offset + 1 >= end {
                        open.remove(&partition);
                    }
                }
                // The other offsets below the end belong to no record: markers of transactions, and aborted ones.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(end) = open.remove(&partition) {
                        reached.insert(partition, end);
                    }
                }
                // librdkafka connects again by itself. What it says may be from an outage that is over.
                Some(Err(error)) if is_outage(&error) && last.elapsed() < READ_TIMEOUT => {}
                Some(Err(error)) => return Err(Failure::from(error).context(format!("reading {name}"))),
                None if last.elapsed() > READ_TIMEOUT => {
                    return Err(Failure::Retry(anyhow!("no record and no end of {name} came for {READ_TIMEOUT:?}")));
                }
                None => {}
            }
        }
        self.inner.unassign()?;
        Ok(reached)
    }
}

fn is_outage(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut};
    matches!(error.rdkafka_error_code(), Some(AllBrokersDown | BrokerTransportFailure | OperationTimedOut))
}

/// How many partitions a topic has.
pub(super) fn partitions<C: rdkafka::consumer::ConsumerContext>(
    client: &BaseConsumer<C>,
    name: &str,
) -> Result<usize, Failure> {
    let metadata = with_leaders(|| client.fetch_metadata(Some(name), CALL_TIMEOUT))
        .map_err(|e| Failure::from(e).context(format!("the partitions of {name}")))?;
    let topic = metadata.topics().first().filter(|topic| topic.error().is_none());
    let topic = topic.ok_or_else(|| Failure::Retry(anyhow!("Kafka has no topic {name}; `ctrip topics apply` creates it")))?;
    Ok(topic.partitions().len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Publisher;
    use rdkafka::mocking::MockCluster;

    #[tokio::test]
    async fn a_record_that_is_not_where_it_was_read_is_noticed() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(Topic::Events.name(), Topic::Events.partitions(), 1).unwrap();
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let records: Vec<_> = (0..3).map(|value| ("key".to_owned(), vec![value; 9])).collect();
        let published = Publisher::open(&kafka, Duration::from_secs(10)).unwrap().publish(Topic::Events, &records).await;
        assert!(published.iter().all(Result::is_ok));
        let compared = tokio::task::spawn_blocking(move || {
            let backlog = Backlog::open(&kafka).unwrap();
            let (ends, mut marks) = (backlog.ends(Topic::Events).unwrap(), Vec::new());
            let see = |record: &Record<'_>| marks.push((record.partition(), record.mark()));
            backlog.read(Topic::Events, &Offsets::new(), &ends, (usize::MAX, usize::MAX), see).unwrap();
            let changed =
                |partition, mark| backlog.changed(Topic::Events, &BTreeMap::from([(partition, mark)]), &ends).unwrap();
            let (partition, last) = marks.pop().unwrap();
            let (_, before) = marks.pop().unwrap();
            let shifted = Mark { offset: last.offset, ..before };
            let beyond = Mark { offset: 3, ..last.clone() };
            (partition, [last, shifted, beyond].map(|mark| changed(partition, mark)))
        });
        let (partition, changed) = compared.await.unwrap();
        assert_eq!(changed, [BTreeSet::new(), BTreeSet::from([partition]), BTreeSet::new()]);
    }

    #[tokio::test]
    async fn a_cluster_is_told_from_another() {
        let clusters = [MockCluster::new(1).unwrap(), MockCluster::new(1).unwrap()];
        let ids = clusters.each_ref().map(|cluster| {
            cluster.create_topic(Topic::Intents.name(), Topic::Intents.partitions(), 1).unwrap();
            let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
            let id = || Backlog::open(&kafka).unwrap().cluster_id(Topic::Intents).unwrap();
            let first = id();
            assert!(first.is_some() && id() == first, "{first:?}");
            first
        });
        assert_ne!(ids[0], ids[1]);
    }

    #[tokio::test]
    async fn records_are_read_in_parts_that_fit_into_memory() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(Topic::Intents.name(), Topic::Intents.partitions(), 1).unwrap();
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let publisher = Publisher::open(&kafka, Duration::from_secs(10)).unwrap();
        let records: Vec<_> = (0..9).map(|_| ("key".to_owned(), vec![0; 1000])).collect();
        assert!(publisher.publish(Topic::Intents, &records).await.iter().all(Result::is_ok));
        let read = tokio::task::spawn_blocking(move || {
            let backlog = Backlog::open(&kafka).unwrap();
            let (ends, mut from, mut parts) = (backlog.ends(Topic::Intents).unwrap(), Offsets::new(), Vec::new());
            while from != ends {
                let mut seen = 0;
                from = backlog.read(Topic::Intents, &from, &ends, (usize::MAX, 3500), |_| seen += 1).unwrap();
                parts.push(seen);
            }
            parts
        });
        assert_eq!(read.await.unwrap(), [4, 4, 1]);
    }
}
