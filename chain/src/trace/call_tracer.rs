use super::{Move, Top, Trace};
use alloy::primitives::{Address, B256, U256};
use serde::Deserialize;
use serde::de::Error as _;

/// Calls in one another that the EVM allows.
const DEEPEST: usize = 1024;

/// One entry of the list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    tx_hash: Option<B256>,
    result: Option<Frame>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: Kind,
    from: Option<Address>,
    to: Option<Address>,
    value: Option<U256>,
    error: Option<String>,
    #[serde(default)]
    calls: Vec<Frame>,
}

/// What a frame did. A new opcode is no reason to stop, but it may move coin: it counts as it says.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    DelegateCall,
    StaticCall,
    /// The callee's code in the caller's place: its value goes from the caller to itself.
    CallCode,
    #[serde(other)]
    Moving,
}

/// # Errors
/// When it is no such list, or the tracer failed at a transaction.
pub(super) fn read(answer: &str) -> Result<Vec<Trace>, serde_json::Error> {
    if is_endless(answer) {
        return Err(serde_json::Error::custom("calls in one another, deeper than the EVM allows"));
    }
    let mut deserializer = serde_json::Deserializer::from_str(answer);
    // Its own limit of 128 levels is below the EVM's, and whoever calls deeper must not stop a chain: the stack grows instead.
    deserializer.disable_recursion_limit();
    let entries = Vec::<Entry>::deserialize(serde_stacker::Deserializer::new(&mut deserializer))?;
    deserializer.end()?;
    let traces = entries.into_iter().enumerate().map(|(index, entry)| match entry {
        Entry { result: Some(frame), error: None, tx_hash } => Ok(trace(tx_hash, &frame)),
        Entry { error, .. } => {
            let cause = error.unwrap_or_else(|| "no result".to_owned());
            Err(serde_json::Error::custom(format!("the tracer failed at transaction {index}: {cause}")))
        }
    });
    traces.collect()
}

fn trace(hash: Option<B256>, frame: &Frame) -> Trace {
    let top = Top { from: frame.from, to: frame.to, value: frame.value.unwrap_or_default(), failed: frame.error.is_some() };
    let mut moves = Vec::new();
    walk(&frame.calls, &mut moves);
    Trace { hash, top, moves }
}

/// Whether it is nested deeper than calls can be, each an object in a list.
fn is_endless(answer: &str) -> bool {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in answer.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest > 2 * DEEPEST + 16
}

/// As deep as [`is_endless`] lets through.
fn walk(calls: &[Frame], moves: &mut Vec<Move>) {
    for frame in calls.iter().filter(|frame| frame.error.is_none()) {
        if frame.kind == Kind::Moving {
            moves.extend(Move::new(frame.from, frame.to, frame.value));
        }
        walk(&frame.calls, moves);
    }
}
