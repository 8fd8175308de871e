//! Producers. Both are idempotent and wait for all replicas.
//!
//! [`TransactionalProducer`] is for stages: its calls block. [`Publisher`] is for async code, which needs each record's own
//! acknowledgement and no transaction.

use super::client::Kafka;
use crate::failure::Failure;
use anyhow::Context as _;
use base::metrics;
use rdkafka::ClientConfig;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, FutureProducer, FutureRecord, Producer as _, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};
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

/// A producer whose records and offsets become visible together, or not at all.
///
/// The first error spoils it: drop it and open another with the same id, which fences this one and aborts its open
/// transaction. librdkafka lacks KIP-588 and KIP-890, with which a producer could go on.
pub struct TransactionalProducer {
    kafka: Kafka,
    producer: ThreadedProducer<DefaultProducerContext>,
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
        let producer: ThreadedProducer<_> = config.create()?;
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
    /// Adds a record. Blocks only while the send queue is full.
    ///
    /// # Errors
    /// When the record can't be queued. Whether Kafka takes it shows at the commit.
    pub fn send(&self, topic: Topic, key: &str, payload: &[u8]) -> Result<(), Failure> {
        let name = self.producer.kafka.name(topic);
        let mut record = BaseRecord::to(&name).key(key).payload(payload);
        loop {
            match self.producer.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => {
                    return Err(Failure::from(error).context(format!("sending {} bytes to {name}", payload.len())));
                }
            }
        }
    }

    /// Adds the consumer's next offsets: `(topic, partition, offset)`.
    ///
    /// # Errors
    /// When the group is in a later generation than `group`, or the broker does not answer.
    pub fn send_offsets(&self, offsets: &[(Topic, i32, i64)], group: &ConsumerGroupMetadata) -> Result<(), Failure> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (topic, partition, offset) in offsets {
            list.add_partition_offset(&self.producer.kafka.name(*topic), *partition, Offset::Offset(*offset))?;
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

/// A producer for single records from async code: idempotent, acknowledged by all replicas.
#[derive(Clone)]
pub struct Publisher {
    kafka: Kafka,
    producer: FutureProducer,
}

impl Publisher {
    /// Connects at the first record. Kafka has `timeout` to acknowledge a record.
    ///
    /// # Errors
    /// When librdkafka refuses its configuration.
    pub fn open(kafka: &Kafka, timeout: Duration) -> anyhow::Result<Self> {
        let mut config = kafka.config("publisher");
        configure(&mut config).set("message.timeout.ms", timeout.as_millis().to_string()).set("linger.ms", "1");
        let producer = config.create().context("the Kafka producer")?;
        Ok(Self { kafka: kafka.clone(), producer })
    }

    /// Sends all records at once. Returns one outcome per record, in order, once each is acknowledged or has failed.
    pub async fn publish(&self, topic: Topic, records: &[(String, Vec<u8>)]) -> Vec<Result<(), anyhow::Error>> {
        let name = self.kafka.name(topic);
        let queued: Vec<_> = records
            .iter()
            .map(|(key, payload)| {
                let record = FutureRecord::to(&name).key(key).payload(payload);
                // The error carries the record; only its cause is useful.
                self.producer.send_result(record).map_err(|(error, _)| error)
            })
            .collect();
        let mut outcomes = Vec::with_capacity(queued.len());
        for delivery in queued {
            outcomes.push(match delivery {
                Ok(acknowledged) => match acknowledged.await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err((error, _))) => Err(anyhow::Error::new(error)),
                    Err(cancelled) => Err(anyhow::Error::new(cancelled)),
                },
                Err(error) => Err(anyhow::Error::new(error)),
            });
        }
        outcomes
    }

    /// Asks the brokers for metadata.
    ///
    /// # Errors
    /// When none answers within two seconds.
    pub async fn ping(&self) -> anyhow::Result<()> {
        let producer = self.producer.clone();
        let name = self.kafka.name(Topic::Intents);
        tokio::task::spawn_blocking(move || producer.client().fetch_metadata(Some(&name), Duration::from_secs(2)).map(|_| ()))
            .await?
            .context("Kafka")
    }
}
