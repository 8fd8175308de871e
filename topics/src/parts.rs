//! Dividing what fits no record into parts. `proto/` says what their numbers mean.

use prost::Message;

/// The bytes that a message of a repeated field takes, as [`in_parts`] counts them: with its key and its length.
pub fn length_in_part(message: &impl Message) -> usize {
    message.encoded_len() + 8
}

/// Divides messages of a repeated field, in order, so that those of a part take at most so many bytes, or are one. There is a part
/// without messages if there are none.
pub fn in_parts<M: Message>(messages: impl IntoIterator<Item = M>, max_bytes: usize) -> Vec<Vec<M>> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for message in messages {
        let length = length_in_part(&message);
        if bytes + length > max_bytes && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += length;
        part.push(message);
    }
    parts.push(part);
    parts
}
