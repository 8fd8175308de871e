//! The schema registry's Confluent-compatible API, through `schema_registry_converter`: it registers our schemas and decodes
//! records by the schemas that they name.
//!
//! - `SCHEMA_REGISTRY_URL` may list several URLs of one registry, which are tried in order. A URL may be `https`, and carry
//!   `user:password@` for basic authentication, unless the settings have a login.
//! - Where a schema is registered or read, a registry that is away (no answer, 502, 503) is retried with back-off for 10 s, twice at least.
//! - Setting a subject's compatibility is a request of ours, since the crate has none; so is the check of [`Registry::ping`].
//! - A registry that lost the ids of our records gets them back (`bring_back`).
//! - Stages encode and decode without the crate. On their hot path a record's frame is six constant bytes (`topics::frame`),
//!   and the crate would copy each record.

mod bring_back;

use crate::settings::{Login, Settings};
use anyhow::{Context as _, bail, ensure};
use base::text::excerpt;
use base::{backoff, error_chain};
use futures::future::select_ok;
use prost_reflect::{DynamicMessage, MessageDescriptor, ReflectMessage as _};
use reqwest::{Certificate, Client, ClientBuilder, RequestBuilder, Response, StatusCode, Url};
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

/// What a registry has under an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registered {
    /// A schema of the topic's record. It need not be our text: versions before had others.
    Record,
    /// A schema of something else.
    Other,
    Nothing,
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
        match &settings.registry.login {
            Login::None => {}
            Login::Basic(user, password) => drop(builder.set_basic_authorization(user, Some(password))),
            Login::Bearer(token) => drop(builder.set_token_authorization(token)),
        }
        let sr_settings = builder.set_timeout(CALL_TIMEOUT).build_with(tls(settings)?).map_err(RegistryError::from)?;
        let decoder = ProtoDecoder::new(sr_settings.clone());
        let http = tls(settings)?.timeout(CALL_TIMEOUT).build().context("the HTTP client")?;
        Ok(Self { settings: settings.clone(), urls, sr_settings, decoder, http })
    }

    /// Whether the registry answers: one cheap request to each URL at the same time, so that one that is silent hides no other.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub async fn ping(&self) -> Result<(), RegistryError> {
        let requests = self.urls.iter().map(|url| Box::pin(self.send(self.http.get(format!("{url}/config")))));
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
            // Versions that another program registered count as well. A subject without versions has no compatibility level yet.
            let _ = self.set_compatibility(&subject).await;
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
            retry(|| self.set_compatibility(&subject))
                .await
                .with_context(|| format!("setting {COMPATIBILITY} on {subject}"))?;
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

    /// What the registry has under an id that a topic's records carry.
    ///
    /// # Errors
    /// When the registry does not answer, or refuses.
    pub(crate) async fn look_up(&self, topic: Topic, id: u32) -> Result<Registered, RegistryError> {
        if self.find(&format!("schemas/ids/{id}")).await?.is_none() {
            return Ok(Registered::Nothing);
        }
        // The one of this registry remembers schemas that are gone.
        let decoder = ProtoDecoder::new(self.sr_settings.clone());
        let record = frame::wrap(id, &[]);
        match retry(|| decoder.decode_with_context(Some(&record))).await {
            Ok(Some(found)) if found.value.descriptor().full_name() == topic.record() => Ok(Registered::Record),
            Ok(_) | Err(RegistryError::Permanent(_)) => Ok(Registered::Other),
            Err(unavailable) => Err(unavailable),
        }
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

    async fn set_compatibility(&self, subject: &str) -> Result<(), RegistryError> {
        let body = json!({ "compatibility": COMPATIBILITY });
        self.request(|url| self.http.put(format!("{url}/config/{subject}")).json(&body)).await
    }

    /// A request of ours. Like the crate's, it tries the URLs in order until one succeeds.
    async fn request(&self, to: impl Fn(&str) -> RequestBuilder) -> Result<(), RegistryError> {
        let mut outcome = Ok(());
        for url in &self.urls {
            outcome = self.send(to(url)).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn with_login(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.settings.registry.login {
            Login::None => request,
            Login::Basic(user, password) => request.basic_auth(user, Some(&**password)),
            Login::Bearer(token) => request.bearer_auth(&**token),
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<(), RegistryError> {
        self.answer(request).await?.ok_or_else(|| RegistryError::Permanent("404 Not Found".to_owned())).map(drop)
    }

    /// What is at a path, of the first URL that answers.
    async fn find(&self, path: &str) -> Result<Option<Response>, RegistryError> {
        let mut outcome = Ok(None);
        for url in &self.urls {
            outcome = self.answer(self.http.get(format!("{url}/{path}"))).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// `None` is a 404.
    async fn answer(&self, request: RequestBuilder) -> Result<Option<Response>, RegistryError> {
        // The URL may hold a password.
        let response = self.with_login(request).send().await.map_err(|error| unanswered(&error.without_url()))?;
        let status = response.status();
        if status.is_success() {
            return Ok(Some(response));
        }
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let answer = format!("{status} {}", excerpt(&response.text().await.unwrap_or_default()));
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Permanent(format!(
                "it refuses the login: SCHEMA_REGISTRY_USERNAME and SCHEMA_REGISTRY_PASSWORD (or its _FILE), or SCHEMA_REGISTRY_TOKEN, have \
                 to be the registry's: {answer}"
            )),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => RegistryError::Unavailable(answer),
            status if status.is_client_error() => RegistryError::Permanent(answer),
            _ => RegistryError::Unavailable(answer),
        })
    }
}

/// A client that trusts the authorities of the settings too.
fn tls(settings: &Settings) -> anyhow::Result<ClientBuilder> {
    let builder = Client::builder();
    let Some(path) = &settings.registry.schema_registry_ca_location else { return Ok(builder) };
    let failed = || format!("SCHEMA_REGISTRY_CA_LOCATION: {}", path.display());
    let authorities = Certificate::from_pem_bundle(&std::fs::read(path).with_context(failed)?).with_context(failed)?;
    ensure!(!authorities.is_empty(), "{}: expected certificates in PEM", failed());
    Ok(builder.tls_certs_merge(authorities))
}

/// No answer. A certificate that does not convince us never will.
fn unanswered(error: &reqwest::Error) -> RegistryError {
    let text = error_chain(error);
    if text.contains("certificate") {
        return RegistryError::Permanent(format!(
            "no TLS with it: SCHEMA_REGISTRY_CA_LOCATION has to name the authority that signed its certificate, which has to be of the host \
             in SCHEMA_REGISTRY_URL: {text}"
        ));
    }
    RegistryError::Unavailable(text)
}

async fn retry<T, E, F>(mut call: impl FnMut() -> F) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, E>>,
    RegistryError: From<E>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::Cli;
    use clap::Parser as _;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A registry that answers each request, by its head in lower case, with a status and a body, or hangs up. Returns its URL.
    async fn serve(mut answer: impl FnMut(String) -> Option<(u16, &'static str)> + Send + 'static) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap_or_default();
                if let Some((status, body)) = answer(String::from_utf8_lossy(&head[..read]).to_lowercase()) {
                    let length = body.len();
                    let answer = format!("HTTP/1.1 {status} -\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        url
    }

    /// As where the process was paused meanwhile: the role would not begin.
    #[tokio::test]
    async fn an_answer_that_is_lost_ends_nothing() {
        let mut puts = 0;
        let url = serve(move |head| {
            if !head.starts_with("put ") {
                return Some((200, r#"{"id": 7}"#));
            }
            // Of each subject the first is before it is registered, and not insisted on.
            puts += 1;
            (puts % 3 != 2).then_some((200, "{}"))
        })
        .await;
        let registry = Registry::new(&Cli::parse_from(["ctrip", "--schema-registry-url", &url]).settings).unwrap();
        registry.register_all().await.unwrap();
    }

    #[tokio::test]
    async fn each_request_shows_the_login_and_no_output_does() {
        let heads = std::sync::Arc::new(Mutex::new(Vec::new()));
        let heard = std::sync::Arc::clone(&heads);
        let url = serve(move |head| {
            heard.lock().unwrap().push(head);
            Some((403, "{}"))
        })
        .await;
        let basic = Login::Basic("ctrip".to_owned(), "hunter2".into());
        for (login, shown) in [(basic, "basic y3ryaxa6ahvudgvymg=="), (Login::Bearer("hunter2".into()), "bearer hunter2")] {
            let mut settings = Cli::parse_from(["ctrip", "--schema-registry-url", &url]).settings;
            settings.registry.login = login;
            let registry = Registry::new(&settings).unwrap();
            let errors = [registry.ping().await.unwrap_err(), registry.decode(&[0, 0, 0, 0, 7, 0]).await.unwrap_err()];
            assert!(errors.iter().all(|error| matches!(error, RegistryError::Permanent(_))), "{errors:?}");
            assert!(!format!("{errors:?} {settings:?}").contains("hunter2"));
            let heads = std::mem::take(&mut *heads.lock().unwrap());
            assert_eq!(heads.iter().filter(|head| head.contains(&format!("authorization: {shown}"))).count(), 2, "{heads:?}");
        }
    }
}
