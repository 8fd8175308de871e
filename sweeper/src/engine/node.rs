//! What the engine asks a chain's nodes, and how it sends. Nothing that they say makes a transaction mined or failed.

use super::answers::Answer;
use super::fees::{FeeHistory, Market};
use super::rows::LaneId;
use alloy::primitives::{B256, Bytes, U64, U128};
use base::locked;
use chain::{Endpoint, Rpc, RpcError};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long what gas costs is believed: about a block of the fastest chains that have a market.
const MARKET_TTL: Duration = Duration::from_secs(3);
/// Blocks that are looked at for tips.
const HISTORY_BLOCKS: u64 = 10;
/// Half of what a block was tipped was less.
const TIP_PERCENTILE: u64 = 50;

/// The nodes of a chain.
#[derive(Debug)]
pub struct Nodes {
    rpc: Rpc,
    market: Mutex<Option<(Instant, Market)>>,
}

impl Nodes {
    pub fn new(rpc: Rpc) -> Self {
        Self { rpc, market: Mutex::default() }
    }

    /// What gas costs now. `None` if no node tells; what waits for it waits.
    pub async fn market(&self) -> Option<Market> {
        let known = *locked(&self.market);
        if let Some((asked, market)) = known
            && asked.elapsed() < MARKET_TTL
        {
            return Some(market);
        }
        let answer = self.rpc.with_failover(|endpoint| async move { ask_market(&endpoint).await }).await;
        let market = answer.inspect_err(|error| tracing::warn!("what gas costs is not known: {error}")).ok().flatten()?;
        *locked(&self.market) = Some((Instant::now(), market));
        Some(market)
    }

    /// How many transactions a sender has in the chain, as the preferred node counts.
    ///
    /// # Errors
    /// If none answers.
    pub async fn count(&self, lane: &LaneId) -> Result<u64, RpcError> {
        let sender = lane.sender;
        let ask = |endpoint: Arc<Endpoint>| async move { count(&endpoint, json!([sender, "latest"])).await.map(Some) };
        let count = self.rpc.with_failover(ask).await?;
        count.ok_or_else(|| RpcError::NoEndpoint(lane.chain.to_string()))
    }

    /// How many transactions a sender has up to a block. `None` unless all nodes that answer say the same: with the nonces
    /// below, other transactions are signed anew, which would pay twice if the count were too high.
    pub async fn count_at(&self, lane: &LaneId, number: u64) -> Option<u64> {
        let params = json!([lane.sender, U64::from(number)]);
        let mut asked: FuturesUnordered<_> =
            self.rpc.endpoints().iter().map(|endpoint| count(endpoint, params.clone())).collect();
        let mut said = None;
        while let Some(answer) = asked.next().await {
            match (answer, said) {
                (Ok(count), None) => said = Some(count),
                (Ok(count), Some(before)) if count != before => return None,
                _ => {}
            }
        }
        said
    }

    /// Sends a signed transaction to all nodes of the chain. The first that has it counts, and the others go on without being
    /// waited for.
    pub async fn send(&self, hash: B256, raw: &Bytes) -> Answer {
        // Detached: to drop a request may be to withdraw it.
        let send = |endpoint: &Arc<Endpoint>| tokio::spawn(send(endpoint.clone(), hash, raw.clone()));
        let mut sent: FuturesUnordered<_> = self.rpc.endpoints().iter().map(send).collect();
        let mut answers = Vec::new();
        while let Some(answer) = sent.next().await {
            let answer = answer.unwrap_or(Answer::Unknown);
            answers.push(answer);
            if matches!(answer, Answer::Accepted | Answer::AlreadyThere) {
                break;
            }
        }
        Answer::best(answers)
    }
}

async fn send(endpoint: Arc<Endpoint>, hash: B256, raw: Bytes) -> Answer {
    // A node of another chain can't mine it, and would know it for ever.
    if endpoint.check_chain_id().await.is_err() {
        return Answer::Unknown;
    }
    match endpoint.raw("eth_sendRawTransaction", json!([raw])).await {
        // Its hash is known before: what the node calls it says nothing.
        Ok(_) => Answer::Accepted,
        Err(error) => {
            tracing::debug!(%hash, endpoint = endpoint.host(), "{error}");
            match error {
                RpcError::Refused { message, .. } => Answer::read(&message),
                // Some providers answer an error of the node with another status than 200.
                RpcError::Http { body, .. } => Answer::read(&body),
                _ => Answer::Unknown,
            }
        }
    }
}

async fn count(endpoint: &Endpoint, params: serde_json::Value) -> Result<u64, RpcError> {
    endpoint.check_chain_id().await?;
    endpoint.request::<U64>("eth_getTransactionCount", params).await.map(|count| count.to())
}

async fn ask_market(endpoint: &Endpoint) -> Result<Option<Market>, RpcError> {
    let params = json!([U64::from(HISTORY_BLOCKS), "latest", [TIP_PERCENTILE]]);
    let history: Option<FeeHistory> = told(endpoint.request("eth_feeHistory", params).await)?;
    let tip: Option<U128> = told(endpoint.request("eth_maxPriorityFeePerGas", json!([])).await)?;
    let price: Option<U128> = told(endpoint.request("eth_gasPrice", json!([])).await)?;
    Ok(Market::read(history.as_ref(), tip.map(|tip| tip.to()), price.map(|price| price.to())))
}

/// What a node refuses to say, or says in another form, is not known; a node that does not answer is asked no further.
fn told<T>(answer: Result<Option<T>, RpcError>) -> Result<Option<T>, RpcError> {
    match answer {
        Err(RpcError::Refused { .. } | RpcError::Malformed { .. }) => Ok(None),
        answer => answer,
    }
}
