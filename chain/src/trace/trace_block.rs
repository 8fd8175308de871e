//! Parity's `trace_block`: a flat list of a block's frames, each with its place in its transaction's tree (`traceAddress`).
//!
//! Clients differ in the order of the list (reth puts a self-destruct before the calls that preceded it) and in which frames
//! without coin they leave out (precompiles). Only the places count: frames are sorted by them, and each frame must have its
//! parent and as many children as it says.

use super::error::TraceError;
use super::frame::{Frame, FrameKind, Trace};
use crate::block::Block;
use crate::proof::ProofError;
use alloy::primitives::{Address, B256, U256};
use serde::Deserialize;
use std::collections::HashMap;

/// The longest `traceAddress` accepted: the EVM stops at 1,024 nested calls.
const MAX_DEPTH: usize = 1_100;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlatFrame {
    #[serde(rename = "type")]
    kind: FrameKind,
    action: Action,
    result: Option<CallResult>,
    error: Option<String>,
    block_hash: Option<B256>,
    transaction_hash: Option<B256>,
    transaction_position: Option<usize>,
    #[serde(default)]
    trace_address: Vec<u32>,
    subtraces: Option<usize>,
}

/// The parameters of a call, a creation or a self-destruct, without `input` and `init`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Action {
    call_type: Option<FrameKind>,
    from: Option<Address>,
    to: Option<Address>,
    value: Option<U256>,
    /// The contract that self-destructs.
    address: Option<Address>,
    refund_address: Option<Address>,
    balance: Option<U256>,
}

#[derive(Deserialize)]
struct CallResult {
    /// The contract created.
    address: Option<Address>,
}

impl FlatFrame {
    fn frame(&self) -> Frame {
        let failed = self.error.as_ref().is_some_and(|error| !error.is_empty());
        let (action, value) = (&self.action, self.action.value.unwrap_or_default());
        // A call's opcode is in `callType` and matters; a creation's is in `creationMethod` and does not.
        let kind = action.call_type.filter(|_| self.kind == FrameKind::Call).unwrap_or(self.kind);
        match kind {
            FrameKind::Create => {
                let to = self.result.as_ref().and_then(|result| result.address);
                Frame { kind, from: action.from, to, value, failed }
            }
            FrameKind::SelfDestruct => {
                let value = action.balance.unwrap_or_default();
                Frame { kind, from: action.address, to: action.refund_address, value, failed }
            }
            FrameKind::Call | FrameKind::NoValue | FrameKind::Reward | FrameKind::Unknown => {
                Frame { kind, from: action.from, to: action.to, value, failed }
            }
        }
    }
}

/// Reads the answer of `trace_block`. The request names a height, so the answer may belong to another block.
pub(super) fn read(block: &Block, answer: &str) -> Result<Vec<Trace>, TraceError> {
    let items: Vec<FlatFrame> = serde_json::from_str(answer)?;
    let mut by_transaction: Vec<(B256, Vec<&FlatFrame>)> = Vec::new();
    let mut last_position = None;
    for item in &items {
        let unproven = |what: &str, expected: String, got: String| ProofError::new(block.number, what, expected, got);
        match item.block_hash {
            Some(hash) if hash == block.hash => {}
            other => {
                let got = other.map_or_else(|| "none".to_owned(), |hash| hash.to_string());
                return Err(unproven("a frame's block", block.hash.to_string(), got).into());
            }
        }
        if item.kind == FrameKind::Reward {
            continue;
        }
        let hash = item.transaction_hash.ok_or_else(|| unproven("a frame's transaction", "a hash".into(), "none".into()))?;
        match by_transaction.last_mut() {
            Some((last, frames)) if *last == hash => frames.push(item),
            _ => {
                last_position = item.transaction_position;
                by_transaction.push((hash, vec![item]));
            }
        }
        if item.transaction_position != last_position {
            let of = |position: Option<usize>| position.map_or_else(|| "none".to_owned(), |position| position.to_string());
            return Err(unproven("a frame's position", of(last_position), of(item.transaction_position)).into());
        }
    }
    by_transaction.into_iter().map(|(hash, items)| read_tree(block, hash, items)).collect::<Result<_, _>>().map_err(Into::into)
}

/// Reads the answer of `trace_transaction`: the frames of one transaction.
pub(super) fn read_one(block: &Block, hash: B256, answer: &str) -> Result<Trace, TraceError> {
    let mut traces = read(block, answer)?;
    match (traces.pop(), traces.is_empty()) {
        (Some(trace), true) if trace.hash == Some(hash) => Ok(trace),
        (other, _) => {
            let got = other.and_then(|trace| trace.hash).map_or_else(|| "none".to_owned(), |hash| hash.to_string());
            Err(ProofError::new(block.number, "the trace of a transaction", hash, got).into())
        }
    }
}

/// Reads a transaction's frames in the order of execution, without failed ones and those below them.
fn read_tree(block: &Block, hash: B256, mut items: Vec<&FlatFrame>) -> Result<Trace, ProofError> {
    let unproven = |expected: String, got: String| ProofError::new(block.number, format!("the trace of {hash}"), expected, got);
    items.sort_by(|one, two| one.trace_address.cmp(&two.trace_address));
    let mut frames = items.iter().map(|item| (item.trace_address.as_slice(), *item));
    let Some(([], top)) = frames.next() else {
        return Err(unproven("a top frame".to_owned(), "none".to_owned()));
    };
    let mut children: HashMap<&[u32], usize> = HashMap::with_capacity(items.len());
    children.insert(&[], 0);
    let top = top.frame();
    let mut failed: Option<&[u32]> = top.failed.then_some(&[]);
    let mut transfers_below = Vec::new();
    for (place, item) in frames {
        let parent = place.split_last().filter(|_| place.len() <= MAX_DEPTH).and_then(|(_, parent)| children.get_mut(parent));
        let Some(siblings) = parent else {
            return Err(unproven("a frame below one of its frames".to_owned(), format!("one at {place:?}")));
        };
        *siblings += 1;
        if children.insert(place, 0).is_some() {
            return Err(unproven("one frame at a place".to_owned(), format!("two at {place:?}")));
        }
        if failed.is_some_and(|failed| place.starts_with(failed)) {
            continue;
        }
        let frame = item.frame();
        if frame.failed {
            failed = Some(place);
        } else if frame.moves_coin() {
            transfers_below.push(frame);
        }
    }
    for item in &items {
        let (expected, got) = (item.subtraces, children.get(item.trace_address.as_slice()).copied());
        if expected.is_some() && expected != got {
            let at = &item.trace_address;
            let expected = format!("{} frames below {at:?}", expected.unwrap_or_default());
            return Err(unproven(expected, got.unwrap_or_default().to_string()));
        }
    }
    Ok(Trace { hash: Some(hash), top, transfers_below })
}
