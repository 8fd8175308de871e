//! The pool of a chain's endpoints: failover between them, and back-off when all fail.

use super::blame::{Blame, BlamesEndpoint};
use super::endpoint::Endpoint;
use super::error::RpcError;
use super::health;
use super::trace_time::{TraceTime, TraceTimes};
use crate::block::Head;
use crate::config::{Chain, NodeUrl};
use alloy::primitives::{B256, U64};
use backon::BackoffBuilder as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::json;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use topics::ChainId;

/// Rounds over all endpoints before the caller gets the error.
const MAX_ROUNDS: usize = 3;
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// After so long a block counts as not tried before.
const MAX_TRIED_AGE: Duration = Duration::from_secs(300);
/// How often idle endpoints are asked for their head, which shows how far they lag.
const HEAD_REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// How long a block waits for what no root proves: for an endpoint that does not confirm it, or for a trace that fails. Longer would
/// let one endpoint or one transaction stop the chain.
const PATIENCE: Duration = Duration::from_secs(15);

/// The endpoints of a chain.
#[derive(Clone, Debug)]
pub struct Rpc {
    chain: String,
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    heads_refreshed: Arc<Mutex<Option<Instant>>>,
    /// Since when blocks have been traced that are not complete yet.
    tried: Arc<Mutex<HashMap<B256, Instant>>>,
    trace_times: Arc<Mutex<TraceTimes>>,
}

impl Rpc {
    /// A pool of the nodes at `urls`, in order of preference. With `expected`, a node of another chain is never used.
    pub fn new(chain: &str, urls: &[NodeUrl], expected: Option<ChainId>) -> Self {
        Self::with_patience(chain, urls, expected, PATIENCE)
    }

    /// As [`new`](Self::new), with another time that a block waits for what no root proves.
    pub fn with_patience(chain: &str, urls: &[NodeUrl], expected: Option<ChainId>, patience: Duration) -> Self {
        let is_lone = urls.len() == 1;
        let endpoints = urls.iter().map(|url| Arc::new(Endpoint::new(chain, url, expected, is_lone, patience))).collect();
        Self {
            chain: chain.to_owned(),
            endpoints,
            heads_refreshed: Arc::default(),
            tried: Arc::default(),
            trace_times: Arc::new(Mutex::new(TraceTimes::new(patience))),
        }
    }

    /// A pool of the chain's `rpc_urls`.
    pub fn of(chain: &Chain) -> Self {
        Self::new(&chain.name, &chain.rpc_urls, Some(chain.id))
    }

    /// The chain's name.
    pub(crate) fn chain(&self) -> &str {
        &self.chain
    }

    /// All endpoints, in the order of `chains.yaml`.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The endpoint that is asked first now, if it belongs to this chain.
    pub async fn preferred(&self) -> Option<Arc<Endpoint>> {
        let first = self.by_preference().into_iter().next()?;
        first.check_chain_id().await.ok().map(|()| first)
    }

    /// Asks the nodes for their chain id.
    ///
    /// # Errors
    /// If none answers.
    pub async fn chain_id(&self) -> Result<ChainId, RpcError> {
        let id = self.with_failover(|endpoint| async move { endpoint.chain_id().await.map(Some) }).await?;
        id.ok_or_else(|| RpcError::NoEndpoint(self.chain.clone()))
    }

    /// Checks that an endpoint belongs to this chain. Those of another chain are never used; one that does not answer is asked again
    /// before its first use.
    ///
    /// # Errors
    /// If all endpoints belong to another chain.
    pub async fn refuse_wrong_chain(&self) -> Result<(), RpcError> {
        let mut answers: FuturesUnordered<_> = self.endpoints.iter().map(|endpoint| endpoint.check_chain_id()).collect();
        let (mut wrong, mut silent) = (None, false);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(()) => return Ok(()),
                Err(error @ RpcError::WrongChain { .. }) => wrong = Some(error),
                Err(_) => silent = true,
            }
        }
        wrong.filter(|_| !silent).map_or(Ok(()), Err)
    }

    /// Runs `work` at the preferred endpoint, and at the next one if it fails or returns `None`. If all fail, retries all with
    /// back-off. Returns `None` if some endpoint returned it and none returned more.
    ///
    /// # Errors
    /// The last failure, if every endpoint failed in each of three rounds.
    pub async fn with_failover<T, E, F, Fut>(&self, work: F) -> Result<Option<T>, E>
    where
        F: Fn(Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<Option<T>, E>>,
        E: From<RpcError> + Display + BlamesEndpoint,
    {
        let mut delays = backon::ExponentialBuilder::new()
            .with_min_delay(MIN_BACKOFF)
            .with_max_delay(MAX_BACKOFF)
            .with_max_times(MAX_ROUNDS - 1)
            .with_jitter()
            .build();
        // Kept over the rounds: in the last one a circuit that the failure opened may still be open, which does not say why.
        let mut failure = None;
        loop {
            let mut absent = false;
            for endpoint in self.by_preference() {
                // Whoever has said that there is nothing is not kept waiting by one that may not be asked now.
                if absent && endpoint.is_throttled() || !endpoint.allow_request() {
                    continue;
                }
                let guard = ProbeGuard(&endpoint);
                let answer = match endpoint.check_chain_id().await {
                    Ok(()) => work(endpoint.clone()).await,
                    Err(error) => Err(error.into()),
                };
                std::mem::forget(guard);
                match answer {
                    Ok(Some(found)) => {
                        endpoint.record_success();
                        return Ok(Some(found));
                    }
                    Ok(None) => {
                        endpoint.record_success();
                        absent = true;
                    }
                    Err(error) => {
                        tracing::debug!(chain = self.chain, endpoint = endpoint.host(), "{error}");
                        match error.blame() {
                            Blame::Lie => endpoint.record_lie(),
                            Blame::Fault => endpoint.record_failure(),
                            // It works; its rate limit slows further requests.
                            Blame::None => endpoint.record_success(),
                        }
                        failure = Some(error);
                    }
                }
            }
            if absent {
                return Ok(None);
            }
            match delays.next() {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(failure.unwrap_or_else(|| E::from(RpcError::AllOpen(self.chain.clone())))),
            }
        }
    }

    /// Asks all endpoints but `asked` for their head, in the background.
    pub(crate) fn refresh_heads(&self, asked: &Arc<Endpoint>) {
        let now = Instant::now();
        let due = self.heads_refreshed.lock().is_ok_and(|mut refreshed| {
            let due = refreshed.is_none_or(|refreshed| now.saturating_duration_since(refreshed) > HEAD_REFRESH_INTERVAL);
            if due {
                *refreshed = Some(now);
            }
            due
        });
        for endpoint in self.endpoints.iter().filter(|endpoint| due && !Arc::ptr_eq(endpoint, asked)) {
            let endpoint = endpoint.clone();
            // The request's timeout ends it.
            tokio::spawn(async move {
                // Another chain's height would make all others lag.
                if endpoint.check_chain_id().await.is_err() {
                    return;
                }
                let number: Result<U64, RpcError> = endpoint.request("eth_blockNumber", json!([])).await;
                if let Ok(number) = number {
                    endpoint.record_head(number.to());
                }
            });
        }
    }

    /// The endpoints that can confirm what `asked` says, in the order in which they are asked: another path of the same server
    /// is the same node.
    pub(crate) fn others(&self, asked: &Endpoint) -> Vec<Arc<Endpoint>> {
        let mut others = self.by_preference();
        others.retain(|other| other.host() != asked.host());
        others
    }

    /// How long a block may take for its traces. The time since `began` went to its content, and is not charged.
    pub(crate) fn trace_time(&self, block: B256, began: Instant) -> TraceTime {
        let now = Instant::now();
        let tried = base::locked(&self.tried).get(&block).map(|since| (*since + (now - began)).min(now));
        base::locked(&self.trace_times).of_block(tried.unwrap_or(now), now)
    }

    /// A block was published, which tells how fast the chain is.
    pub fn record_published(&self, block: &Head) {
        base::locked(&self.trace_times).count(block.number, block.timestamp);
    }

    /// A block was traced since then, and lacks something yet. Only such blocks are remembered.
    pub(crate) fn record_tried(&self, block: B256, since: Instant) {
        let now = Instant::now();
        let mut tried = base::locked(&self.tried);
        tried.retain(|_, since| now.saturating_duration_since(*since) < MAX_TRIED_AGE);
        tried.insert(block, since);
    }

    /// A block that was traced since then goes on, whole or not.
    pub(crate) fn record_traced(&self, block: B256, since: Instant, is_whole: bool) {
        let now = Instant::now();
        base::locked(&self.tried).remove(&block);
        base::locked(&self.trace_times).charge(now.saturating_duration_since(since), is_whole, now);
    }

    /// The endpoints in the order in which they are asked.
    pub(crate) fn by_preference(&self) -> Vec<Arc<Endpoint>> {
        let now = Instant::now();
        let candidates: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.candidate(now)).collect();
        health::rank(&candidates, now).into_iter().filter_map(|place| self.endpoints.get(place).cloned()).collect()
    }
}

/// Frees a circuit's probe if its request is dropped before the outcome is known: a catch-up that starts over aborts the
/// requests under way.
struct ProbeGuard<'a>(&'a Endpoint);

impl Drop for ProbeGuard<'_> {
    fn drop(&mut self) {
        self.0.release_probe();
    }
}
