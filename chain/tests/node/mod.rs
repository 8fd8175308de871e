//! A node that answers by a script, with faults of its transport on request.

#![allow(clippy::unwrap_used, clippy::result_large_err, dead_code, reason = "of tests, each of which uses a part of it")]

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use chain::{BlockId, FetchError, FetchOptions, FetchedBlock, NodeUrl, Rpc, Verify, fetch_block};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};
use topics::{B256, ChainId};

pub type Answer = Result<Value, Response>;
type Handler = Box<dyn FnMut(&str, &Value) -> Answer + Send>;

/// A node that answers by a script and counts requests.
#[derive(Clone)]
pub struct Node {
    handler: Arc<Mutex<Handler>>,
    asked: Arc<Mutex<HashMap<String, Vec<Value>>>>,
    /// The calls of each HTTP request.
    posts: Arc<Mutex<Vec<String>>>,
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
    /// Calls for traces have no answer.
    pub hides_traces: bool,
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
        self.asked.lock().unwrap().get(method).map_or(0, Vec::len)
    }

    /// How many different things it was asked by a method: an answer that is late is asked for a second time.
    pub fn asked_different(&self, method: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.get(method).map_or(0, |params| params.iter().map(Value::to_string).collect::<HashSet<_>>().len())
    }

    pub fn posts(&self) -> usize {
        self.posts.lock().unwrap().len()
    }

    /// As [`asked_different`](Self::asked_different), of HTTP requests.
    pub fn different_posts(&self) -> usize {
        self.posts.lock().unwrap().iter().collect::<HashSet<_>>().len()
    }

    fn respond(&self, request: &Value) -> Answer {
        let method = request["method"].as_str().unwrap();
        self.asked.lock().unwrap().entry(method.to_owned()).or_default().push(request["params"].clone());
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

/// What is called, without the ids.
fn calls(request: &Value) -> String {
    let call = |call: &Value| format!("{}{}", call["method"], call["params"]);
    request.as_array().map_or_else(|| call(request), |calls| calls.iter().map(call).collect())
}

async fn answer(State(node): State<Node>, body: String) -> Response {
    let request: Value = serde_json::from_str(&body).unwrap();
    node.posts.lock().unwrap().push(calls(&request));
    let is_of_trace = request["method"].as_str().is_some_and(|method| method.starts_with("debug_"));
    let (slow, hangs, refused) = {
        let mut transport = node.transport.lock().unwrap();
        transport.count += 1;
        // In an order that is no block's and no method's.
        let place = transport.count * 7 % 10;
        (transport.slow, place < transport.hang || is_of_trace && transport.hides_traces, place < transport.refuse)
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

/// For so long a pool of [`impatient`] lets a block wait for what no root proves.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// A pool that does not wait as long as others for what no root proves.
pub fn impatient(nodes: &[&Node]) -> Rpc {
    let urls: Vec<NodeUrl> = nodes.iter().map(|node| node.url.parse().unwrap()).collect();
    Rpc::with_patience("it", &urls, Some(ChainId(1)), PATIENCE)
}

/// The least times of up to three rounds: what else the machine does adds time and takes none away. It ends once they suffice.
pub async fn least_of_rounds<const N: usize>(
    round: impl AsyncFn() -> [Duration; N],
    suffice: impl Fn([Duration; N]) -> bool,
) -> [Duration; N] {
    let mut least = [Duration::MAX; N];
    for _ in 0..3 {
        let times = round().await;
        println!("{times:.1?}");
        least.iter_mut().zip(times).for_each(|(least, time)| *least = time.min(*least));
        if suffice(least) {
            break;
        }
    }
    least
}

/// Fetches a block of an [`impatient`] pool again and again until it comes. It does not come before the pool has waited for it,
/// and until then the error is as expected.
pub async fn until_published(rpc: &Rpc, options: FetchOptions, hash: B256, expected: fn(&FetchError) -> bool) -> FetchedBlock {
    let started = Instant::now();
    let fetched = loop {
        match fetch_block(rpc, options, BlockId::Hash(hash)).await {
            Ok(fetched) => break fetched.unwrap(),
            Err(error) => assert!(expected(&error), "{}", base::error_chain(&error)),
        }
        assert!(started.elapsed() < Duration::from_secs(60), "the chain stands still");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(started.elapsed() >= PATIENCE, "it did not wait at all");
    fetched
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
pub const ROOTS: FetchOptions = FetchOptions { verify: Verify::Roots, traces: false, witnesses: 2 };
pub const AUTO: FetchOptions = FetchOptions { verify: Verify::Auto, traces: false, witnesses: 2 };
pub const TRACED: FetchOptions = FetchOptions { verify: Verify::Auto, traces: true, witnesses: 2 };

pub fn head_hash(lines: &[Value]) -> B256 {
    lines.last().unwrap()["hash"].as_str().unwrap().parse().unwrap()
}

/// What a node says to a call for a trace: the method, and the trace of the transaction that it names.
pub type TraceAnswer = fn(&str, Option<&Value>) -> Option<Answer>;

/// A node with the newest block of `ETHEREUM` and its traces, some of which are answered by `odd`.
pub async fn traced(odd: TraceAnswer) -> Node {
    let (_, answer) = recorded(ETHEREUM);
    let traces = traces();
    Node::start(true, move |method, params| {
        let single = traces.iter().find(|trace| trace["txHash"] == params[0]);
        if let Some(answer) = odd(method, single) {
            return answer;
        }
        match method {
            "debug_traceBlockByHash" => Ok(json!(traces)),
            "debug_traceTransaction" => {
                assert_eq!(params[1]["tracer"], "callTracer");
                assert!(params[1]["timeout"].is_string(), "the node may work for nobody");
                Ok(single.unwrap()["result"].clone())
            }
            method => answer(method, params),
        }
    })
    .await
}

/// The traces of the newest block of `ETHEREUM`.
pub fn traces() -> Vec<Value> {
    let (lines, _) = recorded(ETHEREUM);
    let all = testdata::lines(&format!("{ETHEREUM}.traces")).unwrap();
    let of_block = all.into_iter().find(|line| line["hash"] == lines.last().unwrap()["hash"]).unwrap();
    of_block["result"].as_array().unwrap().clone()
}

pub fn refused(code: i64, message: &str) -> Answer {
    Ok(json!({ "code": code, "message": message }))
}

/// Whether it is the trace of the first transaction with a transfer below its top frame, in the recorded block.
pub fn is_odd(trace: Option<&Value>) -> bool {
    static ODD: LazyLock<Value> = LazyLock::new(|| traces().iter().find(|one| has_transfer(one)).unwrap()["txHash"].clone());
    trace.is_some_and(|trace| trace["txHash"] == *ODD)
}

fn has_transfer(trace: &Value) -> bool {
    let calls = trace["result"]["calls"].as_array();
    calls.is_some_and(|calls| {
        calls.iter().any(|call| call["type"] == "CALL" && call["value"].as_str().is_some_and(|v| v != "0x0"))
    }) && trace["result"].get("error").is_none()
}
