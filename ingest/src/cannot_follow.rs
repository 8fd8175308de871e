//! Why a chain can't be followed until a person has decided, and whether enough nodes say so. A single node may lag on a branch of
//! its own, or lie.

use crate::reorg::TooDeep;
use chain::{Chain, Endpoint, Rpc, find_witnesses};
use std::sync::Arc;
use std::time::Duration;
use topics::{BlockRef, MalformedField};

/// Between two looks at the nodes.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a chain can't be followed until a person has decided.
#[derive(Debug, thiserror::Error)]
pub enum CannotFollow {
    #[error(transparent)]
    TooDeep(#[from] TooDeep),
    /// A timestamp that is not in seconds: every payment would expire by it.
    #[error("block {} ({}): {cause}", .block.number, .block.hash)]
    BadTimestamp { block: BlockRef, cause: MalformedField },
}

impl CannotFollow {
    /// Whether enough nodes say so. Those that are alone in it are named and asked last.
    pub async fn is_agreed(&self, rpc: &Rpc, chain: &Chain) -> bool {
        match self {
            Self::TooDeep(error) => {
                // More providers must have left our block than have it, in two looks running.
                for _ in 0..2 {
                    let found = find_witnesses(rpc, error.ours.number, error.ours.hash).await;
                    if !found.with.is_empty() {
                        self.name(chain, &found.against, true);
                    }
                    if !found.outvote() {
                        return false;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                true
            }
            Self::BadTimestamp { block, .. } => {
                let found = find_witnesses(rpc, block.number, block.hash).await;
                let is_agreed = found.confirm(chain.witnesses);
                if !is_agreed {
                    self.name(chain, &found.with, !found.against.is_empty());
                }
                is_agreed
            }
        }
    }

    /// Names endpoints that say so. They contradict others, or others say nothing.
    fn name(&self, chain: &Chain, endpoints: &[Arc<Endpoint>], contradict: bool) {
        for endpoint in endpoints {
            tracing::warn!(chain = chain.name, endpoint = endpoint.host(), "endpoint is on a branch of its own: {self}");
            endpoint.record_contradiction();
            if contradict {
                endpoint.count_contradiction();
            }
        }
    }
}
