//! The schema registry's Confluent-compatible API, of which three calls are needed, and only at start.

use crate::settings::Settings;
use anyhow::{Context as _, bail};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;
use topics::Topic;

const COMPATIBILITY: &str = "BACKWARD_TRANSITIVE";

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

struct Registry<'a> {
    http: Client,
    settings: &'a Settings,
}

impl<'a> Registry<'a> {
    fn new(settings: &'a Settings) -> anyhow::Result<Self> {
        let http = Client::builder().timeout(Duration::from_secs(10)).build().context("the HTTP client")?;
        Ok(Self { http, settings })
    }

    fn subject(&self, topic: Topic) -> String {
        format!("{}{}-value", self.settings.topic_prefix, topic.name())
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<(StatusCode, Value)> {
        let response = request.send().await.context("the schema registry (SCHEMA_REGISTRY_URL)")?;
        let status = response.status();
        let body = response.text().await.context("the schema registry's answer")?;
        Ok((status, serde_json::from_str(&body).unwrap_or(Value::String(body))))
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.settings.schema_registry_url.trim_end_matches('/'))
    }
}

/// The ids of our schemas, all of them.
pub(super) async fn lookup(settings: &Settings) -> anyhow::Result<HashMap<Topic, u32>> {
    let registry = Registry::new(settings)?;
    let mut ids = HashMap::new();
    for topic in Topic::ALL {
        let subject = registry.subject(topic);
        // Asks for our text, not for the latest: a newer program may have registered more.
        let body = json!({ "schemaType": "PROTOBUF", "schema": topic.schema() });
        let (status, answer) =
            registry.send(registry.http.post(registry.url(&format!("subjects/{subject}"))).json(&body)).await?;
        if !status.is_success() {
            bail!(
                "the schema of {topic} is not registered as {subject} ({status}): run `ctrip topics apply` first; got {answer}"
            );
        }
        let Registered { id } =
            serde_json::from_value(answer).with_context(|| format!("the registry's answer for {subject}"))?;
        ids.insert(topic, id);
    }
    Ok(ids)
}

/// Registers the schemas; what is there stays. Refuses where a registered one contradicts.
pub(super) async fn apply(settings: &Settings) -> anyhow::Result<()> {
    let registry = Registry::new(settings)?;
    for topic in Topic::ALL {
        let subject = registry.subject(topic);
        let body = json!({ "schemaType": "PROTOBUF", "schema": topic.schema() });
        let (status, answer) =
            registry.send(registry.http.post(registry.url(&format!("subjects/{subject}/versions"))).json(&body)).await?;
        match status {
            status if status.is_success() => {}
            StatusCode::CONFLICT => bail!(
                "{subject}: the registered schema and topics/proto are not {COMPATIBILITY} compatible: {answer}. \
                 A field's number and type never change; a removed field is `reserved`"
            ),
            status => bail!("registering {subject}: {status} {answer}"),
        }
        // The rule is set on the subject, which has to exist for that in some registries.
        let body = json!({ "compatibility": COMPATIBILITY });
        let (status, answer) = registry.send(registry.http.put(registry.url(&format!("config/{subject}"))).json(&body)).await?;
        if !status.is_success() {
            bail!("setting {COMPATIBILITY} on {subject}: {status} {answer}");
        }
    }
    Ok(())
}
