//! Topics and schemas as `ctrip topics apply` makes them, read back from the broker and compared with docs/consuming.md.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Plan, eventually, root};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use topics::Topic;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A topic's partitions, and how long it is kept, as the page says.
fn documented() -> Result<BTreeMap<String, (usize, String)>> {
    let page = std::fs::read_to_string(root().join("docs/consuming.md"))?;
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>()).filter(|cells| cells.len() == 8);
    cells.map(|cells| Ok((cells[1].trim_matches('`').to_owned(), (cells[3].parse()?, cells[4].to_owned())))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_keeps_the_topics_as_the_page_says_and_a_contradiction_is_refused() -> Result<()> {
    let mut lab = Lab::start(Plan::default()).await?;
    let name = |topic: Topic| format!("{}{topic}", lab.env["TOPIC_PREFIX"]);
    let admin: AdminClient<DefaultClientContext> = lab.kafka_connection().create()?;
    let consumer: BaseConsumer = lab.kafka_connection().create()?;
    let documented = documented()?;
    ensure!(documented.len() == Topic::ALL.len(), "docs/consuming.md: {documented:?}");
    for topic in Topic::ALL {
        let (partitions, kept) = documented.get(topic.name()).with_context(|| format!("docs/consuming.md lacks {topic}"))?;
        let metadata = consumer.fetch_metadata(Some(&name(topic)), TIMEOUT)?;
        let found = metadata.topics().first().context("the topic")?.partitions().len();
        ensure!(found == *partitions, "{topic} has {found} partitions");
        let described = admin.describe_configs([&ResourceSpecifier::Topic(&name(topic))], &AdminOptions::new()).await?;
        let described = described.into_iter().next().context("its settings")?.map_err(|code| anyhow::anyhow!("{code}"))?;
        let setting = |key| described.get(key).and_then(|entry| entry.value.clone()).unwrap_or_default();
        let expected = match kept.as_str() {
            "for ever" => ("delete", "-1"),
            "a week" => ("delete", "604800000"),
            // Nothing is deleted by its age.
            "compacted" => ("compact", ""),
            other => anyhow::bail!("docs/consuming.md: {topic} is kept {other:?}"),
        };
        ensure!(setting("cleanup.policy") == expected.0, "{topic}: {}", setting("cleanup.policy"));
        ensure!(expected.1.is_empty() || setting("retention.ms") == expected.1, "{topic}: {}", setting("retention.ms"));
    }

    // An operator may choose how long a topic is kept.
    let events = name(Topic::Events);
    let alter = async |settings: &[(&str, &str)]| -> Result<()> {
        let altered = AlterConfig::new(ResourceSpecifier::Topic(&events));
        let altered = settings.iter().fold(altered, |altered, (key, value)| altered.set(key, value));
        let outcomes = admin.alter_configs([&altered], &AdminOptions::new()).await?;
        outcomes.into_iter().try_for_each(|outcome| outcome.map(drop).map_err(|(_, code)| anyhow::anyhow!("{code}")))
    };
    let size = ("max.message.bytes", "33554432");
    alter(&[("cleanup.policy", "delete"), ("retention.ms", "86400000"), size]).await?;
    lab.ctrip(&["topics", "apply"])?;
    // A broker tells of a change a moment after it took it.
    let refused = async |expected: &str| {
        let refusal = || lab.ctrip(&["topics", "apply"]).err().filter(|error| format!("{error:#}").contains(expected));
        eventually(expected, async || Ok(refusal().map(drop))).await
    };
    alter(&[("cleanup.policy", "compact"), size]).await?;
    refused("cleanup.policy is compact, expected delete").await?;
    alter(&[("cleanup.policy", "delete"), ("max.message.bytes", "1000000")]).await?;
    refused("max.message.bytes is 1000000, expected at least 33554432").await?;
    alter(&[("cleanup.policy", "delete"), size]).await?;
    for added in admin.create_partitions(&[NewPartitions::new(&events, 9)], &AdminOptions::new()).await? {
        added.map_err(|(_, code)| anyhow::anyhow!("{code}"))?;
    }
    refused("it has 9 partitions, expected 8").await?;

    // A schema that somebody else has registered, in which a field has another type.
    let prefix = format!("{}other.", lab.env["TOPIC_PREFIX"]);
    let schema = "syntax = \"proto3\"; package ctrip.v1; message PaymentEvent { int64 id = 1; }";
    let subject = format!("{}/subjects/{prefix}payment.events-value/versions", lab.env["SCHEMA_REGISTRY_URL"]);
    let body = json!({ "schemaType": "PROTOBUF", "schema": schema });
    let registered = reqwest::Client::new().post(subject).json(&body).send().await?;
    ensure!(registered.status().is_success(), "{registered:?}");
    lab.env.insert("TOPIC_PREFIX".to_owned(), prefix);
    let error = lab.ctrip(&["topics", "apply"]).err().context("a schema that contradicts was taken")?;
    ensure!(format!("{error:#}").contains("not BACKWARD_TRANSITIVE compatible"), "{error:#}");
    Ok(())
}
