//! One endpoint: a node's URL with its transport, health, rate limit and capabilities.
//!
//! Every request waits for the rate limit and records its outcome, so that a failing endpoint slows only itself. Capabilities
//! (batches, `eth_getBlockReceipts`, tracers) are found out by use and kept for the life of the process. Failover between
//! endpoints is not here but in `pool`.

use super::error::RpcError;
use super::health::{Candidate, Circuit, NodeHealth};
use super::rate_limit::AdaptiveRateLimit;
use super::reply::{Answer, Reply};
use super::transport::{Call, Transport};
use crate::config::NodeUrl;
use alloy::primitives::U64;
use base::metrics;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;
use topics::ChainId;

/// The answers to a batch.
pub enum Batch<T> {
    /// The reader understood the whole reply.
    Read(T),
    /// One answer per call, in the order of the calls.
    Split(Vec<Result<Answer, RpcError>>),
}

/// One node of a chain.
#[derive(Debug)]
pub struct Endpoint {
    chain: String,
    host: String,
    provider: String,
    transport: Transport,
    /// The chain id in `chains.yaml`.
    expected: Option<ChainId>,
    is_of_chain: AtomicBool,
    block_receipts: AtomicBool,
    /// It has answered a batch.
    batches: AtomicBool,
    /// Index of the tracer to use, in the order of preference.
    tracer: AtomicU8,
    health: Mutex<NodeHealth>,
    rate_limit: Mutex<AdaptiveRateLimit>,
}

impl Endpoint {
    pub(super) fn new(chain: &str, url: &NodeUrl, expected: Option<ChainId>) -> Self {
        let endpoint = Self {
            chain: chain.to_owned(),
            host: url.host().to_owned(),
            provider: url.provider().to_owned(),
            transport: Transport::new(url),
            expected,
            is_of_chain: AtomicBool::new(false),
            block_receipts: AtomicBool::new(true),
            batches: AtomicBool::new(false),
            tracer: AtomicU8::new(0),
            health: Mutex::default(),
            rate_limit: Mutex::new(AdaptiveRateLimit::new(Instant::now())),
        };
        metrics::RPC_STATE.gauge(&endpoint.labels()).set(Circuit::Closed.as_number());
        endpoint
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What tells witnesses apart: the `group` in `chains.yaml`, or host and port.
    pub fn provider(&self) -> &str {
        &self.provider
    }

    fn labels(&self) -> [(&'static str, &str); 2] {
        [("chain", &self.chain), ("endpoint", &self.host)]
    }

    /// Sends a request and deserializes the result.
    ///
    /// # Errors
    /// On a timeout (10 s), an error answer, or a result of another type.
    pub async fn request<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, RpcError> {
        let answer = self.raw(method, params).await?;
        self.read(method, &answer)
    }

    /// Sends a request and returns the result's JSON as it came.
    ///
    /// # Errors
    /// On a timeout (10 s) or an error answer.
    pub async fn raw(&self, method: &'static str, params: Value) -> Result<Answer, RpcError> {
        let started = self.wait_for_slot().await;
        let answer = self.transport.call(method, &params).await;
        self.record_outcome(started, answer.as_ref().err());
        answer
    }

    /// Sends several calls in one HTTP request. Answers are in the order of the calls, whatever the node's order was.
    ///
    /// # Errors
    /// If the node does not answer all calls.
    pub async fn batch(&self, calls: &[Call]) -> Result<Vec<Result<Answer, RpcError>>, RpcError> {
        match self.batch_read(calls, |_| None::<()>).await? {
            Batch::Split(answers) => Ok(answers),
            Batch::Read(()) => Ok(Vec::new()),
        }
    }

    /// As [`batch`](Self::batch), with a reader that may understand the whole reply in one pass.
    ///
    /// # Errors
    /// If the node does not answer all calls.
    pub async fn batch_read<T>(&self, calls: &[Call], read: impl FnOnce(&Reply) -> Option<T>) -> Result<Batch<T>, RpcError> {
        let started = self.wait_for_slot().await;
        let reply = self.transport.batch(calls).await;
        let answers = reply.and_then(|reply| match read(&reply) {
            Some(read) => Ok(Batch::Read(read)),
            None => {
                let methods: Vec<_> = calls.iter().map(|(method, _)| *method).collect();
                reply.split(&methods).map(Batch::Split)
            }
        });
        let error = match &answers {
            Err(error) => Some(error),
            Ok(answers) => {
                self.batches.store(true, Ordering::Relaxed);
                match answers {
                    Batch::Read(_) => None,
                    Batch::Split(all) => {
                        all.iter().filter_map(|answer| answer.as_ref().err()).find(|error| error.is_rate_limit())
                    }
                }
            }
        };
        self.record_outcome(started, error);
        answers
    }

    /// Waits for the rate limit. Returns the time afterwards.
    async fn wait_for_slot(&self) -> Instant {
        let now = Instant::now();
        let slot = locked(&self.rate_limit, |rate_limit| rate_limit.reserve(now));
        if slot > now {
            tokio::time::sleep_until(slot.into()).await;
            return Instant::now();
        }
        now
    }

    fn record_outcome(&self, started: Instant, error: Option<&RpcError>) {
        let (labels, took) = (self.labels(), started.elapsed());
        metrics::RPC_LATENCY.histogram(&labels).record(took.as_secs_f64());
        let outcome = match error {
            None => "ok",
            Some(error) if error.is_rate_limit() => "limited",
            Some(_) => "error",
        };
        metrics::RPC_REQUESTS.counter(&[labels[0], labels[1], ("outcome", outcome)]).increment(1);
        match error {
            None => {
                locked(&self.health, |health| health.record_latency(took));
                locked(&self.rate_limit, AdaptiveRateLimit::record_success);
            }
            Some(error) if error.is_rate_limit() => {
                tracing::debug!(chain = self.chain, endpoint = self.host, "over the rate limit: {error}");
                locked(&self.rate_limit, |rate_limit| rate_limit.record_refusal(Instant::now(), error.retry_after()));
            }
            Some(_) => {}
        }
    }

    /// Deserializes a result.
    pub(crate) fn read<T: DeserializeOwned>(&self, method: &'static str, answer: &Answer) -> Result<T, RpcError> {
        serde_json::from_str(answer.get()).map_err(|source| self.malformed(method, source))
    }

    pub(crate) fn malformed(&self, method: &'static str, source: serde_json::Error) -> RpcError {
        RpcError::Malformed { method, endpoint: self.host.clone(), source }
    }

    /// Asks for the chain id (EIP-155).
    ///
    /// # Errors
    /// If the node does not answer it.
    pub async fn chain_id(&self) -> Result<ChainId, RpcError> {
        self.request("eth_chainId", json!([])).await.map(|id: U64| ChainId(id.to()))
    }

    /// Checks once that the node belongs to the chain of `chains.yaml`: otherwise one wrong endpoint in a list would bring in
    /// another chain's blocks on the first failover. The same request shows whether the node accepts batches.
    ///
    /// # Errors
    /// If it belongs to another chain, or does not answer.
    pub async fn check_chain_id(&self) -> Result<(), RpcError> {
        if self.is_of_chain.load(Ordering::Relaxed) {
            return Ok(());
        }
        let got = match self.batch(&[("eth_chainId", json!([])), ("eth_blockNumber", json!([]))]).await {
            Ok(answers) => {
                let answer = answers
                    .into_iter()
                    .next()
                    .unwrap_or_else(|| Err(RpcError::IncompleteBatch { method: "eth_chainId", endpoint: self.host.clone() }))?;
                self.read::<U64>("eth_chainId", &answer).map(|id| ChainId(id.to()))?
            }
            // A node without batches must answer this one.
            Err(_) => self.chain_id().await?,
        };
        if let Some(expected) = self.expected.filter(|expected| *expected != got) {
            return Err(RpcError::WrongChain { endpoint: self.host.clone(), expected, got });
        }
        self.is_of_chain.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it accepts batches, as far as known.
    pub(crate) fn takes_batches(&self) -> bool {
        self.batches.load(Ordering::Relaxed)
    }

    /// Whether it has `eth_getBlockReceipts`. Assumed until it refuses.
    pub(crate) fn has_block_receipts(&self) -> bool {
        self.block_receipts.load(Ordering::Relaxed)
    }

    /// From now on `eth_getLogs` is used here.
    pub(crate) fn mark_without_block_receipts(&self) {
        if self.block_receipts.swap(false, Ordering::Relaxed) {
            tracing::info!(
                chain = self.chain,
                endpoint = self.host,
                "no eth_getBlockReceipts at this endpoint; using eth_getLogs"
            );
        }
    }

    /// Index of the tracer to use, in the order of preference.
    pub(crate) fn tracer(&self) -> usize {
        usize::from(self.tracer.load(Ordering::Relaxed))
    }

    /// From now on the next tracer is used.
    pub(crate) fn mark_without_tracer(&self, place: usize) {
        let next = u8::try_from(place.saturating_add(1)).unwrap_or(u8::MAX);
        self.tracer.fetch_max(next, Ordering::Relaxed);
    }

    /// Its state for the ranking.
    pub(super) fn candidate(&self, now: Instant) -> Candidate {
        let health = locked(&self.health, |health| *health);
        Candidate { health, is_throttled: locked(&self.rate_limit, |rate_limit| rate_limit.is_throttled(now)) }
    }

    /// Whether its circuit lets a request through now. If that is the probe of an open circuit, the outcome decides.
    pub(super) fn allow_request(&self) -> bool {
        self.update_health(|health| health.allow_request(Instant::now()))
    }

    pub(super) fn record_failure(&self) {
        self.update_health(|health| health.record_failure(Instant::now(), jitter()));
    }

    pub(super) fn release_probe(&self) {
        self.update_health(|health| health.release_probe(Instant::now()));
    }

    pub(super) fn record_success(&self) {
        self.update_health(NodeHealth::record_success);
    }

    /// Records an answer that contradicts itself or a proven fact. Opens the circuit.
    pub fn record_lie(&self) {
        metrics::CHAIN_UNPROVEN.counter(&self.labels()).increment(1);
        self.update_health(|health| health.record_lie(Instant::now(), jitter()));
    }

    /// Records a head that it told of and that no endpoint had when asked. It ranks behind the others for a while.
    pub fn record_withheld_head(&self) {
        locked(&self.health, |health| health.record_withheld_head(Instant::now()));
    }

    /// Records that it has another block than ours where others have ours. While it goes on it ranks behind the others.
    pub fn record_contradiction(&self) {
        locked(&self.health, |health| health.record_contradiction(Instant::now()));
    }

    /// Counts a contradiction: one more block for which it has another.
    pub fn count_contradiction(&self) {
        metrics::RPC_CONTRADICTIONS.counter(&self.labels()).increment(1);
    }

    /// Records the height of its head.
    pub(crate) fn record_head(&self, number: u64) {
        locked(&self.health, |health| health.record_head(number));
        #[expect(clippy::cast_precision_loss, reason = "block numbers are far below 2^52")]
        metrics::RPC_HEAD.gauge(&self.labels()).set(number as f64);
    }

    /// Whether its circuit is closed.
    pub fn is_healthy(&self) -> bool {
        locked(&self.health, |health| health.circuit() == Circuit::Closed)
    }

    /// Changes the health and updates the circuit's metric.
    fn update_health<T>(&self, act: impl FnOnce(&mut NodeHealth) -> T) -> T {
        let (before, done, after) = locked(&self.health, |health| {
            let before = health.circuit();
            let done = act(health);
            (before, done, health.circuit())
        });
        if before != after {
            metrics::RPC_STATE.gauge(&self.labels()).set(after.as_number());
        }
        done
    }
}

/// From 0 to 1, so that endpoints that failed together are not all probed at the same moment. The clock is random enough.
fn jitter() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos() % 1000) / 1000.0
}

/// Runs `act` under the lock. Nothing panics while holding it, and any state of its content is valid.
fn locked<S, T>(state: &Mutex<S>, act: impl FnOnce(&mut S) -> T) -> T {
    act(&mut state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}
