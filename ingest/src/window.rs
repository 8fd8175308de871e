use chain::Head;
use std::collections::VecDeque;

/// Blocks that are remembered at least, and all there are where a chain has no `finalized` tag.
pub const DEPTH: usize = 256;
/// Blocks that are remembered at most, however long a chain does not finalise: the window is written with every batch.
pub const MOST: usize = 16_384;

/// The recent canonical blocks as published, one on the other, down to the last one that is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    blocks: VecDeque<Head>,
    whole: bool,
    finalized: Option<u64>,
}

impl Default for Window {
    /// Of a chain of which nothing was published yet.
    fn default() -> Self {
        Self { blocks: VecDeque::new(), whole: true, finalized: None }
    }
}

impl Window {
    /// From blocks that stand one on the other, oldest first. `whole` if nothing was ever published below them; `finalized`
    /// is the number of the newest block that is final.
    pub fn new(blocks: impl IntoIterator<Item = Head>, whole: bool, finalized: Option<u64>) -> Self {
        Self { blocks: blocks.into_iter().collect(), whole, finalized }
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

    /// The newest block that the chain called final. Neither it nor what is below it is ever taken back.
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

    /// Oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Head> {
        self.blocks.iter()
    }

    /// Puts a block on the tip. Blocks below the last final one are forgotten when there are enough others.
    pub fn push(&mut self, block: Head) {
        debug_assert!(self.tip().is_none_or(|tip| tip.hash == block.parent_hash && tip.number + 1 == block.number));
        self.blocks.push_back(block);
        self.forget();
    }

    /// Takes the tip off.
    pub fn pop(&mut self) -> Option<Head> {
        self.blocks.pop_back()
    }

    /// Takes note of what a node calls final. It counts only if it is a block of ours: a number alone may be of another
    /// branch, or of a node that lies.
    pub fn finalize(&mut self, final_block: &Head) {
        let ours = self.at(final_block.number).is_some_and(|ours| ours.hash == final_block.hash);
        if ours && self.finalized.is_none_or(|before| before < final_block.number) {
            self.finalized = Some(final_block.number);
            self.forget();
        }
    }

    fn forget(&mut self) {
        while self.blocks.len() > DEPTH
            && (self.blocks.len() > MOST
                || self.bottom().is_some_and(|bottom| self.finalized.is_none_or(|last| bottom.number < last)))
        {
            self.blocks.pop_front();
            self.whole = false;
        }
    }
}
