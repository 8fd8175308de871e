//! `callTracer`: frames inside one another, `{type, from, to, value, error, calls: […]}`.
//!
//! Read in one pass that keeps nothing but who gave what to whom. A frame's `calls` may stand before its `type` and its `error`, so
//! what is below it is collected first and thrown away again if it failed. Calls nest up to 1,024 deep, and so does the JSON:
//! deeper than a thread's stack takes, which is why it grows on the heap here.

use super::{Frame, Kind, Trace};
use alloy::primitives::{Address, B256, U256};
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

/// The EVM stops at 1,024 calls; a node that says more is not read on, so that its answer can't fill the memory.
const DEEPEST: usize = 1_100;

/// Reads an answer.
pub(super) fn read(answer: &str) -> Result<Vec<Trace>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(answer);
    // The limit is 128 levels, 64 calls; DEEPEST stands in for it.
    json.disable_recursion_limit();
    let traces = Vec::deserialize(serde_stacker::Deserializer::new(&mut json))?;
    json.end()?;
    Ok(traces)
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
    /// `input`, `output`, and what else there is.
    #[serde(other)]
    Other,
}

/// `{txHash, result: frame}`, or `{result: frame}` from old nodes.
impl<'de> Deserialize<'de> for Trace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
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
                            top = Some(map.next_value_seed(Below { frames: &mut frames, depth: 0 })?);
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
                Ok(Trace { hash, top, moved: frames.into_iter().skip(1).flatten().collect() })
            }
        }
        deserializer.deserialize_map(Entry)
    }
}

/// Reads a frame and those below it. `frames` gets a slot for each in the order of execution, filled if coin moved; a failed frame
/// leaves none behind.
struct Below<'a> {
    frames: &'a mut Vec<Option<Frame>>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Below<'_> {
    type Value = Frame;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Frame, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Below<'_> {
    type Value = Frame;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame, {type, from, to, value, calls}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Frame, A::Error> {
        if self.depth > DEEPEST {
            return Err(A::Error::custom(format_args!("calls nested deeper than {DEEPEST}")));
        }
        let slot = self.frames.len();
        self.frames.push(None);
        let mut frame = Frame { kind: Kind::Unknown, from: None, to: None, value: U256::ZERO, failed: false };
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
                Field::Calls => map.next_value_seed(Calls { frames: self.frames, depth: self.depth + 1 })?,
                _ => skip(&mut map)?,
            }
        }
        if !named {
            return Err(A::Error::missing_field("type"));
        }
        if frame.failed {
            self.frames.truncate(slot);
        } else if let Some(own) = self.frames.get_mut(slot).filter(|_| frame.moves()) {
            *own = Some(frame);
        }
        Ok(frame)
    }
}

struct Calls<'a> {
    frames: &'a mut Vec<Option<Frame>>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Calls<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Calls<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of frames")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut calls: A) -> Result<(), A::Error> {
        while calls.next_element_seed(Below { frames: self.frames, depth: self.depth })?.is_some() {}
        Ok(())
    }

    /// `null`, as some nodes write an empty list.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}
