use super::error::RpcError;
use crate::config::NodeUrl;
use alloy::primitives::U64;
use alloy::rpc::client::RpcClient;
use alloy::transports::http::{Http, reqwest};
use runtime::metrics;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use topics::ChainId;

const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_BENCH: Duration = Duration::from_millis(250);
const LONGEST_BENCH: Duration = Duration::from_secs(30);

/// One node of a chain.
#[derive(Debug)]
pub struct Endpoint {
    chain: String,
    host: String,
    client: RpcClient,
    expected: Option<ChainId>,
    is_of_chain: AtomicBool,
    block_receipts: AtomicBool,
    bench: Mutex<Bench>,
}

/// An endpoint that fails is asked last for a while, the longer the oftener.
#[derive(Debug, Default)]
struct Bench {
    failures: u32,
    until: Option<Instant>,
}

impl Endpoint {
    pub(super) fn new(chain: &str, url: &NodeUrl, expected: Option<ChainId>) -> Self {
        // Building fails only where TLS can't be set up at all; the default client would then fail the same way.
        let http = reqwest::Client::builder().timeout(TIMEOUT).connect_timeout(CONNECT_TIMEOUT).build().unwrap_or_default();
        Self {
            chain: chain.to_owned(),
            host: url.host().to_owned(),
            client: RpcClient::new(Http::with_client(http, url.url().clone()), false),
            expected,
            is_of_chain: AtomicBool::new(false),
            block_receipts: AtomicBool::new(true),
            bench: Mutex::default(),
        }
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Asks, and reads the answer.
    ///
    /// # Errors
    /// When there is none within 10 s, or it is an error or something else.
    pub async fn request<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, RpcError> {
        let answer = self.raw(method, params).await?;
        serde_json::from_str(answer.get()).map_err(|source| self.malformed(method, source))
    }

    /// Asks, and gives the answer's JSON as it came.
    ///
    /// # Errors
    /// When there is none within 10 s, or it is an error.
    pub async fn raw(&self, method: &'static str, params: Value) -> Result<Box<RawValue>, RpcError> {
        let started = Instant::now();
        let answer: Result<Box<RawValue>, _> = self.client.request(method, params).await;
        let labels = [("chain", self.chain.as_str()), ("endpoint", self.host.as_str())];
        metrics::RPC_LATENCY.histogram(&labels).record(started.elapsed().as_secs_f64());
        let outcome = if answer.is_ok() { "ok" } else { "error" };
        metrics::RPC_REQUESTS.counter(&[labels[0], labels[1], ("outcome", outcome)]).increment(1);
        answer.map_err(|error| RpcError::new(method, &self.host, error))
    }

    pub(crate) fn malformed(&self, method: &'static str, source: serde_json::Error) -> RpcError {
        RpcError::Malformed { method, endpoint: self.host.clone(), source }
    }

    /// EIP-155.
    ///
    /// # Errors
    /// When the node does not say.
    pub async fn chain_id(&self) -> Result<ChainId, RpcError> {
        self.request("eth_chainId", json!([])).await.map(|id: U64| ChainId(id.to()))
    }

    /// Makes sure once that the node is of the chain that `chains.yaml` says: one wrong endpoint in a list would bring
    /// another chain's blocks in on the first failover.
    ///
    /// # Errors
    /// When it is not, or does not say.
    pub async fn check_chain(&self) -> Result<(), RpcError> {
        let Some(expected) = self.expected else { return Ok(()) };
        if self.is_of_chain.load(Ordering::Relaxed) {
            return Ok(());
        }
        let got = self.chain_id().await?;
        if got != expected {
            return Err(RpcError::WrongChain { endpoint: self.host.clone(), expected, got });
        }
        self.is_of_chain.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether `eth_getBlockReceipts` is worth asking for.
    pub(crate) fn has_block_receipts(&self) -> bool {
        self.block_receipts.load(Ordering::Relaxed)
    }

    pub(crate) fn lacks_block_receipts(&self) {
        if self.block_receipts.swap(false, Ordering::Relaxed) {
            tracing::info!(chain = self.chain, endpoint = self.host, "no eth_getBlockReceipts here; using eth_getLogs");
        }
    }

    pub(super) fn is_benched(&self) -> bool {
        self.with_bench(|bench| bench.until.is_some_and(|until| Instant::now() < until))
    }

    pub(super) fn failed(&self) {
        self.with_bench(|bench| {
            let time = FIRST_BENCH.saturating_mul(1 << bench.failures.min(10)).min(LONGEST_BENCH);
            bench.failures = bench.failures.saturating_add(1);
            bench.until = Some(Instant::now() + time);
        });
    }

    pub(super) fn succeeded(&self) {
        self.with_bench(|bench| *bench = Bench::default());
    }

    fn with_bench<T>(&self, act: impl FnOnce(&mut Bench) -> T) -> T {
        // Nothing panics while holding it, and a bench is right whatever state it is in.
        act(&mut self.bench.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
