//! `ctrip topics apply`: the topics as `topics::Topic` describes them, and their schemas, also under ids that the registry has lost.
//!
//! Nothing that exists is changed or deleted. A setting that an operator may choose, such as the retention, may differ; one
//! that would break a consumer may not.

use super::backlog::Backlog;
use super::carried_ids::carried_ids;
use super::client::{Kafka, client_config};
use crate::registry::{Registered, Registry};
use crate::settings::Settings;
use anyhow::{Context as _, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use std::time::{Duration, Instant};
use topics::{Cleanup, Topic};

const TIMEOUT: Duration = Duration::from_secs(20);
/// A new topic has a leader within that, also on a broker that is still loading the topics of others.
const LEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Creates missing topics, then registers the schemas. Safe to repeat, and stops at the first contradiction.
///
/// # Errors
/// When Kafka or the registry does not answer, or has a topic or schema that contradicts ours.
pub async fn apply(settings: &Settings) -> anyhow::Result<()> {
    create_and_check(settings).await?;
    Registry::new(settings)?.register_all().await
}

/// [`apply`] for a registry that may have lost the ids of our schemas: those that records carry are registered again. What can't be, or
/// can't be found out, is named in the log, and keeps nothing else from being registered.
///
/// # Errors
/// As for [`apply`].
pub async fn apply_and_bring_back(settings: &Settings) -> anyhow::Result<()> {
    let existing = create_and_check(settings).await?;
    let registry = Registry::new(settings)?;
    for topic in Topic::ALL {
        if let Err(error) = registry.leave_import(topic).await {
            tracing::warn!("whether the registry takes a schema of {} is unknown: {error:#}", settings.topic_name(topic));
        }
    }
    let kafka = Kafka::without_registry(settings);
    let carried = tokio::task::spawn_blocking(move || {
        let of_topic = |topic| Backlog::open(&kafka).and_then(|backlog| carried_ids(&backlog, topic));
        existing.into_iter().map(|topic| (topic, of_topic(topic))).collect::<Vec<_>>()
    });
    for (topic, ids) in carried.await? {
        let name = settings.topic_name(topic);
        match ids {
            Ok(ids) => bring_back(&registry, topic, &name, &ids).await,
            Err(failure) => {
                tracing::warn!("whether the registry has the schemas of {name} is unknown, it can't be read: {failure}")
            }
        }
    }
    // Not earlier: a registry that is empty gives our text the id that the records have.
    registry.register_all().await
}

async fn bring_back(registry: &Registry, topic: Topic, name: &str, ids: &[u32]) {
    for id in ids {
        match registry.look_up(topic, *id).await {
            Ok(Registered::Record) => continue,
            Ok(_) => {}
            Err(error) => {
                tracing::error!("the schema {id} of {name}: {error}");
                continue;
            }
        }
        match registry.bring_back(topic, *id).await {
            Ok(()) => tracing::warn!("{name}: its records' schema is registered under their id {id} again"),
            Err(refusal) => tracing::error!("{refusal:#}"),
        }
    }
}

/// Returns the topics that were there.
async fn create_and_check(settings: &Settings) -> anyhow::Result<Vec<Topic>> {
    let admin: AdminClient<DefaultClientContext> = client_config(settings, "admin").create().context("the Kafka client")?;
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let mut existing = Vec::new();
    for (topic, created) in create(settings, &admin, &options).await? {
        let name = settings.topic_name(topic);
        if created {
            tracing::info!("created topic {name}");
        } else {
            existing.push(topic);
        }
        check(&admin, &options, topic, &name).await.with_context(|| format!("topic {name}"))?;
    }
    Ok(existing)
}

async fn create(
    settings: &Settings,
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
) -> anyhow::Result<Vec<(Topic, bool)>> {
    let names: Vec<String> = Topic::ALL.into_iter().map(|topic| settings.topic_name(topic)).collect();
    let configs: Vec<Vec<(&str, String)>> = Topic::ALL.iter().map(|topic| config(*topic, settings.topic_replication)).collect();
    let new: Vec<NewTopic<'_>> = Topic::ALL
        .iter()
        .zip(&names)
        .zip(&configs)
        .map(|((topic, name), config)| {
            let replication = TopicReplication::Fixed(settings.topic_replication.unwrap_or(-1));
            config.iter().fold(NewTopic::new(name, topic.partitions(), replication), |new, (key, value)| new.set(key, value))
        })
        .collect();
    let results = admin.create_topics(&new, options).await;
    let results = results.with_context(|| format!("creating the topics at {} (KAFKA_BROKERS)", settings.kafka_brokers))?;
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

fn config(topic: Topic, replication: Option<i32>) -> Vec<(&'static str, String)> {
    let mut config = vec![("max.message.bytes", topic.max_message_bytes().to_string())];
    if let Some(replication) = replication {
        config.push(("min.insync.replicas", min_insync_replicas(replication).to_string()));
    }
    match topic.cleanup() {
        Cleanup::Delete { retention_ms } => {
            config.push(("cleanup.policy", "delete".to_owned()));
            config.push(("retention.ms", retention_ms.map_or("-1".to_owned(), |ms| ms.to_string())));
        }
        Cleanup::Compact => config.push(("cleanup.policy", "compact".to_owned())),
    }
    if let Some(ms) = topic.segment_ms() {
        config.push(("segment.ms", ms.to_string()));
        // A tenth of it may be outdated, not half.
        config.push(("min.cleanable.dirty.ratio", "0.1".to_owned()));
    }
    config
}

/// How many replicas acknowledge a record: a majority, so that it outlives a broker, and one broker may be away. Two replicas do not
/// have both.
const fn min_insync_replicas(replication: i32) -> i32 {
    if replication < 3 { 1 } else { replication / 2 + 1 }
}

/// Compares only what would break a consumer.
async fn check(
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
    topic: Topic,
    name: &str,
) -> anyhow::Result<()> {
    let partitions = partition_count(admin, name).await?;
    if usize::try_from(topic.partitions()) != Ok(partitions) {
        bail!(
            "it has {partitions} partitions, expected {}: consumers would look for a key in the wrong one",
            topic.partitions()
        );
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

/// How many partitions the topic has, once all of them have a leader. Right after its creation a topic is not known to every
/// broker; a client that used it then would wait for longer than this does.
async fn partition_count(admin: &AdminClient<DefaultClientContext>, name: &str) -> anyhow::Result<usize> {
    let started = Instant::now();
    loop {
        let metadata = admin.inner().fetch_metadata(Some(name), TIMEOUT).context("its metadata")?;
        let topic = metadata.topics().first().context("its metadata")?;
        let led = topic.partitions().iter().all(|partition| partition.error().is_none() && partition.leader() >= 0);
        match topic.error() {
            None if led => return Ok(topic.partitions().len()),
            error if started.elapsed() > LEADER_TIMEOUT => bail!("no leader for {LEADER_TIMEOUT:?}: {error:?}"),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_is_replicated_acknowledges_no_record_that_one_broker_alone_has() {
        let acknowledged_by = |replication| {
            let config = config(Topic::Intents, replication);
            config.into_iter().find(|(key, _)| *key == "min.insync.replicas").map(|(_, value)| value)
        };
        assert_eq!(acknowledged_by(Some(3)).as_deref(), Some("2"));
        assert_eq!(acknowledged_by(Some(5)).as_deref(), Some("3"));
        assert_eq!(acknowledged_by(Some(1)).as_deref(), Some("1"));
        // The broker's defaults for both.
        assert_eq!(acknowledged_by(None), None);
    }
}
