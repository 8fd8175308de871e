//! Recorded blocks, served as a node whose chain ends with them.

use anyhow::{Context as _, Result};
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// A recorded block of `testdata`: `eth_getBlockByNumber(n, true)` and `eth_getBlockReceipts`.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Id of its chain.
    pub chain_id: u64,
    /// The block, transactions included.
    pub block: Value,
    /// Its receipts; empty where only logs were recorded.
    pub receipts: Vec<Value>,
}

/// Reads the blocks of `NAME.blocks.jsonl.gz` that were recorded with receipts.
///
/// # Errors
/// When the file is missing or not JSON.
pub fn recorded(name: &str) -> Result<Vec<Recorded>> {
    let blocks = testdata::lines(&format!("{name}.blocks"))?.into_iter().filter_map(|line| {
        Some(Recorded {
            chain_id: line.get("chainId")?.as_u64()?,
            block: line.get("block")?.clone(),
            receipts: line.get("receipts")?.as_array()?.clone(),
        })
    });
    Ok(blocks.collect())
}

struct Chain {
    id: u64,
    blocks: Vec<Recorded>,
    by_key: HashMap<String, usize>,
}

/// Serves recorded blocks as a node whose head is the last of them, and returns the URL. The server ends with the runtime.
///
/// # Errors
/// When no port is free.
pub async fn serve(id: u64, blocks: Vec<Recorded>) -> Result<String> {
    let mut by_key = HashMap::new();
    for (place, recorded) in blocks.iter().enumerate() {
        for field in ["number", "hash"] {
            by_key.insert(recorded.block[field].as_str().context("a block's key")?.to_owned(), place);
        }
    }
    let chain = Arc::new(Chain { id, blocks, by_key });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let router = Router::new().route("/", post(answer)).with_state(chain);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

async fn answer(State(chain): State<Arc<Chain>>, Json(request): Json<Value>) -> Json<Value> {
    Json(match request {
        Value::Array(requests) => requests.iter().map(|request| chain.answer(request)).collect(),
        request => chain.answer(&request),
    })
}

impl Chain {
    fn answer(&self, request: &Value) -> Value {
        let first = &request["params"][0];
        let result = match request["method"].as_str().unwrap_or_default() {
            "eth_chainId" => json!(format!("{:#x}", self.id)),
            "eth_blockNumber" => self.blocks.last().map(|last| last.block["number"].clone()).unwrap_or_default(),
            "eth_getBlockByNumber" | "eth_getBlockByHash" => {
                self.block(first, request["params"][1].as_bool().unwrap_or_default())
            }
            "eth_getBlockReceipts" => self.find(first).map(|found| json!(found.receipts)).unwrap_or_default(),
            method => {
                let error = json!({ "code": -32601, "message": format!("the method {method} does not exist") });
                return json!({ "jsonrpc": "2.0", "id": request["id"], "error": error });
            }
        };
        json!({ "jsonrpc": "2.0", "id": request["id"], "result": result })
    }

    fn find(&self, which: &Value) -> Option<&Recorded> {
        // A block is named by number, by hash, or by an object with either (EIP-1898).
        let key = which.as_str().or(which["blockHash"].as_str()).or(which["blockNumber"].as_str())?;
        if key == "latest" {
            return self.blocks.last();
        }
        self.by_key.get(key).and_then(|place| self.blocks.get(*place))
    }

    fn block(&self, which: &Value, whole: bool) -> Value {
        let Some(found) = self.find(which) else {
            return Value::Null;
        };
        let mut block = found.block.clone();
        if !whole && let Some(transactions) = block["transactions"].as_array_mut() {
            transactions.iter_mut().for_each(|transaction| *transaction = transaction["hash"].clone());
        }
        block
    }
}
