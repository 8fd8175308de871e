//! Lazy decoding: iterates over a record's fields, borrowed, and decodes only those that the reader uses.
//!
//! The detector reads two fields per log, of millions of logs per second; decoding whole logs into structs would cost ten times
//! the rest of its work. prost decodes varints and keys. Groups, which proto3 does not have, are malformed here.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Integers, enums and booleans.
    Varint(u64),
    /// Bytes, strings and nested messages.
    Bytes(&'a [u8]),
    /// Fixed-size numbers, which none of our records has.
    Fixed,
}

impl<'a> Value<'a> {
    /// The bytes; empty for another type.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Varint(_) | Self::Fixed => &[],
        }
    }

    /// The number; 0, proto3's default, for another type.
    pub fn varint(self) -> u64 {
        match self {
            Self::Varint(number) => number,
            Self::Bytes(_) | Self::Fixed => 0,
        }
    }
}

/// Iterates over `(field number, value)`. Ends after an error.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of an encoded message without its frame.
    pub const fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], prost::DecodeError> {
        let split = usize::try_from(length).ok().and_then(|at| self.rest.split_at_checked(at));
        let Some((bytes, rest)) = split else {
            return Err(truncated());
        };
        self.rest = rest;
        Ok(bytes)
    }

    fn read(&mut self) -> Result<(u32, Value<'a>), prost::DecodeError> {
        let (field, wire_type) = decode_key(&mut self.rest)?;
        let value = match wire_type {
            WireType::Varint => Value::Varint(decode_varint(&mut self.rest)?),
            WireType::LengthDelimited => {
                let length = decode_varint(&mut self.rest)?;
                Value::Bytes(self.take(length)?)
            }
            WireType::SixtyFourBit => self.take(8).map(|_| Value::Fixed)?,
            WireType::ThirtyTwoBit => self.take(4).map(|_| Value::Fixed)?,
            WireType::StartGroup | WireType::EndGroup => return Err(truncated()),
        };
        Ok((field, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), prost::DecodeError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if !self.rest.has_remaining() {
            return None;
        }
        let item = self.read();
        if item.is_err() {
            self.rest = &[];
        }
        Some(item)
    }
}

// prost's error has no public constructor, so a decoding that must fail makes one.
fn truncated() -> prost::DecodeError {
    match decode_varint(&mut [0x80_u8].as_slice()) {
        Err(error) => error,
        Ok(_) => unreachable!("a lone continuation byte is no varint"),
    }
}
