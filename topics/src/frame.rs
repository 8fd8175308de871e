//! The Confluent wire format: a zero byte, the schema id (u32, big-endian), the index of the message in its schema, and the
//! Protobuf. Our records are the first message of their schema, whose index is written as a single zero.
//!
//! Source: Confluent Schema Registry, "Wire format".

/// Length in bytes.
pub const HEADER_LEN: usize = 6;

/// Why bytes are no framed record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than the header.
    #[error("{0} bytes, expected a {HEADER_LEN}-byte Confluent header and a Protobuf message")]
    Short(usize),
    /// The first byte is something else.
    #[error("magic byte {0:#04x}, expected 0x00 of the Confluent wire format")]
    Magic(u8),
    /// Not the first message of its schema.
    #[error("message index {0:#04x}, expected 0x00, the first message of the schema")]
    Index(u8),
    /// The Protobuf does not decode.
    #[error("the Protobuf does not decode")]
    Protobuf(#[source] prost::DecodeError),
}

/// Encodes a message behind its header.
pub fn encode(schema_id: u32, message: &impl prost::Message) -> Vec<u8> {
    let mut bytes = header(schema_id, message.encoded_len());
    message.encode_raw(&mut bytes);
    bytes
}

/// Puts the header in front of an encoded message.
pub fn wrap(schema_id: u32, message: &[u8]) -> Vec<u8> {
    let mut bytes = header(schema_id, message.len());
    bytes.extend_from_slice(message);
    bytes
}

fn header(schema_id: u32, room: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + room);
    bytes.push(0);
    bytes.extend_from_slice(&schema_id.to_be_bytes());
    bytes.push(0);
    bytes
}

/// The Protobuf behind the header.
///
/// # Errors
/// If there is no such header.
pub fn payload(bytes: &[u8]) -> Result<&[u8], FrameError> {
    match bytes {
        [0, _, _, _, _, 0, payload @ ..] => Ok(payload),
        [0, _, _, _, _, index, ..] => Err(FrameError::Index(*index)),
        [0, ..] | [] => Err(FrameError::Short(bytes.len())),
        [magic, ..] => Err(FrameError::Magic(*magic)),
    }
}

/// The schema id of a framed record.
pub fn schema_id(bytes: &[u8]) -> Option<u32> {
    payload(bytes).ok()?;
    bytes[1..].first_chunk().copied().map(u32::from_be_bytes)
}

/// Decodes a framed record.
///
/// # Errors
/// If the header or the Protobuf can't be read.
pub fn decode<M: prost::Message + Default>(bytes: &[u8]) -> Result<M, FrameError> {
    M::decode(payload(bytes)?).map_err(FrameError::Protobuf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ChainCursor;

    #[test]
    fn the_header_is_confluents() {
        let cursor = ChainCursor { chain_id: 1, sequence: 2, ..ChainCursor::default() };
        let bytes = encode(0x0102_0304, &cursor);
        assert_eq!(bytes, [0, 1, 2, 3, 4, 0, 0x08, 1, 0x10, 2]);
        assert_eq!(decode::<ChainCursor>(&bytes).unwrap(), cursor);
        assert_eq!(schema_id(&bytes), Some(0x0102_0304));
    }

    #[test]
    fn what_is_not_framed_is_refused() {
        assert_eq!(schema_id(b"{\"json\":1}"), None);
        assert_eq!(payload(&[]), Err(FrameError::Short(0)));
        assert_eq!(payload(&[0, 1, 2]), Err(FrameError::Short(3)));
        assert_eq!(payload(b"{\"json\":1}"), Err(FrameError::Magic(b'{')));
        assert_eq!(payload(&[0, 0, 0, 0, 1, 2, 2]), Err(FrameError::Index(2)));
        assert!(matches!(decode::<ChainCursor>(&[0, 0, 0, 0, 1, 0, 0xff]), Err(FrameError::Protobuf(_))));
    }
}
