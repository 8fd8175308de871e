//! The window: the recent blocks as published, on which a reorg is recognised. Pure.
//!
//! It reaches down to the last final block, since nothing below can be taken back.

use chain::Head;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use topics::B256;

/// The window keeps at least this many blocks; on a chain without a `finalized` tag, exactly as many, and such a
/// chain begins as deep.
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
    /// By height, a digest of the content of blocks whose content no root proves and one endpoint alone has given.
    doubts: BTreeMap<u64, B256>,
}

impl Default for Window {
    /// The window of a chain without published blocks.
    fn default() -> Self {
        Self { blocks: VecDeque::new(), whole: true, finalized: None, doubts: BTreeMap::new() }
    }
}

impl Window {
    /// From blocks, oldest first, each the parent of the next. `whole` says that nothing was ever published below them;
    /// `finalized` is the height of the newest final block.
    pub fn new(blocks: impl IntoIterator<Item = Head>, whole: bool, finalized: Option<u64>) -> Self {
        Self { blocks: blocks.into_iter().collect(), whole, finalized, doubts: BTreeMap::new() }
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

    /// The block at this height. There is none where the chain skips it.
    pub fn at(&self, number: u64) -> Option<&Head> {
        self.at_or_above(number).filter(|block| block.number == number)
    }

    /// The lowest block at this height or above.
    pub fn at_or_above(&self, number: u64) -> Option<&Head> {
        self.blocks.get(self.count_below(number))
    }

    /// The highest block below this height.
    pub fn below(&self, number: u64) -> Option<&Head> {
        self.blocks.get(self.count_below(number).checked_sub(1)?)
    }

    fn count_below(&self, number: u64) -> usize {
        self.blocks.partition_point(|block| block.number < number)
    }

    /// The block of ours that this one stands on.
    pub fn parent_of(&self, block: &Head) -> Option<&Head> {
        let below = self.blocks.range(..self.count_below(block.number)).rev();
        below.take_while(|ours| block.may_stand_above(ours.number)).find(|ours| block.stands_on(ours))
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

    /// The blocks whose content one endpoint alone has given, with its digest, lowest first. A hash says nothing of that content, so
    /// none of them is witnessed before others have given the same.
    pub fn doubts(&self) -> impl Iterator<Item = (Head, B256)> {
        self.doubts.iter().filter_map(|(number, content)| Some((*self.at(*number)?, *content)))
    }

    /// The digests of those between two heights, the second one excluded.
    pub fn doubts_in(&self, numbers: Range<u64>) -> Vec<B256> {
        self.doubts.range(numbers).map(|(_, content)| *content).collect()
    }

    /// The digest of the content of this block of ours, if one endpoint alone has given that.
    pub fn doubt_of(&self, head: &Head) -> Option<B256> {
        self.doubts.get(&head.number).copied().filter(|_| self.at(head.number) == Some(head))
    }

    /// One endpoint alone has given the content of this block of ours.
    pub fn doubt(&mut self, head: &Head, content: B256) {
        if self.at(head.number) == Some(head) {
            self.doubts.insert(head.number, content);
        }
    }

    /// Others have given this content of the block too. Returns whether it was in doubt.
    pub fn trust(&mut self, head: &Head, content: B256) -> bool {
        let was_in_doubt = self.doubt_of(head) == Some(content);
        if was_in_doubt {
            self.doubts.remove(&head.number);
        }
        was_in_doubt
    }

    /// Whether another block would push one out that is in doubt.
    pub fn is_full_of_doubt(&self) -> bool {
        let lowest = self.doubts.keys().next().copied();
        self.blocks.len() >= MAX_WINDOW_BLOCKS && lowest.is_some() && self.bottom().map(|bottom| bottom.number) >= lowest
    }

    /// Puts a block on the tip. Drops blocks below the last final one if enough others are left.
    pub fn push(&mut self, block: Head) {
        debug_assert!(self.tip().is_none_or(|tip| block.stands_on(tip)));
        self.blocks.push_back(block);
        self.trim();
    }

    /// Takes the tip off.
    pub fn pop(&mut self) -> Option<Head> {
        let tip = self.blocks.pop_back()?;
        self.doubts.remove(&tip.number);
        Some(tip)
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
        let doubtful = self.doubts.keys().next().copied().unwrap_or(u64::MAX);
        let ends = |bottom: &Head| bottom.number < doubtful && self.finalized.is_none_or(|last| bottom.number < last);
        while self.blocks.len() > MIN_WINDOW_BLOCKS
            && (self.blocks.len() > MAX_WINDOW_BLOCKS || self.blocks.front().is_some_and(ends))
        {
            self.blocks.pop_front();
            self.whole = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chain::MAX_SKIPPED;

    fn head(number: u64) -> Head {
        let hash = |number: u64| B256::from(topics::U256::from(number + 1000));
        Head { number, hash: hash(number + 1), parent_hash: hash(number), timestamp: number }
    }

    fn doubts(window: &Window) -> Vec<u64> {
        window.doubts().map(|(head, _)| head.number).collect()
    }

    #[test]
    fn a_window_has_no_block_where_the_chain_skips_numbers() {
        let hole = head(20);
        let mut window = Window::new((10..15).map(head), true, None);
        let over = Head { parent_hash: head(14).hash, ..hole };
        window.push(over);
        assert_eq!((window.at(14), window.at(15), window.at(19), window.at(20)), (Some(&head(14)), None, None, Some(&over)));
        assert_eq!((window.below(20), window.below(15), window.below(10)), (Some(&head(14)), Some(&head(14)), None));
        assert_eq!(
            (window.at_or_above(15), window.at_or_above(21), window.at_or_above(3)),
            (Some(&over), None, Some(&head(10)))
        );
        assert_eq!(window.above(16).collect::<Vec<_>>(), [&over]);
        let far = |number| Head { number, ..over };
        assert_eq!(window.parent_of(&over), Some(&head(14)));
        assert_eq!(window.parent_of(&far(14 + MAX_SKIPPED + 1)), Some(&head(14)));
        assert_eq!(window.parent_of(&far(14 + MAX_SKIPPED + 2)), None, "nobody is believed that jumps so far");
        assert_eq!(window.parent_of(&far(14)), None, "a number that does not grow");
        window.finalize(&over);
        assert_eq!(window.pop().map(|tip| tip.number), Some(20));
        assert_eq!(window.tip(), Some(&head(14)));
    }

    #[test]
    fn a_block_in_doubt_stays_until_it_is_trusted_or_taken_back() {
        let mut window = Window::new((0..300).map(head), true, None);
        [10, 20, 299].into_iter().for_each(|number| window.doubt(&head(number), B256::repeat_byte(1)));
        let of_another_branch = Head { hash: B256::ZERO, ..head(12) };
        window.doubt(&of_another_branch, B256::ZERO);
        window.trust(&Head { hash: B256::ZERO, ..head(10) }, B256::repeat_byte(1));
        window.trust(&head(10), B256::repeat_byte(2));
        assert_eq!(doubts(&window), [10, 20, 299]);
        window.doubt(&head(20), B256::repeat_byte(3));
        assert_eq!(window.doubts_in(10..21), [B256::repeat_byte(1), B256::repeat_byte(3)]);
        assert_eq!((window.doubts_in(11..20), window.doubts_in(11..21)), (vec![], vec![B256::repeat_byte(3)]));
        window.doubt(&head(20), B256::repeat_byte(1));
        window.finalize(&head(290));
        assert_eq!(window.bottom(), Some(&head(10)), "a final block above it says nothing of its content");
        window.pop();
        assert_eq!(doubts(&window), [10, 20]);
        window.trust(&head(10), B256::repeat_byte(1));
        window.push(head(299));
        assert_eq!((doubts(&window), window.bottom()), (vec![20], Some(&head(20))));
        assert!(!window.is_full_of_doubt());
        window.trust(&head(20), B256::repeat_byte(1));
        window.push(head(300));
        assert_eq!(window.bottom(), Some(&head(45)));
    }

    #[test]
    fn a_window_is_full_before_it_forgets_a_doubt() {
        let mut window = Window::new((0..10).map(head), true, None);
        window.doubt(&head(5), B256::ZERO);
        let mut number = 10;
        while !window.is_full_of_doubt() {
            window.push(head(number));
            number += 1;
        }
        assert_eq!((doubts(&window), window.iter().count()), (vec![5], MAX_WINDOW_BLOCKS));
    }
}
