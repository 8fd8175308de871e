//! Internal transfers from the traces of a block: checked against the block, and numbered.

use super::error::TraceError;
use super::frame::{Frame, FrameKind, Trace};
use super::{call_tracer, trace_block};
use crate::block::{Block, OP_DEPOSIT, ReceiptStatus, Transaction};
use crate::proof::ProofError;
use alloy::primitives::{Address, B256, U256};

/// A method that returns call traces, and so the format of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracer {
    /// `debug_traceBlockByHash` with geth's `callTracer`.
    CallTracer,
    /// `trace_block`, which Parity had first.
    TraceBlock,
}

/// Coin that a contract moved inside a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InternalTransfer {
    pub from: Address,
    pub to: Address,
    /// Base units, never zero.
    pub value: U256,
    pub transaction_hash: B256,
    /// Position of the transaction in the block.
    pub transaction_index: u32,
    /// Position among the transaction's frames that moved coin, depth first; 0 is the transaction's own value. Tracers differ
    /// in which other frames they list, so those are not counted.
    pub frame: u32,
}

/// Reads the transfers in a tracer's answer (the JSON of the result), in order of execution.
///
/// A transaction's own value is left out, since the transaction says it. The exception is a contract creation, whose recipient
/// only the trace knows.
///
/// # Errors
/// If the answer can't be read, or contradicts the block.
pub fn internal_transfers(
    block: &Block,
    statuses: &[ReceiptStatus],
    tracer: Tracer,
    answer: &str,
) -> Result<Vec<InternalTransfer>, TraceError> {
    let traces = match tracer {
        Tracer::CallTracer => call_tracer::read(answer)?,
        Tracer::TraceBlock => trace_block::read(block, answer)?,
    };
    Ok(number_transfers(block, statuses, &traces)?)
}

/// Reads the transfers of single transactions in a tracer's answers, `None` where it gave none. Returns them with the positions
/// of the transactions that stay untraced: those without an answer, or whose answer can't be read or contradicts the block.
pub fn internal_transfers_one_by_one(
    block: &Block,
    statuses: &[ReceiptStatus],
    tracer: Tracer,
    answers: &[Option<&str>],
) -> (Vec<InternalTransfer>, Vec<u32>) {
    let (mut transfers, mut untraced) = (Vec::new(), Vec::new());
    for ((index, transaction), answer) in (0_u32..).zip(&block.transactions).zip(answers) {
        let read = |answer: &str| -> Result<Vec<InternalTransfer>, TraceError> {
            let trace = match tracer {
                Tracer::CallTracer => call_tracer::read_one(answer)?,
                Tracer::TraceBlock => trace_block::read_one(block, transaction.hash, answer)?,
            };
            Ok(transfers_of(block, statuses, index, transaction, &trace)?)
        };
        match answer.map(read) {
            Some(Ok(found)) => transfers.extend(found),
            None if !may_move_coin(statuses, index, transaction) => {}
            None | Some(Err(_)) => untraced.push(index),
        }
    }
    (transfers, untraced)
}

/// Whether a trace of the transaction could show a transfer. Not every node traces Bor's state sync.
pub fn may_move_coin(statuses: &[ReceiptStatus], index: u32, transaction: &Transaction) -> bool {
    !transaction.is_state_sync() && status_at(statuses, index) != ReceiptStatus::Reverted
}

fn status_at(statuses: &[ReceiptStatus], index: u32) -> ReceiptStatus {
    usize::try_from(index).ok().and_then(|index| statuses.get(index)).copied().unwrap_or(ReceiptStatus::Unknown)
}

/// Checks traces against the block and numbers the transfers.
fn number_transfers(block: &Block, statuses: &[ReceiptStatus], traces: &[Trace]) -> Result<Vec<InternalTransfer>, ProofError> {
    let unproven = |what: String, expected: String, got: String| ProofError::new(block.number, what, expected, got);
    // Bor may or may not trace its state sync. Without hashes, the number of traces shows which.
    let all_traced = traces.len() == block.transactions.len();
    let mut transfers = Vec::new();
    let mut rest = traces.iter();
    let mut next = rest.next();
    for (index, transaction) in (0_u32..).zip(&block.transactions) {
        let fits =
            |trace: &&Trace| trace.hash.map_or(!transaction.is_state_sync() || all_traced, |hash| hash == transaction.hash);
        let Some(trace) = next.filter(fits) else {
            if transaction.is_state_sync() {
                continue;
            }
            let got = next.map_or_else(|| "none".to_owned(), |trace| trace.hash.unwrap_or_default().to_string());
            return Err(unproven(format!("the trace of transaction {index}"), transaction.hash.to_string(), got));
        };
        next = rest.next();
        transfers.extend(transfers_of(block, statuses, index, transaction, trace)?);
    }
    match next {
        None => Ok(transfers),
        Some(extra) => {
            let got = format!("another one, of {}", extra.hash.unwrap_or_default());
            Err(unproven("the number of traces".to_owned(), "one per transaction".to_owned(), got))
        }
    }
}

/// Checks a transaction's trace and numbers its transfers.
fn transfers_of(
    block: &Block,
    statuses: &[ReceiptStatus],
    index: u32,
    transaction: &Transaction,
    trace: &Trace,
) -> Result<Vec<InternalTransfer>, ProofError> {
    let unproven = |what: String, expected: String, got: String| ProofError::new(block.number, what, expected, got);
    let mut transfers = Vec::new();
    let status = status_at(statuses, index);
    let what = |part: &str| format!("the trace of transaction {index} ({part})");
    let runs = TopFrameRule::of(transaction);
    let contradicts = match status {
        ReceiptStatus::Unknown => false,
        ReceiptStatus::Success => trace.top.failed && runs != TopFrameRule::Independent,
        ReceiptStatus::Reverted => !trace.top.failed && runs == TopFrameRule::IsTransaction,
    };
    if contradicts {
        let failed = if trace.top.failed { "a failure" } else { "a success" };
        return Err(unproven(what("outcome"), format!("{status:?}, as its receipt says"), failed.to_owned()));
    }
    if status == ReceiptStatus::Reverted || trace.top.failed {
        return Ok(Vec::new());
    }
    if runs != TopFrameRule::Independent {
        match_top_frame(transaction, &trace.top).map_err(|(part, expected, got)| unproven(what(part), expected, got))?;
    }
    let own = Some(&trace.top).filter(|top| transaction.to.is_none() && top.moves_coin());
    let first = if own.is_some() { 0 } else { 1 };
    for (frame, place) in own.into_iter().chain(&trace.transfers_below).zip(first..) {
        let (FrameKind::Call | FrameKind::Create | FrameKind::SelfDestruct, Some(from), Some(to)) =
            (frame.kind, frame.from, frame.to)
        else {
            let expected = "a call, a creation or a self-destruct with sender and recipient".to_owned();
            return Err(unproven(what("a frame with value"), expected, format!("{frame:?}")));
        };
        transfers.push(InternalTransfer {
            from,
            to,
            value: frame.value,
            transaction_hash: transaction.hash,
            transaction_index: index,
            frame: place,
        });
    }
    Ok(transfers)
}

/// How a transaction's top frame must agree with the transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TopFrameRule {
    /// Ethereum's own types: the top frame is the transaction, and fails if and only if the transaction does.
    IsTransaction,
    /// OP Stack deposits: the same, but the transaction may fail before it runs, and is in the block all the same.
    IsTransactionOnceStarted,
    /// Arbitrum's own types, Bor's state sync and unknown types: the top frame need not agree.
    Independent,
}

impl TopFrameRule {
    fn of(transaction: &Transaction) -> Self {
        match transaction.kind {
            _ if transaction.is_state_sync() => Self::Independent,
            0..=4 => Self::IsTransaction,
            OP_DEPOSIT => Self::IsTransactionOnceStarted,
            _ => Self::Independent,
        }
    }
}

/// Part, expected, got.
type Mismatch = (&'static str, String, String);

fn match_top_frame(transaction: &Transaction, top: &Frame) -> Result<(), Mismatch> {
    let text = |address: Option<Address>| address.map_or_else(|| "nobody".to_owned(), |address| address.to_string());
    let kind = if transaction.to.is_some() { FrameKind::Call } else { FrameKind::Create };
    if top.from != Some(transaction.from) {
        return Err(("from", transaction.from.to_string(), text(top.from)));
    }
    if transaction.to.is_some() && top.to != transaction.to {
        return Err(("to", text(transaction.to), text(top.to)));
    }
    if top.value != transaction.value {
        return Err(("value", transaction.value.to_string(), top.value.to_string()));
    }
    if top.kind != kind {
        return Err(("kind", format!("{kind:?}"), format!("{:?}", top.kind)));
    }
    Ok(())
}
