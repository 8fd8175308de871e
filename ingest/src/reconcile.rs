//! What a branch of the node's chain means for what was published. Pure.
//!
//! History is a stack: a block is put on the tip, or the tip is taken off. Nothing is taken off before the block is known
//! on which the new branch stands, so a node that lags or breaks off in the middle takes nothing back.

use crate::window::Window;
use chain::Head;
use topics::{B256, BlockRef};

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the branch is part of what was published, or ends below all that is remembered, as on a node that lags.
    Known,
    /// Put the branch on the tip.
    Extend,
    /// Take these off, newest first, then put the branch on.
    Rewind(Vec<Head>),
    /// The branch hangs in the air: prolong it downwards by this block, and ask again.
    FetchParent(B256),
    /// The branch leaves our chain below all that is remembered. A person must look at it.
    TooDeep(TooDeep),
}

/// The node's chain and ours part below the window: a reorganisation deeper than any, or another chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the node's block {theirs} is on no block that was published since {ours}: a reorganisation too deep to follow, or another chain"
)]
pub struct TooDeep {
    /// The oldest block that we remember.
    pub ours: BlockRef,
    /// The node's at that height or below.
    pub theirs: BlockRef,
}

/// Compares `branch`, newest first and each the parent of the one before, with the window.
pub fn reconcile(window: &Window, branch: &[Head]) -> Step {
    let (Some(newest), Some(oldest)) = (branch.first(), branch.last()) else { return Step::Known };
    let Some(bottom) = window.bottom() else { return Step::Extend };
    let published = |block: &Head| window.at(block.number).is_some_and(|ours| ours.hash == block.hash);
    if newest.number < bottom.number || published(newest) {
        return Step::Known;
    }
    if let Some(below) = oldest.number.checked_sub(1)
        && window.at(below).is_some_and(|ours| ours.hash == oldest.parent_hash)
    {
        let removed: Vec<Head> = window.above(below).copied().collect();
        return if removed.is_empty() { Step::Extend } else { Step::Rewind(removed) };
    }
    if oldest.number > bottom.number {
        return Step::FetchParent(oldest.parent_hash);
    }
    if window.is_whole() && oldest.number == bottom.number {
        // All that was ever published goes, so what lies below it does not matter.
        return Step::Rewind(window.iter().rev().copied().collect());
    }
    let refer = |block: &Head| BlockRef { number: block.number, hash: block.hash };
    Step::TooDeep(TooDeep { ours: refer(bottom), theirs: refer(oldest) })
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
