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
    /// A part that no root proves waits for a second endpoint to agree.
    #[error("no second endpoint has confirmed {what} of block {number} yet: {silent}")]
    Unconfirmed {
        /// Height of the block.
        number: u64,
        /// The part.
        what: &'static str,
        /// The endpoints that did not answer, and why.
        silent: String,
    },
    /// Transactions of the block could not be traced, and may be yet.
    #[error("{endpoint} could not trace {count} transactions of block {number}")]
    Untraced {
        /// Host and port.
        endpoint: String,
        /// Height of the block.
        number: u64,
        /// Transactions without a trace.
        count: usize,
        /// Why, of one of them.
        #[source]
        source: Option<Box<RpcError>>,
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
            Self::Unconfirmed { .. } | Self::Untraced { .. } => Blame::None,
        }
    }
}
