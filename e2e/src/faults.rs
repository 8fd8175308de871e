//! The faults of nodes and providers, injected on purpose.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::{Value, json};

/// A fault that a [`Proxy`](crate::Proxy) injects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Receipts or logs are an empty list although the block has some: a node behind a load balancer that has only the
    /// header.
    EmptyLogs,
    /// The last log is missing from receipts or logs.
    LogMissing,
    /// A receipt has the opposite status, or a log another amount.
    ReceiptAltered,
    /// A block has a wrong parent hash.
    WrongParent,
    /// Receipts or logs are those of the block below the requested one, as if the chain had changed in between.
    OtherBlocksReceipts,
    /// A real reorg between a block requested by number and its receipts: the node replaces this many blocks.
    Reorg(u32),
    /// A block is null, whether requested as `latest`, by number or by hash.
    NullBlock,
    /// HTTP 429, with `Retry-After` in seconds or without it.
    TooManyRequests(Option<u32>),
    /// HTTP 200 with JSON-RPC error -32005.
    LimitExceeded,
    /// No response until the client times out.
    Silence,
    /// The connection breaks in the middle of the response.
    BreaksOff,
    /// JSON that is cut off in the middle.
    Truncated,
    /// JSON with a syntax error.
    Malformed,
    /// An HTML page with status 200.
    Html,
    /// HTTP 500.
    ServerError,
    /// A provider refuses receipts or logs as too many.
    RangeError,
    /// The node is this many blocks behind, and knows none above.
    Behind(u32),
    /// `eth_chainId` returns this id.
    ChainId(u32),
    /// The node lends no coin to the sender of a call: it answers with this code, and 3 says that the sender lacks it.
    NoOverride(i64),
    /// Requests for blocks above this number get no response until the fault is over. This is no error: it holds a client at a
    /// block.
    HoldAbove(u64),
}

/// How an HTTP request fails as a whole.
pub(crate) enum Refusal {
    Answer(Response<Body>),
    Silence,
}

impl Fault {
    /// The refusal of an HTTP request as a whole. `whole` is the node's real response.
    pub(crate) fn refuse(self, request: &Value, whole: &str) -> Option<Refusal> {
        let answer = |status, kind: &str, body: String| {
            let response = Response::builder().status(status).header(header::CONTENT_TYPE, kind);
            response.body(Body::from(body)).ok().map(Refusal::Answer)
        };
        let ok = |body: String| answer(StatusCode::OK, "application/json", body);
        let half = || -> String { whole.chars().take(whole.chars().count() / 2).collect() };
        match self {
            Self::TooManyRequests(after) => {
                let mut response = Response::builder().status(StatusCode::TOO_MANY_REQUESTS);
                if let Some(seconds) = after {
                    response = response.header(header::RETRY_AFTER, seconds);
                }
                response.body(Body::from("rate limited")).ok().map(Refusal::Answer)
            }
            Self::LimitExceeded => {
                let refused = |call: &Value| error(call, -32005, "limit exceeded");
                ok(match request {
                    Value::Array(calls) => Value::Array(calls.iter().map(refused).collect()).to_string(),
                    call => refused(call).to_string(),
                })
            }
            Self::Silence => Some(Refusal::Silence),
            Self::BreaksOff => {
                let (first, broken) = (half(), std::io::Error::other("broken on purpose"));
                let chunks = futures::stream::iter([Ok(first), Err(broken)]);
                Response::builder()
                    .header(header::CONTENT_TYPE, "application/json")
                    .body(Body::from_stream(chunks))
                    .ok()
                    .map(Refusal::Answer)
            }
            Self::Truncated => ok(half()),
            Self::Malformed => ok(whole.replacen(':', " NaN ", 2)),
            Self::Html => answer(StatusCode::OK, "text/html", "<!doctype html><h1>Just a moment…</h1>".to_owned()),
            Self::ServerError => answer(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", "upstream went away".to_owned()),
            _ => None,
        }
    }

    /// Alters the node's response to a call if this fault concerns it; returns whether it did.
    pub(crate) fn alter(self, call: &Value, answer: &mut Value) -> bool {
        let method = call["method"].as_str().unwrap_or_default();
        let of_block = matches!(method, "eth_getBlockByNumber" | "eth_getBlockByHash");
        let of_logs = matches!(method, "eth_getBlockReceipts" | "eth_getLogs");
        match self {
            Self::EmptyLogs if of_logs => answer["result"].as_array_mut().is_some_and(|all| {
                let some = !all.is_empty();
                all.clear();
                some
            }),
            Self::LogMissing if of_logs => logs(&mut answer["result"]).is_some_and(|logs| logs.pop().is_some()),
            Self::ReceiptAltered if of_logs => {
                let Some(last) = answer["result"].as_array_mut().and_then(|all| all.last_mut()) else { return false };
                match last.get_mut("status") {
                    Some(status) => *status = json!(if status == "0x1" { "0x0" } else { "0x1" }),
                    None => last["data"] = json!(format!("0x{:064x}", 1_000_000_000)),
                }
                true
            }
            Self::WrongParent if of_block && answer["result"]["parentHash"].is_string() => {
                answer["result"]["parentHash"] = json!(format!("0x{}", "5a".repeat(32)));
                true
            }
            Self::NullBlock if of_block && !answer["result"].is_null() => {
                answer["result"] = Value::Null;
                true
            }
            Self::RangeError if of_logs => {
                *answer = error(call, -32602, "query returned more than 10000 results");
                true
            }
            Self::NoOverride(code) if method == "eth_estimateGas" && call["params"][2].is_object() => {
                let words = if code == 3 { "insufficient funds for transfer" } else { "too many arguments, want at most 2" };
                *answer = error(call, code, words);
                true
            }
            Self::ChainId(id) if method == "eth_chainId" => {
                answer["result"] = json!(format!("{id:#x}"));
                true
            }
            _ => false,
        }
    }
}

/// The last list of logs in a response, which is a list of receipts or of logs.
fn logs(result: &mut Value) -> Option<&mut Vec<Value>> {
    let all = result.as_array_mut()?;
    if all.first().is_none_or(|first| first.get("topics").is_some()) {
        return Some(all);
    }
    all.iter_mut().rev().filter_map(|receipt| receipt["logs"].as_array_mut()).find(|logs| !logs.is_empty())
}

/// A JSON-RPC error as the response to a call.
pub(crate) fn error(call: &Value, code: i64, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": call["id"], "error": { "code": code, "message": message } })
}
