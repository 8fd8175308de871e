//! JSON-RPC 2.0 over HTTP.
//!
//! alloy's client is not used: it reads answers of any size into memory and copies each result before it is parsed, which a
//! catch-up spends much of its time on. Here a reply has a size limit, and one pass may read it ([`Reply::read`]).

use super::error::RpcError;
use super::patience::MAX_DEADLINE;
use super::reply::{Answer, Reply};
use crate::config::NodeUrl;
use crate::text::one_line;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, Url};
use serde_json::{Value, json};
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Traces of a full block have tens of megabytes. A larger reply could fill the memory.
const MAX_REPLY_BYTES: usize = 256 * 1024 * 1024;
/// The beginning of an error's body is enough.
const MAX_ERROR_BODY_BYTES: usize = 4 * 1024;

/// A call: method and parameters.
pub type Call = (&'static str, Value);

/// The HTTP client for one URL.
#[derive(Debug)]
pub struct Transport {
    http: Client,
    url: Url,
    host: String,
}

impl Transport {
    pub fn new(url: &NodeUrl) -> Self {
        // Building fails only if TLS can't be set up at all; the default client then fails in the same way.
        let http = Client::builder().timeout(MAX_DEADLINE).connect_timeout(CONNECT_TIMEOUT).build().unwrap_or_default();
        Self { http, url: url.url().clone(), host: url.host().to_owned() }
    }

    /// Sends one call.
    pub async fn call(&self, method: &'static str, params: &Value) -> Result<Answer, RpcError> {
        let reply = self.post(method, request(0, method, params).to_string()).await?;
        reply.single(method)
    }

    /// Sends several calls in one HTTP request.
    pub async fn batch(&self, calls: &[Call]) -> Result<Reply, RpcError> {
        let method = calls.first().map_or("a batch", |(method, _)| *method);
        let calls: Vec<Value> = calls.iter().zip(0..).map(|((method, params), id)| request(id, method, params)).collect();
        self.post(method, Value::Array(calls).to_string()).await
    }

    async fn post(&self, method: &'static str, body: String) -> Result<Reply, RpcError> {
        let endpoint = || self.host.clone();
        // reqwest's errors print the URL with its key.
        let failed = |error: reqwest::Error| {
            let source = Box::new(error.without_url());
            RpcError::Transport { method, endpoint: endpoint(), source }
        };
        let request = self.http.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            let retry_after = retry_after(&response);
            let (body, _) = read(&mut response, MAX_ERROR_BODY_BYTES).await.unwrap_or_default();
            let body = one_line(&String::from_utf8_lossy(&body));
            return Err(RpcError::Http { method, endpoint: endpoint(), status: status.as_u16(), body, retry_after });
        }
        let (body, whole) = read(&mut response, MAX_REPLY_BYTES).await.map_err(failed)?;
        if !whole {
            return Err(RpcError::TooLarge { method, endpoint: endpoint(), limit: MAX_REPLY_BYTES });
        }
        Ok(Reply::new(body, method, &self.host))
    }
}

fn request(id: u64, method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

/// Reads at most `limit` bytes of the body. Returns whether that is all of it.
async fn read(response: &mut Response, limit: usize) -> Result<(Vec<u8>, bool), reqwest::Error> {
    let told = response.content_length().and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    // Allocates at most a megabyte ahead, whatever `Content-Length` says.
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

/// `Retry-After` in seconds. RFC 9110 also allows a date, which is of little use if clocks differ.
fn retry_after(response: &Response) -> Option<Duration> {
    response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}
