//! geth's `callTracer`: nested frames, `{type, from, to, value, error, calls: […]}`.
//!
//! One pass reads it and keeps nothing but the coin that moved. A frame's `calls` may come before its `type` and its `error`,
//! so the frames below it are collected first and dropped if it turns out to have failed. Calls nest up to 1,024 deep, and so
//! does the JSON: deeper than a thread's stack allows, so the stack grows on the heap here.

use super::frame::{Frame, FrameKind, Trace};
use alloy::primitives::{Address, B256, U256};
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// The EVM stops at 1,024 nested calls. A deeper answer is refused, or it could fill the memory.
const MAX_DEPTH: usize = 1_100;

/// Reads the answer of `debug_traceBlockByHash`.
pub(super) fn read(answer: &str) -> Result<Vec<Trace>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(answer);
    // serde_json's own limit is 128 levels, 64 calls; MAX_DEPTH replaces it.
    json.disable_recursion_limit();
    let traces = Vec::deserialize(serde_stacker::Deserializer::new(&mut json))?;
    json.end()?;
    Ok(traces)
}

/// Reads the answer of `debug_traceTransaction`: the top frame alone.
pub(super) fn read_one(answer: &str) -> Result<Trace, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(answer);
    json.disable_recursion_limit();
    let mut frames = Vec::new();
    let top = FrameReader { frames: &mut frames, depth: 0 }.deserialize(serde_stacker::Deserializer::new(&mut json))?;
    json.end()?;
    Ok(Trace { hash: None, top, transfers_below: frames.into_iter().skip(1).flatten().collect() })
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    Type,
    From,
    To,
    Value,
    Error,
    Calls,
    TxHash,
    Result,
    /// `input`, `output` and all others.
    #[serde(other)]
    Other,
}

/// `{txHash, result: frame}`, or `{result: frame}` from old nodes.
impl<'de> Deserialize<'de> for Trace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TraceVisitor;
        impl<'de> Visitor<'de> for TraceVisitor {
            type Value = Trace;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the trace of a transaction, {txHash, result}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Trace, A::Error> {
                let (mut hash, mut top, mut frames) = (None, None, Vec::new());
                while let Some(field) = map.next_key()? {
                    match field {
                        Field::TxHash => hash = map.next_value::<Option<B256>>()?,
                        Field::Result => {
                            frames.clear();
                            top = Some(map.next_value_seed(FrameReader { frames: &mut frames, depth: 0 })?);
                        }
                        Field::Error => {
                            if let Some(error) = map.next_value::<Option<String>>()? {
                                return Err(A::Error::custom(format_args!("the node could not trace a transaction: {error}")));
                            }
                        }
                        _ => skip(&mut map)?,
                    }
                }
                let top = top.ok_or_else(|| A::Error::missing_field("result"))?;
                // The first slot is the top frame's own.
                Ok(Trace { hash, top, transfers_below: frames.into_iter().skip(1).flatten().collect() })
            }
        }
        deserializer.deserialize_map(TraceVisitor)
    }
}

/// Reads a frame and those below it. `frames` gets a slot per frame in the order of execution, filled if coin moved. A failed
/// frame removes its slot and those below.
struct FrameReader<'a> {
    frames: &'a mut Vec<Option<Frame>>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for FrameReader<'_> {
    type Value = Frame;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Frame, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FrameReader<'_> {
    type Value = Frame;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame, {type, from, to, value, calls}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Frame, A::Error> {
        if self.depth > MAX_DEPTH {
            return Err(A::Error::custom(format_args!("calls nested deeper than {MAX_DEPTH}")));
        }
        let slot = self.frames.len();
        self.frames.push(None);
        let mut frame = Frame { kind: FrameKind::Unknown, from: None, to: None, value: U256::ZERO, failed: false };
        let mut named = false;
        while let Some(field) = map.next_key()? {
            match field {
                Field::Type => {
                    frame.kind = map.next_value()?;
                    named = true;
                }
                Field::From => frame.from = map.next_value::<Option<Address>>()?,
                Field::To => frame.to = map.next_value::<Option<Address>>()?,
                Field::Value => frame.value = map.next_value::<Option<U256>>()?.unwrap_or_default(),
                Field::Error => frame.failed = map.next_value::<Option<String>>()?.is_some_and(|error| !error.is_empty()),
                Field::Calls => map.next_value_seed(CallsReader { frames: self.frames, depth: self.depth + 1 })?,
                _ => skip(&mut map)?,
            }
        }
        if !named {
            return Err(A::Error::missing_field("type"));
        }
        if frame.failed {
            self.frames.truncate(slot);
        } else if let Some(own) = self.frames.get_mut(slot).filter(|_| frame.moves_coin()) {
            *own = Some(frame);
        }
        Ok(frame)
    }
}

/// Reads the `calls` of a frame.
struct CallsReader<'a> {
    frames: &'a mut Vec<Option<Frame>>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for CallsReader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CallsReader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of frames")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut calls: A) -> Result<(), A::Error> {
        while calls.next_element_seed(FrameReader { frames: self.frames, depth: self.depth })?.is_some() {}
        Ok(())
    }

    /// `null`: some nodes write an empty list so.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}
