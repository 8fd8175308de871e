//! Producers. Both are idempotent and wait for all replicas.
//!
//! [`TransactionalProducer`] is for stages: its calls block. [`Publisher`] is for async code, which needs each record's own
//! acknowledgement and no transaction; after a fatal error of librdkafka it opens a new producer.

use super::client::Kafka;
use super::heard::Heard;
use super::polled::PolledProducer;
use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use base::{backoff, locked, metrics};
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use rdkafka::ClientConfig;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use topics::Topic;

/// The broker aborts a transaction that is open for longer. It is short, since readers wait behind an open transaction.
pub(crate) const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than the transaction's own timeout, so that a call ends with Kafka's verdict and not with ours.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

fn configure(config: &mut ClientConfig) -> &mut ClientConfig {
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        // The Java client's partitioner, so that every client computes the same partition for a key.
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.kbytes", (256 * 1024).to_string())
        // One request takes everything that a transaction has for a partition.
        .set("batch.size", (16 * 1024 * 1024).to_string())
}

/// The longest back-off between two producers of a [`Publisher`].
const MAX_REOPENING_DELAY: Duration = Duration::from_secs(10);

/// How long a ping that failed waits for what librdkafka says of it.
const MAX_TELLING: Duration = Duration::from_millis(500);

/// A producer whose records and offsets become visible together, or not at all.
///
/// The first error spoils it: drop it and open another with the same id, which fences this one and aborts its open
/// transaction. librdkafka lacks KIP-588 and KIP-890, with which a producer could go on.
pub struct TransactionalProducer {
    kafka: Kafka,
    producer: PolledProducer<DefaultProducerContext>,
    name: String,
}

/// An open transaction; dropped without [`commit`](Self::commit), it is aborted.
pub struct Transaction<'a> {
    producer: &'a TransactionalProducer,
    open: bool,
}

impl TransactionalProducer {
    /// Takes the transactional id over: fences a live predecessor and aborts its open transaction. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer within 20 s.
    pub fn open(kafka: &Kafka, id: &str) -> Result<Self, Failure> {
        let mut config = kafka.config(id);
        configure(&mut config)
            .set("transactional.id", kafka.prefixed(id))
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
            // The broker refuses a transaction that begins before the markers of the last one are written; the default retries
            // after 100 ms.
            .set("retry.backoff.ms", "10")
            .set("linger.ms", "1");
        let producer = PolledProducer::open(&config, DefaultProducerContext)?;
        producer
            .init_transactions(CALL_TIMEOUT)
            .map_err(|e| Failure::from(e).context(format!("taking over transactional id {id}")))?;
        Ok(Self { kafka: kafka.clone(), producer, name: id.to_owned() })
    }

    /// # Errors
    /// When an earlier error has spoiled the producer.
    pub fn begin(&self) -> Result<Transaction<'_>, Failure> {
        self.producer.begin_transaction().map_err(|e| Failure::from(e).context("beginning a Kafka transaction"))?;
        Ok(Transaction { producer: self, open: true })
    }

    fn count(&self, outcome: &str) {
        metrics::TRANSACTIONS.counter(&[("producer", &self.name), ("outcome", outcome)]).increment(1);
    }
}

impl Transaction<'_> {
    /// Adds a record, in the partition that the topic has for its key, whatever somebody has added since. Blocks only while the send
    /// queue is full.
    ///
    /// # Errors
    /// When the record can't be queued. Whether Kafka takes it shows at the commit.
    pub fn send(&self, topic: Topic, key: &str, payload: &[u8]) -> Result<(), Failure> {
        let name = self.producer.kafka.name(topic);
        self.queue(&name, BaseRecord::to(&name).partition(topic.partition_of(key)).key(key).payload(payload))
    }

    /// [`send`](Self::send) with headers.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn send_with_headers(&self, topic: Topic, key: &str, payload: &[u8], headers: &[(&str, &str)]) -> Result<(), Failure> {
        let name = self.producer.kafka.name(topic);
        let headers = headers.iter().fold(OwnedHeaders::new_with_capacity(headers.len()), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(*value) })
        });
        let record = BaseRecord::to(&name).partition(topic.partition_of(key)).key(key).payload(payload);
        self.queue(&name, record.headers(headers))
    }

    /// Deletes what a compacted topic has under a key: adds a record without a value.
    ///
    /// # Errors
    /// As for [`send`](Self::send).
    pub fn delete(&self, topic: Topic, key: &str) -> Result<(), Failure> {
        let name = self.producer.kafka.name(topic);
        self.queue(&name, BaseRecord::to(&name).partition(topic.partition_of(key)).key(key))
    }

    fn queue(&self, name: &str, mut record: BaseRecord<'_, str, [u8]>) -> Result<(), Failure> {
        let bytes = record.payload.map_or(0, <[u8]>::len);
        loop {
            match self.producer.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => {
                    return Err(Failure::from(error).context(format!("sending {bytes} bytes to {name}")));
                }
            }
        }
    }

    /// Adds the consumer's next offsets: `(topic, partition, offset)`.
    ///
    /// # Errors
    /// When the group is in a later generation than `group`, or the broker does not answer.
    pub fn send_offsets(&self, offsets: &[(Topic, i32, i64)], group: &ConsumerGroupMetadata) -> Result<(), Failure> {
        self.send_noted_offsets(offsets, &BTreeMap::new(), group)
    }

    /// As [`send_offsets`](Self::send_offsets), with notes that Kafka keeps beside those of some partitions.
    ///
    /// # Errors
    /// As `send_offsets`.
    pub fn send_noted_offsets(
        &self,
        offsets: &[(Topic, i32, i64)],
        notes: &BTreeMap<(Topic, i32), String>,
        group: &ConsumerGroupMetadata,
    ) -> Result<(), Failure> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (topic, partition, offset) in offsets {
            let mut element = list.add_partition(&self.producer.kafka.name(*topic), *partition);
            element.set_offset(Offset::Offset(*offset))?;
            if let Some(note) = notes.get(&(*topic, *partition)) {
                element.set_metadata(note);
            }
        }
        self.producer
            .producer
            .send_offsets_to_transaction(&list, group, CALL_TIMEOUT)
            .map_err(|e| Failure::from(e).context("adding offsets to a Kafka transaction"))
    }

    /// Commits records and offsets together.
    ///
    /// # Errors
    /// When it is aborted, or when the outcome is unknown. Once another producer has taken the id over, the
    /// committed records and offsets show it.
    pub fn commit(mut self) -> Result<(), Failure> {
        // rdkafka's commit flushes by polling in steps of 100 ms that nothing ends early; with nothing in flight it does not
        // wait at all. Meanwhile the producer's own thread serves the delivery reports.
        let deadline = Instant::now() + CALL_TIMEOUT;
        while self.producer.producer.in_flight_count() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.open = false;
        let outcome = self.producer.producer.commit_transaction(CALL_TIMEOUT);
        self.producer.count(if outcome.is_ok() { "committed" } else { "aborted" });
        outcome.map_err(|e| Failure::from(e).context("committing a Kafka transaction"))
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            self.producer.count("aborted");
            // Best effort, so that readers need not wait: taking the id over aborts it for certain.
            if let Err(error) = self.producer.producer.abort_transaction(Duration::from_secs(2)) {
                tracing::debug!("aborting a Kafka transaction: {error}");
            }
        }
    }
}

/// A producer for single records from async code: idempotent, acknowledged by all replicas. Cheap to clone.
///
/// A fatal error, such as that of a broker that has lost its last records, spoils librdkafka's producer for good. Then a new one
/// is opened, with back-off; until then every record fails.
#[derive(Clone)]
pub struct Publisher {
    kafka: Kafka,
    timeout: Duration,
    current: Arc<Mutex<CurrentProducer>>,
}

struct CurrentProducer {
    producer: Arc<PolledProducer<Heard>>,
    heard: Heard,
    opened: Instant,
    /// No other is opened before.
    next_opening: Instant,
    delays: Box<dyn Iterator<Item = Duration> + Send>,
}

impl Publisher {
    /// Connects at the first record. Kafka has `timeout` to acknowledge a record.
    ///
    /// # Errors
    /// When librdkafka refuses its configuration.
    pub fn open(kafka: &Kafka, timeout: Duration) -> anyhow::Result<Self> {
        let (producer, heard) = open_producer(kafka, timeout)?;
        let current = CurrentProducer {
            producer,
            heard,
            opened: Instant::now(),
            next_opening: Instant::now(),
            delays: reopening_delays(),
        };
        Ok(Self { kafka: kafka.clone(), timeout, current: Arc::new(Mutex::new(current)) })
    }

    /// The producer, or its successor if a fatal error has spoiled it.
    fn producer(&self) -> anyhow::Result<Arc<PolledProducer<Heard>>> {
        let mut current = locked(&self.current);
        let Some((code, cause)) = current.producer.client().fatal_error() else { return Ok(current.producer.clone()) };
        let now = Instant::now();
        if now < current.next_opening {
            let wait = current.next_opening - now;
            return Err(anyhow!("the Kafka producer failed for good, a new one is opened in {wait:.1?} ({code}: {cause})"));
        }
        tracing::error!("the Kafka producer failed for good, opening a new one ({code}: {cause})");
        if current.opened.elapsed() > MAX_REOPENING_DELAY * 2 {
            current.delays = reopening_delays();
        }
        let (successor, heard) = open_producer(&self.kafka, self.timeout)?;
        let spoiled = std::mem::replace(&mut current.producer, successor);
        current.heard = heard;
        current.opened = now;
        current.next_opening = now + current.delays.next().unwrap_or(MAX_REOPENING_DELAY);
        metrics::PUBLISHER_REOPENED.counter(&[]).increment(1);
        let producer = current.producer.clone();
        drop(current);
        // Its drop waits for its polling thread.
        std::thread::spawn(move || drop(spoiled));
        Ok(producer)
    }

    /// Sends all records at once. Returns one outcome per record, in no order, once each is acknowledged or has failed.
    pub async fn publish(&self, topic: Topic, records: &[(String, Vec<u8>)]) -> Vec<Result<(), anyhow::Error>> {
        self.publish_each(topic, records).map(|(_, outcome)| outcome).collect().await
    }

    /// Sends all records at once. Yields the place and the outcome of each as soon as it is acknowledged or has failed: those of a
    /// partition without a leader fail in the end, and keep no other waiting.
    pub fn publish_each(
        &self,
        topic: Topic,
        records: &[(String, Vec<u8>)],
    ) -> impl Stream<Item = (usize, Result<(), anyhow::Error>)> + use<> {
        let (name, producer) = (self.kafka.name(topic), self.producer());
        let queue = |(place, (key, payload)): (usize, &(String, Vec<u8>))| {
            let (tell, told) = oneshot::channel();
            let record = BaseRecord::with_opaque_to(&name, Box::new(tell));
            // Not librdkafka's partitioner, which would follow partitions that somebody adds.
            let record = record.key(key).payload(payload).partition(topic.partition_of(key));
            let queued = match &producer {
                // The error carries the record; only its cause is useful.
                Ok(producer) => producer.send(record).map_err(|(error, _)| anyhow::Error::new(error)),
                Err(error) => Err(anyhow!("{error:#}")),
            };
            async move {
                let acknowledged = async {
                    queued?;
                    Ok(told.await??)
                };
                (place, acknowledged.await)
            }
        };
        records.iter().enumerate().map(queue).collect::<FuturesUnordered<_>>()
    }

    /// Asks the brokers for metadata.
    ///
    /// # Errors
    /// When none answers within two seconds, or the producer is spoiled and no other may be opened yet. It says why, such as a
    /// login that is refused.
    pub async fn ping(&self) -> anyhow::Result<()> {
        let producer = self.producer()?;
        let heard = locked(&self.current).heard.clone();
        let name = self.kafka.name(Topic::Intents);
        let asked = tokio::task::spawn_blocking(move || {
            producer.client().fetch_metadata(Some(&name), Duration::from_secs(2)).map(drop)
        });
        let why = |error: KafkaError| {
            heard.refusal().unwrap_or_else(|| heard.last().map_or_else(|| error.into(), anyhow::Error::msg))
        };
        let asked = asked.await?;
        // The thread that polls tells what librdkafka says, and may not have run since.
        let told = async {
            while asked.is_err() && heard.last().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(MAX_TELLING, told).await;
        asked.map_err(why).context("Kafka")
    }
}

/// Whether a record was not acknowledged since the time for it was over, as when its partition has no leader.
pub fn is_timeout(unacknowledged: &anyhow::Error) -> bool {
    let error = unacknowledged.downcast_ref::<KafkaError>();
    error.and_then(KafkaError::rdkafka_error_code) == Some(RDKafkaErrorCode::MessageTimedOut)
}

fn reopening_delays() -> Box<dyn Iterator<Item = Duration> + Send> {
    Box::new(backoff::delays(MAX_REOPENING_DELAY))
}

fn open_producer(kafka: &Kafka, timeout: Duration) -> anyhow::Result<(Arc<PolledProducer<Heard>>, Heard)> {
    let mut config = kafka.config("publisher");
    configure(&mut config).set("message.timeout.ms", timeout.as_millis().to_string()).set("linger.ms", "1");
    let heard = Heard::new(config.get("sasl.username"), true);
    let producer = PolledProducer::open(&config, heard.clone()).context("the Kafka producer")?;
    Ok((Arc::new(producer), heard))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    #[tokio::test]
    async fn a_ping_says_why_there_is_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let brokers = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.and_then(|mut stream| {
                    let _hello = stream.read(&mut [0; 4096])?;
                    stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                });
            }
        });
        let kafka = Kafka::on_brokers_with(&brokers, &[("security.protocol", "ssl")]);
        let publisher = Publisher::open(&kafka, Duration::from_secs(10)).unwrap();
        // On a busy machine the handshake may take longer than a ping.
        let started = Instant::now();
        loop {
            let cause = format!("{:#}", publisher.ping().await.unwrap_err());
            if cause.contains("KAFKA_SECURITY_PROTOCOL") && cause.contains(&brokers) {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{cause}");
        }
    }

    #[tokio::test]
    async fn a_partition_without_a_leader_keeps_no_acknowledgement_of_another_back() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(Topic::Intents.name(), Topic::Intents.partitions(), 1).unwrap();
        let publisher = Publisher::open(&Kafka::on_brokers(&cluster.bootstrap_servers()), Duration::from_secs(5)).unwrap();
        let records: Vec<_> = (0..64).map(|number: u8| (number.to_string(), vec![number])).collect();
        let dead = Topic::Intents.partition_of("0");
        cluster.partition_leader(Topic::Intents.name(), dead, None).unwrap();
        let began = Instant::now();
        let mut outcomes = std::pin::pin!(publisher.publish_each(Topic::Intents, &records));
        let (mut acknowledged, mut failed) = (0, 0);
        while let Some((place, outcome)) = outcomes.next().await {
            let is_dead = Topic::Intents.partition_of(&records[place].0) == dead;
            assert_eq!(outcome.as_ref().is_err_and(is_timeout), is_dead, "{place}: {outcome:?}");
            if is_dead {
                failed += 1;
            } else {
                acknowledged += 1;
                assert!(failed == 0 && began.elapsed() < Duration::from_secs(4), "it waited for those of the partition");
            }
        }
        assert!(failed > 0 && acknowledged > 32 && failed + acknowledged == 64, "{failed} {acknowledged}");
    }

    #[tokio::test]
    async fn a_publisher_opens_a_new_producer_after_a_fatal_error() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(Topic::Intents.name(), Topic::Intents.partitions(), 1).unwrap();
        let publisher = Publisher::open(&Kafka::on_brokers(&cluster.bootstrap_servers()), Duration::from_secs(10)).unwrap();
        let record = [("key".to_owned(), b"value".to_vec())];
        assert!(publisher.publish(Topic::Intents, &record).await[0].is_ok());
        // The answer of a broker that has lost its last records.
        let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        cluster.request_errors(RDKafkaApiKey::Produce, &[lost]);
        assert!(publisher.publish(Topic::Intents, &record).await[0].is_err());
        assert!(publisher.publish(Topic::Intents, &record).await[0].is_ok(), "the successor of the spoiled producer");
        // Again and again: within the back-off neither records nor the probe of /readyz pretend that all is well.
        let mut cause = None;
        for _ in 0..8 {
            cluster.request_errors(RDKafkaApiKey::Produce, &[lost]);
            assert!(publisher.publish(Topic::Intents, &record).await[0].is_err());
            cause = publisher.ping().await.err();
            if cause.is_some() {
                break;
            }
        }
        assert!(cause.is_some_and(|cause| cause.to_string().contains("failed for good")));
        let opened = Instant::now();
        while publisher.publish(Topic::Intents, &record).await[0].is_err() {
            assert!(opened.elapsed() < MAX_REOPENING_DELAY * 2, "no new producer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        publisher.ping().await.unwrap();
    }
}
