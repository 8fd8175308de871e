//! A node that answers by a script, with faults of its transport on request.

#![allow(clippy::unwrap_used, clippy::result_large_err, dead_code, reason = "of tests, each of which uses a part of it")]

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use chain::{FetchOptions, NodeUrl, Rpc, Verify};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use topics::{B256, ChainId};

pub type Answer = Result<Value, Response>;
type Handler = Box<dyn FnMut(&str, &Value) -> Answer + Send>;

/// A node that answers by a script and counts requests.
#[derive(Clone)]
pub struct Node {
    handler: Arc<Mutex<Handler>>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    /// HTTP requests.
    posts: Arc<Mutex<usize>>,
    batches: bool,
    transport: Arc<Mutex<Transport>>,
    pub url: String,
}

/// Faults of the transport.
#[derive(Default)]
pub struct Transport {
    /// The most calls in a batch, and the answer to more: HTTP status and body.
    pub batch_limit: Option<(usize, u16, Value)>,
    /// Batches refused so far.
    pub refused_batches: usize,
    /// Of ten requests so many have no answer for twelve seconds.
    pub hang: usize,
    /// Of ten requests so many are refused.
    pub refuse: usize,
    /// How long every answer takes.
    pub slow: Duration,
    /// HTTP requests that had an answer or none.
    count: usize,
}

impl Node {
    pub async fn start(batches: bool, handler: impl FnMut(&str, &Value) -> Answer + Send + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Self {
            handler: Arc::new(Mutex::new(Box::new(handler))),
            asked: Arc::default(),
            posts: Arc::default(),
            batches,
            transport: Arc::default(),
            url: format!("http://{}", listener.local_addr().unwrap()),
        };
        let app = axum::Router::new().fallback(answer).with_state(node.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        node
    }

    /// Changes the faults of its transport.
    pub fn set(&self, change: impl FnOnce(&mut Transport)) {
        change(&mut self.transport.lock().unwrap());
    }

    pub fn refused_batches(&self) -> usize {
        self.transport.lock().unwrap().refused_batches
    }

    pub fn asked(&self, method: &str) -> usize {
        self.asked.lock().unwrap().get(method).copied().unwrap_or_default()
    }

    pub fn posts(&self) -> usize {
        *self.posts.lock().unwrap()
    }

    fn respond(&self, request: &Value) -> Answer {
        let method = request["method"].as_str().unwrap();
        *self.asked.lock().unwrap().entry(method.to_owned()).or_default() += 1;
        let result = match method {
            "eth_chainId" => json!("0x1"),
            method => (self.handler.lock().unwrap())(method, &request["params"])?,
        };
        Ok(match result.get("code") {
            Some(_) => json!({ "jsonrpc": "2.0", "id": request["id"], "error": result }),
            None => json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }),
        })
    }
}

impl Transport {
    fn refuse_batch(&mut self, calls: usize) -> Option<(usize, u16, Value)> {
        let refusal = self.batch_limit.clone().filter(|(most, ..)| calls > *most);
        self.refused_batches += usize::from(refusal.is_some());
        refusal
    }
}

async fn answer(State(node): State<Node>, body: String) -> Response {
    *node.posts.lock().unwrap() += 1;
    let request: Value = serde_json::from_str(&body).unwrap();
    let (slow, hangs, refused) = {
        let mut transport = node.transport.lock().unwrap();
        transport.count += 1;
        // In an order that is no block's and no method's.
        let place = transport.count * 7 % 10;
        (transport.slow, place < transport.hang, place < transport.refuse)
    };
    tokio::time::sleep(if hangs { Duration::from_secs(12) } else { slow }).await;
    if refused {
        let error = json!({ "jsonrpc": "2.0", "id": request["id"], "error": { "code": -32005, "message": "limit exceeded" } });
        return error.to_string().into_response();
    }
    if let Some(calls) = request.as_array()
        && let Some((_, status, body)) = node.transport.lock().unwrap().refuse_batch(calls.len())
    {
        return (axum::http::StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
    }
    let answer = match request.as_array() {
        Some(_) if !node.batches => {
            Ok(json!({ "jsonrpc": "2.0", "id": null, "error": { "code": -32600, "message": "batches are not supported" } }))
        }
        // In another order than asked.
        Some(batch) => batch.iter().rev().map(|request| node.respond(request)).collect(),
        None => node.respond(&request),
    };
    answer.map_or_else(|broken| broken, |answer| answer.to_string().into_response())
}

pub fn unsupported() -> Answer {
    Ok(json!({ "code": -32601, "message": "the method does not exist/is not available" }))
}

pub fn pool(nodes: &[&Node]) -> Rpc {
    let urls: Vec<NodeUrl> = nodes.iter().map(|node| node.url.parse().unwrap()).collect();
    Rpc::new("it", &urls, Some(ChainId(1)))
}

/// Answers of a node with the recorded blocks of a file, head last.
pub fn recorded(file: &str) -> (Vec<Value>, impl Fn(&str, &Value) -> Answer + Clone + Send + 'static) {
    let blocks = Arc::new(testdata::lines(&format!("{file}.blocks")).unwrap());
    let all = blocks.clone();
    let find = move |key: &Value| match key.as_str() {
        Some("latest") => all.last().cloned(),
        _ => all.iter().find(|line| line["block"]["hash"] == *key || line["block"]["number"] == *key).cloned(),
    };
    let answer = move |method: &str, params: &Value| match method {
        "eth_blockNumber" => Ok(find(&json!("latest")).unwrap()["block"]["number"].clone()),
        "eth_getBlockByNumber" | "eth_getBlockByHash" => Ok(find(&params[0]).map_or(Value::Null, |line| line["block"].clone())),
        "eth_getBlockReceipts" => Ok(find(&params[0]).map_or(Value::Null, |line| line["receipts"].clone())),
        "eth_getLogs" => Ok(find(&params[0]["blockHash"]).map_or(Value::Null, |line| {
            line["receipts"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|receipt| receipt["logs"].as_array().unwrap().clone())
                .collect()
        })),
        "eth_getTransactionReceipt" => Ok(blocks_receipt(&find(&json!("latest")).unwrap(), &params[0])),
        _ => unsupported(),
    };
    (blocks.to_vec(), answer)
}

fn blocks_receipt(line: &Value, hash: &Value) -> Value {
    let receipts = line["receipts"].as_array().unwrap();
    receipts.iter().find(|receipt| receipt["transactionHash"] == *hash).cloned().unwrap_or_default()
}

pub const ETHEREUM: &str = "eth-mainnet-17686110-17686112";
pub const ROOTS: FetchOptions = FetchOptions { verify: Verify::Roots, traces: false };
pub const AUTO: FetchOptions = FetchOptions { verify: Verify::Auto, traces: false };

pub fn head_hash(lines: &[Value]) -> B256 {
    lines.last().unwrap()["hash"].as_str().unwrap().parse().unwrap()
}
