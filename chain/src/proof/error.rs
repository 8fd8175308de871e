//! The error for an answer that contradicts itself.

use std::fmt;

/// An answer that contradicts itself, from a node that lags or lies. It is never published; the remedy is another endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} of block {number} is not proven: expected {expected}, got {got}")]
pub struct ProofError {
    /// Height of the block.
    pub number: u64,
    /// The part that failed, e.g. `the receipts`.
    pub what: String,
    /// What the block commits to.
    pub expected: String,
    /// What the answer hashes to.
    pub got: String,
}

impl ProofError {
    pub(crate) fn new(number: u64, what: impl Into<String>, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self { number, what: what.into(), expected: expected.to_string(), got: got.to_string() }
    }
}
