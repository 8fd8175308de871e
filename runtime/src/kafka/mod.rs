//! Kafka, as the stages need it. The only module that names rdkafka.
//!
//! Transaction calls, synchronous commits and rebalance callbacks of librdkafka block, so everything but [`Publisher`]
//! is for a thread of its own (see [`stage`](crate::stage)).

mod admin;
mod consumer;
mod follow;
mod producer;
mod registry;

pub use admin::apply;
pub use consumer::{Batch, Consumer, Position, Record, Table, Tail};
pub use follow::{Follower, Start};
pub use producer::{Publisher, Transaction, TransactionalProducer};
/// Which group, member and generation a transaction's offsets are from.
pub use rdkafka::consumer::ConsumerGroupMetadata as GroupMetadata;

use crate::failure::Failure;
use crate::settings::Settings;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::collections::HashMap;
use std::sync::Arc;
use topics::{Message, Topic};

/// Where Kafka is, how the topics are called here, and the schema ids to write. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kafka(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    brokers: String,
    prefix: String,
    instance: String,
    schema_ids: HashMap<Topic, u32>,
}

impl Kafka {
    /// Looks the schemas' ids up, once for the life of the process.
    ///
    /// # Errors
    /// When the registry does not answer, or does not have our schemas (`ctrip topics apply` registers them).
    pub async fn connect(settings: &Settings) -> anyhow::Result<Self> {
        let schema_ids = registry::lookup(settings).await?;
        Ok(Self(Arc::new(Inner {
            brokers: settings.kafka_brokers.clone(),
            prefix: settings.topic_prefix.clone(),
            instance: settings.instance.clone(),
            schema_ids,
        })))
    }

    /// The topic's name here.
    pub fn name(&self, topic: Topic) -> String {
        format!("{}{}", self.0.prefix, topic.name())
    }

    /// What tells this process from others of its role.
    pub fn instance(&self) -> &str {
        &self.0.instance
    }

    /// The record in its Confluent frame.
    pub fn encode<M: Message>(&self, record: &M) -> Vec<u8> {
        topics::frame::encode(self.schema_id(M::TOPIC), record)
    }

    /// A Protobuf message of the topic's type, encoded already, in its Confluent frame.
    pub fn frame(&self, topic: Topic, message: &[u8]) -> Vec<u8> {
        topics::frame::wrap(self.schema_id(topic), message)
    }

    /// The id under which the topic's schema is registered.
    pub fn schema_id(&self, topic: Topic) -> u32 {
        // `lookup` fails unless it finds all of them.
        self.0.schema_ids.get(&topic).copied().unwrap_or_default()
    }

    fn prefixed(&self, name: &str) -> String {
        format!("{}{name}", self.0.prefix)
    }

    fn config(&self, client: &str) -> ClientConfig {
        base_config(&self.0.brokers, client)
    }
}

fn base_config(brokers: &str, client: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", format!("ctrip-{client}"))
        // A broker that comes back is noticed in a second instead of ten.
        .set("reconnect.backoff.max.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("message.max.bytes", (32 * 1024 * 1024).to_string())
        .set("receive.message.max.bytes", (128 * 1024 * 1024).to_string());
    config
}

/// What to do about a Kafka error. A fenced producer and a taken static membership mean that a twin of this process runs;
/// everything else passes, or shows again when the stage starts anew.
fn failure(error: KafkaError) -> Failure {
    let code = match &error {
        KafkaError::Transaction(error) => Some(error.code()),
        error => error.rdkafka_error_code(),
    };
    match code {
        Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::FencedInstanceId) => {
            Failure::Halt(
                anyhow::Error::new(error)
                    .context("another process runs as this instance; give each a CTRIP_INSTANCE of its own"),
            )
        }
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize,
        ) => Failure::halt(error),
        _ => Failure::retry(error),
    }
}
