//! Bor's state sync, the only transaction that no root covers.

use crate::block::{Block, Transaction};
use alloy::primitives::B256;

/// The transactions that the block's roots cover: all but Bor's state sync.
pub(super) fn transactions_under_root(block: &Block) -> impl Iterator<Item = &Transaction> {
    let all = block.transactions.len();
    block.transactions.iter().take(if state_sync(block).is_some() { all - 1 } else { all })
}

/// Bor's `extraData`: 32 bytes of the signer's choice, maybe validators or gas parameters, and the signature.
/// `consensus/bor/bor.go`, `extraVanity` and `extraSeal`.
const MIN_EXTRA_DATA: usize = 32 + 65;

/// The hash of Bor's state sync, if the block has one: the last transaction under a header of Bor's, whose blocks have a
/// difficulty, no withdrawals, and their signature in `extraData`. Arbitrum has 32 bytes there, Ethereum's proof of work 32 at
/// most. On other chains nothing may pass for a state sync, or a node could add logs at will; Clique's headers alone look the same.
pub(super) fn state_sync(block: &Block) -> Option<B256> {
    let bor = !block.difficulty.is_zero() && block.withdrawals_root.is_none() && block.extra_data.len() >= MIN_EXTRA_DATA;
    block.transactions.last().filter(|last| bor && last.is_state_sync()).map(|last| last.hash)
}
