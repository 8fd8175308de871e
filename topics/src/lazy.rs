//! A record's fields one after the other, borrowed, without decoding what is not looked at.
//!
//! The detector looks at two fields of each of millions of logs a second; decoding all of them into a struct would cost
//! ten times the rest of its work. Varints and keys are prost's; groups, which proto3 does not have, are malformed here.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

/// The value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Integers, enums and booleans.
    Varint(u64),
    /// Bytes, strings and nested messages.
    Bytes(&'a [u8]),
    /// Fixed-size numbers, which no record of ours has.
    Fixed,
}

impl<'a> Value<'a> {
    /// The bytes, or nothing.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Varint(_) | Self::Fixed => &[],
        }
    }

    /// The number, or 0, proto3's default.
    pub fn varint(self) -> u64 {
        match self {
            Self::Varint(number) => number,
            Self::Bytes(_) | Self::Fixed => 0,
        }
    }
}

/// Iterates over `(field number, value)`. After an error it ends.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Of an encoded message, without its frame.
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

// prost has no public constructor of its error but for decoding something that is none.
fn truncated() -> prost::DecodeError {
    match decode_varint(&mut [0x80_u8].as_slice()) {
        Err(error) => error,
        Ok(_) => unreachable!("a lone continuation byte is no varint"),
    }
}
