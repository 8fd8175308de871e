//! What nodes and their providers do wrong, each on purpose.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::{Value, json};

/// A fault that a [`Proxy`](crate::Proxy) makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// Receipts or logs come as an empty list, though the block has some: a node behind a load balancer that has the header
    /// alone.
    EmptyLogs,
    /// The last log is missing from receipts or logs.
    LogMissing,
    /// A receipt says the contrary of how its transaction ended, or a log has another amount.
    ReceiptAltered,
    /// A block names another parent.
    WrongParent,
    /// Receipts, or logs, are of the block below the one asked for, as if the chain had changed in between.
    OtherBlocksReceipts,
    /// The chain really changes between a block asked for by number and its receipts: the node replaces this many blocks.
    Reorganises(u32),
    /// `latest`, or a block by number or hash, is null.
    NullBlock,
    /// HTTP 429, with a `Retry-After` of so many seconds or without one.
    TooManyRequests(Option<u32>),
    /// HTTP 200 with JSON-RPC's -32005.
    LimitExceeded,
    /// No answer, until the client gives up.
    Silence,
    /// The connection breaks off in the middle of the answer.
    BreaksOff,
    /// JSON that ends in the middle.
    Truncated,
    /// JSON with something in it that is none.
    Malformed,
    /// A page of HTML with status 200.
    Html,
    /// HTTP 500.
    ServerError,
    /// A provider finds receipts, or logs, too many.
    RangeError,
    /// The node is so many blocks behind, and knows nothing of those above.
    Behind(u32),
    /// `eth_chainId` is another.
    ChainId(u32),
    /// Blocks above this number are not answered until the fault is over. Not an error: it holds a client at a point.
    HoldAbove(u64),
}

/// How an HTTP request comes to no proper answer.
pub(crate) enum Refusal {
    Answer(Response<Body>),
    Silence,
}

impl Fault {
    /// The answer to an HTTP request that is refused as a whole. `whole` is what the node would have said.
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
                let (first, broken) = (half(), std::io::Error::other("broken off on purpose"));
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

    /// Alters the node's answer to one call, where it is one that this fault alters; whether it did.
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
            Self::ChainId(id) if method == "eth_chainId" => {
                answer["result"] = json!(format!("{id:#x}"));
                true
            }
            _ => false,
        }
    }
}

/// The list of logs that an answer ends with: it may be one of receipts, or of logs alone.
fn logs(result: &mut Value) -> Option<&mut Vec<Value>> {
    let all = result.as_array_mut()?;
    if all.first().is_none_or(|first| first.get("topics").is_some()) {
        return Some(all);
    }
    all.iter_mut().rev().filter_map(|receipt| receipt["logs"].as_array_mut()).find(|logs| !logs.is_empty())
}

/// A JSON-RPC error in answer to a call.
pub(crate) fn error(call: &Value, code: i64, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": call["id"], "error": { "code": code, "message": message } })
}
