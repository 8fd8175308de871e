//! Dividing what fits no record into parts. What their numbers mean is said in `proto/`.

use prost::Message;

/// Divides messages of a repeated field, in order, so that those of a part take at most so many bytes, or are one. There is a part
/// without messages if there are none.
pub fn in_parts<M: Message>(messages: impl IntoIterator<Item = M>, max_bytes: usize) -> Vec<Vec<M>> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for message in messages {
        // Its key and its length.
        let length = message.encoded_len() + 8;
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
