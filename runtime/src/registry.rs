//! The schema registry's Confluent-compatible API, through `schema_registry_converter`: it registers our schemas and decodes
//! records by the schemas that they name.
//!
//! - `SCHEMA_REGISTRY_URL` may list several URLs of one registry, which are tried in order. A URL may be `https`, and carry
//!   `user:password@` for basic authentication.
//! - Where a schema is registered or read, a registry that is away (no answer, 502, 503) is retried with back-off for 10 s, twice at least.
//! - Setting a subject's compatibility is a request of ours, since the crate has none; so is the check of [`Registry::ping`].
//! - Stages encode and decode without the crate. On their hot path a record's frame is six constant bytes (`topics::frame`),
//!   and the crate would copy each record.

use crate::settings::Settings;
use anyhow::{Context as _, anyhow, bail, ensure};
use base::text::excerpt;
use base::{backoff, error_chain};
use futures::future::select_ok;
use prost_reflect::{DynamicMessage, MessageDescriptor, ReflectMessage as _};
use reqwest::{Client, RequestBuilder, Url};
use schema_registry_converter::async_impl::proto_decoder::ProtoDecoder;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_schema_by_subject, perform_sr_call, post_schema};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{SchemaType, SrCall, SubjectNameStrategy, SuppliedSchema};
use serde_json::json;
use std::collections::HashMap;
use std::error::Error as _;
use std::time::{Duration, Instant};
use topics::{Topic, frame};

const COMPATIBILITY: &str = "BACKWARD_TRANSITIVE";
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_FOR: Duration = Duration::from_secs(10);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);
/// A process that was paused in a call has not waited that long.
const MIN_ATTEMPTS: u32 = 3;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry may answer later.
    #[error("the schema registry (SCHEMA_REGISTRY_URL) does not answer: {0}")]
    Unavailable(String),
    /// The registry refuses, or a record or its schema is malformed. A retry does not help.
    #[error("{0}")]
    Permanent(String),
}

impl From<SRCError> for RegistryError {
    fn from(error: SRCError) -> Self {
        let cause = error.source().map(|cause| format!(": {}", error_chain(cause))).unwrap_or_default();
        let text = format!("{}{cause}", error.error);
        if error.retriable { Self::Unavailable(text) } else { Self::Permanent(text) }
    }
}

/// A client of the registry, for the subjects of one `TOPIC_PREFIX`.
pub struct Registry {
    settings: Settings,
    urls: Vec<String>,
    sr_settings: SrSettings,
    /// Asks for each schema once.
    decoder: ProtoDecoder,
    /// For [`request`](Self::request).
    http: Client,
}

impl Registry {
    /// Connects at the first call.
    ///
    /// # Errors
    /// When a URL does not parse.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let urls: Vec<String> = settings
            .schema_registry_url
            .split(',')
            .map(|url| url.trim().trim_end_matches('/').to_owned())
            .filter(|url| !url.is_empty())
            .collect();
        for url in &urls {
            // The URL may hold a password, so neither this error nor a later one of the client repeats it.
            let parsed = url.parse::<Url>().ok();
            let usable = parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            ensure!(usable, "SCHEMA_REGISTRY_URL: expected http://host:port/path or https://…");
        }
        let Some((first, others)) = urls.split_first() else {
            bail!("SCHEMA_REGISTRY_URL is empty; expected http://host:port/path");
        };
        let mut builder = SrSettings::new_builder(first.clone());
        for url in others {
            builder.add_url(url.clone());
        }
        let sr_settings = builder.set_timeout(CALL_TIMEOUT).build().map_err(RegistryError::from)?;
        let decoder = ProtoDecoder::new(sr_settings.clone());
        let http = Client::builder().timeout(CALL_TIMEOUT).build().context("the HTTP client")?;
        Ok(Self { settings: settings.clone(), urls, sr_settings, decoder, http })
    }

    /// Whether the registry answers: one cheap request to each URL at the same time, so that one that is silent hides no other.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub async fn ping(&self) -> anyhow::Result<()> {
        let requests = self.urls.iter().map(|url| Box::pin(send(self.http.get(format!("{url}/config")))));
        select_ok(requests).await.map(drop)
    }

    /// The ids of our schemas. Asks for the id of our text and not for the latest one: a newer program may have registered more.
    /// Does not register: at the start of a role a missing schema is an error.
    ///
    /// # Errors
    /// When the registry does not have all of them.
    pub(crate) async fn schema_ids(&self) -> anyhow::Result<HashMap<Topic, u32>> {
        let mut ids = HashMap::new();
        for topic in Topic::ALL {
            let subject = self.subject(topic);
            let body = json!({ "schemaType": "PROTOBUF", "schema": topic.schema() }).to_string();
            let found = retry(|| perform_sr_call(&self.sr_settings, SrCall::PostForVersion(&subject, &body)))
                .await
                .with_context(|| format!("the schema of {topic} as {subject}; `ctrip topics apply` registers missing ones"))?;
            ids.insert(topic, found.id.with_context(|| format!("the registry's answer for {subject} has no id"))?);
        }
        Ok(ids)
    }

    /// Registers our schemas, each as a new version unless its text is registered already.
    ///
    /// # Errors
    /// When a registered version contradicts.
    pub(crate) async fn register_all(&self) -> anyhow::Result<()> {
        for topic in Topic::ALL {
            let subject = self.subject(topic);
            let schema = SuppliedSchema::new(None, SchemaType::Protobuf, topic.schema().to_owned());
            if let Err(error) = retry(|| post_schema(&self.sr_settings, subject.clone(), schema.clone())).await {
                let mut error = anyhow::Error::new(error);
                if error.to_string().contains("status 409") {
                    error = error.context(format!(
                        "not {COMPATIBILITY} compatible with the registered versions; a field's number and type never change, \
                         and a removed field is `reserved`"
                    ));
                }
                return Err(error.context(format!("registering {subject}")));
            }
            // Some registries set the compatibility of a subject only once it exists.
            self.set_compatibility(&subject).await.with_context(|| format!("setting {COMPATIBILITY} on {subject}"))?;
        }
        Ok(())
    }

    /// Decodes a framed record by the schema whose id is in the frame.
    ///
    /// # Errors
    /// [`Permanent`](RegistryError::Permanent) when the record has no frame, the registry does not have its schema, or the two
    /// do not fit.
    pub async fn decode(&self, value: &[u8]) -> Result<DynamicMessage, RegistryError> {
        let decoded = retry(|| self.decoder.decode_with_context(Some(value))).await;
        if decoded.is_err() {
            // The decoder would repeat the error of one bad moment for every record of this schema.
            self.decoder.remove_errors_from_cache();
        }
        let decoded = decoded?;
        Ok(decoded.ok_or_else(|| RegistryError::Permanent("the record has no value".to_owned()))?.value)
    }

    /// The record of a topic's latest schema.
    ///
    /// # Errors
    /// [`Permanent`](RegistryError::Permanent) when the topic has no schema, or the schema does not compile.
    pub async fn latest(&self, topic: Topic) -> Result<MessageDescriptor, RegistryError> {
        let strategy = SubjectNameStrategy::TopicNameStrategy(self.settings.topic_name(topic), false);
        let id = retry(|| get_schema_by_subject(&self.sr_settings, &strategy)).await?.id;
        // Without fields a record is a frame and nothing else.
        Ok(self.decode(&frame::wrap(id, &[])).await?.descriptor())
    }

    fn subject(&self, topic: Topic) -> String {
        format!("{}-value", self.settings.topic_name(topic))
    }

    async fn set_compatibility(&self, subject: &str) -> anyhow::Result<()> {
        let body = json!({ "compatibility": COMPATIBILITY });
        self.request(|url| self.http.put(format!("{url}/config/{subject}")).json(&body)).await
    }

    /// A request of ours. Like the crate's, it tries the URLs in order until one succeeds.
    async fn request(&self, to: impl Fn(&str) -> RequestBuilder) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for url in &self.urls {
            outcome = send(to(url)).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}

async fn send(request: RequestBuilder) -> anyhow::Result<()> {
    // The URL may hold a password.
    let response = request.send().await.map_err(reqwest::Error::without_url)?;
    if response.status().is_success() {
        return Ok(());
    }
    Err(anyhow!("{} {}", response.status(), excerpt(&response.text().await.unwrap_or_default())))
}

async fn retry<T, F>(mut call: impl FnMut() -> F) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, SRCError>>,
{
    let deadline = Instant::now() + RETRY_FOR;
    let mut delays = backoff::delays(MAX_RETRY_DELAY);
    let mut attempts = 0;
    loop {
        attempts += 1;
        match call().await.map_err(RegistryError::from) {
            Err(error @ RegistryError::Unavailable(_)) if attempts < MIN_ATTEMPTS || Instant::now() < deadline => {
                let delay = delays.next().unwrap_or(MAX_RETRY_DELAY);
                tracing::warn!("retrying in {delay:.1?}: {error}");
                tokio::time::sleep(delay).await;
            }
            outcome => return outcome,
        }
    }
}
