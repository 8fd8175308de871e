use super::{base_config, registry};
use crate::settings::Settings;
use anyhow::{Context as _, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use std::time::{Duration, Instant};
use topics::{Cleanup, Topic};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Creates the topics and registers the schemas. What is there stays; where it contradicts, nothing more is done.
///
/// # Errors
/// When Kafka or the registry does not answer, or has a topic or schema that is not ours.
pub async fn apply(settings: &Settings) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        base_config(&settings.kafka_brokers, "admin").create().context("the Kafka client")?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    for (topic, created) in create(settings, &admin, &options).await? {
        let name = format!("{}{}", settings.topic_prefix, topic.name());
        if created {
            tracing::info!("created topic {name}");
        }
        check(&admin, &options, topic, &name).await.with_context(|| format!("topic {name} exists and contradicts"))?;
    }
    registry::apply(settings).await
}

async fn create(
    settings: &Settings,
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
) -> anyhow::Result<Vec<(Topic, bool)>> {
    let names: Vec<String> = Topic::ALL.iter().map(|topic| format!("{}{}", settings.topic_prefix, topic.name())).collect();
    let configs: Vec<Vec<(&str, String)>> = Topic::ALL.iter().map(|topic| config(*topic)).collect();
    let new: Vec<NewTopic<'_>> = Topic::ALL
        .iter()
        .zip(&names)
        .zip(&configs)
        .map(|((topic, name), config)| {
            let replication = TopicReplication::Fixed(settings.topic_replication.unwrap_or(-1));
            config.iter().fold(NewTopic::new(name, topic.partitions(), replication), |new, (key, value)| new.set(key, value))
        })
        .collect();
    let results = admin.create_topics(&new, options).await.context("creating the topics (KAFKA_BROKERS)")?;
    let mut outcomes = Vec::new();
    for (topic, result) in Topic::ALL.into_iter().zip(results) {
        match result {
            Ok(_) => outcomes.push((topic, true)),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => outcomes.push((topic, false)),
            Err((name, code)) => bail!("creating topic {name}: {code}"),
        }
    }
    Ok(outcomes)
}

fn config(topic: Topic) -> Vec<(&'static str, String)> {
    let mut config = vec![("max.message.bytes", topic.max_message_bytes().to_string())];
    match topic.cleanup() {
        Cleanup::Delete { retention_ms } => {
            config.push(("cleanup.policy", "delete".to_owned()));
            config.push(("retention.ms", retention_ms.map_or("-1".to_owned(), |ms| ms.to_string())));
        }
        Cleanup::Compact => config.push(("cleanup.policy", "compact".to_owned())),
    }
    config
}

/// Retention may be changed by an operator; what would break a consumer may not.
async fn check(
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
    topic: Topic,
    name: &str,
) -> anyhow::Result<()> {
    let partitions = partitions(admin, name).await?;
    if usize::try_from(topic.partitions()) != Ok(partitions) {
        bail!("it has {partitions} partitions, expected {}: keys would be looked for in the wrong ones", topic.partitions());
    }
    let described = admin.describe_configs([&ResourceSpecifier::Topic(name)], options).await.context("its settings")?;
    for resource in described {
        let resource = resource.map_err(|code| anyhow::anyhow!("its settings: {code}"))?;
        let value = |key| resource.get(key).and_then(|entry| entry.value.clone()).unwrap_or_default();
        let policy = match topic.cleanup() {
            Cleanup::Delete { .. } => "delete",
            Cleanup::Compact => "compact",
        };
        if value("cleanup.policy") != policy {
            bail!("cleanup.policy is {}, expected {policy}", value("cleanup.policy"));
        }
        let limit: u64 = value("max.message.bytes").parse().unwrap_or_default();
        if limit < u64::from(topic.max_message_bytes()) {
            bail!("max.message.bytes is {limit}, expected at least {}", topic.max_message_bytes());
        }
    }
    Ok(())
}

/// How many there are. A topic that was made a moment ago is not known to every broker yet, nor has it leaders, and who uses
/// it then waits for longer than for these.
async fn partitions(admin: &AdminClient<DefaultClientContext>, name: &str) -> anyhow::Result<usize> {
    let started = Instant::now();
    loop {
        let metadata = admin.inner().fetch_metadata(Some(name), TIMEOUT).context("its metadata")?;
        let topic = metadata.topics().first().context("its metadata")?;
        let led = topic.partitions().iter().all(|partition| partition.error().is_none() && partition.leader() >= 0);
        match topic.error() {
            None if led => return Ok(topic.partitions().len()),
            error if started.elapsed() > TIMEOUT => bail!("it is not ready after {TIMEOUT:?}: {error:?}"),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
