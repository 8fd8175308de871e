//! One endpoint: a node's URL with its transport, health, rate limit and capabilities.
//!
//! Every request waits for the rate limit and records its outcome, so that a failing endpoint slows only itself. Capabilities
//! (batches, `eth_getBlockReceipts`, tracers) are found out by use, and tried again after a while. `ask` has the requests;
//! failover between endpoints is in `pool`.

use super::batch_limit::BatchLimit;
use super::capability::Capability;
use super::error::RpcError;
use super::health::{Candidate, Circuit, NodeHealth};
use super::patience::LearnedLatency;
use super::rate_limit::AdaptiveRateLimit;
use super::reply::Answer;
use super::silence::Silence;
use super::transport::Transport;
use crate::config::NodeUrl;
use alloy::primitives::U64;
use base::metrics;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
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
    pub(super) chain: String,
    pub(super) host: String,
    provider: String,
    pub(super) transport: Transport,
    /// The chain has no other.
    pub(super) is_lone: bool,
    /// The chain id in `chains.yaml`.
    expected: Option<ChainId>,
    is_of_chain: AtomicBool,
    block_receipts: Mutex<Capability>,
    /// The tracers, in the order of preference.
    tracers: Mutex<[Capability; 2]>,
    pub(super) batch_limit: Mutex<BatchLimit>,
    pub(super) latency: Mutex<LearnedLatency>,
    silence: Mutex<Silence>,
    health: Mutex<NodeHealth>,
    pub(super) rate_limit: Mutex<AdaptiveRateLimit>,
}

impl Endpoint {
    pub(super) fn new(chain: &str, url: &NodeUrl, expected: Option<ChainId>, is_lone: bool, patience: Duration) -> Self {
        let endpoint = Self {
            chain: chain.to_owned(),
            host: url.host().to_owned(),
            provider: url.provider().to_owned(),
            transport: Transport::new(url),
            is_lone,
            expected,
            is_of_chain: AtomicBool::new(false),
            block_receipts: Mutex::default(),
            tracers: Mutex::default(),
            batch_limit: Mutex::default(),
            latency: Mutex::default(),
            silence: Mutex::new(Silence::new(patience)),
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

    /// Counts an HTTP request by its outcome.
    pub(super) fn count_request(&self, outcome: &str) {
        let labels = self.labels();
        metrics::RPC_REQUESTS.counter(&[labels[0], labels[1], ("outcome", outcome)]).increment(1);
    }

    /// Records an answer, or why there is none. `limited` says that the rate limit refused parts of the answer.
    pub(super) fn record_outcome(&self, method: &'static str, started: Instant, error: Option<&RpcError>, limited: bool) {
        let took = started.elapsed();
        metrics::RPC_LATENCY.histogram(&self.labels()).record(took.as_secs_f64());
        match error {
            _ if limited || error.is_some_and(RpcError::is_rate_limit) => {
                self.count_request("limited");
                tracing::debug!(chain = self.chain, endpoint = self.host, "over the rate limit");
                let retry_after = error.and_then(RpcError::retry_after);
                locked(&self.rate_limit, |rate_limit| rate_limit.record_refusal(Instant::now(), retry_after));
            }
            None => {
                self.count_request("ok");
                locked(&self.health, |health| health.record_latency(took));
                locked(&self.latency, |latency| latency.record(method, took));
                locked(&self.rate_limit, AdaptiveRateLimit::record_success);
            }
            Some(_) => self.count_request("error"),
        }
    }

    /// Deserializes a result.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn read<T: DeserializeOwned>(&self, method: &'static str, answer: &Answer) -> Result<T, RpcError> {
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
        locked(&self.batch_limit, |limit| limit.calls(Instant::now())) > 1
    }

    /// Whether it has `eth_getBlockReceipts`. Assumed until it refuses, and again after a while.
    pub(crate) fn has_block_receipts(&self) -> bool {
        locked(&self.block_receipts, |capability| capability.is_assumed(Instant::now()))
    }

    /// For a while `eth_getLogs` is used here.
    pub(crate) fn mark_without_block_receipts(&self) {
        if locked(&self.block_receipts, |capability| capability.record_refusal(Instant::now())) {
            tracing::info!(
                chain = self.chain,
                endpoint = self.host,
                "no eth_getBlockReceipts at this endpoint; using eth_getLogs"
            );
        }
    }

    /// It has answered `eth_getBlockReceipts`.
    pub(crate) fn mark_with_block_receipts(&self) {
        locked(&self.block_receipts, Capability::record_answer);
    }

    /// Index of the tracer to use, in the order of preference. `None` if it refused all of them.
    pub(crate) fn tracer(&self) -> Option<usize> {
        let now = Instant::now();
        locked(&self.tracers, |tracers| tracers.iter().position(|tracer| tracer.is_assumed(now)))
    }

    /// For a while the next tracer is used.
    pub(crate) fn mark_without_tracer(&self, place: usize) {
        locked(&self.tracers, |tracers| tracers.get_mut(place).map(|tracer| tracer.record_refusal(Instant::now())));
    }

    /// It has answered with this tracer.
    pub(crate) fn mark_with_tracer(&self, place: usize) {
        locked(&self.tracers, |tracers| tracers.get_mut(place).map(Capability::record_answer));
    }

    /// Whether a block waits for its confirmation of what no root proves. Not for one that has been silent for long.
    pub(crate) fn is_waited_for(&self) -> bool {
        locked(&self.silence, |silence| silence.is_waited_for(Instant::now()))
    }

    /// It has confirmed or contradicted what another endpoint said.
    pub(crate) fn record_confirmation(&self) {
        if locked(&self.silence, Silence::record_confirmation) {
            tracing::info!(chain = self.chain, endpoint = self.host, "it confirms again what no root proves");
        }
    }

    /// It answers that it lacks what another endpoint has given.
    pub(crate) fn record_absence(&self) {
        locked(&self.silence, |silence| silence.record_absence(Instant::now()));
    }

    /// It has neither confirmed nor contradicted what another endpoint said.
    pub(crate) fn record_silence(&self) {
        if locked(&self.silence, |silence| silence.record(Instant::now())) {
            let (chain, endpoint) = (&self.chain, &self.host);
            tracing::warn!(chain, endpoint, "it does not confirm what no root proves; blocks go on without it until it does");
        }
    }

    /// Its state for the ranking.
    pub(super) fn candidate(&self, now: Instant) -> Candidate {
        let health = locked(&self.health, |health| *health);
        Candidate { health, is_throttled: locked(&self.rate_limit, |rate_limit| rate_limit.is_throttled(now)) }
    }

    /// Whether its rate limit holds requests back.
    pub(super) fn is_throttled(&self) -> bool {
        locked(&self.rate_limit, |rate_limit| rate_limit.is_throttled(Instant::now()))
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
pub(super) fn jitter() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos() % 1000) / 1000.0
}

/// Runs `act` under the lock. Nothing panics while holding it, and any state of its content is valid.
pub(super) fn locked<S, T>(state: &Mutex<S>, act: impl FnOnce(&mut S) -> T) -> T {
    act(&mut base::locked(state))
}
