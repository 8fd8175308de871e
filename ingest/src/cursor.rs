//! The record of `chain.cursors`: stores the window and the last sequence, from which a restart continues. Pure.

use crate::records::to_bytes;
use crate::window::Window;
use bytes::Bytes;
use chain::Head;
use topics::wire::{ChainCursor, chain_cursor};
use topics::{B256, ChainId};

/// The cursor's record. A block's parent is the block before it, so only the first block's parent is written.
pub fn cursor(chain: ChainId, sequence: u64, window: &Window) -> ChainCursor {
    let blocks = window.iter().enumerate().map(|(index, head)| chain_cursor::Block {
        number: head.number,
        hash: to_bytes(&head.hash),
        timestamp: head.timestamp,
        parent_hash: if index == 0 { to_bytes(&head.parent_hash) } else { Bytes::new() },
        first: index == 0 && window.is_whole(),
    });
    ChainCursor {
        chain_id: chain.0,
        sequence,
        window: blocks.collect(),
        finalized_number: window.finalized(),
        halted: String::new(),
    }
}

/// Why a cursor can't be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCursor {
    /// A hash that has not 32 bytes.
    #[error("the cursor's block {0} has a hash that is not 32 bytes long")]
    Hash(u64),
    /// A block whose parent is not the block before it.
    #[error("the cursor's block {0} does not follow the block before it")]
    Gap(u64),
    /// It belongs to another chain.
    #[error("the cursor belongs to chain {0}")]
    Chain(u64),
}

/// Restores the sequence of the last record, and the window.
///
/// # Errors
/// If it is not a record that [`cursor`] made for this chain.
pub fn restore(chain: ChainId, cursor: &ChainCursor) -> Result<(u64, Window), BadCursor> {
    if cursor.chain_id != chain.0 {
        return Err(BadCursor::Chain(cursor.chain_id));
    }
    let mut blocks: Vec<Head> = Vec::with_capacity(cursor.window.len());
    for block in &cursor.window {
        let hash = |bytes: &[u8]| B256::try_from(bytes).map_err(|_| BadCursor::Hash(block.number));
        let parent_hash = match blocks.last() {
            Some(below) if below.number.checked_add(1) != Some(block.number) => return Err(BadCursor::Gap(block.number)),
            Some(below) if block.parent_hash.is_empty() => below.hash,
            Some(below) if below.hash.as_slice() != block.parent_hash.as_ref() => return Err(BadCursor::Gap(block.number)),
            _ => hash(&block.parent_hash)?,
        };
        blocks.push(Head { number: block.number, hash: hash(&block.hash)?, parent_hash, timestamp: block.timestamp });
    }
    let whole = cursor.window.first().is_none_or(|block| block.first);
    Ok((cursor.sequence, Window::new(blocks, whole, cursor.finalized_number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(count: u64, whole: bool) -> Window {
        let hash = |number: u64| B256::from(topics::U256::from(number + 1000));
        Window::new(
            (0..count).map(|n| Head { number: n + 5, hash: hash(n + 1), parent_hash: hash(n), timestamp: n }),
            whole,
            Some(6),
        )
    }

    #[test]
    fn a_cursor_brings_the_window_back() {
        for (count, whole) in [(0, true), (1, true), (1, false), (256, false)] {
            let window = window(count, whole);
            assert_eq!(restore(ChainId(7), &cursor(ChainId(7), 9, &window)), Ok((9, window)));
        }
    }

    #[test]
    fn a_cursor_that_is_not_ours_is_refused() {
        let good = cursor(ChainId(7), 9, &window(3, true));
        assert_eq!(restore(ChainId(8), &good), Err(BadCursor::Chain(7)));
        let mut gap = good.clone();
        gap.window.remove(1);
        assert_eq!(restore(ChainId(7), &gap), Err(BadCursor::Gap(7)));
        let mut short = good;
        short.window[2].hash.truncate(31);
        assert_eq!(restore(ChainId(7), &short), Err(BadCursor::Hash(7)));
    }
}
