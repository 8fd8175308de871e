//! One partition from any offset on, and from its end backwards. Joins no group.
//!
//! The truth about what a stage has written is in the topic that it writes: the end of a partition tells it, whatever became of
//! the consumer group. Offsets without a record (markers of transactions, aborted records) are passed over.

use super::client::Kafka;
use super::hanging::OpenTransaction;
use super::offsets::{CALL_TIMEOUT, end_of, end_offsets, with_leaders};
use super::read_all::{EofContext, READ_TIMEOUT};
use super::record::Record;
use crate::failure::Failure;
use anyhow::anyhow;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::cell::Cell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use topics::Topic;

/// Offsets in the first chunk of [`PartitionReader::read_back`]; each further one is four times as long, up to the most.
const FIRST_CHUNK: i64 = 16;
const MAX_CHUNK: i64 = 1024;
/// A chunk with more bytes of values is read again in smaller ones: anyone can make records large.
const MAX_CHUNK_BYTES: usize = 32 * 1024 * 1024;

/// A reader of the committed records of one partition. Its calls block.
pub struct PartitionReader {
    inner: BaseConsumer<EofContext>,
    topic: Topic,
    name: String,
    partition: i32,
    /// Up to where it could be read when it was opened.
    end: i64,
    /// From where on it was told to read, its beginning at first.
    from: Cell<i64>,
    /// Whether it reads from there.
    is_assigned: Cell<bool>,
}

impl PartitionReader {
    /// Opens the partition at its beginning, once every transaction is over that was open at the call.
    ///
    /// # Errors
    /// When a transaction stays open for 30 s, or the broker does not answer.
    pub fn open(kafka: &Kafka, topic: Topic, partition: i32) -> Result<Self, Failure> {
        let inner = client(kafka)?;
        let ends = kafka.await_stable(&inner, topic, &[partition])?;
        Ok(Self::up_to(kafka, inner, topic, partition, &ends))
    }

    /// As [`open`](Self::open), but waits no longer than `patience`: then it returns what is open still.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn open_within(
        kafka: &Kafka,
        topic: Topic,
        partition: i32,
        patience: Duration,
    ) -> Result<Result<Self, OpenTransaction>, Failure> {
        let inner = client(kafka)?;
        match kafka.stable_ends(&inner, topic, &[partition], patience)? {
            Ok(ends) => Ok(Ok(Self::up_to(kafka, inner, topic, partition, &ends))),
            Err(open) => {
                let open = open.into_iter().next();
                open.map(Err).ok_or_else(|| Failure::Retry(anyhow!("{}/{partition} has no end", kafka.name(topic))))
            }
        }
    }

    /// Opens the partition at its beginning, and waits for no transaction: what lies behind an open one is not there yet.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn open_at_once(kafka: &Kafka, topic: Topic, partition: i32) -> Result<Self, Failure> {
        let inner = client(kafka)?;
        let ends = end_offsets(&inner, &kafka.name(topic), [partition])?;
        Ok(Self::up_to(kafka, inner, topic, partition, &ends))
    }

    /// Assigns nothing yet. librdkafka would ask where the partition begins, and its answer may come after an offset was assigned: then
    /// it reads from the beginning instead.
    fn up_to(kafka: &Kafka, inner: BaseConsumer<EofContext>, topic: Topic, partition: i32, ends: &HashMap<i32, i64>) -> Self {
        let end = ends.get(&partition).copied().unwrap_or_default();
        Self { inner, topic, name: kafka.name(topic), partition, end, from: Cell::new(0), is_assigned: Cell::new(false) }
    }

    /// Up to where it could be read when it was opened; 0 where nothing was ever written.
    pub const fn end(&self) -> i64 {
        self.end
    }

    /// Up to where it can be read by now.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn end_now(&self) -> Result<i64, Failure> {
        end_of(&self.inner, &self.name, self.partition)
    }

    /// Continues at an offset, or at the nearest later one that the partition has.
    ///
    /// It does so at the next read: where a partition is assigned anew, or its client closed, before librdkafka has stopped reading it for
    /// the assignment before, librdkafka aborts the process (confluentinc/librdkafka#5573). A record, or the end, comes after that.
    pub fn seek(&self, offset: i64) {
        self.from.set(offset);
        self.is_assigned.set(false);
    }

    fn assign(&self) -> Result<(), Failure> {
        // librdkafka warns of an offset that is gone, and waits before it asks where the partition begins.
        let at = match self.from.get() {
            0 => Offset::Beginning,
            from => Offset::Offset(from),
        };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, self.partition, at)?;
        self.inner.assign(&list)?;
        self.is_assigned.set(true);
        Ok(())
    }

    /// The next record; `None` at the end that the partition has now, or where that is before what was [sought](Self::seek).
    ///
    /// # Errors
    /// When nothing arrives for 30 s before the end.
    pub fn next(&self) -> Result<Option<Record<'_>>, Failure> {
        let (started, mut asked_again, from) = (Instant::now(), false, self.from.get());
        if !self.is_assigned.get() {
            self.assign()?;
        }
        loop {
            match self.inner.poll(Duration::from_millis(100)) {
                Some(Ok(message)) if message.offset() < from => {
                    // It begins anew where the partition ends before that offset; or, as for `up_to`, where it was at its beginning.
                    if asked_again {
                        return Ok(None);
                    }
                    asked_again = true;
                    self.assign()?;
                }
                Some(Ok(message)) => return Ok(Some(Record { topic: self.topic, message })),
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(None),
                Some(Err(error)) => return Err(Failure::from(error).context(format!("reading {}", self.name))),
                None if started.elapsed() > READ_TIMEOUT => {
                    let (name, partition) = (&self.name, self.partition);
                    return Err(Failure::Retry(anyhow!(
                        "no record and no end of {name}/{partition} came for {READ_TIMEOUT:?}"
                    )));
                }
                None => {}
            }
        }
    }

    /// Shows the records from the end backwards, in chunks: the newest chunk first, the records of a chunk in order. Ends when
    /// `see` breaks, or at the beginning. Memory holds one chunk, of at most 32 MiB if it has more than one record.
    ///
    /// # Errors
    /// Those of `see`, and when the broker does not answer.
    pub fn read_back(&self, mut see: impl FnMut(&[Record<'_>]) -> Result<ControlFlow<()>, Failure>) -> Result<(), Failure> {
        let watermarks = || self.inner.fetch_watermarks(&self.name, self.partition, CALL_TIMEOUT);
        let (low, _) =
            with_leaders(watermarks).map_err(|e| Failure::from(e).context(format!("the offsets of {}", self.name)))?;
        let (mut end, mut length) = (self.end, FIRST_CHUNK);
        while end > low {
            let from = (end - length.max(1)).max(low);
            let Some(chunk) = self.chunk(from, end)? else {
                length = (end - from) / 4;
                continue;
            };
            if see(&chunk)?.is_break() {
                return Ok(());
            }
            end = from;
            length = (length.max(1) * 4).min(MAX_CHUNK);
        }
        Ok(())
    }

    /// The records between two offsets; `None` if they are too large to be in memory together.
    fn chunk(&self, from: i64, end: i64) -> Result<Option<Vec<Record<'_>>>, Failure> {
        self.seek(from);
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while let Some(record) = self.next()? {
            let offset = record.offset();
            if offset < end {
                bytes += record.payload().len();
                chunk.push(record);
            }
            if bytes > MAX_CHUNK_BYTES && chunk.len() > 1 {
                return Ok(None);
            }
            if offset + 1 >= end {
                break;
            }
        }
        Ok(Some(chunk))
    }
}

fn client(kafka: &Kafka) -> Result<BaseConsumer<EofContext>, Failure> {
    let mut config = kafka.lookup_config("lookup");
    config.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
    Ok(config.create_with_context(EofContext)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Publisher;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;

    /// A cluster whose topic has a record with each of these values under the key `1`.
    async fn with_values(
        topic: Topic,
        values: impl IntoIterator<Item = Vec<u8>>,
    ) -> (MockCluster<'static, DefaultProducerContext>, Kafka) {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap();
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let publisher = Publisher::open(&kafka, Duration::from_secs(30)).unwrap();
        for value in values {
            publisher.publish(topic, &[("1".to_owned(), value)]).await.remove(0).unwrap();
        }
        (cluster, kafka)
    }

    #[tokio::test]
    async fn large_records_are_read_back_in_smaller_chunks() {
        const RECORDS: usize = 50;
        let topic = Topic::Matches;
        let values = (0..RECORDS).map(|number| vec![u8::try_from(number).unwrap(); 1024 * 1024]);
        let (_cluster, kafka) = with_values(topic, values).await;
        let (sizes, seen) = tokio::task::spawn_blocking(move || {
            let (mut sizes, mut seen) = (Vec::new(), Vec::new());
            let reader = PartitionReader::open(&kafka, topic, topic.partition_of("1")).unwrap();
            let see = |records: &[Record<'_>]| {
                sizes.push(records.len());
                seen.extend(records.iter().rev().map(|record| usize::from(record.payload()[0])));
                Ok(ControlFlow::Continue(()))
            };
            reader.read_back(see).unwrap();
            (sizes, seen)
        })
        .await
        .unwrap();
        assert!(seen.into_iter().eq((0..RECORDS).rev()), "records are missing, or in another order");
        assert!(sizes.iter().all(|size| *size <= 32), "{sizes:?} MiB in memory");
    }

    /// An answer to where the partition begins may come after the reader was told where to go on.
    #[tokio::test]
    async fn a_reader_goes_on_where_it_was_told_to_however_soon_after_it_was_opened() {
        const OPENED: usize = 100;
        let topic = Topic::Matches;
        let (_cluster, kafka) = with_values(topic, (0..10_u8).map(|number| vec![number])).await;
        let read = move || {
            let reader = PartitionReader::open_at_once(&kafka, topic, topic.partition_of("1")).unwrap();
            reader.seek(12);
            assert!(reader.next().unwrap().is_none(), "the partition ends before");
            let reader = |_| {
                let reader = PartitionReader::open_at_once(&kafka, topic, topic.partition_of("1")).unwrap();
                let found = [7, 2].map(|offset| {
                    // librdkafka ends the process where what was told to stop is told so again before it has.
                    reader.seek(offset + 1);
                    reader.seek(offset);
                    reader.next().unwrap().map(|record| record.offset())
                });
                reader.seek(5);
                found
            };
            (0..OPENED).map(reader).filter(|found| *found != [Some(7), Some(2)]).collect::<Vec<_>>()
        };
        assert_eq!(tokio::task::spawn_blocking(read).await.unwrap(), Vec::<[Option<i64>; 2]>::new());
    }

    #[tokio::test]
    async fn a_partition_is_read_while_another_of_its_topic_has_no_leader() {
        let cluster = MockCluster::new(1).unwrap();
        let topic = Topic::Matches;
        cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap();
        cluster.partition_leader(topic.name(), 3, None).unwrap();
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let read = move || {
            assert_eq!(kafka.ends(topic, 2).unwrap(), (0, 0));
            assert_eq!(PartitionReader::open_at_once(&kafka, topic, 2).unwrap().end(), 0);
            let opened = PartitionReader::open_within(&kafka, topic, 2, Duration::from_secs(2)).unwrap();
            assert_eq!(opened.unwrap().end(), 0);
            kafka.read_partitions(topic, &[1, 2], |_| panic!("a record")).unwrap();
        };
        tokio::task::spawn_blocking(read).await.unwrap();
    }
}
