//! What the engine asks a chain's nodes, and how it sends. Nothing that one node says makes a transaction mined or failed, or
//! gives a nonce out or up: what no block tells, as many providers have to say as a block needs witnesses.

use super::agreement::Agreement;
use super::answers::Answer;
use super::fees::{FeeHistory, Market};
use super::outgoing::Mined;
use alloy::primitives::{Address, B256, Bytes, U64, U128};
use base::locked;
use chain::{Endpoint, Rpc, RpcError};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::Deserialize;
use serde_json::json;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use topics::BlockRef;

/// How long what gas costs is believed: about a block of the fastest chains that have a market.
const MARKET_TTL: Duration = Duration::from_secs(3);
/// Blocks that are looked at for tips.
const HISTORY_BLOCKS: u64 = 10;
/// Half of what a block was tipped was less.
const TIP_PERCENTILE: u64 = 50;

/// No sender has sent so many: a count above is no answer.
const MAX_COUNT: u64 = 1 << 62;

/// A receipt, as `eth_getTransactionReceipt` gives it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Receipt {
    transaction_hash: B256,
    block_hash: B256,
    block_number: U64,
    status: Option<U64>,
    gas_used: Option<U64>,
    effective_gas_price: Option<U128>,
}

/// The nodes of a chain.
#[derive(Debug)]
pub struct Nodes {
    rpc: Rpc,
    /// Providers that have to agree.
    witnesses: usize,
    market: Mutex<Option<(Instant, Market)>>,
}

impl Nodes {
    /// `witnesses` is the chain's.
    pub fn new(rpc: Rpc, witnesses: usize) -> Self {
        Self { rpc, witnesses, market: Mutex::default() }
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

    /// How many transactions a sender has up to the block with this hash (EIP-1898). `None` unless enough providers agree.
    pub async fn count_at(&self, sender: Address, block: B256) -> Option<u64> {
        self.agreed(|endpoint| async move { count_at(&endpoint, sender, block).await }).await
    }

    /// The receipt of one of these transactions, of which one at most can have one. `None` unless enough providers agree: that
    /// there is none proves nothing, since nodes keep receipts for some time only.
    pub async fn receipt(&self, hashes: &[B256]) -> Option<Mined> {
        self.agreed(|endpoint| async move { receipt(&endpoint, hashes).await }).await
    }

    /// What enough providers say, as soon as they do.
    async fn agreed<T, F, Fut>(&self, ask: F) -> Option<T>
    where
        T: Clone + PartialEq,
        F: Fn(Arc<Endpoint>) -> Fut,
        Fut: Future<Output = Result<Option<T>, RpcError>>,
    {
        let ask = |endpoint: &Arc<Endpoint>| {
            let (endpoint, word) = (endpoint.clone(), ask(endpoint.clone()));
            async move { (endpoint, word.await) }
        };
        let mut asked: FuturesUnordered<_> = self.rpc.endpoints().iter().map(ask).collect();
        let mut said = Agreement::new(self.witnesses);
        while let Some((endpoint, word)) = asked.next().await {
            match word {
                Ok(Some(word)) => {
                    if let Some(agreed) = said.hear(endpoint.provider(), &word) {
                        return Some(agreed);
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(endpoint = endpoint.host(), "{error}"),
            }
        }
        None
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
        Answer::best(&answers)
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

async fn count_at(endpoint: &Endpoint, sender: Address, block: B256) -> Result<Option<u64>, RpcError> {
    endpoint.check_chain_id().await?;
    let params = json!([sender, { "blockHash": block }]);
    let count = endpoint.request::<U64>("eth_getTransactionCount", params).await?.to();
    Ok((count < MAX_COUNT).then_some(count))
}

async fn receipt(endpoint: &Endpoint, hashes: &[B256]) -> Result<Option<Mined>, RpcError> {
    endpoint.check_chain_id().await?;
    for hash in hashes {
        let receipt: Option<Receipt> = endpoint.request("eth_getTransactionReceipt", json!([hash])).await?;
        let Some(receipt) = receipt.filter(|receipt| receipt.transaction_hash == *hash) else { continue };
        return Ok(Some(Mined {
            hash: *hash,
            block: BlockRef { number: receipt.block_number.to(), hash: receipt.block_hash },
            succeeded: receipt.status.map(|status| status == U64::ONE),
            gas_used: receipt.gas_used.map(|gas| gas.to()),
            gas_price: receipt.effective_gas_price.map(|price| price.to()),
        }));
    }
    Ok(None)
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
