//! A block with its receipts from one endpoint, proven.

use crate::block::{Block, Head, Log, Receipt};
use crate::config::Verify;
use crate::proof::{Proof, Unproven, prove};
use crate::rpc::{Answer, Batch, Blame, Blames, Call, Endpoint, Reply, Rpc, RpcError, Tag};
use crate::trace::{InternalTransfer, TraceError};
use alloy::primitives::{Address, B256, U256};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;
use topics::{SYSTEM, TRANSFER};

mod cross_check;
mod traced;

use cross_check::cross_check;

const RECEIPTS: &str = "eth_getBlockReceipts";
/// Receipts asked for at once, where they are not to be had by the block.
const RECEIPTS_A_BATCH: usize = 100;

/// Which block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockId {
    /// The one at this height, on the chain that the node sees now.
    Number(u64),
    /// This one and no other.
    Hash(B256),
}

impl BlockId {
    fn as_json(self) -> Value {
        match self {
            Self::Number(number) => json!(format!("{number:#x}")),
            Self::Hash(hash) => json!(hash),
        }
    }
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
    /// What it tells of the transfers inside is of no use.
    #[error("{endpoint} gave no usable trace of block {number}")]
    Trace {
        /// Host of the endpoint.
        endpoint: String,
        /// The block.
        number: u64,
        /// Why.
        #[source]
        source: Box<TraceError>,
    },
    /// A chain with `traces: true` and an endpoint without tracers.
    #[error("{endpoint} has neither debug_traceBlockByHash nor trace_block, and its chain has traces: true")]
    NoTracer {
        /// Host of the endpoint.
        endpoint: String,
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

    /// Whether it reports its coin's transfers as logs (EIP-7708): then those are all there are, and proven.
    pub fn tells_its_coin(&self) -> bool {
        self.logs.iter().any(|placed| placed.log.address == SYSTEM && placed.log.topics.first() == Some(&TRANSFER))
    }

    /// Roughly its size as records, in bytes.
    pub fn weight(&self) -> usize {
        let logs: usize = self.logs.iter().map(|log| 128 + 32 * log.log.topics.len() + log.log.data.len()).sum();
        256 + 128 * self.block.transactions.len() + logs
    }
}

impl PlacedLog {
    fn content(&self) -> (Address, &[B256], &[u8], B256) {
        (self.log.address, &self.log.topics, &self.log.data, self.transaction_hash)
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

/// What of a block is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// How it is proven.
    pub verify: Verify,
    /// Whether coin that contracts move is asked of tracers, where the block does not tell it itself.
    pub traces: bool,
}

impl Blames for FetchError {
    fn blame(&self) -> Blame {
        match self {
            Self::Rpc(error) => error.blame(),
            Self::Unproven { .. } => Blame::Lie,
            Self::Trace { .. } | Self::NoTracer { .. } => Blame::Fault,
        }
    }
}

/// Fetches a block with its receipts, from the first endpoint that has both and proves them. `None` if no endpoint knows it.
///
/// All of it is asked of one endpoint. By number a block may change from one request to the next; what is then of another block is
/// asked again by hash. Where a part is not proven by a root, as traces never are, and there is another endpoint, that one has to say
/// the same.
///
/// # Errors
/// When no endpoint gave a proven answer; the last one's reason.
pub async fn fetch_block(rpc: &Rpc, reading: Reading, id: BlockId) -> Result<Option<FetchedBlock>, FetchError> {
    let found = rpc.attempt(|endpoint| async move {
        let fetched = fetch_from(&endpoint, reading, id).await?;
        Ok::<_, FetchError>(fetched.map(|fetched| (endpoint, fetched)))
    });
    let Some((endpoint, fetched)) = found.await? else { return Ok(None) };
    if reading.verify != Verify::Off {
        cross_check(rpc, &endpoint, &fetched).await?;
    }
    Ok(Some(fetched))
}

/// The head of the chain as the preferred endpoint sees it, or a block below it.
///
/// # Errors
/// When no endpoint answered.
pub async fn fetch_head(rpc: &Rpc, id: Option<BlockId>) -> Result<Option<Head>, RpcError> {
    let Some(id) = id else { return Ok(fetch_newest(rpc).await?.map(|(_, head)| head)) };
    rpc.attempt(|endpoint| async move {
        let (method, params) = block_call(id, false);
        endpoint.request(method, params).await
    })
    .await
}

/// The head of the chain, with the endpoint that told it.
///
/// # Errors
/// When no endpoint answered.
pub async fn fetch_newest(rpc: &Rpc) -> Result<Option<(Arc<Endpoint>, Head)>, RpcError> {
    rpc.attempt(|endpoint| async move {
        let head: Option<Head> = endpoint.request("eth_getBlockByNumber", json!(["latest", false])).await?;
        if let Some(head) = &head {
            endpoint.saw_head(head.number);
        }
        rpc.look_around(&endpoint);
        Ok(head.map(|head| (endpoint, head)))
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
        let (method, params) = block_call(BlockId::Number(number), false);
        endpoint.request(method, params).await.map(|head: Option<Head>| (endpoint.clone(), head))
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

async fn fetch_from(endpoint: &Endpoint, reading: Reading, id: BlockId) -> Result<Option<FetchedBlock>, FetchError> {
    let unproven = |source| FetchError::Unproven { endpoint: endpoint.host().to_owned(), source };
    let (block, receipts) =
        if endpoint.has_block_receipts() { get_both(endpoint, id).await? } else { (get_block(endpoint, id).await?, Ok(None)) };
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
    let by_hash = matches!(id, BlockId::Hash(_));
    let moved = |receipts: &[Receipt]| {
        // An empty block took its place, or another one.
        receipts.is_empty() && !block.transactions.is_empty()
            || receipts.iter().any(|receipt| receipt.block_hash.is_some_and(|hash| hash != block.hash))
    };
    let receipts = match receipts {
        // The chain has moved on between two answers: nobody's fault, and by hash it can't.
        Ok(Some(receipts)) if !by_hash && moved(&receipts) => get_receipts(endpoint, BlockId::Hash(block.hash)).await,
        Ok(None) if !by_hash && endpoint.has_block_receipts() => get_receipts(endpoint, BlockId::Hash(block.hash)).await,
        receipts => receipts,
    };
    let receipts = match receipts {
        Err(error) if error.is_unsupported() || error.is_range() => {
            if error.is_unsupported() {
                endpoint.lacks_block_receipts();
            }
            get_logs(endpoint, &block).await?
        }
        Err(error) => return Err(error.into()),
        Ok(None) if !endpoint.has_block_receipts() => get_logs(endpoint, &block).await?,
        Ok(all) => all.map(Receipts::All),
    };
    // A node that has the block and not its receipts yet is as good as one that lacks both.
    let Some(receipts) = receipts else { return Ok(None) };
    let mut fetched = FetchedBlock::new(block, receipts, reading.verify).map_err(unproven)?;
    if reading.traces && !fetched.tells_its_coin() {
        fetched.internal = Some(traced::get_internal(endpoint, &fetched).await?);
    }
    Ok(Some(fetched))
}

/// A block and its receipts, by number or by hash alike, in one round trip.
async fn get_both(
    endpoint: &Endpoint,
    id: BlockId,
) -> Result<(Option<Block>, Result<Option<Vec<Receipt>>, RpcError>), RpcError> {
    if !endpoint.takes_batches() {
        let (block, receipts) = tokio::join!(get_block(endpoint, id), get_receipts(endpoint, id));
        return Ok((block?, receipts));
    }
    let (method, params) = block_call(id, true);
    let calls = [(method, params), (RECEIPTS, json!([id.as_json()]))];
    // Nearly every block is read in one pass. What is not as expected there is looked at piece by piece.
    let whole = |reply: &Reply| {
        let (block, receipts): (Block, Vec<Receipt>) = reply.read()?;
        (block.header_hash() == Some(block.hash)).then_some((block, receipts))
    };
    let mut answers = match endpoint.batch_read(&calls, whole).await? {
        Batch::Read((block, receipts)) => return Ok((Some(block), Ok(Some(receipts)))),
        Batch::Split(answers) => answers.into_iter(),
    };
    let missing = || Err(RpcError::NoBatch { method, endpoint: endpoint.host().to_owned() });
    let (block, receipts) = (answers.next().unwrap_or_else(missing)?, answers.next().unwrap_or_else(missing));
    Ok((read_block(endpoint, method, &block)?, receipts.and_then(|answer| endpoint.read(RECEIPTS, &answer))))
}

fn block_call(id: BlockId, whole: bool) -> Call {
    let method = match id {
        BlockId::Number(_) => "eth_getBlockByNumber",
        BlockId::Hash(_) => "eth_getBlockByHash",
    };
    (method, json!([id.as_json(), whole]))
}

async fn get_block(endpoint: &Endpoint, id: BlockId) -> Result<Option<Block>, RpcError> {
    let (method, params) = block_call(id, true);
    read_block(endpoint, method, &endpoint.raw(method, params).await?)
}

fn read_block(endpoint: &Endpoint, method: &'static str, answer: &Answer) -> Result<Option<Block>, RpcError> {
    if answer.get() == "null" {
        return Ok(None);
    }
    Block::parse(answer.get()).map(Some).map_err(|source| endpoint.malformed(method, source))
}

async fn get_receipts(endpoint: &Endpoint, id: BlockId) -> Result<Option<Vec<Receipt>>, RpcError> {
    endpoint.request(RECEIPTS, json!([id.as_json()])).await
}

/// What `eth_getBlockReceipts` would tell, as far as a payment depends on it: all logs, and whether the transactions that
/// carry value succeeded. `None` if the node lacks one of their receipts.
async fn get_logs(endpoint: &Endpoint, block: &Block) -> Result<Option<Receipts>, RpcError> {
    let logs: Result<Vec<Log>, RpcError> = endpoint.request("eth_getLogs", json!([{ "blockHash": block.hash }])).await;
    let mut logs = match logs {
        // Too many for this provider: one transaction at a time there are fewer, and they prove more.
        Err(error) if error.is_range() => {
            let hashes: Vec<B256> = block.transactions.iter().map(|transaction| transaction.hash).collect();
            return Ok(get_receipts_of(endpoint, block, &hashes).await?.map(Receipts::All));
        }
        logs => logs?,
    };
    logs.sort_by_key(|log| log.log_index);
    let paying: Vec<B256> = block.transactions.iter().filter(|tx| tx.value > U256::ZERO).map(|tx| tx.hash).collect();
    let Some(receipts) = get_receipts_of(endpoint, block, &paying).await? else { return Ok(None) };
    let some: HashMap<B256, Receipt> = receipts.into_iter().map(|receipt| (receipt.transaction_hash, receipt)).collect();
    // One that is told of another transaction would stand in for a missing one.
    Ok(paying.iter().all(|hash| some.contains_key(hash)).then_some(Receipts::Logs { logs, some }))
}

/// The receipts of these transactions of the block; `None` if the node lacks one.
async fn get_receipts_of(endpoint: &Endpoint, block: &Block, hashes: &[B256]) -> Result<Option<Vec<Receipt>>, RpcError> {
    let mut receipts = Vec::with_capacity(hashes.len());
    for hashes in hashes.chunks(if endpoint.takes_batches() { RECEIPTS_A_BATCH } else { 1 }) {
        for receipt in get_some_receipts(endpoint, hashes).await? {
            // A receipt of the same transaction in another block says nothing about this one.
            match receipt.filter(|receipt| receipt.block_hash == Some(block.hash)) {
                Some(receipt) => receipts.push(receipt),
                None => return Ok(None),
            }
        }
    }
    Ok(Some(receipts))
}

async fn get_some_receipts(endpoint: &Endpoint, hashes: &[B256]) -> Result<Vec<Option<Receipt>>, RpcError> {
    const METHOD: &str = "eth_getTransactionReceipt";
    if let [hash] = hashes {
        return Ok(vec![endpoint.request(METHOD, json!([hash])).await?]);
    }
    let calls: Vec<Call> = hashes.iter().map(|hash| (METHOD, json!([hash]))).collect();
    endpoint.batch(&calls).await?.into_iter().map(|answer| endpoint.read(METHOD, &answer?)).collect()
}
