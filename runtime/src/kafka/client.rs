//! The handle that every Kafka client of the process is made from, and the settings of librdkafka that they share.

use crate::registry::{Registered, Registry};
use crate::settings::{Secret, Settings};
use anyhow::ensure;
use rdkafka::ClientConfig;
use std::collections::HashMap;
use std::sync::Arc;
use topics::{MAX_MESSAGE_BYTES, Message, Topic};

/// Brokers, topic prefix and schema ids. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kafka(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    brokers: String,
    connection: Vec<(String, Secret)>,
    prefix: String,
    instance: String,
    schema_ids: HashMap<Topic, u32>,
}

impl Kafka {
    /// Asks the registry for the ids of our schemas, once for the life of the process. No broker is contacted.
    ///
    /// # Errors
    /// When the registry does not answer, or does not have our schemas (`ctrip topics apply` registers them).
    pub async fn connect(settings: &Settings) -> anyhow::Result<Self> {
        Ok(Self::with_schema_ids(settings, Registry::new(settings)?.schema_ids().await?))
    }

    /// A handle for reading: without schema ids it writes nothing that others can read.
    pub(super) fn without_registry(settings: &Settings) -> Self {
        Self::with_schema_ids(settings, HashMap::new())
    }

    fn with_schema_ids(settings: &Settings, schema_ids: HashMap<Topic, u32>) -> Self {
        Self(Arc::new(Inner {
            brokers: settings.kafka_brokers.clone(),
            connection: settings.kafka.connection.clone(),
            prefix: settings.topic_prefix.clone(),
            instance: settings.instance.clone(),
            schema_ids,
        }))
    }

    /// A handle without a registry, for tests.
    #[must_use]
    pub fn on_brokers(brokers: &str) -> Self {
        Self::on_brokers_with(brokers, &[])
    }

    /// [`on_brokers`](Self::on_brokers) with settings of the connection.
    pub(super) fn on_brokers_with(brokers: &str, connection: &[(&str, &str)]) -> Self {
        let (prefix, instance, schema_ids) = (String::new(), String::new(), HashMap::new());
        let connection = connection.iter().map(|(key, value)| ((*key).to_owned(), Secret::from(*value))).collect();
        Self(Arc::new(Inner { brokers: brokers.to_owned(), connection, prefix, instance, schema_ids }))
    }

    /// `TOPIC_PREFIX`.
    pub fn topic_prefix(&self) -> &str {
        &self.0.prefix
    }

    /// The topic's name with `TOPIC_PREFIX`.
    pub fn name(&self, topic: Topic) -> String {
        self.prefixed(topic.name())
    }

    /// `CTRIP_INSTANCE`, which no other process of the role has.
    pub fn instance(&self) -> &str {
        &self.0.instance
    }

    /// The record in its Confluent frame.
    pub fn encode<M: Message>(&self, record: &M) -> Vec<u8> {
        topics::frame::encode(self.schema_id(M::TOPIC), record)
    }

    /// Puts the Confluent frame around a Protobuf message of the topic's type that is encoded already.
    pub fn frame(&self, topic: Topic, message: &[u8]) -> Vec<u8> {
        topics::frame::wrap(self.schema_id(topic), message)
    }

    /// The id under which the topic's schema is registered.
    pub fn schema_id(&self, topic: Topic) -> u32 {
        // `connect` fails unless the registry has all of them.
        self.0.schema_ids.get(&topic).copied().unwrap_or_default()
    }

    /// Whether other programs can read what this process writes: a registry that was restored, or made anew, may not have our schemas
    /// under the ids that our records carry.
    ///
    /// # Errors
    /// When it has not. It says what helps.
    pub async fn check_schema_ids(&self, registry: &Registry) -> anyhow::Result<()> {
        let ids = registry.schema_ids().await?;
        for topic in Topic::ALL {
            let (ours, id) = (self.schema_id(topic), ids.get(&topic).copied().unwrap_or_default());
            let name = self.name(topic);
            ensure!(
                id == ours || registry.look_up(topic, ours).await? == Registered::Record,
                "the records of {name} have the schema id {ours}, and the registry has the schema under {id}: it was restored or made anew, \
                 and other programs can't read them. Restore it with its ids; if they are lost, `ctrip topics apply` registers the schemas \
                 under them again. If it can't, restart all roles, so that what is written from then on has the new ones"
            );
        }
        Ok(())
    }

    /// A group or transactional id with `TOPIC_PREFIX`.
    pub(super) fn prefixed(&self, name: &str) -> String {
        format!("{}{name}", self.0.prefix)
    }

    /// The configuration of any client of this process.
    pub(super) fn config(&self, client: &str) -> ClientConfig {
        configure(&self.0.brokers, &self.0.connection, client)
    }

    /// The configuration of any reader of this process.
    pub(super) fn reader_config(&self, client: &str) -> ClientConfig {
        as_reader(self.config(client))
    }

    /// The configuration of a reader that joins no group: librdkafka asks for one all the same.
    pub(super) fn lookup_config(&self, group: &str) -> ClientConfig {
        let mut config = self.reader_config("lookup");
        config.set("group.id", self.prefixed(group));
        config
    }
}

/// [`Kafka::config`] without a registry.
pub(super) fn client_config(settings: &Settings, client: &str) -> ClientConfig {
    configure(&settings.kafka_brokers, &settings.kafka.connection, client)
}

/// [`Kafka::reader_config`] without a registry.
pub(super) fn reader_config(settings: &Settings, client: &str) -> ClientConfig {
    as_reader(client_config(settings, client))
}

fn configure(brokers: &str, connection: &[(String, Secret)], client: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (key, value) in connection {
        config.set(key, &**value);
    }
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", format!("ctrip-{client}"))
        // A broker that comes back is noticed within 1 s instead of 10 s.
        .set("reconnect.backoff.max.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("message.max.bytes", MAX_MESSAGE_BYTES.to_string())
        .set("receive.message.max.bytes", (128 * 1024 * 1024).to_string());
    config
}

fn as_reader(mut config: ClientConfig) -> ClientConfig {
    config
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        // A partition that is assigned during a fetch waits for that fetch to return.
        .set("fetch.wait.max.ms", "100")
        .set("fetch.message.max.bytes", (4 * 1024 * 1024).to_string())
        .set("queued.max.messages.kbytes", (64 * 1024).to_string())
        // By default librdkafka waits 1 s before it refills a queue that was full.
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.error.backoff.ms", "100");
    config
}
