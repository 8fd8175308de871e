//! Coin that contracts move, read from what tracers tell of a block. Pure.

use crate::block::Block;
use crate::fetch::Status;
use crate::proof::Unproven;
use alloy::primitives::{Address, B256, U256};

/// Which of the two traces an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracer {
    /// `debug_traceBlockByHash` with geth's `callTracer`.
    CallTracer,
    /// `trace_block`, as Parity had it first.
    TraceBlock,
}

/// Coin that moved inside a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalTransfer {
    /// Who gave it.
    pub from: Address,
    /// Who got it.
    pub to: Address,
    /// Base units, never zero.
    pub value: U256,
    /// The transaction.
    pub transaction_hash: B256,
    /// The transaction's position in the block.
    pub transaction_index: u32,
    /// Position among the transaction's frames that moved coin, depth first; the transaction's own value is 0.
    pub frame: u32,
}

/// Why a tracer's answer is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It can't be read.
    #[error("reading the trace")]
    Malformed(#[from] serde_json::Error),
    /// It is of another block, or contradicts the receipts.
    #[error(transparent)]
    Unproven(#[from] Unproven),
}

/// The transfers in a tracer's answer (the JSON of the result), in order of execution.
///
/// # Errors
/// When it can't be read, or does not fit the block.
pub fn internal_transfers(
    block: &Block,
    statuses: &[Status],
    tracer: Tracer,
    answer: &str,
) -> Result<Vec<InternalTransfer>, TraceError> {
    let _ = (block, statuses, tracer, answer);
    Err(Unproven::new(block.number, "the trace", "a reader", "none yet").into())
}
