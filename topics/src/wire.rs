//! The record types, generated from `proto/`.

#![allow(missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/ctrip.v1.rs"));

impl payment_event::Transfer {
    /// None where nobody knew the coin's chain or the token when the transfer came, since zero is a number of decimals too.
    pub fn known_decimals(&self) -> Option<u8> {
        let named = if self.token_address.is_empty() { &self.chain } else { &self.token };
        u8::try_from(self.decimals).ok().filter(|_| !named.is_empty())
    }
}
