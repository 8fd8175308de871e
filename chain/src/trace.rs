//! Coin that contracts move, read from what tracers tell of a block. Pure.
//!
//! No root covers traces, so they are held against what is proven: the transactions, in order, with their values, and how
//! each ended. Of megabytes of calls only those are kept that moved coin; inputs and outputs are skipped where they stand.

mod call_tracer;
mod trace_block;

use crate::block::{Block, Transaction};
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
/// What moves nothing is left out: frames that reverted with all below them, delegated and static calls, zero values, and
/// what one sends to oneself. So is the transaction's own value, which the transaction tells; but of a creation, whose
/// transaction does not name the contract, it is frame 0.
///
/// # Errors
/// When it can't be read, or does not fit the block.
pub fn internal_transfers(
    block: &Block,
    statuses: &[Status],
    tracer: Tracer,
    answer: &str,
) -> Result<Vec<InternalTransfer>, TraceError> {
    let traced = match tracer {
        Tracer::CallTracer => call_tracer::read(answer)?,
        Tracer::TraceBlock => trace_block::read(block, answer)?,
    };
    let mut transfers = Vec::new();
    let mut traces = traced.into_iter();
    for (index, transaction) in block.transactions.iter().enumerate() {
        // Bor adds these to the block by itself; no tracer runs them.
        if transaction.is_state_sync() {
            continue;
        }
        let missing = || Unproven::new(block.number, format!("the trace of transaction {index}"), transaction.hash, "none");
        let trace = traces.next().ok_or_else(missing)?;
        let status = statuses.get(index).copied().unwrap_or(Status::Unknown);
        check(block.number, index, transaction, status, &trace)?;
        let position = u32::try_from(index).map_err(|_| missing())?;
        collect(&trace, transaction, position, &mut transfers);
    }
    if let Some(trace) = traces.next() {
        let got = trace.hash.map_or_else(|| "one more".to_owned(), |hash| hash.to_string());
        return Err(Unproven::new(block.number, "the number of traces", "one a transaction", got).into());
    }
    Ok(transfers)
}

/// What a tracer tells of one transaction.
struct Trace {
    /// Geth did not tell it before 1.11.
    hash: Option<B256>,
    top: Top,
    /// Frames that moved coin, in order of execution, without the top one.
    moves: Vec<Move>,
}

/// The frame of the transaction itself.
#[derive(Default)]
struct Top {
    from: Option<Address>,
    to: Option<Address>,
    value: U256,
    failed: bool,
}

/// Coin from one account to another.
struct Move {
    from: Address,
    to: Address,
    value: U256,
}

impl Move {
    /// `None` where nothing moves.
    fn new(from: Option<Address>, to: Option<Address>, value: Option<U256>) -> Option<Self> {
        let (from, to, value) = (from?, to?, value?);
        (!value.is_zero() && from != to).then_some(Self { from, to, value })
    }
}

fn check(number: u64, index: usize, transaction: &Transaction, status: Status, trace: &Trace) -> Result<(), Unproven> {
    let differs = |what: &str, expected: String, got: String| {
        Err(Unproven::new(number, format!("the trace of transaction {index}: {what}"), expected, got))
    };
    let text = |address: Option<Address>| address.map_or_else(|| "none".to_owned(), |address| address.to_string());
    if let Some(hash) = trace.hash.filter(|hash| *hash != transaction.hash) {
        return differs("the hash", transaction.hash.to_string(), hash.to_string());
    }
    let Top { from, to, value, failed } = &trace.top;
    // Arbitrum's own types run as other calls than they say.
    if matches!(transaction.kind, 0x64..=0x6a) {
        return Ok(());
    }
    if from.is_some_and(|from| from != transaction.from) {
        return differs("the sender", transaction.from.to_string(), text(*from));
    }
    if transaction.to.is_some() && *to != transaction.to {
        return differs("the recipient", text(transaction.to), text(*to));
    }
    if *value != transaction.value {
        return differs("the value", transaction.value.to_string(), value.to_string());
    }
    if status != Status::Unknown && *failed != (status == Status::Reverted) {
        return differs("how it ended", format!("{status:?}"), if *failed { "an error" } else { "none" }.to_owned());
    }
    Ok(())
}

fn collect(trace: &Trace, transaction: &Transaction, position: u32, transfers: &mut Vec<InternalTransfer>) {
    let Top { from, to, value, failed } = &trace.top;
    if *failed {
        return;
    }
    let own = Move::new(*from, *to, Some(*value)).filter(|_| transaction.to.is_none());
    let all = own.iter().map(|own| (0, own)).chain((1..).zip(&trace.moves));
    transfers.extend(all.map(|(frame, moved)| InternalTransfer {
        from: moved.from,
        to: moved.to,
        value: moved.value,
        transaction_hash: transaction.hash,
        transaction_index: position,
        frame,
    }));
}
