//! Asking a chain's nodes: in order of preference, elsewhere when one fails, again when all do.
//!
//! alloy's and tower's layers for retrying, falling back and throttling are not used: none of them knows that an answer failed
//! its proof, how far an endpoint lags, or what a provider allows. [`health`] and [`pace`] do, and are pure.

mod endpoint;
mod error;
mod health;
mod pace;
mod probe;
mod transport;

use crate::config::{Chain, NodeUrl};
use alloy::primitives::U64;
use backon::BackoffBuilder as _;
pub(crate) use endpoint::Batch;
pub use endpoint::Endpoint;
pub use error::RpcError;
pub(crate) use error::excerpt;
pub use health::LAGS;
pub use probe::{Probe, table};
use serde_json::json;
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use topics::ChainId;
pub(crate) use transport::Call;
pub use transport::{Answer, Reply};

/// Times that all endpoints are asked before the caller hears of it.
const ROUNDS: usize = 3;
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// How often those are asked for their head that are not asked for anything else.
const LOOKS_AROUND: Duration = Duration::from_secs(2);

/// A chain's nodes.
#[derive(Clone, Debug)]
pub struct Rpc {
    chain: String,
    endpoints: Vec<Arc<Endpoint>>,
    looked: Arc<Mutex<Option<Instant>>>,
}

/// A block that the chain itself calls settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Unlikely to go.
    Safe,
    /// Gone only with the chain.
    Finalized,
}

impl Tag {
    /// JSON-RPC's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Finalized => "finalized",
        }
    }
}

impl Rpc {
    /// The nodes at `urls`, in order of preference. With `expected`, a node of another chain is never listened to.
    pub fn new(chain: &str, urls: &[NodeUrl], expected: Option<ChainId>) -> Self {
        let endpoints = urls.iter().map(|url| Arc::new(Endpoint::new(chain, url, expected))).collect();
        Self { chain: chain.to_owned(), endpoints, looked: Arc::default() }
    }

    /// The nodes of a chain.
    pub fn of(chain: &Chain) -> Self {
        Self::new(&chain.name, &chain.rpc_urls, Some(chain.id))
    }

    /// All endpoints, in the order of `chains.yaml`.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The endpoint that is asked first now, if it is of this chain.
    pub async fn preferred(&self) -> Option<Arc<Endpoint>> {
        let first = self.by_preference().into_iter().next()?;
        first.check_chain().await.ok().map(|()| first)
    }

    /// The id that the nodes tell.
    ///
    /// # Errors
    /// When none does.
    pub async fn chain_id(&self) -> Result<ChainId, RpcError> {
        let id = self.attempt(|endpoint| async move { endpoint.chain_id().await.map(Some) }).await?;
        id.ok_or_else(|| RpcError::NoEndpoint(self.chain.clone()))
    }

    /// Asks every endpoint for its chain. One that does not answer is passed over: it is asked again before its first use.
    ///
    /// # Errors
    /// When one is of another chain.
    pub async fn refuse_wrong_chain(&self) -> Result<(), RpcError> {
        let answers = futures::future::join_all(self.endpoints.iter().map(|endpoint| endpoint.check_chain())).await;
        for answer in answers {
            match answer {
                Err(wrong @ RpcError::WrongChain { .. }) => return Err(wrong),
                Err(error) => tracing::warn!(chain = self.chain, "not checked yet: {error}"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Does `work` at the first endpoint, at the next if it fails there or gives `None`, and over again with growing
    /// delays. `None` if some endpoint gave that and none gave more.
    ///
    /// # Errors
    /// The last failure, when every endpoint failed in each of three rounds.
    pub async fn attempt<T, E, F, Fut>(&self, work: F) -> Result<Option<T>, E>
    where
        F: Fn(Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<Option<T>, E>>,
        E: From<RpcError> + Display + Blames,
    {
        let mut delays = backon::ExponentialBuilder::new()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .with_max_times(ROUNDS - 1)
            .with_jitter()
            .build();
        // Kept over the rounds: a circuit that the failure opened may still be open in the last one, and says nothing of why.
        let mut failure = None;
        loop {
            let mut absent = false;
            for endpoint in self.by_preference() {
                if !endpoint.admits() {
                    continue;
                }
                let unanswered = Unanswered(&endpoint);
                let answer = match endpoint.check_chain().await {
                    Ok(()) => work(endpoint.clone()).await,
                    Err(error) => Err(error.into()),
                };
                std::mem::forget(unanswered);
                match answer {
                    Ok(Some(found)) => {
                        endpoint.succeeded();
                        return Ok(Some(found));
                    }
                    Ok(None) => {
                        endpoint.succeeded();
                        absent = true;
                    }
                    Err(error) => {
                        tracing::debug!(chain = self.chain, endpoint = endpoint.host(), "{error}");
                        match error.blame() {
                            Blame::Lie => endpoint.lied(),
                            Blame::Fault => endpoint.failed(),
                            // It works, and is asked less from now on.
                            Blame::None => endpoint.succeeded(),
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

    /// Asks, in the background, how far the endpoints are that were not asked just now.
    pub(crate) fn look_around(&self, asked: &Arc<Endpoint>) {
        let now = Instant::now();
        let due = self.looked.lock().is_ok_and(|mut looked| {
            let due = looked.is_none_or(|looked| now.saturating_duration_since(looked) > LOOKS_AROUND);
            if due {
                *looked = Some(now);
            }
            due
        });
        for endpoint in self.endpoints.iter().filter(|endpoint| due && !Arc::ptr_eq(endpoint, asked)) {
            let endpoint = endpoint.clone();
            // It ends by itself with the request's timeout.
            tokio::spawn(async move {
                let number: Result<U64, RpcError> = endpoint.request("eth_blockNumber", json!([])).await;
                if let Ok(number) = number {
                    endpoint.saw_head(number.to());
                }
            });
        }
    }

    /// The endpoints, the one to be asked first at the front.
    pub(crate) fn by_preference(&self) -> Vec<Arc<Endpoint>> {
        let now = Instant::now();
        let candidates: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.candidate(now)).collect();
        health::order(&candidates, now).into_iter().filter_map(|place| self.endpoints.get(place).cloned()).collect()
    }
}

/// A request whose outcome is not known yet. Dropped, nobody waits for it any more: a catch-up that starts over aborts what is
/// on its way, and with it maybe the probe of a circuit.
struct Unanswered<'a>(&'a Endpoint);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.given_up();
    }
}

/// What a failure says of the endpoint it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Nothing: it was asked too much.
    None,
    /// It does not work.
    Fault,
    /// What it said is not true.
    Lie,
}

/// Errors that say it.
pub trait Blames {
    /// Of this one.
    fn blame(&self) -> Blame;
}

impl Blames for RpcError {
    fn blame(&self) -> Blame {
        if self.is_limit() { Blame::None } else { Blame::Fault }
    }
}
