//! Recognising a reorg: what a branch of the node's chain means for the blocks published, and what an operator is told of one that is
//! too deep. Pure.
//!
//! History is a stack: a block is put on the tip, or the tip is taken off. Nothing is taken off before the common ancestor is
//! known, so a node that lags or fails midway takes nothing back.

use crate::window::Window;
use chain::Head;
use topics::{B256, BlockRef};

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing. The branch is published already, or ends below the last final block, as on a node that lags.
    Known,
    /// Publish the branch on the tip.
    Extend,
    /// A reorg: remove these, newest first, then publish the branch.
    Rewind(Vec<Head>),
    /// The ancestor is not known yet: prolong the branch downwards by this block, and call again.
    FetchParent(B256),
    /// The reorg goes below the last final block, or below the window. A person must decide.
    TooDeep(TooDeep),
}

/// A reorg below the last final block, or below the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "reorg too deep: the nodes have block {theirs} and leave our chain at or below {ours}, which is {}",
    describe(*.is_final)
)]
pub struct TooDeep {
    /// Our block that is not on the node's chain and can't be taken back.
    pub ours: BlockRef,
    /// The node's block at that height or below.
    pub theirs: BlockRef,
    /// Whether our block was final.
    pub is_final: bool,
}

fn describe(is_final: bool) -> &'static str {
    if is_final { "final" } else { "the oldest block in the window" }
}

/// Compares a branch with the window. `branch` is newest first, each block the parent of the one before.
pub fn reconcile(window: &Window, branch: &[Head]) -> Step {
    let (Some(newest), Some(oldest)) = (branch.first(), branch.last()) else { return Step::Known };
    let Some(bottom) = window.bottom() else { return Step::Extend };
    // The floor always stays. Blocks below are not compared.
    let last_final = window.finalized().and_then(|number| window.at(number));
    let floor = last_final.unwrap_or(bottom);
    let published = |block: &Head| window.at(block.number).is_some_and(|ours| ours.hash == block.hash);
    if newest.number < floor.number || published(newest) {
        return Step::Known;
    }
    if let Some(ancestor) = window.parent_of(oldest).filter(|ours| ours.number >= floor.number) {
        let removed: Vec<Head> = window.above(ancestor.number).copied().collect();
        return if removed.is_empty() { Step::Extend } else { Step::Rewind(removed) };
    }
    if oldest.number > floor.number {
        return Step::FetchParent(oldest.parent_hash);
    }
    if window.is_whole() && last_final.is_none() {
        // All blocks ever published are removed. The follower starts over, below them.
        return Step::Rewind(window.newest_first());
    }
    let as_ref = |block: &Head| BlockRef { number: block.number, hash: block.hash };
    Step::TooDeep(TooDeep { ours: as_ref(floor), theirs: as_ref(oldest), is_final: last_final.is_some() })
}

#[cfg(test)]
#[path = "reorg_tests.rs"]
mod tests;
