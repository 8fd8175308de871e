//! Proving a block: the header, then the parts under its roots.

use super::error::ProofError;
use super::part::{PartProof, Proof};
use super::receipts::{check_log_places, prove_bloom, prove_receipts};
use super::state_sync::transactions_under_root;
use super::verify::Verify;
use super::withdrawals::prove_withdrawals;
use crate::block::{Block, Receipts, Transaction, is_fixed, knows_transaction};
use crate::text::names;
use alloy::consensus::proofs::ordered_trie_root_encoded;
use alloy::primitives::keccak256;

/// Proves a block and its receipts against the block's hash, as far as `verify` asks.
///
/// # Errors
/// If a part contradicts the hash, or with [`Verify::Roots`] can't be proven by a root.
pub fn prove(block: &Block, receipts: &Receipts, verify: Verify) -> Result<Proof, ProofError> {
    let part = |why: &str| PartProof::Unproven(why.to_owned());
    match verify {
        Verify::Off => {
            let off = part("verify: off");
            return Ok(Proof { header: off.clone(), transactions: off.clone(), receipts: off.clone(), withdrawals: off });
        }
        Verify::Bloom => {
            check_log_places(block, receipts)?;
            let only = part("verify: bloom");
            let receipts = prove_bloom(block, receipts, "verify: bloom")?;
            return Ok(Proof { header: only.clone(), transactions: only.clone(), receipts, withdrawals: only });
        }
        Verify::Auto | Verify::Roots => {}
    }
    check_log_places(block, receipts)?;
    let header = prove_header(block)?;
    let withdrawals = prove_withdrawals(block, &header)?;
    let transactions = prove_transactions(block, &header)?;
    let proof = Proof { header, transactions, receipts: prove_receipts(block, receipts)?, withdrawals };
    if verify == Verify::Roots
        && let Some(gap) = proof.payments().find_map(PartProof::gap)
    {
        return Err(ProofError::new(block.number, "a part", "a proof by root (verify: roots)", gap));
    }
    Ok(proof)
}

fn prove_header(block: &Block) -> Result<PartProof, ProofError> {
    match block.header_hash() {
        Some(hash) if hash == block.hash => Ok(PartProof::Root),
        // zkSync and its sisters hash something else, and have no roots.
        _ if has_no_roots(block) => Ok(PartProof::Unproven("header without roots".to_owned())),
        _ if !block.unknown_fields.is_empty() => {
            Ok(PartProof::Unproven(format!("header with unknown fields {}", names(&block.unknown_fields))))
        }
        Some(hash) => Err(ProofError::new(block.number, "the header", block.hash, hash)),
        None => Err(ProofError::new(block.number, "the header", "logsBloom, mixHash and nonce", "a header without")),
    }
}

/// Whether the header has zeros in place of a root. No block of a chain with roots has that, not even an empty one.
fn has_no_roots(block: &Block) -> bool {
    block.transactions_root.is_zero() || block.receipts_root.is_zero()
}

fn prove_transactions(block: &Block, header: &PartProof) -> Result<PartProof, ProofError> {
    let mut encodings = Vec::with_capacity(block.transactions.len());
    let mut gap = None;
    for (index, transaction) in transactions_under_root(block).enumerate() {
        let encoding = transaction.encoded();
        // The root covers the encoding. The hash that we publish is checked here.
        let hash = encoding.as_ref().map(keccak256);
        match encoding {
            Some(encoding) if hash == Some(transaction.hash) => encodings.push(encoding),
            _ if !knows_transaction(transaction.kind) => {
                gap.get_or_insert_with(|| format!("transactions of type {:#04x}", transaction.kind));
            }
            _ if transaction.is_foreign_deposit() => {
                gap.get_or_insert_with(|| format!("transactions of type {:#04x} without a sourceHash", transaction.kind));
            }
            // Without a root, which is a gap itself, a chain hashes its transactions as it likes.
            _ if block.transactions_root.is_zero() => {}
            // Under Ethereum's header, Ethereum's types have encodings that never change; a hard fork adds new types instead.
            // So there a new field excuses nothing, or a node could add one and then claim anything.
            _ if !transaction.unknown_fields.is_empty() && (*header != PartProof::Root || !is_fixed(transaction.kind)) => {
                let fields = names(&transaction.unknown_fields);
                gap.get_or_insert_with(|| {
                    format!("transactions of type {:#04x} with unknown fields {fields}", transaction.kind)
                });
            }
            // A missing, surplus or altered field is no hard fork.
            _ => {
                let got = hash.map_or_else(|| "one with fields missing".to_owned(), |hash| hash.to_string());
                return Err(ProofError::new(block.number, format!("transaction {index}"), transaction.hash, got));
            }
        }
        check_self_transfer(block, index, transaction)?;
    }
    if block.transactions_root.is_zero() {
        gap.get_or_insert_with(|| "transactions without a root".to_owned());
    }
    if let Some(gap) = gap {
        return Ok(PartProof::Unproven(gap));
    }
    let root = ordered_trie_root_encoded(&encodings);
    if root != block.transactions_root {
        return Err(ProofError::new(block.number, "the transactions", block.transactions_root, root));
    }
    Ok(PartProof::Root)
}

/// No hash covers the sender, and the sender decides only one thing: a transfer to oneself is no payment. So if a node claims
/// such a transfer, the signature must confirm the sender.
fn check_self_transfer(block: &Block, index: usize, transaction: &Transaction) -> Result<(), ProofError> {
    let to_itself = transaction.to == Some(transaction.from) && !transaction.value.is_zero();
    // Without a root a second endpoint confirms the sender too.
    if !to_itself || !is_fixed(transaction.kind) || block.transactions_root.is_zero() {
        return Ok(());
    }
    match transaction.signer() {
        Some(signer) if signer == transaction.from => Ok(()),
        signer => {
            let got = signer.map_or_else(|| "no valid signature".to_owned(), |signer| format!("a signature of {signer}"));
            Err(ProofError::new(block.number, format!("the sender of transaction {index}"), transaction.from, got))
        }
    }
}
