//! Asking a chain's nodes: in order of preference, elsewhere when one fails, again when all do.

mod endpoint;
mod error;

use crate::config::{Chain, NodeUrl};
use backon::BackoffBuilder as _;
pub use endpoint::Endpoint;
pub use error::RpcError;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use topics::ChainId;

/// Times that all endpoints are asked before the caller hears of it.
const ROUNDS: usize = 3;
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// A chain's nodes.
#[derive(Clone, Debug)]
pub struct Rpc {
    chain: String,
    endpoints: Vec<Arc<Endpoint>>,
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
        Self { chain: chain.to_owned(), endpoints }
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
        E: From<RpcError> + Display,
    {
        let mut delays = backon::ExponentialBuilder::new()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .with_max_times(ROUNDS - 1)
            .with_jitter()
            .build();
        loop {
            let mut failure = E::from(RpcError::NoEndpoint(self.chain.clone()));
            let mut absent = false;
            for endpoint in self.by_preference() {
                let answer = match endpoint.check_chain().await {
                    Ok(()) => work(endpoint.clone()).await,
                    Err(error) => Err(error.into()),
                };
                match answer {
                    Ok(Some(found)) => {
                        endpoint.succeeded();
                        return Ok(Some(found));
                    }
                    Ok(None) => absent = true,
                    Err(error) => {
                        endpoint.failed();
                        tracing::debug!(chain = self.chain, endpoint = endpoint.host(), "{error}");
                        failure = error;
                    }
                }
            }
            if absent {
                return Ok(None);
            }
            match delays.next() {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(failure),
            }
        }
    }

    fn by_preference(&self) -> Vec<Arc<Endpoint>> {
        let mut endpoints = self.endpoints.clone();
        endpoints.sort_by_key(|endpoint| endpoint.is_benched());
        endpoints
    }
}
