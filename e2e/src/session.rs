//! A recorded JSON-RPC session, served so that a client sees the chain change as the recording client did.

use anyhow::{Context as _, Result, ensure};
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// A session of `testdata`: the chain's head at each step.
pub struct Session {
    chain_id: u64,
    /// The hash of the head, and whether a request for the next block returned null at this step.
    steps: Vec<(String, bool)>,
    /// Blocks with their transactions, by hash.
    blocks: HashMap<String, Value>,
    /// Logs, by block hash.
    logs: HashMap<String, Vec<Value>>,
    /// Index of the current step.
    place: AtomicUsize,
    /// Hashes of canonical blocks at the current step, by number.
    canonical: RwLock<HashMap<String, String>>,
}

impl Session {
    /// Reads the recorded exchanges, and the blocks with logs that occur in them.
    ///
    /// # Errors
    /// When a file is missing, or the blocks lack a recorded head.
    pub fn read(chain_id: u64, exchanges: &str, blocks: &str) -> Result<Self> {
        let (mut by_hash, mut logs) = (HashMap::new(), HashMap::new());
        for line in testdata::lines(blocks)? {
            let hash = line["hash"].as_str().context("a block's hash")?;
            by_hash.insert(hash.to_owned(), line["block"].clone());
            logs.insert(hash.to_owned(), line["logs"].as_array().context("a block's logs")?.clone());
        }
        let mut steps: Vec<(String, bool)> = Vec::new();
        for exchange in testdata::lines(exchanges)? {
            let by_number = exchange["request"]["method"] == "eth_getBlockByNumber";
            let head = exchange["response"]["result"]["hash"].as_str().filter(|_| by_number);
            let head = head.or(steps.last().map(|(head, _)| head.as_str())).context("a head at the first step")?.to_owned();
            ensure!(by_hash.contains_key(&head), "block {head} of {exchanges} is not in {blocks}");
            steps.push((head, by_number && exchange["response"]["result"].is_null()));
        }
        let session = Self { chain_id, steps, blocks: by_hash, logs, place: AtomicUsize::new(0), canonical: RwLock::default() };
        session.update_canonical();
        Ok(session)
    }

    /// Serves the session and returns the URL. Each request for the head takes it a step further; at steps at which the
    /// recording client was told that there is no next block, the head is null.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn serve(self: Arc<Self>) -> Result<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new().route("/", post(answer)).with_state(self);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(url)
    }

    /// Whether the last step was served.
    pub fn is_over(&self) -> bool {
        self.place.load(Ordering::Relaxed) >= self.steps.len()
    }

    /// How many steps had no next block.
    pub fn nulls(&self) -> usize {
        self.steps.iter().filter(|(_, null)| *null).count()
    }

    /// A recorded block and its logs.
    pub fn block(&self, hash: &str) -> Option<(&Value, &[Value])> {
        Some((self.blocks.get(hash)?, self.logs.get(hash)?))
    }

    /// How many blocks were recorded, orphans included.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    fn step(&self, place: usize) -> Option<&(String, bool)> {
        self.steps.get(place).or(self.steps.last())
    }

    /// The canonical blocks at the current step are the head and its ancestors, as far as they were recorded.
    fn update_canonical(&self) {
        let mut canonical = HashMap::new();
        let mut hash = self.step(self.place.load(Ordering::Relaxed)).map(|(head, _)| head.clone());
        while let Some(block) = hash.as_ref().and_then(|hash| self.blocks.get(hash)) {
            let text = |field: &str| block[field].as_str().unwrap_or_default().to_owned();
            canonical.insert(text("number"), text("hash"));
            hash = Some(text("parentHash"));
        }
        *self.canonical.write().unwrap_or_else(PoisonError::into_inner) = canonical;
    }

    fn head(&self) -> Value {
        let place = self.place.load(Ordering::Relaxed);
        self.update_canonical();
        self.place.store(place + 1, Ordering::Relaxed);
        match self.step(place) {
            Some((hash, false)) => self.blocks.get(hash).cloned().unwrap_or_default(),
            _ => Value::Null,
        }
    }

    fn answer(&self, call: &Value) -> Value {
        let first = &call["params"][0];
        let result = match call["method"].as_str().unwrap_or_default() {
            "eth_chainId" => json!(format!("{:#x}", self.chain_id)),
            "eth_blockNumber" => {
                let last = self.step(self.place.load(Ordering::Relaxed).saturating_sub(1));
                last.and_then(|(head, _)| self.blocks.get(head)).map(|head| head["number"].clone()).unwrap_or_default()
            }
            "eth_getBlockByNumber" if first == "latest" => shown(self.head(), &call["params"][1]),
            "eth_getBlockByNumber" if first.as_str().is_some_and(|number| number.starts_with("0x")) => {
                shown(self.by_number(first), &call["params"][1])
            }
            "eth_getBlockByHash" => shown(self.by_hash(first), &call["params"][1]),
            "eth_getLogs" => json!(self.logs_of(&first["blockHash"])),
            "eth_getTransactionReceipt" => self.receipt(first),
            method => {
                let message = format!("the method {method} with these parameters does not exist");
                return json!({ "jsonrpc": "2.0", "id": call["id"], "error": { "code": -32601, "message": message } });
            }
        };
        json!({ "jsonrpc": "2.0", "id": call["id"], "result": result })
    }

    fn is_canonical(&self, hash: &str) -> bool {
        let canonical = self.canonical.read().unwrap_or_else(PoisonError::into_inner);
        canonical.values().any(|known| known == hash)
    }

    fn by_number(&self, number: &Value) -> Value {
        let canonical = self.canonical.read().unwrap_or_else(PoisonError::into_inner);
        let hash = number.as_str().and_then(|number| canonical.get(number));
        hash.and_then(|hash| self.blocks.get(hash)).cloned().unwrap_or_default()
    }

    fn by_hash(&self, hash: &Value) -> Value {
        let canonical = hash.as_str().filter(|hash| self.is_canonical(hash));
        canonical.and_then(|hash| self.blocks.get(hash)).cloned().unwrap_or_default()
    }

    fn logs_of(&self, hash: &Value) -> Vec<Value> {
        let canonical = hash.as_str().filter(|hash| self.is_canonical(hash));
        canonical.and_then(|hash| self.logs.get(hash)).cloned().unwrap_or_default()
    }

    /// Receipts were not recorded. This builds one from the logs, and its status is invented.
    fn receipt(&self, transaction: &Value) -> Value {
        let holds = |block: &&Value| {
            let canonical = block["hash"].as_str().is_some_and(|hash| self.is_canonical(hash));
            canonical && block["transactions"].as_array().into_iter().flatten().any(|known| known["hash"] == *transaction)
        };
        let Some(block) = self.blocks.values().find(holds) else { return Value::Null };
        let logs: Vec<Value> =
            self.logs_of(&block["hash"]).into_iter().filter(|log| log["transactionHash"] == *transaction).collect();
        json!({
            "transactionHash": transaction, "blockHash": block["hash"], "blockNumber": block["number"],
            "status": "0x1", "cumulativeGasUsed": block["gasUsed"], "logs": logs,
        })
    }
}

async fn answer(State(session): State<Arc<Session>>, Json(request): Json<Value>) -> Json<Value> {
    Json(match request {
        Value::Array(calls) => calls.iter().map(|call| session.answer(call)).collect(),
        call => session.answer(&call),
    })
}

fn shown(mut block: Value, whole: &Value) -> Value {
    if *whole != true
        && let Some(Value::Array(transactions)) = block.get_mut("transactions")
    {
        transactions.iter_mut().for_each(|transaction| *transaction = transaction["hash"].take());
    }
    block
}
