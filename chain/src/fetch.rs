//! A block with its receipts from one endpoint, proven.

use crate::block::{Block, Head, Log, Receipt};
use crate::config::Verify;
use crate::proof::{Proof, Unproven, prove};
use crate::rpc::{Endpoint, Rpc, RpcError, Tag};
use crate::trace::InternalTransfer;
use alloy::primitives::{B256, U256};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

/// Which block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockId {
    /// The one at this height, on the chain that the node sees now.
    Number(u64),
    /// This one and no other.
    Hash(B256),
}

/// Why there is no block. Whichever it is, another endpoint may do better, and so may this one later.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The node did not answer, or with an error.
    #[error("asking a node")]
    Rpc(#[from] RpcError),
    /// The node's answer is not true, or not whole.
    #[error("{endpoint} gave an answer that is not proven")]
    Unproven {
        /// Host of the endpoint.
        endpoint: String,
        /// What does not hold.
        #[source]
        source: Unproven,
    },
}

/// What is known of a block's outcome.
#[derive(Clone, Debug)]
pub enum Receipts {
    /// A receipt for each transaction.
    All(Vec<Receipt>),
    /// From nodes without `eth_getBlockReceipts`: all logs, and the receipts of the transactions that carry value.
    Logs {
        /// `eth_getLogs` by the block's hash.
        logs: Vec<Log>,
        /// By transaction hash.
        some: HashMap<B256, Receipt>,
    },
}

impl Receipts {
    /// All logs in order, with their transactions' hashes.
    pub fn logs(&self) -> impl Iterator<Item = (Option<B256>, &Log)> {
        let (all, logs) = match self {
            Self::All(all) => (all.as_slice(), [].as_slice()),
            Self::Logs { logs, .. } => ([].as_slice(), logs.as_slice()),
        };
        let of_receipts = all.iter().flat_map(|receipt| receipt.logs.iter().map(|log| (Some(receipt.transaction_hash), log)));
        of_receipts.chain(logs.iter().map(|log| (log.transaction_hash, log)))
    }

    fn statuses(&self) -> HashMap<B256, Status> {
        let by_hash = |receipt: &Receipt| (receipt.transaction_hash, Status::from(receipt.status));
        match self {
            Self::All(all) => all.iter().map(by_hash).collect(),
            Self::Logs { some, .. } => some.values().map(by_hash).collect(),
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its receipt is from before Byzantium, or there is none. It pays nothing.
    Unknown,
    /// Its transfers hold.
    Success,
    /// It changed nothing but fees.
    Reverted,
}

impl From<Option<u64>> for Status {
    fn from(status: Option<u64>) -> Self {
        match status {
            None => Self::Unknown,
            Some(1) => Self::Success,
            Some(_) => Self::Reverted,
        }
    }
}

/// A log with its place, which is counted and not taken from the node.
#[derive(Clone, Debug)]
pub struct PlacedLog {
    /// The log.
    pub log: Log,
    /// Position in the block.
    pub index: u32,
    /// Position of its transaction in the block.
    pub transaction_index: u32,
    /// Hash of its transaction.
    pub transaction_hash: B256,
}

/// A block that is proven as far as its chain's `verify` asks.
#[derive(Clone, Debug)]
pub struct FetchedBlock {
    /// Header and transactions.
    pub block: Block,
    /// One a transaction, in order.
    pub statuses: Vec<Status>,
    /// All logs of the block, in order.
    pub logs: Vec<PlacedLog>,
    /// Coin that contracts moved; `None` where nobody was asked for traces.
    pub internal: Option<Vec<InternalTransfer>>,
    /// What was proven.
    pub proof: Proof,
}

impl FetchedBlock {
    /// Proves an answer and brings its parts together.
    ///
    /// # Errors
    /// When it does not hold.
    pub fn new(block: Block, receipts: Receipts, verify: Verify) -> Result<Self, Unproven> {
        let proof = prove(&block, &receipts, verify)?;
        let outcomes = receipts.statuses();
        let statuses = block
            .transactions
            .iter()
            .map(|transaction| outcomes.get(&transaction.hash).copied().unwrap_or(Status::Unknown))
            .collect();
        let logs = place(&block, receipts)?;
        Ok(Self { block, statuses, logs, internal: None, proof })
    }

    /// Roughly its size as records, in bytes.
    pub fn weight(&self) -> usize {
        let logs: usize = self.logs.iter().map(|log| 128 + 32 * log.log.topics.len() + log.log.data.len()).sum();
        256 + 128 * self.block.transactions.len() + logs
    }
}

fn place(block: &Block, receipts: Receipts) -> Result<Vec<PlacedLog>, Unproven> {
    let unknown = |what: String, got: String| Unproven::new(block.number, what, "a transaction of the block", got);
    let positions: HashMap<B256, usize> =
        block.transactions.iter().enumerate().map(|(index, transaction)| (transaction.hash, index)).collect();
    let logs: Vec<(Option<B256>, Log)> = match receipts {
        Receipts::All(all) => all
            .into_iter()
            .flat_map(|receipt| receipt.logs.into_iter().map(move |log| (Some(receipt.transaction_hash), log)))
            .collect(),
        Receipts::Logs { logs, .. } => logs.into_iter().map(|log| (log.transaction_hash, log)).collect(),
    };
    let narrow = |index: usize| u32::try_from(index).map_err(|_| unknown(format!("position {index}"), "too many".to_owned()));
    logs.into_iter()
        .enumerate()
        .map(|(index, (transaction, log))| {
            let hash = transaction.ok_or_else(|| unknown(format!("log {index}"), "none".to_owned()))?;
            let position = positions.get(&hash).ok_or_else(|| unknown(format!("log {index}"), hash.to_string()))?;
            Ok(PlacedLog { log, index: narrow(index)?, transaction_index: narrow(*position)?, transaction_hash: hash })
        })
        .collect()
}

/// Fetches a block with its receipts, from the first endpoint that has both and proves them. All of it is asked of one
/// endpoint and by hash, since at the head a number means another block a moment later. `None` if no endpoint knows it.
///
/// # Errors
/// When no endpoint gave a proven answer; the last one's reason.
pub async fn fetch_block(rpc: &Rpc, verify: Verify, id: BlockId) -> Result<Option<FetchedBlock>, FetchError> {
    rpc.attempt(|endpoint| fetch_from(endpoint, verify, id)).await
}

/// The head of the chain as the preferred endpoint sees it, or a block below it.
///
/// # Errors
/// When no endpoint answered.
pub async fn fetch_head(rpc: &Rpc, id: Option<BlockId>) -> Result<Option<Head>, RpcError> {
    rpc.attempt(|endpoint| async move {
        match id {
            None => endpoint.request("eth_getBlockByNumber", json!(["latest", false])).await,
            Some(BlockId::Number(number)) => {
                endpoint.request("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await
            }
            Some(BlockId::Hash(hash)) => endpoint.request("eth_getBlockByHash", json!([hash, false])).await,
        }
    })
    .await
}

/// The block that the node calls `safe` or `finalized`. `None` where it has none, or fails: nothing waits for it, and the
/// next block's record tells again.
pub async fn fetch_tag(rpc: &Rpc, tag: Tag) -> Option<Head> {
    let endpoint = rpc.preferred().await?;
    let head: Result<Option<Head>, RpcError> = endpoint.request("eth_getBlockByNumber", json!([tag.as_str(), false])).await;
    head.inspect_err(|error| tracing::trace!(tag = tag.as_str(), "no tagged block: {error}")).ok()?
}

/// Who of a chain's endpoints have a block on their chain.
#[derive(Clone, Debug, Default)]
pub struct Witnesses {
    /// Those that have it.
    pub with: Vec<Arc<Endpoint>>,
    /// Those that have another block at its height.
    pub against: Vec<Arc<Endpoint>>,
}

/// Asks every endpoint for its block at a height. One that does not answer, or has none there, says nothing.
pub async fn witnesses(rpc: &Rpc, number: u64, hash: B256) -> Witnesses {
    let answers = futures::future::join_all(rpc.endpoints().iter().map(|endpoint| async move {
        endpoint.check_chain().await?;
        let head = endpoint.request("eth_getBlockByNumber", json!([format!("{number:#x}"), false])).await;
        head.map(|head: Option<Head>| (endpoint.clone(), head))
    }))
    .await;
    let mut witnesses = Witnesses::default();
    for (endpoint, head) in answers.into_iter().filter_map(Result::<_, RpcError>::ok) {
        match head {
            Some(head) if head.hash == hash => witnesses.with.push(endpoint),
            Some(_) => witnesses.against.push(endpoint),
            None => {}
        }
    }
    witnesses
}

async fn fetch_from(endpoint: Arc<Endpoint>, verify: Verify, id: BlockId) -> Result<Option<FetchedBlock>, FetchError> {
    let unproven = |source| FetchError::Unproven { endpoint: endpoint.host().to_owned(), source };
    let (block, receipts) = match id {
        // The hash is known, so one round trip does.
        BlockId::Hash(hash) if endpoint.has_block_receipts() => {
            let (block, receipts) = tokio::join!(get_block(&endpoint, id), get_receipts(&endpoint, hash));
            (block?, Some(receipts))
        }
        _ => (get_block(&endpoint, id).await?, None),
    };
    let Some(block) = block else { return Ok(None) };
    match id {
        BlockId::Number(number) if number != block.number => {
            return Err(unproven(Unproven::new(number, "the number", number, block.number)));
        }
        BlockId::Hash(hash) if hash != block.hash => {
            return Err(unproven(Unproven::new(block.number, "the hash", hash, block.hash)));
        }
        _ => {}
    }
    let receipts = match receipts {
        Some(receipts) => receipts,
        None if endpoint.has_block_receipts() => get_receipts(&endpoint, block.hash).await,
        None => Ok(None),
    };
    let receipts = match receipts {
        Err(error) if error.is_unsupported() => {
            endpoint.lacks_block_receipts();
            get_logs(&endpoint, &block).await?
        }
        Err(error) => return Err(error.into()),
        Ok(None) if !endpoint.has_block_receipts() => get_logs(&endpoint, &block).await?,
        Ok(all) => all.map(Receipts::All),
    };
    // A node that has the block and not its receipts yet is as good as one that lacks both.
    let Some(receipts) = receipts else { return Ok(None) };
    FetchedBlock::new(block, receipts, verify).map(Some).map_err(unproven)
}

async fn get_block(endpoint: &Endpoint, id: BlockId) -> Result<Option<Block>, RpcError> {
    let (method, params) = match id {
        BlockId::Number(number) => ("eth_getBlockByNumber", json!([format!("{number:#x}"), true])),
        BlockId::Hash(hash) => ("eth_getBlockByHash", json!([hash, true])),
    };
    let answer = endpoint.raw(method, params).await?;
    if answer.get() == "null" {
        return Ok(None);
    }
    Block::parse(answer.get()).map(Some).map_err(|source| endpoint.malformed(method, source))
}

async fn get_receipts(endpoint: &Endpoint, block: B256) -> Result<Option<Vec<Receipt>>, RpcError> {
    endpoint.request("eth_getBlockReceipts", json!([block])).await
}

/// What `eth_getBlockReceipts` would tell, as far as a payment depends on it: all logs, and whether the transactions that
/// carry value succeeded. `None` if the node lacks one of their receipts.
async fn get_logs(endpoint: &Endpoint, block: &Block) -> Result<Option<Receipts>, RpcError> {
    let mut logs: Vec<Log> = endpoint.request("eth_getLogs", json!([{ "blockHash": block.hash }])).await?;
    logs.sort_by_key(|log| log.log_index);
    let mut some = HashMap::new();
    for transaction in block.transactions.iter().filter(|transaction| transaction.value > U256::ZERO) {
        let receipt: Option<Receipt> = endpoint.request("eth_getTransactionReceipt", json!([transaction.hash])).await?;
        // A receipt of the same transaction in another block says nothing about this one.
        match receipt.filter(|receipt| receipt.block_hash == Some(block.hash)) {
            Some(receipt) => some.insert(transaction.hash, receipt),
            None => return Ok(None),
        };
    }
    Ok(Some(Receipts::Logs { logs, some }))
}
