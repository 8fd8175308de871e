//! Errors of fetching a block, and what they say about the endpoint.

use crate::proof::ProofError;
use crate::rpc::{Blame, BlamesEndpoint, RpcError};
use crate::trace::TraceError;

/// Why there is no block. A retry may succeed, here or at another endpoint.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A request failed.
    #[error("requesting a block")]
    Rpc(#[from] RpcError),
    /// The answer failed its proof, or another endpoint contradicted it.
    #[error("{endpoint} gave an answer that is not proven")]
    Unproven {
        /// Host and port.
        endpoint: String,
        /// The part that failed.
        #[source]
        source: ProofError,
    },
    /// The trace can't be used.
    #[error("{endpoint} gave no usable trace of block {number}")]
    Trace {
        /// Host and port.
        endpoint: String,
        /// Height of the block.
        number: u64,
        #[source]
        source: Box<TraceError>,
    },
    /// The chain has `traces: true`, and the endpoint has no tracer.
    #[error("{endpoint} has neither debug_traceBlockByHash nor trace_block, and its chain has traces: true")]
    NoTracer {
        /// Host and port.
        endpoint: String,
    },
}

impl BlamesEndpoint for FetchError {
    fn blame(&self) -> Blame {
        match self {
            Self::Rpc(error) => error.blame(),
            Self::Unproven { .. } => Blame::Lie,
            Self::Trace { .. } | Self::NoTracer { .. } => Blame::Fault,
        }
    }
}
