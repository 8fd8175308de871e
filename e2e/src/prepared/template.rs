//! JSON with holes for the fields that differ between blocks.

use alloy::consensus::Header;

/// Markers of holes: characters that no JSON contains.
pub(super) const HASH: char = '\u{1}';
pub(super) const PARENT: char = '\u{2}';
pub(super) const NUMBER: char = '\u{3}';
pub(super) const TIMESTAMP: char = '\u{4}';

/// The fields that differ between two blocks of a variety, as JSON-RPC writes them.
pub(super) struct Stamp {
    pub hash: String,
    parent: String,
    pub number: String,
    timestamp: String,
}

impl Stamp {
    pub fn new(header: &Header) -> Self {
        Self {
            hash: format!("{:#x}", header.hash_slow()),
            parent: format!("{:#x}", header.parent_hash),
            number: format!("{:#x}", header.number),
            timestamp: format!("{:#x}", header.timestamp),
        }
    }

    fn value(&self, hole: char) -> Option<&str> {
        match hole {
            HASH => Some(&self.hash),
            PARENT => Some(&self.parent),
            NUMBER => Some(&self.number),
            TIMESTAMP => Some(&self.timestamp),
            _ => None,
        }
    }
}

/// A text, split at its holes: each piece with the hole after it.
pub(super) struct Template {
    pieces: Vec<(String, Option<char>)>,
    /// Size with the largest stamp in every hole.
    most: usize,
}

impl Template {
    pub fn new(text: &str) -> Self {
        let is_hole = |c: char| [HASH, PARENT, NUMBER, TIMESTAMP].contains(&c);
        let pieces: Vec<_> = text
            .split_inclusive(is_hole)
            .map(|piece| (piece.trim_end_matches(is_hole).to_owned(), piece.chars().next_back().filter(|c| is_hole(*c))))
            .collect();
        let most = text.len() + 66 * pieces.len();
        Self { pieces, most }
    }

    /// Writes the text with a block's values in its holes.
    pub fn fill(&self, stamp: &Stamp, out: &mut Vec<u8>) {
        out.reserve(self.most);
        for (piece, hole) in &self.pieces {
            out.extend_from_slice(piece.as_bytes());
            if let Some(value) = hole.and_then(|hole| stamp.value(hole)) {
                out.extend_from_slice(value.as_bytes());
            }
        }
    }
}
