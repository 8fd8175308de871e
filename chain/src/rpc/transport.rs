//! JSON-RPC 2.0 over HTTP: requests, and what of a reply answers which of them.
//!
//! Not alloy's client: it takes answers of any size into memory, and copies each result before anybody reads it, which a
//! catch-up spends much of its time on. Here a reply has a limit, and its reader may take it in one pass ([`Reply::read`]).

use super::error::{RpcError, excerpt};
use crate::config::NodeUrl;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Traces of a full block have tens of megabytes; what is larger than this is no answer, but a way to fill the memory.
const LARGEST_REPLY: usize = 256 * 1024 * 1024;
/// Of a refusal it is enough to know how it begins.
const LARGEST_REFUSAL: usize = 4 * 1024;

/// A request: method and parameters.
pub type Call = (&'static str, Value);

/// Speaks to one URL.
#[derive(Debug)]
pub struct Transport {
    http: Client,
    url: Url,
    host: String,
}

impl Transport {
    pub fn new(url: &NodeUrl) -> Self {
        // Building fails only where TLS can't be set up at all; the default client would then fail the same way.
        let http = Client::builder().timeout(TIMEOUT).connect_timeout(CONNECT_TIMEOUT).build().unwrap_or_default();
        Self { http, url: url.url().clone(), host: url.host().to_owned() }
    }

    /// One call.
    pub async fn call(&self, method: &'static str, params: &Value) -> Result<Answer, RpcError> {
        let reply = self.post(method, request(0, method, params).to_string()).await?;
        reply.one::<Envelope<&RawValue>>()?.outcome(&reply, method)
    }

    /// Several calls in one HTTP request.
    pub async fn batch(&self, calls: &[Call]) -> Result<Reply, RpcError> {
        let method = calls.first().map_or("a batch", |(method, _)| *method);
        let calls: Vec<Value> = calls.iter().zip(0..).map(|((method, params), id)| request(id, method, params)).collect();
        self.post(method, Value::Array(calls).to_string()).await
    }

    async fn post(&self, method: &'static str, body: String) -> Result<Reply, RpcError> {
        let endpoint = || self.host.clone();
        // reqwest's errors print the URL, with its key.
        let failed = |error: reqwest::Error| {
            let source = Box::new(error.without_url());
            RpcError::Transport { method, endpoint: endpoint(), source }
        };
        let request = self.http.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            let retry_after = retry_after(&response);
            let (body, _) = read(&mut response, LARGEST_REFUSAL).await.unwrap_or_default();
            let body = excerpt(&String::from_utf8_lossy(&body));
            return Err(RpcError::Http { method, endpoint: endpoint(), status: status.as_u16(), body, retry_after });
        }
        let (body, whole) = read(&mut response, LARGEST_REPLY).await.map_err(failed)?;
        if !whole {
            return Err(RpcError::TooLarge { method, endpoint: endpoint(), limit: LARGEST_REPLY });
        }
        Ok(Reply::new(body, method, &self.host))
    }
}

fn request(id: u64, method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

/// The body as far as `limit`, and whether that is all of it.
async fn read(response: &mut Response, limit: usize) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let told = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    // A length that is told is believed only so far.
    let mut body = Vec::with_capacity(told.min(1024 * 1024));
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            body.extend_from_slice(chunk.get(..limit - body.len()).unwrap_or_default());
            return Ok((body, false));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((body, true))
}

/// RFC 9110: in seconds, or a date, which clocks that differ make of little use.
fn retry_after(response: &Response) -> Option<Duration> {
    response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// What came back for a request, of one call or of several.
#[derive(Debug)]
pub struct Reply {
    body: Bytes,
    method: &'static str,
    endpoint: String,
}

/// The JSON of one result, as it came.
#[derive(Clone, Debug)]
pub struct Answer(Bytes);

impl Answer {
    /// The text.
    pub fn get(&self) -> &str {
        // It was cut out of a text.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// One response object.
#[derive(Deserialize)]
pub struct Envelope<T> {
    #[serde(default)]
    id: Value,
    #[serde(default = "Option::default", deserialize_with = "some", bound(deserialize = "T: Deserialize<'de>"))]
    result: Option<T>,
    error: Option<Refusal>,
}

/// JSON-RPC's error object.
#[derive(Debug, Deserialize)]
struct Refusal {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

/// A result that is null is a result.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

impl<T> Envelope<T> {
    fn id(&self) -> Option<u64> {
        // Some nodes give it back as text.
        self.id.as_u64().or_else(|| self.id.as_str()?.parse().ok())
    }
}

impl Envelope<&RawValue> {
    fn outcome(&self, reply: &Reply, method: &'static str) -> Result<Answer, RpcError> {
        match (&self.error, self.result) {
            (Some(refusal), _) => Err(reply.refused(method, refusal)),
            (None, Some(result)) => Ok(Answer(reply.body.slice_ref(result.get().as_bytes()))),
            (None, None) => Err(reply.malformed(method, serde::de::Error::missing_field("result"))),
        }
    }
}

impl Reply {
    /// A body that `endpoint` sent, for a call of `method` or a batch that begins with one.
    pub fn new(body: impl Into<Bytes>, method: &'static str, endpoint: &str) -> Self {
        Self { body: body.into(), method, endpoint: endpoint.to_owned() }
    }

    /// Reads a reply to two calls in one pass, if both have a result of these types, in the order of the calls.
    pub fn read<A: DeserializeOwned, B: DeserializeOwned>(&self) -> Option<(A, B)> {
        // JSON is UTF-8, in the fields that are passed over as well (RFC 8259, 8.1).
        let text = std::str::from_utf8(&self.body).ok()?;
        let (one, two): (Envelope<A>, Envelope<B>) = serde_json::from_str(text).ok()?;
        let in_order = one.id() == Some(0) && two.id() == Some(1) && one.error.is_none() && two.error.is_none();
        one.result.zip(two.result).filter(|_| in_order)
    }

    /// What came for the call of each of these methods, in their order, whatever the node's order was.
    ///
    /// # Errors
    /// When not all of them have an answer.
    pub fn split(&self, methods: &[&'static str]) -> Result<Vec<Result<Answer, RpcError>>, RpcError> {
        let envelopes: Vec<Envelope<&RawValue>> = match self.one() {
            Ok(envelopes) => envelopes,
            // One error for all: of a node that takes no batches, or that was asked too much.
            Err(error) => {
                let Ok(Envelope { error: Some(refusal), .. }) = self.one::<Envelope<&RawValue>>() else { return Err(error) };
                let refused = self.refused(self.method, &refusal);
                return Err(if refused.is_limit() { refused } else { self.no_batch() });
            }
        };
        let find = |id| envelopes.iter().find(|envelope| envelope.id() == Some(id));
        let answers = methods.iter().zip(0..).map(|(method, id)| find(id).map(|envelope| envelope.outcome(self, method)));
        answers.collect::<Option<_>>().ok_or_else(|| self.no_batch())
    }

    fn one<'a, T: Deserialize<'a>>(&'a self) -> Result<T, RpcError> {
        serde_json::from_slice(&self.body).map_err(|source| self.malformed(self.method, source))
    }

    fn refused(&self, method: &'static str, refusal: &Refusal) -> RpcError {
        let (endpoint, message) = (self.endpoint.clone(), excerpt(&refusal.message));
        RpcError::Refused { method, endpoint, code: refusal.code, message }
    }

    fn malformed(&self, method: &'static str, source: serde_json::Error) -> RpcError {
        RpcError::Malformed { method, endpoint: self.endpoint.clone(), source }
    }

    fn no_batch(&self) -> RpcError {
        RpcError::NoBatch { method: self.method, endpoint: self.endpoint.clone() }
    }
}
