use super::{Move, Top, Trace, TraceError};
use crate::block::Block;
use crate::proof::Unproven;
use alloy::primitives::{Address, B256, U256};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    action: Action,
    result: Option<Outcome>,
    error: Option<String>,
    #[serde(default)]
    trace_address: Vec<usize>,
    transaction_hash: Option<B256>,
    block_hash: Option<B256>,
}

/// The fields of all kinds of action.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Action {
    call_type: Option<String>,
    from: Option<Address>,
    to: Option<Address>,
    value: Option<U256>,
    /// Of a contract that ends itself, or `suicide` as it was called.
    address: Option<Address>,
    refund_address: Option<Address>,
    balance: Option<U256>,
}

#[derive(Deserialize)]
struct Outcome {
    /// Of a created contract.
    address: Option<Address>,
}

/// The list is flat: a frame's place in the tree is its `traceAddress`.
///
/// # Errors
/// When it is no such list, or of another block.
pub(super) fn read(block: &Block, answer: &str) -> Result<Vec<Trace>, TraceError> {
    let entries: Vec<Entry> = serde_json::from_str(answer)?;
    let mut traces: Vec<Trace> = Vec::new();
    // What is below it has been undone with it.
    let mut failed: Option<Vec<usize>> = None;
    for entry in entries {
        if let Some(other) = entry.block_hash.filter(|hash| *hash != block.hash) {
            return Err(Unproven::new(block.number, "the trace's block", block.hash, other).into());
        }
        // A block's reward is no transaction's.
        let Some(hash) = entry.transaction_hash else { continue };
        let is_creation = entry.kind == "create";
        let to = if is_creation { entry.result.as_ref().and_then(|created| created.address) } else { entry.action.to };
        if entry.trace_address.is_empty() {
            let top = Top {
                from: entry.action.from,
                to,
                value: entry.action.value.unwrap_or_default(),
                failed: entry.error.is_some(),
            };
            traces.push(Trace { hash: Some(hash), top, moves: Vec::new() });
            failed = None;
            continue;
        }
        let Some(trace) = traces.last_mut().filter(|trace| trace.hash == Some(hash)) else {
            return Err(Unproven::new(block.number, "a trace's frame", "one of the transaction before it", hash).into());
        };
        if failed.as_ref().is_some_and(|above| entry.trace_address.starts_with(above)) {
            continue;
        }
        failed = None;
        if entry.error.is_some() {
            failed = Some(entry.trace_address);
            continue;
        }
        let Action { call_type, from, value, address, refund_address, balance, .. } = entry.action;
        trace.moves.extend(match entry.kind.as_str() {
            "suicide" | "selfdestruct" => Move::new(address, refund_address, balance),
            "call" if call_type.as_deref().is_some_and(|kind| kind != "call") => None,
            _ => Move::new(from, to, value),
        });
    }
    Ok(traces)
}
