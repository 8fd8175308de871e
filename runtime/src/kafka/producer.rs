use super::{Kafka, failure};
use crate::failure::Failure;
use crate::metrics;
use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, FutureProducer, FutureRecord, Producer as _, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};
use topics::Topic;

/// How long the broker lets a transaction be open before it aborts it. Readers wait behind an open one, so it is short.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than the transaction's own, so that a call ends with Kafka's verdict and not with ours.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

fn common(config: &mut ClientConfig) -> &mut ClientConfig {
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        // The Java client's partitioner, so that a key is found where any client looks for it.
        .set("partitioner", "murmur2_random")
        .set("queue.buffering.max.kbytes", (256 * 1024).to_string())
        // All that a transaction has for a partition goes in one request.
        .set("batch.size", (16 * 1024 * 1024).to_string())
}

/// A producer whose records appear together with offsets, or not at all.
///
/// It is used up by the first error: drop it and open another with the same id, which fences this one and aborts what it
/// left. librdkafka lacks KIP-588 and KIP-890, after which a producer could go on.
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
    /// Takes `id` over from whoever had it: an open transaction is aborted, a live predecessor is fenced. Blocks.
    ///
    /// # Errors
    /// When the broker does not answer within 20 s.
    pub fn open(kafka: &Kafka, id: &str) -> Result<Self, Failure> {
        let mut config = kafka.config(id);
        common(&mut config)
            .set("transactional.id", kafka.prefixed(id))
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
            // A transaction that begins before the last one's markers are written is told to come again: soon, not in 100 ms.
            .set("retry.backoff.ms", "10")
            .set("linger.ms", "1");
        let producer: ThreadedProducer<_> = config.create().map_err(failure)?;
        producer
            .init_transactions(CALL_TIMEOUT)
            .map_err(|e| failure(e).context(format!("taking over transactional id {id}")))?;
        Ok(Self { kafka: kafka.clone(), producer, name: id.to_owned() })
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// When the producer is used up.
    pub fn begin(&self) -> Result<Transaction<'_>, Failure> {
        self.producer.begin_transaction().map_err(|e| failure(e).context("beginning a Kafka transaction"))?;
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
    /// When the record can't be queued. Whether it arrives is known at the commit.
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
                Err((error, _)) => return Err(failure(error).context(format!("sending {} bytes to {name}", payload.len()))),
            }
        }
    }

    /// Adds the consumer's next offsets: `(topic, partition, offset)`.
    ///
    /// # Errors
    /// When the group has moved on without this consumer (its generation is part of `group`), or the broker is gone.
    pub fn send_offsets(&self, offsets: &[(Topic, i32, i64)], group: &ConsumerGroupMetadata) -> Result<(), Failure> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (topic, partition, offset) in offsets {
            list.add_partition_offset(&self.producer.kafka.name(*topic), *partition, Offset::Offset(*offset))
                .map_err(failure)?;
        }
        self.producer
            .producer
            .send_offsets_to_transaction(&list, group, CALL_TIMEOUT)
            .map_err(|e| failure(e).context("adding offsets to a Kafka transaction"))
    }

    /// Commits: all of it is there, or none.
    ///
    /// # Errors
    /// When it is aborted, or when it is not known whether it was committed; what the next producer finds tells.
    pub fn commit(mut self) -> Result<(), Failure> {
        // rdkafka's commit flushes by polling in steps of 100 ms that nothing ends early; with nothing in flight it does not
        // wait at all. The producer's own thread serves the deliveries meanwhile.
        let deadline = Instant::now() + CALL_TIMEOUT;
        while self.producer.producer.in_flight_count() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.open = false;
        let outcome = self.producer.producer.commit_transaction(CALL_TIMEOUT);
        self.producer.count(if outcome.is_ok() { "committed" } else { "aborted" });
        outcome.map_err(|e| failure(e).context("committing a Kafka transaction"))
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            self.producer.count("aborted");
            // Best effort, to free readers sooner: taking the id over aborts it for certain.
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
    /// Connects lazily; nothing is checked here but the configuration. A record fails after `timeout`.
    ///
    /// # Errors
    /// When librdkafka refuses its configuration.
    pub fn open(kafka: &Kafka, timeout: Duration) -> anyhow::Result<Self> {
        let mut config = kafka.config("publisher");
        common(&mut config).set("message.timeout.ms", timeout.as_millis().to_string()).set("linger.ms", "1");
        let producer = config.create().context("the Kafka producer")?;
        Ok(Self { kafka: kafka.clone(), producer })
    }

    /// Sends all records at once and answers for each, in order, when Kafka has acknowledged it or given up.
    pub async fn publish(&self, topic: Topic, records: &[(String, Vec<u8>)]) -> Vec<Result<(), anyhow::Error>> {
        let name = self.kafka.name(topic);
        let queued: Vec<_> = records
            .iter()
            .map(|(key, payload)| {
                let record = FutureRecord::to(&name).key(key).payload(payload);
                // The error carries the record; only its cause is of use.
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

    /// Whether the brokers answer.
    ///
    /// # Errors
    /// When they do not, within two seconds.
    pub async fn ping(&self) -> anyhow::Result<()> {
        let producer = self.producer.clone();
        let name = self.kafka.name(Topic::Intents);
        tokio::task::spawn_blocking(move || producer.client().fetch_metadata(Some(&name), Duration::from_secs(2)).map(|_| ()))
            .await?
            .context("Kafka")
    }
}
