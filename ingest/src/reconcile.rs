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
    /// Nothing: the branch is part of what was published, or ends below what is final, as on a node that lags.
    Known,
    /// Put the branch on the tip.
    Extend,
    /// Take these off, newest first, then put the branch on.
    Rewind(Vec<Head>),
    /// The branch hangs in the air: prolong it downwards by this block, and ask again.
    FetchParent(B256),
    /// The branch leaves our chain below what is final, or below all that is remembered. A person must look at it.
    TooDeep(TooDeep),
}

/// The node's chain and ours part below the last block that is final, or below all that is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the nodes' chain has block {theirs} and leaves ours at or below {ours}, which is {}",
    what(*.is_final)
)]
pub struct TooDeep {
    /// The block of ours that is not on the node's chain and can't be taken back.
    pub ours: BlockRef,
    /// The node's at that height or below.
    pub theirs: BlockRef,
    /// Whether the chain had called our block final.
    pub is_final: bool,
}

fn what(is_final: bool) -> &'static str {
    if is_final { "final" } else { "the oldest that is remembered" }
}

/// Compares `branch`, newest first and each the parent of the one before, with the window.
pub fn reconcile(window: &Window, branch: &[Head]) -> Step {
    let (Some(newest), Some(oldest)) = (branch.first(), branch.last()) else { return Step::Known };
    let Some(bottom) = window.bottom() else { return Step::Extend };
    // What stays whatever happens. Below it nothing is compared.
    let last_final = window.finalized().and_then(|number| window.at(number));
    let floor = last_final.unwrap_or(bottom);
    let published = |block: &Head| window.at(block.number).is_some_and(|ours| ours.hash == block.hash);
    if newest.number < floor.number || published(newest) {
        return Step::Known;
    }
    if let Some(below) = oldest.number.checked_sub(1)
        && below >= floor.number
        && window.at(below).is_some_and(|ours| ours.hash == oldest.parent_hash)
    {
        let removed: Vec<Head> = window.above(below).copied().collect();
        return if removed.is_empty() { Step::Extend } else { Step::Rewind(removed) };
    }
    if oldest.number > floor.number {
        return Step::FetchParent(oldest.parent_hash);
    }
    if window.is_whole() && last_final.is_none() && oldest.number == bottom.number {
        // All that was ever published goes, so what lies below it does not matter.
        return Step::Rewind(window.iter().rev().copied().collect());
    }
    let refer = |block: &Head| BlockRef { number: block.number, hash: block.hash };
    Step::TooDeep(TooDeep { ours: refer(floor), theirs: refer(oldest), is_final: last_final.is_some() })
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;
