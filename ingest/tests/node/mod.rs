//! A node that serves recorded blocks, with faults on request.

#![allow(clippy::result_large_err, reason = "of a test, where it costs nothing")]

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A recorded block.
#[derive(Clone)]
pub struct Recorded {
    pub number: u64,
    pub hash: String,
    pub parent: String,
    block: Value,
    receipts: Option<Value>,
    logs: Value,
}

pub fn recorded(file: &str) -> Vec<Recorded> {
    testdata::lines(&format!("{file}.blocks"))
        .unwrap()
        .into_iter()
        .map(|mut line| Recorded {
            number: line["number"].as_u64().unwrap(),
            hash: line["hash"].as_str().unwrap().to_owned(),
            parent: line["block"]["parentHash"].as_str().unwrap().to_owned(),
            block: line["block"].take(),
            receipts: line.get_mut("receipts").map(Value::take),
            logs: line.get_mut("logs").map(Value::take).unwrap_or_default(),
        })
        .collect()
}

/// The chain with blocks of a fork put on it, up to so many blocks in all. They are empty, made up, and proven by nothing.
pub fn branch(below: &[Recorded], count: u64, fork: u8) -> Vec<Recorded> {
    skipping(below, u64::try_from(below.len()).unwrap()..count, fork)
}

/// As [`branch`], with blocks of these numbers.
pub fn skipping(below: &[Recorded], numbers: impl IntoIterator<Item = u64>, fork: u8) -> Vec<Recorded> {
    let mut blocks = below.to_vec();
    let word = |byte: u8| format!("0x{}", format!("{byte:02x}").repeat(32));
    for number in numbers {
        let parent = blocks.last().map_or_else(|| word(0), |block| block.hash.clone());
        let hash = format!("0x{:062x}{fork:02x}", number + 1);
        let block = json!({
            "number": format!("{number:#x}"), "hash": hash, "parentHash": parent, "timestamp": format!("{:#x}", 1_700_000_000 + number),
            "transactionsRoot": word(1), "receiptsRoot": word(2), "stateRoot": word(3), "sha3Uncles": word(4),
            "miner": format!("0x{}", "00".repeat(20)), "gasLimit": "0x1", "gasUsed": "0x0", "transactions": [],
        });
        blocks.push(Recorded { number, hash, parent, block, receipts: Some(json!([])), logs: json!([]) });
    }
    blocks
}

impl Recorded {
    /// The block with its time in nanoseconds.
    pub fn in_nanoseconds(mut self) -> Self {
        self.block["timestamp"] = json!(format!("{:#x}", 1_700_000_000_000_000_000_u64));
        self
    }

    /// The block with the time of a month from now.
    pub fn ahead_of_time(mut self) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        self.block["timestamp"] = json!(format!("{:#x}", now + 30 * 86_400));
        self
    }

    /// The block with zeros in place of its roots, as zkSync has them.
    pub fn without_roots(mut self) -> Self {
        let zero = json!(format!("0x{}", "00".repeat(32)));
        (self.block["transactionsRoot"], self.block["receiptsRoot"]) = (zero.clone(), zero);
        self.block["logsBloom"] = json!(format!("0x{}", "00".repeat(256)));
        self
    }

    /// The block with another amount in its first log, which neither its hash nor its bloom shows.
    pub fn with_another_amount(mut self) -> Self {
        self.logs[0]["data"] = json!(format!("0x{}", "77".repeat(32)));
        self
    }

    pub fn count_logs(&self) -> usize {
        self.receipts
            .as_ref()
            .unwrap()
            .as_array()
            .unwrap()
            .iter()
            .map(|receipt| receipt["logs"].as_array().unwrap().len())
            .sum()
    }
}

/// A wrong answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An empty list of receipts or logs, as from a node that lags.
    NoLogs,
    /// The last log of the block is missing.
    OneLogShort,
    /// One receipt says that its transaction succeeded and paid more gas.
    OtherReceipt,
    /// `null` for every block.
    Null,
    Http500,
    Html,
    Truncated,
    /// JSON-RPC error -32005.
    RateLimit,
    /// Another chain's parent.
    OtherParent,
}

/// How a node says that its chain skips a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Skipped {
    #[default]
    Null,
    /// As Lotus does.
    Error,
    /// As Forest does: by the block below.
    Below,
}

/// How a node hides a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hiding {
    ByNumber,
    Wholly,
}

#[derive(Default)]
pub struct Script {
    chain: Vec<Recorded>,
    /// How often each fault is still to occur.
    pub faults: Vec<(Fault, usize)>,
    pub block_receipts: bool,
    /// How far its `finalized` tag is behind its head. `None`: it has no tags.
    pub final_behind: Option<usize>,
    /// It does not say which block is the latest.
    pub no_latest: bool,
    /// A head that it announces and does not have.
    pub announces: Option<Value>,
    /// A block that it does not give by its number, or not at all.
    pub hides: Option<(u64, Hiding)>,
    pub skipped: Skipped,
    pub requests: HashMap<String, usize>,
    pub id: u64,
    /// How long each answer takes.
    pub latency: Duration,
    /// Of ten HTTP requests so many have no answer for twelve seconds.
    pub hangs: usize,
    /// Of ten HTTP requests so many are refused with -32005.
    pub refuses: usize,
    posts: usize,
}

#[derive(Clone)]
pub struct Node {
    pub script: Arc<Mutex<Script>>,
    pub url: String,
}

impl Node {
    pub async fn start(id: u64, block_receipts: bool) -> Self {
        let script = Arc::new(Mutex::new(Script { id, block_receipts, ..Script::default() }));
        let app = axum::Router::new().fallback(answer).with_state(script.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/secret-key", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { script, url }
    }

    /// Sets the node's canonical chain.
    pub fn set(&self, chain: &[Recorded]) {
        self.script.lock().unwrap().chain = chain.to_vec();
    }

    /// Announces from now on a head at this height, above `parent`, that nobody has.
    pub fn announce(&self, number: u64, parent: &str) {
        let mut head = self.script.lock().unwrap().chain[0].block.clone();
        (head["number"], head["parentHash"]) = (json!(format!("{number:#x}")), json!(parent));
        (head["hash"], head["transactions"]) = (json!(format!("0x{}", "42".repeat(32))), json!([]));
        self.script.lock().unwrap().announces = Some(head);
    }

    pub fn fault(&self, fault: Fault, times: usize) {
        self.script.lock().unwrap().faults.push((fault, times));
    }

    pub fn requests(&self, method: &str) -> usize {
        self.script.lock().unwrap().requests.get(method).copied().unwrap_or_default()
    }
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, body: String) -> Response {
    let request: Value = serde_json::from_str(&body).unwrap();
    let (latency, hangs, refuses) = script.lock().unwrap().pace();
    tokio::time::sleep(if hangs { Duration::from_secs(12) } else { latency }).await;
    if refuses {
        let error = json!({ "code": -32005, "message": "limit exceeded" });
        return json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }).to_string().into_response();
    }
    let answer = match request.as_array() {
        None => respond(&script, &request),
        // A fault of the transport affects the whole batch. A node may answer a batch in any order.
        Some(batch) => batch.iter().rev().map(|request| respond(&script, request)).collect(),
    };
    answer.map_or_else(|broken| broken, |answer| answer.to_string().into_response())
}

fn respond(script: &Mutex<Script>, request: &Value) -> Result<Value, Response> {
    let (method, params) = (request["method"].as_str().unwrap(), &request["params"]);
    let mut script = script.lock().unwrap();
    *script.requests.entry(method.to_owned()).or_default() += 1;
    let mut result = script.result(method, params);
    let of_block = method == "eth_getBlockReceipts" || method == "eth_getLogs";
    let full = method.starts_with("eth_getBlockBy") && params[1] == true;
    if let Some(fault) = script.take_fault(of_block, full, &result) {
        match fault {
            Fault::NoLogs => result = Ok(json!([])),
            Fault::OneLogShort => drop_log(&mut result),
            Fault::OtherReceipt => change(&mut result, "/0/cumulativeGasUsed", "0x1"),
            Fault::OtherParent => change(&mut result, "/parentHash", &format!("0x{}", "42".repeat(32))),
            Fault::Null => result = Ok(Value::Null),
            Fault::RateLimit => result = Err((-32005, "limit exceeded".to_owned())),
            Fault::Http500 => return Err((StatusCode::INTERNAL_SERVER_ERROR, "oops").into_response()),
            Fault::Html => return Err("<html>Bad gateway</html>".into_response()),
            Fault::Truncated => {
                let whole = json!({ "jsonrpc": "2.0", "id": request["id"], "result": result.unwrap() }).to_string();
                return Err(whole[..whole.len() / 2].to_owned().into_response());
            }
        }
    }
    Ok(match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }),
        Err((code, message)) => json!({ "jsonrpc": "2.0", "id": request["id"], "error": { "code": code, "message": message } }),
    })
}

fn change(result: &mut Result<Value, (i64, String)>, place: &str, to: &str) {
    *result.as_mut().unwrap().pointer_mut(place).unwrap() = json!(to);
}

fn drop_log(result: &mut Result<Value, (i64, String)>) {
    let list = result.as_mut().unwrap().as_array_mut().unwrap();
    match list.iter_mut().rev().find(|receipt| receipt["logs"].as_array().is_some_and(|logs| !logs.is_empty())) {
        Some(receipt) => drop(receipt["logs"].as_array_mut().unwrap().pop()),
        None => drop(list.pop()),
    }
}

impl Script {
    /// How long the next HTTP request takes, whether it has no answer, and whether it is refused: in an order that is no method's.
    fn pace(&mut self) -> (Duration, bool, bool) {
        self.posts += 1;
        let place = self.posts * 7 % 10;
        (self.latency, place < self.hangs, place < self.refuses)
    }

    fn take_fault(&mut self, of_block: bool, full: bool, result: &Result<Value, (i64, String)>) -> Option<Fault> {
        let worth = result.as_ref().is_ok_and(|value| value.as_array().is_some_and(|list| !list.is_empty()));
        let fault = self.faults.iter_mut().find(|(fault, times)| {
            *times > 0
                && match fault {
                    Fault::NoLogs | Fault::OneLogShort | Fault::OtherReceipt => of_block && worth,
                    Fault::OtherParent | Fault::Null => full,
                    _ => full || of_block,
                }
        })?;
        fault.1 -= 1;
        Some(fault.0)
    }

    fn result(&self, method: &str, params: &Value) -> Result<Value, (i64, String)> {
        let is_hidden = |block: &Recorded, hiding| self.hides.is_some_and(|hides| hides == (block.number, hiding));
        let gives = |block: &&Recorded| !is_hidden(block, Hiding::Wholly);
        let by_hash = |hash: &Value| self.chain.iter().find(|block| hash.as_str() == Some(&block.hash)).filter(gives);
        let shown = |block: Option<&Recorded>| {
            let mut shown = block.map(|block| block.block.clone()).unwrap_or_default();
            if params[1] == false && shown.is_object() {
                let hashes: Vec<Value> =
                    shown["transactions"].as_array().unwrap().iter().map(|tx| tx["hash"].clone()).collect();
                shown["transactions"] = json!(hashes);
            }
            shown
        };
        Ok(match method {
            "eth_chainId" => json!(format!("{:#x}", self.id)),
            "eth_getBlockByNumber" => match params[0].as_str().unwrap() {
                "latest" if self.no_latest => return Err((-32000, "no latest block".to_owned())),
                "latest" => self.announces.clone().unwrap_or_else(|| shown(self.chain.last())),
                "finalized" if self.final_behind.is_some() => {
                    shown(self.chain.iter().nth_back(self.final_behind.unwrap_or_default()))
                }
                "safe" | "finalized" => return Err((-32000, "safe block not found".to_owned())),
                number => {
                    let number = u64::from_str_radix(&number[2..], 16).unwrap();
                    let by_number = |block: &&Recorded| gives(block) && !is_hidden(block, Hiding::ByNumber);
                    let at = self.chain.iter().find(|block| block.number == number);
                    let below = self.chain.iter().rfind(|block| block.number < number);
                    match self.skipped {
                        _ if at.is_some() || self.chain.last().is_none_or(|head| head.number < number) => {}
                        Skipped::Null => {}
                        Skipped::Error => return Err((12, format!("requested epoch was a null round ({number})"))),
                        Skipped::Below => return Ok(shown(below)),
                    }
                    shown(at.filter(by_number))
                }
            },
            "eth_getBlockByHash" => shown(by_hash(&params[0])),
            "eth_getBlockReceipts" if self.block_receipts => {
                by_hash(&params[0]).and_then(|block| block.receipts.clone()).unwrap_or_default()
            }
            "eth_getLogs" => match by_hash(&params[0]["blockHash"]) {
                Some(block) => block.logs.clone(),
                None => return Err((-32000, "unknown block".to_owned())),
            },
            "eth_getTransactionReceipt" => {
                let of = |block: &&Recorded| {
                    block.block["transactions"].as_array().unwrap().iter().any(|tx| tx["hash"] == params[0])
                };
                self.chain.iter().find(of).map_or(Value::Null, |block| {
                    json!({ "transactionHash": params[0], "blockHash": block.hash, "status": "0x1", "cumulativeGasUsed": "0x1", "logs": [] })
                })
            }
            _ => return Err((-32601, format!("the method {method} does not exist/is not available"))),
        })
    }
}
