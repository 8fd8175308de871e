//! RLP and EIP-2718 building blocks for [`encode`](super::encode) and the header's hash.

use alloy::primitives::Address;
use alloy::rlp::{EMPTY_STRING_CODE, Encodable, Header};

/// An RLP list of what `fill` encodes.
pub(super) fn list(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut payload = Vec::with_capacity(512);
    fill(&mut payload);
    let header = Header { list: true, payload_length: payload.len() };
    let mut out = Vec::with_capacity(payload.len() + header.length() + 1);
    header.encode(&mut out);
    out.extend_from_slice(&payload);
    out
}

/// Appends an RLP list to `out`.
pub(super) fn append_list(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&list(fill));
}

/// Puts the EIP-2718 type in front of the list. `None` if the type is no single byte below 0x80.
pub(super) fn typed(kind: u64, list: &[u8]) -> Option<Vec<u8>> {
    let kind = u8::try_from(kind).ok().filter(|kind| *kind < 0x80)?;
    Some([&[kind], list].concat())
}

/// Appends each field.
pub(super) fn encode_all(out: &mut Vec<u8>, fields: &[&dyn Encodable]) {
    for field in fields {
        field.encode(out);
    }
}

/// A recipient; the empty string for a contract creation.
pub(super) struct To(pub Option<Address>);

impl Encodable for To {
    fn encode(&self, out: &mut dyn alloy::rlp::BufMut) {
        match self.0 {
            Some(address) => address.encode(out),
            None => out.put_u8(EMPTY_STRING_CODE),
        }
    }
}
