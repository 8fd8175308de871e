//! A JSON-RPC endpoint in front of a sound node, which injects faults on demand.

use crate::faults::{Fault, Refusal, error};
use crate::http::{plain_http, quantity};
use crate::process::free_listener;
use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode, header};
use axum::routing::post;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The endpoint. Dropping it closes it.
pub struct Proxy {
    /// The URL it listens on.
    pub url: String,
    address: SocketAddr,
    node: Arc<Upstream>,
    serving: Option<(CancellationToken, JoinHandle<()>)>,
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// This many times.
    Times(u64),
    /// For this long.
    For(Duration),
    /// Until [`Proxy::heal`].
    Always,
}

/// Features that an endpoint lacks without being faulty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lacks {
    /// Returns one error for a whole batch.
    pub batches: bool,
    /// Does not know `eth_getBlockReceipts`.
    pub block_receipts: bool,
}

/// What is shown each call.
type Watch = Box<dyn Fn(&Value) + Send + Sync>;

struct Upstream {
    url: Mutex<String>,
    lacks: Lacks,
    http: reqwest::Client,
    changing: tokio::sync::Mutex<()>,
    state: Mutex<Faults>,
    watches: RwLock<Vec<Watch>>,
}

#[derive(Default)]
struct Faults {
    active: Option<(Fault, Extent, Instant)>,
    made: BTreeMap<Fault, u64>,
    asked: BTreeMap<String, u64>,
}

impl Faults {
    fn active(&self) -> Option<Fault> {
        let (fault, extent, since) = self.active?;
        let over = match extent {
            Extent::Times(left) => left == 0,
            Extent::For(span) => since.elapsed() > span,
            Extent::Always => false,
        };
        (!over).then_some(fault)
    }

    fn spend(&mut self) {
        let Some(fault) = self.active() else { return };
        *self.made.entry(fault).or_default() += 1;
        if let Some((_, Extent::Times(left), _)) = &mut self.active {
            *left -= 1;
        }
    }
}

impl Proxy {
    /// Opens an endpoint in front of the node at `url`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(url: &str, lacks: Lacks) -> Result<Self> {
        let listener = free_listener()?;
        let address = listener.local_addr()?;
        let (http, changing, state) = (plain_http().build()?, tokio::sync::Mutex::default(), Mutex::default());
        let (url, watches) = (Mutex::new(url.to_owned()), RwLock::default());
        let node = Upstream { url, lacks, http, changing, state, watches };
        let mut proxy = Self { url: format!("http://{address}"), address, node: Arc::new(node), serving: None };
        proxy.serve(TcpListener::from_std(listener)?);
        Ok(proxy)
    }

    /// Injects a fault from now on, in place of the one before.
    pub fn make(&self, fault: Fault, extent: Extent) {
        self.node.with(|state| state.active = Some((fault, extent, Instant::now())));
    }

    /// Shows each call to `watch` too before the node gets it.
    pub fn watch(&self, watch: impl Fn(&Value) + Send + Sync + 'static) {
        self.node.watches.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(watch));
    }

    /// Leads to another node from now on.
    pub fn lead_to(&self, url: &str) {
        *self.node.url.lock().unwrap_or_else(PoisonError::into_inner) = url.to_owned();
    }

    /// Injects no more faults.
    pub fn heal(&self) {
        self.node.with(|state| state.active = None);
    }

    /// Whether the fault is still to be injected.
    pub fn is_faulty(&self) -> bool {
        self.node.active().is_some()
    }

    /// How often a fault was injected since the start.
    pub fn made(&self, fault: Fault) -> u64 {
        self.node.with(|state| state.made.get(&fault).copied().unwrap_or_default())
    }

    /// How often a method was called since the start; `batch` counts batches.
    pub fn asked(&self, method: &str) -> u64 {
        self.node.with(|state| state.asked.get(method).copied().unwrap_or_default())
    }

    /// Listens again after [`close`](Self::close).
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn open(&mut self) -> Result<()> {
        ensure!(self.serving.is_none(), "{} is open", self.url);
        let listener = TcpListener::bind(self.address).await.with_context(|| self.url.clone())?;
        self.serve(listener);
        Ok(())
    }

    fn serve(&mut self, listener: TcpListener) {
        let router = Router::new().route("/", post(serve)).with_state(self.node.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            // It fails only where listening fails, and then clients see it.
            let _ = axum::serve(listener, router).with_graceful_shutdown(stopped).await;
        });
        self.serving = Some((stop, task));
    }

    /// Closes all connections and refuses new ones.
    ///
    /// # Errors
    /// When open requests do not end within 15 s.
    pub async fn close(&mut self) -> Result<()> {
        let Some((stop, task)) = self.serving.take() else { return Ok(()) };
        stop.cancel();
        tokio::time::timeout(Duration::from_secs(15), task).await.context("open requests did not end within 15 s")??;
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some((stop, task)) = self.serving.take() {
            stop.cancel();
            task.abort();
        }
    }
}

async fn serve(State(node): State<Arc<Upstream>>, body: String) -> Response<Body> {
    let plain = |status, text: String| {
        let response = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
        response.body(Body::from(text)).unwrap_or_default()
    };
    let request: Value = match serde_json::from_str(&body) {
        Ok(request) => request,
        Err(error) => return plain(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let whole = match node.answer_all(&request).await {
        Ok(answer) => answer.to_string(),
        Err(error) => return plain(StatusCode::BAD_GATEWAY, format!("{error:#}")),
    };
    let refusal = node.with(|state| {
        let refusal = state.active().and_then(|fault| fault.refuse(&request, &whole));
        refusal.inspect(|_| state.spend())
    });
    match refusal {
        None => plain(StatusCode::OK, whole),
        Some(Refusal::Answer(response)) => response,
        Some(Refusal::Silence) => std::future::pending().await,
    }
}

impl Upstream {
    fn with<T>(&self, act: impl FnOnce(&mut Faults) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn active(&self) -> Option<Fault> {
        self.with(|state| state.active())
    }

    async fn answer_all(&self, request: &Value) -> Result<Value> {
        let Value::Array(calls) = request else { return self.answer(request).await };
        self.with(|state| *state.asked.entry("batch".to_owned()).or_default() += 1);
        if self.lacks.batches {
            return Ok(error(&Value::Null, -32600, "batches are not supported"));
        }
        // In sequence, so that the chain can change in between.
        let mut answers = Vec::with_capacity(calls.len());
        for call in calls {
            answers.push(self.answer(call).await?);
        }
        Ok(Value::Array(answers))
    }

    async fn answer(&self, call: &Value) -> Result<Value> {
        let method = call["method"].as_str().unwrap_or_default();
        self.with(|state| *state.asked.entry(method.to_owned()).or_default() += 1);
        self.watches.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(|watch| watch(call));
        if self.lacks.block_receipts && method == "eth_getBlockReceipts" {
            return Ok(error(call, -32601, "the method eth_getBlockReceipts does not exist"));
        }
        match self.active() {
            Some(Fault::Behind(blocks)) => self.answer_behind(call, u64::from(blocks)).await,
            Some(Fault::HoldAbove(number)) => self.answer_held(call, number).await,
            Some(Fault::OtherBlocksReceipts) => self.answer_otherwise(call).await,
            Some(Fault::Reorg(depth)) => {
                let answer = self.forward(call).await?;
                let by_number = method == "eth_getBlockByNumber" && call["params"][1] == true && !answer["result"].is_null();
                if by_number {
                    // It counts when it is done: a test that waits for it must not send anything while anvil makes the reorg.
                    let _alone = self.changing.lock().await;
                    if self.active() == Some(Fault::Reorg(depth)) {
                        self.ask("anvil_reorg", json!([depth, []])).await?;
                        self.claim(Fault::Reorg(depth));
                    }
                }
                Ok(answer)
            }
            _ => {
                let mut answer = self.forward(call).await?;
                self.with(|state| {
                    if state.active().is_some_and(|fault| fault.alter(call, &mut answer)) {
                        state.spend();
                    }
                });
                Ok(answer)
            }
        }
    }

    /// Whether this fault is still to be injected; if so, counts it.
    fn claim(&self, fault: Fault) -> bool {
        self.with(|state| {
            let mine = state.active() == Some(fault);
            if mine {
                state.spend();
            }
            mine
        })
    }

    async fn answer_behind(&self, call: &Value, blocks: u64) -> Result<Value> {
        let head = number(&self.ask("eth_blockNumber", json!([])).await?).context("a head")?;
        let limit = head.saturating_sub(blocks);
        let mut call = call.clone();
        let at = block_place(&call);
        if call["params"][at] == "latest" {
            call["params"][at] = json!(format!("{limit:#x}"));
            self.claim(Fault::Behind(u32::try_from(blocks)?));
        }
        let mut answer = self.forward(&call).await?;
        if call["method"] == "eth_blockNumber" {
            answer["result"] = json!(format!("{limit:#x}"));
        } else if self.block_of(&call).await?.is_some_and(|number| number > limit) {
            answer["result"] = if call["method"] == "eth_getLogs" { json!([]) } else { Value::Null };
        }
        Ok(answer)
    }

    async fn answer_held(&self, call: &Value, above: u64) -> Result<Value> {
        // Heads and tags are answered: a client has to wait for the blocks below them.
        let is_tag = ["latest", "safe", "finalized"].iter().any(|tag| call["params"][0] == *tag);
        let held = if is_tag { None } else { self.block_of(call).await? };
        if let Some(number) = held.filter(|number| *number > above) {
            self.claim(Fault::HoldAbove(above));
            while let Some(Fault::HoldAbove(above)) = self.active()
                && number > above
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        self.forward(call).await
    }

    async fn answer_otherwise(&self, call: &Value) -> Result<Value> {
        let right = self.forward(call).await?;
        let method = call["method"].as_str().unwrap_or_default();
        if !matches!(method, "eth_getBlockReceipts" | "eth_getLogs") {
            return Ok(right);
        }
        let below = self.block_of(call).await?.context("a call without a block")?.saturating_sub(1);
        let below = json!(format!("{below:#x}"));
        let params = if method == "eth_getLogs" { json!([{ "fromBlock": below, "toBlock": below }]) } else { json!([below]) };
        let other = self.ask(method, params).await?;
        if other == right["result"] || !self.claim(Fault::OtherBlocksReceipts) {
            return Ok(right);
        }
        Ok(json!({ "jsonrpc": "2.0", "id": call["id"], "result": other }))
    }

    /// The number of the block that a call names, if the node knows it.
    async fn block_of(&self, call: &Value) -> Result<Option<u64>> {
        let first = &call["params"][block_place(call)];
        let method = call["method"].as_str().unwrap_or_default();
        match (method, first.as_str().or(first["blockHash"].as_str())) {
            ("eth_getTransactionReceipt", _) => Ok(number(&self.ask(method, json!([first])).await?["blockNumber"])),
            (_, Some(hash)) if hash.len() == 66 => {
                Ok(number(&self.ask("eth_getBlockByHash", json!([hash, false])).await?["number"]))
            }
            ("eth_getBlockByNumber", Some(tag)) if !tag.starts_with("0x") => {
                Ok(number(&self.ask(method, json!([tag, false])).await?["number"]))
            }
            ("eth_getBlockByNumber" | "eth_getBlockReceipts", _) => Ok(number(first)),
            _ => Ok(None),
        }
    }

    async fn ask(&self, method: &str, params: Value) -> Result<Value> {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        Ok(self.forward(&call).await?["result"].take())
    }

    async fn forward(&self, call: &Value) -> Result<Value> {
        let url = self.url.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(self.http.post(url).json(call).send().await?.json().await?)
    }
}

/// Which parameter of a call names a block.
fn block_place(call: &Value) -> usize {
    usize::from(call["method"] == "eth_getBalance")
}

fn number(value: &Value) -> Option<u64> {
    quantity(value).ok()
}
