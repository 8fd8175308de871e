//! Topics and schemas as `ctrip topics apply` makes them, read back from the broker and compared with docs/consuming.md.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Plan, eventually, root};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewPartitions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use runtime::Registry;
use runtime::kafka::Publisher;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use topics::wire::PaymentEvent;
use topics::{Topic, frame};

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

/// As after a registry was made anew: records have an id that it does not know. It has our texts under ids of its own.
#[tokio::test(flavor = "multi_thread")]
async fn the_ids_that_records_have_and_the_registry_has_lost_come_back() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (kafka, settings) = (lab.kafka().await?, lab.settings()?);
    let registry = Registry::new(&settings)?;
    let lost = rand::random_range(1_000_000..2_000_000);
    let record = frame::encode(lost, &PaymentEvent { id: "evt_of_before".to_owned(), ..PaymentEvent::default() });
    let publisher = Publisher::open(&kafka, TIMEOUT)?;
    publisher.publish(Topic::Events, &[("key".to_owned(), record.clone())]).await.into_iter().collect::<Result<()>>()?;
    ensure!(registry.decode(&record).await.is_err(), "the registry has {lost} already");

    // Once more changes nothing.
    for _ in 0..2 {
        lab.ctrip(&["topics", "apply"])?;
        let decoded = Registry::new(&settings)?.decode(&record).await?;
        ensure!(decoded.get_field_by_name("id").as_deref().and_then(|id| id.as_str()) == Some("evt_of_before"), "{decoded:?}");
    }
    // What roles write keeps its ids.
    let again = lab.kafka().await?;
    ensure!(Topic::ALL.into_iter().all(|topic| again.schema_id(topic) == kafka.schema_id(topic)));
    let latest = Registry::new(&settings)?.latest(Topic::Events).await?;
    ensure!(latest.full_name() == Topic::Events.record(), "{latest:?}");
    Ok(())
}

/// As after a registry was made anew, where somebody else has registered first.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_has_another_schema_by_now_is_named_and_nothing_foreign_comes_into_our_subject() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (kafka, prefix, registry) = (lab.kafka().await?, &lab.env["TOPIC_PREFIX"], &lab.env["SCHEMA_REGISTRY_URL"]);
    let http = reqwest::Client::new();
    let schema = format!("syntax = \"proto3\"; package team; message Foreign {{ string id = 1; }} // {prefix}");
    let subject = format!("{registry}/subjects/{prefix}foreign-value/versions");
    let body = json!({ "schemaType": "PROTOBUF", "schema": schema });
    let registered: Value = http.post(subject).json(&body).send().await?.error_for_status()?.json().await?;
    let id = u32::try_from(registered["id"].as_u64().context("an id")?)?;
    let record = frame::encode(id, &PaymentEvent { id: "evt_of_before".to_owned(), ..PaymentEvent::default() });
    let publisher = Publisher::open(&kafka, TIMEOUT)?;
    publisher.publish(Topic::Events, &[("key".to_owned(), record)]).await.into_iter().collect::<Result<()>>()?;

    let applied = lab.output(&["topics", "apply"])?;
    let said = String::from_utf8_lossy(&applied.stderr);
    ensure!(
        applied.status.success() && said.contains(&format!("the schema id {id}")) && said.contains("another schema"),
        "{said}"
    );
    let versions = format!("{registry}/subjects/{prefix}payment.events-value/versions");
    let versions: Value = http.get(versions).send().await?.error_for_status()?.json().await?;
    ensure!(versions == json!([1]), "{versions}");
    ensure!(lab.kafka().await?.schema_id(Topic::Events) == kafka.schema_id(Topic::Events));
    Ok(())
}
