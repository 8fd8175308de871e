//! The record types, generated from `proto/`.

#![allow(missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/ctrip.v1.rs"));

impl payment_event::Transfer {
    /// None of a token that was not known when the transfer came: Protobuf has no null, and zero is a number of decimals too.
    pub fn known_decimals(&self) -> Option<u8> {
        u8::try_from(self.decimals).ok().filter(|_| !self.chain.is_empty())
    }
}
