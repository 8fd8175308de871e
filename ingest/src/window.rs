use chain::Head;
use std::collections::VecDeque;

/// Blocks that are remembered: reorganisations are followed this deep.
pub const DEPTH: usize = 256;

/// The recent canonical blocks as published, one on the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    blocks: VecDeque<Head>,
    whole: bool,
}

impl Default for Window {
    /// Of a chain of which nothing was published yet.
    fn default() -> Self {
        Self { blocks: VecDeque::new(), whole: true }
    }
}

impl Window {
    /// From blocks that stand one on the other, oldest first. `whole` if nothing was ever published below them.
    pub fn new(blocks: impl IntoIterator<Item = Head>, whole: bool) -> Self {
        Self { blocks: blocks.into_iter().collect(), whole }
    }

    /// The last block published that is still canonical.
    pub fn tip(&self) -> Option<&Head> {
        self.blocks.back()
    }

    /// The oldest block remembered.
    pub fn bottom(&self) -> Option<&Head> {
        self.blocks.front()
    }

    /// Whether nothing was ever published below [`bottom`](Self::bottom).
    pub fn is_whole(&self) -> bool {
        self.whole
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

    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Head> {
        self.blocks.iter()
    }

    /// Puts a block on the tip. The oldest is forgotten when there are too many.
    pub fn push(&mut self, block: Head) {
        debug_assert!(self.tip().is_none_or(|tip| tip.hash == block.parent_hash && tip.number + 1 == block.number));
        self.blocks.push_back(block);
        if self.blocks.len() > DEPTH {
            self.blocks.pop_front();
            self.whole = false;
        }
    }

    /// Takes the tip off.
    pub fn pop(&mut self) -> Option<Head> {
        self.blocks.pop_back()
    }
}
