//! Why a chain can't be followed until a person has decided (a fork too deep, a block from the future or too large), and whether enough
//! nodes say so. A single node may lag on a branch of its own, or lie.

use crate::record_size::MAX_TRANSACTIONS;
use crate::reorg::TooDeep;
use chain::{Chain, Endpoint, FetchedBlock, Rpc, Verify, find_content_witnesses, find_witnesses};
use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use topics::{B256, BlockRef, MalformedField, check_timestamp};

/// Between two looks at the nodes.
const PAUSE: Duration = Duration::from_millis(50);

/// A timestamp may be so far ahead of this machine's clock. Nodes take blocks that are some seconds ahead (geth: 15 s).
const MAX_AHEAD: Duration = Duration::from_secs(60);

/// Why a chain can't be followed until a person has decided.
#[derive(Debug, thiserror::Error)]
pub enum CannotFollow {
    #[error(transparent)]
    TooDeep(#[from] TooDeep),
    /// A timestamp that is not in seconds: every payment would expire by it.
    #[error("{block}: {cause}")]
    BadTimestamp { block: Box<RefusedBlock>, cause: MalformedField },
    /// A block that no transaction of Kafka should hold.
    #[error("{block} has {count} transactions; expected {MAX_TRANSACTIONS} at most")]
    TooLarge { block: Box<RefusedBlock>, count: usize },
}

/// A block that can't be published.
#[derive(Debug)]
pub struct RefusedBlock {
    block: BlockRef,
    /// A digest of its content, if that is the word of one endpoint. Others may have the same hash, and nothing to refuse under it.
    content: Option<B256>,
}

impl Display for RefusedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} ({})", self.block.number, self.block.hash)
    }
}

impl RefusedBlock {
    fn of(verify: Verify, fetched: &FetchedBlock) -> Self {
        let head = fetched.block.head();
        let is_word = fetched.on_one_word || verify == Verify::Off;
        Self { block: BlockRef { number: head.number, hash: head.hash }, content: is_word.then(|| fetched.content_digest()) }
    }
}

impl CannotFollow {
    /// Checks that a block can be published. `verify` is its chain's.
    ///
    /// # Errors
    /// If its timestamp is none, or it has too many transactions.
    pub fn check(verify: Verify, fetched: &FetchedBlock) -> Result<(), Self> {
        let block = || Box::new(RefusedBlock::of(verify, fetched));
        check_timestamp(fetched.block.timestamp).map_err(|cause| Self::BadTimestamp { block: block(), cause })?;
        let count = fetched.block.transactions.len();
        if count <= MAX_TRANSACTIONS { Ok(()) } else { Err(Self::TooLarge { block: block(), count }) }
    }

    /// Whether enough nodes say so. Those that are alone in it are named and asked last.
    pub async fn is_agreed(&self, rpc: &Rpc, chain: &Chain) -> bool {
        match self {
            Self::TooDeep(error) => {
                // As many providers as a block needs witnesses must have left our block, and more than have it, in two looks
                // running. The others may be silent for a moment.
                for _ in 0..2 {
                    let found = find_witnesses(rpc, error.ours.number, error.ours.hash).await;
                    let have_left = found.refute(chain.witnesses);
                    if !have_left || !found.with.is_empty() {
                        name(chain, &found.against, !found.with.is_empty(), self);
                    }
                    if !have_left {
                        return false;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                true
            }
            Self::BadTimestamp { block, .. } | Self::TooLarge { block, .. } => is_witnessed(rpc, chain, block, self).await,
        }
    }
}

/// Whether content that no root proves is the word of one endpoint alone, where others could have given it.
pub fn is_in_doubt(chain: &Chain, fetched: &FetchedBlock) -> bool {
    fetched.on_one_word && chain.witnesses > 1
}

/// Whether a block may be published before others witness it, or enough nodes have it. Its timestamp expires payments, and merchants
/// are told: the removal of an invented one comes too late for that.
pub async fn may_expire(rpc: &Rpc, chain: &Chain, fetched: &FetchedBlock) -> bool {
    let (number, timestamp) = (fetched.block.number, fetched.block.timestamp);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if chain.witnesses == 1 || Duration::from_secs(timestamp) <= now + MAX_AHEAD {
        return true;
    }
    let what = format!("block {number} has a timestamp to come, {timestamp}");
    is_witnessed(rpc, chain, &RefusedBlock::of(chain.verify, fetched), &what).await
}

/// Whether as many nodes have a block as the chain needs. Those that are alone with it are named and asked last.
async fn is_witnessed(rpc: &Rpc, chain: &Chain, block: &RefusedBlock, what: &impl Display) -> bool {
    let RefusedBlock { block, content } = block;
    let mut found = find_witnesses(rpc, block.number, block.hash).await;
    if let Some(content) = content
        && found.confirm(chain.witnesses)
    {
        found = find_content_witnesses(rpc, chain.verify, block.hash, *content, chain.witnesses).await;
    }
    let is_witnessed = found.confirm(chain.witnesses);
    if !is_witnessed {
        name(chain, &found.with, !found.against.is_empty(), what);
    }
    is_witnessed
}

/// Names endpoints that are alone with something. They contradict others, or others say nothing.
fn name(chain: &Chain, endpoints: &[Arc<Endpoint>], contradict: bool, what: &impl Display) {
    for endpoint in endpoints {
        tracing::warn!(chain = chain.name, endpoint = endpoint.host(), "most others do not have what it has: {what}");
        endpoint.record_contradiction();
        if contradict {
            endpoint.count_contradiction();
        }
    }
}
