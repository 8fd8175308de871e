//! Why a chain can't be followed until a person has decided, and whether enough nodes say so. A single node may lag on a branch of
//! its own, or lie.

use crate::record_size::{MAX_TRANSACTIONS, fits_record};
use crate::reorg::TooDeep;
use chain::{Chain, Endpoint, FetchedBlock, Rpc, find_witnesses};
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use topics::{BlockRef, MalformedField, check_timestamp};

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
    #[error("block {} ({}): {cause}", .block.number, .block.hash)]
    BadTimestamp { block: BlockRef, cause: MalformedField },
    /// A block that no record holds: however often it is tried, no topic takes it.
    #[error(
        "block {} ({}) has {count} transactions; expected {MAX_TRANSACTIONS} at most, which a record holds",
        .block.number,
        .block.hash
    )]
    TooLarge { block: BlockRef, count: usize },
}

impl CannotFollow {
    /// Checks that a block can be published.
    ///
    /// # Errors
    /// If its timestamp is none, or no record holds it.
    pub fn check(fetched: &FetchedBlock) -> Result<(), Self> {
        let head = fetched.block.head();
        let block = BlockRef { number: head.number, hash: head.hash };
        check_timestamp(head.timestamp).map_err(|cause| Self::BadTimestamp { block, cause })?;
        if fits_record(fetched) { Ok(()) } else { Err(Self::TooLarge { block, count: fetched.block.transactions.len() }) }
    }

    /// Whether enough nodes say so. Those that are alone in it are named and asked last.
    pub async fn is_agreed(&self, rpc: &Rpc, chain: &Chain) -> bool {
        match self {
            Self::TooDeep(error) => {
                // As many providers as a block needs witnesses must have left our block, and more than have it, in two looks
                // running. The others may be silent for a moment.
                for _ in 0..2 {
                    let found = find_witnesses(rpc, error.ours.number, error.ours.hash).await;
                    let have_left = found.outvote() && found.count_against() >= chain.witnesses;
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
            Self::BadTimestamp { block, .. } | Self::TooLarge { block, .. } => is_witnessed(rpc, chain, *block, self).await,
        }
    }
}

/// Whether a block may be published before others witness it, or enough nodes have it. Its timestamp expires payments, and merchants
/// are told: the removal of an invented one comes too late for that.
pub async fn may_expire(rpc: &Rpc, chain: &Chain, fetched: &FetchedBlock) -> bool {
    let head = fetched.block.head();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if chain.witnesses == 1 || Duration::from_secs(head.timestamp) <= now + MAX_AHEAD {
        return true;
    }
    if fetched.on_one_word {
        // Others may have its hash, and another timestamp under it.
        if let Some(source) = &fetched.source {
            source.record_contradiction();
        }
        return false;
    }
    let block = BlockRef { number: head.number, hash: head.hash };
    is_witnessed(rpc, chain, block, &format!("block {} has a timestamp to come, {}", head.number, head.timestamp)).await
}

/// Whether as many nodes have a block as the chain needs. Those that are alone with it are named and asked last.
async fn is_witnessed(rpc: &Rpc, chain: &Chain, block: BlockRef, what: &impl Display) -> bool {
    let found = find_witnesses(rpc, block.number, block.hash).await;
    let is_witnessed = found.confirm(chain.witnesses);
    if !is_witnessed {
        name(chain, &found.with, !found.against.is_empty(), what);
    }
    is_witnessed
}

/// Names endpoints that are alone with something. They contradict others, or others say nothing.
fn name(chain: &Chain, endpoints: &[Arc<Endpoint>], contradict: bool, what: &impl Display) {
    for endpoint in endpoints {
        tracing::warn!(chain = chain.name, endpoint = endpoint.host(), "endpoint is on a branch of its own: {what}");
        endpoint.record_contradiction();
        if contradict {
            endpoint.count_contradiction();
        }
    }
}
