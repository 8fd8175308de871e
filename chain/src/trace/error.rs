//! Why a trace is refused.

use crate::proof::ProofError;

/// Why a tracer's answer can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It is not the JSON that the tracer should answer.
    #[error("reading the trace")]
    Malformed(#[from] serde_json::Error),
    /// It belongs to another block, or contradicts the receipts.
    #[error(transparent)]
    Unproven(#[from] ProofError),
}
