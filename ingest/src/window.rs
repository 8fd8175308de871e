//! The window: the recent blocks as published, on which a reorg is recognised. Pure.
//!
//! It reaches down to the last final block, since nothing below can be taken back.

use chain::Head;
use std::collections::VecDeque;

/// The window keeps at least this many blocks; on a chain without a `finalized` tag, exactly as many.
pub const MIN_WINDOW_BLOCKS: usize = 256;
/// The window keeps at most this many blocks, however long a chain does not finalise: they are in memory, and read at each start.
pub const MAX_WINDOW_BLOCKS: usize = 65_536;

/// The recent canonical blocks as published, each on its parent, down to the last final one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    blocks: VecDeque<Head>,
    /// Nothing was ever published below it.
    whole: bool,
    finalized: Option<u64>,
}

impl Default for Window {
    /// The window of a chain without published blocks.
    fn default() -> Self {
        Self { blocks: VecDeque::new(), whole: true, finalized: None }
    }
}

impl Window {
    /// From blocks, oldest first, each the parent of the next. `whole` says that nothing was ever published below them;
    /// `finalized` is the height of the newest final block.
    pub fn new(blocks: impl IntoIterator<Item = Head>, whole: bool, finalized: Option<u64>) -> Self {
        Self { blocks: blocks.into_iter().collect(), whole, finalized }
    }

    /// The last block published that is canonical.
    pub fn tip(&self) -> Option<&Head> {
        self.blocks.back()
    }

    /// The oldest block in the window.
    pub fn bottom(&self) -> Option<&Head> {
        self.blocks.front()
    }

    /// Whether nothing was ever published below [`bottom`](Self::bottom).
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Height of the newest final block. Neither it nor any block below is ever taken back.
    pub fn finalized(&self) -> Option<u64> {
        self.finalized
    }

    /// The block at this height.
    pub fn at(&self, number: u64) -> Option<&Head> {
        let index = number.checked_sub(self.bottom()?.number)?;
        self.blocks.get(usize::try_from(index).ok()?)
    }

    /// The blocks above this height, newest first.
    pub fn above(&self, number: u64) -> impl Iterator<Item = &Head> {
        self.blocks.iter().rev().take_while(move |block| block.number > number)
    }

    /// All blocks, newest first.
    pub fn newest_first(&self) -> Vec<Head> {
        self.blocks.iter().rev().copied().collect()
    }

    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Head> {
        self.blocks.iter()
    }

    /// Puts a block on the tip. Drops blocks below the last final one if enough others are left.
    pub fn push(&mut self, block: Head) {
        debug_assert!(self.tip().is_none_or(|tip| tip.hash == block.parent_hash && tip.number + 1 == block.number));
        self.blocks.push_back(block);
        self.trim();
    }

    /// Takes the tip off.
    pub fn pop(&mut self) -> Option<Head> {
        self.blocks.pop_back()
    }

    /// Records a node's `finalized` block. It counts only if it is ours: a height alone may belong to another branch, or come
    /// from a node that lies.
    pub fn finalize(&mut self, final_block: &Head) {
        let ours = self.at(final_block.number).is_some_and(|ours| ours.hash == final_block.hash);
        if ours && self.finalized.is_none_or(|before| before < final_block.number) {
            self.finalized = Some(final_block.number);
            self.trim();
        }
    }

    fn trim(&mut self) {
        while self.blocks.len() > MIN_WINDOW_BLOCKS
            && (self.blocks.len() > MAX_WINDOW_BLOCKS
                || self.bottom().is_some_and(|bottom| self.finalized.is_none_or(|last| bottom.number < last)))
        {
            self.blocks.pop_front();
            self.whole = false;
        }
    }
}
