//! Proving receipts and logs against the receipts root, or against the header's bloom.

use super::error::ProofError;
use super::part::PartProof;
use super::state_sync::{state_sync, transactions_under_root};
use crate::block::{Block, Receipt, Receipts, knows_receipt, knows_transaction};
use crate::text::names;
use alloy::consensus::EMPTY_ROOT_HASH;
use alloy::consensus::proofs::ordered_trie_root_encoded;
use alloy::primitives::{B256, Bloom, BloomInput, keccak256};

/// Why the receipts of a block are not all proven, though the others match their root.
pub(super) const STATE_SYNC_LOGS: &str = "logs of Bor's state sync";

/// Proves the receipts by their root, otherwise the logs by the bloom.
pub(super) fn prove_receipts(block: &Block, receipts: &Receipts) -> Result<PartProof, ProofError> {
    let Receipts::All(all) = receipts else {
        return prove_bloom(block, receipts, "logs without receipts");
    };
    let synced = state_sync(block);
    let own: Vec<&Receipt> = all.iter().filter(|receipt| synced != Some(receipt.transaction_hash)).collect();
    match_transactions(block, &own)?;
    let root =
        own.iter().map(|receipt| receipt.encoded()).collect::<Option<Vec<_>>>().map(|all| ordered_trie_root_encoded(&all));
    if root == Some(block.receipts_root) {
        return Ok(if synced.is_none() { PartProof::Root } else { PartProof::Unproven(STATE_SYNC_LOGS.to_owned()) });
    }
    if block.receipts_root.is_zero() {
        return prove_bloom(block, receipts, "receipts without a root");
    }
    // New types have been encoded like the others so far. A new type with fields of its own may be encoded otherwise. A receipt
    // without such fields, or of a known type, must match the root.
    match (own.iter().find(|receipt| !knows_receipt(receipt.kind) && !receipt.unknown_fields.is_empty()), root) {
        (Some(receipt), _) => {
            let fields = names(&receipt.unknown_fields);
            prove_bloom(block, receipts, &format!("receipts of type {:#04x} with unknown fields {fields}", receipt.kind))
        }
        (None, Some(root)) => Err(ProofError::new(block.number, "the receipts", block.receipts_root, root)),
        (None, None) => Err(ProofError::new(block.number, "the receipts", "status, gas and bloom in each", "receipts without")),
    }
}

/// The roots do not cover the block and the transaction that a log names, so they are compared here.
pub(super) fn check_log_places(block: &Block, receipts: &Receipts) -> Result<(), ProofError> {
    for (index, (transaction, log)) in receipts.logs().enumerate() {
        if log.block_hash.is_some_and(|hash| hash != block.hash) {
            let what = format!("log {index}'s block");
            return Err(ProofError::new(block.number, what, block.hash, log.block_hash.unwrap_or_default()));
        }
        if log.transaction_hash.is_some() && log.transaction_hash != transaction {
            let what = format!("log {index}'s transaction");
            return Err(ProofError::new(
                block.number,
                what,
                transaction.unwrap_or_default(),
                log.transaction_hash.unwrap_or_default(),
            ));
        }
    }
    Ok(())
}

/// The root does not cover the hashes and the block that receipts name, so they are compared here.
fn match_transactions(block: &Block, receipts: &[&Receipt]) -> Result<(), ProofError> {
    let count = transactions_under_root(block).count();
    if receipts.len() != count {
        return Err(ProofError::new(block.number, "the number of receipts", count, receipts.len()));
    }
    for (index, (transaction, receipt)) in transactions_under_root(block).zip(receipts).enumerate() {
        if receipt.transaction_hash != transaction.hash {
            let what = format!("receipt {index}'s transaction");
            return Err(ProofError::new(block.number, what, transaction.hash, receipt.transaction_hash));
        }
        // The receipts root covers the type, so a transaction can't pass for one of an unknown type.
        if receipt.kind != transaction.kind {
            return Err(ProofError::new(block.number, format!("transaction {index}'s type"), receipt.kind, transaction.kind));
        }
        if receipt.block_hash.is_some_and(|hash| hash != block.hash) {
            let what = format!("receipt {index}'s block");
            return Err(ProofError::new(block.number, what, block.hash, receipt.block_hash.unwrap_or_default()));
        }
        // A new type may have a sender that we can't read.
        let readable = knows_transaction(transaction.kind) || !transaction.unknown_fields.iter().any(|field| field == "from");
        if readable && receipt.from.is_some_and(|from| from != transaction.from) {
            let what = format!("receipt {index}'s sender");
            return Err(ProofError::new(block.number, what, transaction.from, receipt.from.unwrap_or_default()));
        }
    }
    Ok(())
}

/// Proves the logs by the header's bloom, which never covers Bor's state sync. `why` there is no better proof. Some chains have a
/// bloom that says nothing; then the logs are not proven.
pub(super) fn prove_bloom(block: &Block, receipts: &Receipts, why: &str) -> Result<PartProof, ProofError> {
    let Some(expected) = block.logs_bloom else {
        return Err(ProofError::new(block.number, "the logs", "a logsBloom in the header", "none"));
    };
    let synced = state_sync(block);
    let mut got = Bloom::ZERO;
    for (transaction, log) in receipts.logs() {
        if synced.is_some() && transaction == synced {
            continue;
        }
        got.accrue(BloomInput::Raw(log.address.as_slice()));
        for topic in &log.topics {
            got.accrue(BloomInput::Raw(topic.as_slice()));
        }
    }
    if got == expected {
        return Ok(PartProof::Bloom(why.to_owned()));
    }
    match idle_bloom(block, &expected, got) {
        Some(what) => Ok(PartProof::Unproven(format!("{why}, under {what}"))),
        None => Err(ProofError::new(block.number, "the logs", bloom_digest(&expected), bloom_digest(&got))),
    }
}

/// Why the header's bloom says nothing about the logs of its transactions, if it does not.
fn idle_bloom(block: &Block, expected: &Bloom, got: Bloom) -> Option<&'static str> {
    let empty = block.transactions.is_empty() && [EMPTY_ROOT_HASH, B256::ZERO].contains(&block.transactions_root);
    if expected.iter().all(|byte| *byte == u8::MAX) {
        // Filecoin.
        Some("a bloom with every bit set")
    } else if *expected == Bloom::ZERO && block.receipts_root.is_zero() {
        // zkSync. A header with a root has a bloom too.
        Some("a bloom with no bit set")
    } else if empty && got == Bloom::ZERO {
        // Chains whose blocks begin and end with logs of no transaction.
        Some("a bloom of logs outside its transactions")
    } else {
        None
    }
}

/// A bloom has 256 bytes; in an error its hash is enough to tell two apart.
fn bloom_digest(bloom: &Bloom) -> String {
    format!("a bloom with hash {}", keccak256(bloom))
}
