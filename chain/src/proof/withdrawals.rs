//! Proving the beacon chain's withdrawals against the header's withdrawals root.

use super::error::ProofError;
use super::part::PartProof;
use crate::block::{Block, OP_DEPOSIT, Withdrawal};
use alloy::consensus::proofs::ordered_trie_root_encoded;

/// Proves the withdrawals against the header's root. `header` says whether the root itself is proven.
pub(super) fn prove_withdrawals(block: &Block, header: &PartProof) -> Result<PartProof, ProofError> {
    let gap = |why: &str| Ok(PartProof::Unproven(why.to_owned()));
    // Since Isthmus the OP Stack puts another root here, and there are no withdrawals of this kind.
    if block.transactions.iter().any(|transaction| transaction.kind == OP_DEPOSIT)
        && block.withdrawals.as_ref().is_none_or(Vec::is_empty)
    {
        return Ok(PartProof::Root);
    }
    let none = ordered_trie_root_encoded::<Vec<u8>>(&[]);
    match (&block.withdrawals, block.withdrawals_root) {
        (None, None) => Ok(PartProof::Root),
        (None, Some(root)) if root == none => Ok(PartProof::Root),
        (None, Some(_)) => gap("withdrawals that the node leaves out"),
        (Some(list), None) if list.is_empty() => Ok(PartProof::Root),
        (Some(_), None) => gap("withdrawals without a root"),
        (Some(list), Some(root)) => {
            let Some(encoded) = list.iter().map(Withdrawal::encoded).collect::<Option<Vec<_>>>() else {
                return gap("withdrawals with fields missing");
            };
            match ordered_trie_root_encoded(&encoded) {
                got if got == root => Ok(PartProof::Root),
                // A chain with a header of its own may use the root for something else.
                _ if list.is_empty() && *header != PartProof::Root => gap("withdrawals under a root of the chain's own"),
                got => Err(ProofError::new(block.number, "the withdrawals", root, got)),
            }
        }
    }
}
