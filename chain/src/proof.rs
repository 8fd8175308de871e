//! Proving a node's answer: what it says must hash to what the block's hash commits to. Pure.
//!
//! A header proves its roots, the roots prove transactions and receipts. Where a chain hashes something that we do not
//! know (a fork's new header field, a transaction type of its own), that part is not proven, and [`Proof`] says so; the
//! logs are then compared with the header's bloom, which finds missing logs but not every altered one.

use crate::block::{Block, Receipt, Transaction, Withdrawal};
use crate::config::Verify;
use crate::encode::knows_receipt;
use crate::fetch::Receipts;
use alloy::consensus::proofs::ordered_trie_root_encoded;
use alloy::primitives::{B256, Bloom, BloomInput, keccak256};
use std::collections::HashSet;
use std::fmt;

/// How a part of a block is known to be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// It hashes to what the block's hash commits to.
    Root,
    /// The logs make the header's bloom; the reason why not better.
    Bloom(String),
    /// It is believed; the reason.
    Unproven(String),
}

/// What of a block was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The header, and with it the roots.
    pub header: Part,
    /// The transactions.
    pub transactions: Part,
    /// Statuses and logs.
    pub receipts: Part,
    /// What the beacon chain pays out.
    pub withdrawals: Part,
}

impl Proof {
    /// What was not proven by a root, if anything: to be said once and counted.
    pub fn gaps(&self) -> impl Iterator<Item = &str> {
        [&self.header, &self.transactions, &self.receipts, &self.withdrawals].into_iter().filter_map(|part| match part {
            Part::Root => None,
            Part::Bloom(why) | Part::Unproven(why) => Some(why.as_str()),
        })
    }
}

/// An answer that contradicts itself: a node that lags, or lies. It is never published; ask again, elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} of block {number} is not proven: expected {expected}, got {got}")]
pub struct Unproven {
    /// The block's number.
    pub number: u64,
    /// The part.
    pub what: String,
    /// What the block commits to.
    pub expected: String,
    /// What the answer makes.
    pub got: String,
}

impl Unproven {
    pub(crate) fn new(number: u64, what: impl Into<String>, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self { number, what: what.into(), expected: expected.to_string(), got: got.to_string() }
    }
}

/// Checks a block and its receipts against the block's hash, as far as `verify` asks.
///
/// # Errors
/// When something does not hold, or with [`Verify::Roots`] can't be checked.
pub fn prove(block: &Block, receipts: &Receipts, verify: Verify) -> Result<Proof, Unproven> {
    let part = |why: &str| Part::Unproven(why.to_owned());
    match verify {
        Verify::Off => {
            let off = part("verify: off");
            return Ok(Proof { header: off.clone(), transactions: off.clone(), receipts: off.clone(), withdrawals: off });
        }
        Verify::Bloom => {
            logs_belong(block, receipts)?;
            bloom(block, receipts)?;
            let only = part("verify: bloom");
            let receipts = Part::Bloom("verify: bloom".to_owned());
            return Ok(Proof { header: only.clone(), transactions: only.clone(), receipts, withdrawals: only });
        }
        Verify::Auto | Verify::Roots => {}
    }
    logs_belong(block, receipts)?;
    let proof = Proof {
        header: header(block)?,
        transactions: transactions(block)?,
        receipts: prove_receipts(block, receipts)?,
        withdrawals: withdrawals(block)?,
    };
    if verify == Verify::Roots
        && let Some(gap) = proof.gaps().next()
    {
        return Err(Unproven::new(block.number, "a part", "a proof by root (verify: roots)", gap));
    }
    Ok(proof)
}

fn header(block: &Block) -> Result<Part, Unproven> {
    match block.header_hash() {
        Some(hash) if hash == block.hash => Ok(Part::Root),
        _ if !block.unknown_fields.is_empty() => {
            Ok(Part::Unproven(format!("header with unknown fields {}", block.unknown_fields.join(", "))))
        }
        Some(hash) => Err(Unproven::new(block.number, "the header", block.hash, hash)),
        None => Err(Unproven::new(block.number, "the header", "logsBloom, mixHash and nonce", "a header without")),
    }
}

fn transactions(block: &Block) -> Result<Part, Unproven> {
    let mut encodings = Vec::with_capacity(block.transactions.len());
    let mut unknown = None;
    for (index, transaction) in under_root(block).enumerate() {
        let Some(encoding) = transaction.encoded() else {
            unknown.get_or_insert(transaction.kind);
            continue;
        };
        // The root covers the encoding; the hash that we hand on is checked here.
        let hash = keccak256(&encoding);
        if hash != transaction.hash {
            return Err(Unproven::new(block.number, format!("transaction {index}"), transaction.hash, hash));
        }
        encodings.push(encoding);
    }
    if let Some(kind) = unknown {
        return Ok(Part::Unproven(format!("transactions of type {kind:#04x}")));
    }
    let root = ordered_trie_root_encoded(&encodings);
    if root != block.transactions_root {
        return Err(Unproven::new(block.number, "the transactions", block.transactions_root, root));
    }
    Ok(Part::Root)
}

fn withdrawals(block: &Block) -> Result<Part, Unproven> {
    let (Some(expected), Some(withdrawals)) = (block.withdrawals_root, &block.withdrawals) else {
        // Blocks that were recorded without the list lose nobody a payment.
        return Ok(Part::Root);
    };
    let encodings: Vec<Vec<u8>> = withdrawals.iter().map(Withdrawal::encoded).collect();
    let root = ordered_trie_root_encoded(&encodings);
    // OP keeps another root in this field since Isthmus, with a list that is always empty. Its blocks begin with a deposit.
    let is_op = block.transactions.first().is_some_and(|first| first.kind == 0x7e);
    if root == expected || is_op && withdrawals.is_empty() {
        return Ok(Part::Root);
    }
    Err(Unproven::new(block.number, "the withdrawals", expected, root))
}

/// The transactions that the block's roots cover: all but Bor's state sync.
fn under_root(block: &Block) -> impl Iterator<Item = &Transaction> {
    block.transactions.iter().filter(|transaction| !transaction.is_state_sync())
}

fn prove_receipts(block: &Block, receipts: &Receipts) -> Result<Part, Unproven> {
    let Receipts::All(all) = receipts else {
        bloom(block, receipts)?;
        return Ok(Part::Bloom("logs without receipts".to_owned()));
    };
    let synced = state_sync(block);
    let own: Vec<&Receipt> = all.iter().filter(|receipt| !synced.contains(&receipt.transaction_hash)).collect();
    same_transactions(block, &own)?;
    let root =
        own.iter().map(|receipt| receipt.encoded()).collect::<Option<Vec<_>>>().map(|all| ordered_trie_root_encoded(&all));
    if root == Some(block.receipts_root) {
        return Ok(if synced.is_empty() { Part::Root } else { Part::Unproven("logs of Bor's state sync".to_owned()) });
    }
    match (own.iter().find(|receipt| !knows_receipt(receipt.kind)), root) {
        (Some(receipt), _) => {
            bloom(block, receipts)?;
            Ok(Part::Bloom(format!("receipts of type {:#04x}", receipt.kind)))
        }
        (None, Some(root)) => Err(Unproven::new(block.number, "the receipts", block.receipts_root, root)),
        (None, None) => Err(Unproven::new(block.number, "the receipts", "a status and a bloom in each", "receipts without")),
    }
}

/// The roots say nothing of the block and the transaction that a log names.
fn logs_belong(block: &Block, receipts: &Receipts) -> Result<(), Unproven> {
    for (index, (transaction, log)) in receipts.logs().enumerate() {
        if log.block_hash.is_some_and(|hash| hash != block.hash) {
            let what = format!("log {index}'s block");
            return Err(Unproven::new(block.number, what, block.hash, log.block_hash.unwrap_or_default()));
        }
        if log.transaction_hash.is_some() && log.transaction_hash != transaction {
            let what = format!("log {index}'s transaction");
            return Err(Unproven::new(
                block.number,
                what,
                transaction.unwrap_or_default(),
                log.transaction_hash.unwrap_or_default(),
            ));
        }
    }
    Ok(())
}

/// The root says nothing of the hashes and the block that the receipts name, so those are compared.
fn same_transactions(block: &Block, receipts: &[&Receipt]) -> Result<(), Unproven> {
    let count = under_root(block).count();
    if receipts.len() != count {
        return Err(Unproven::new(block.number, "the number of receipts", count, receipts.len()));
    }
    for (index, (transaction, receipt)) in under_root(block).zip(receipts).enumerate() {
        if receipt.transaction_hash != transaction.hash {
            let what = format!("receipt {index}'s transaction");
            return Err(Unproven::new(block.number, what, transaction.hash, receipt.transaction_hash));
        }
        // The receipts root covers the type, so a transaction can't pass for one of a type that nobody knows.
        if receipt.kind != transaction.kind {
            return Err(Unproven::new(block.number, format!("transaction {index}'s type"), receipt.kind, transaction.kind));
        }
        if receipt.block_hash.is_some_and(|hash| hash != block.hash) {
            let what = format!("receipt {index}'s block");
            return Err(Unproven::new(block.number, what, block.hash, receipt.block_hash.unwrap_or_default()));
        }
        if receipt.from.is_some_and(|from| from != transaction.from) {
            let what = format!("receipt {index}'s sender");
            return Err(Unproven::new(block.number, what, transaction.from, receipt.from.unwrap_or_default()));
        }
    }
    Ok(())
}

/// Whether the logs make the header's bloom, which holds Bor's state sync on no chain.
fn bloom(block: &Block, receipts: &Receipts) -> Result<(), Unproven> {
    let Some(expected) = block.logs_bloom else {
        return Err(Unproven::new(block.number, "the logs", "a logsBloom in the header", "none"));
    };
    let synced = state_sync(block);
    let mut got = Bloom::ZERO;
    for (transaction, log) in receipts.logs() {
        if transaction.is_some_and(|hash| synced.contains(&hash)) {
            continue;
        }
        got.accrue(BloomInput::Raw(log.address.as_slice()));
        for topic in &log.topics {
            got.accrue(BloomInput::Raw(topic.as_slice()));
        }
    }
    if got == expected { Ok(()) } else { Err(Unproven::new(block.number, "the logs", short(&expected), short(&got))) }
}

fn state_sync(block: &Block) -> HashSet<B256> {
    block.transactions.iter().filter(|transaction| transaction.is_state_sync()).map(|transaction| transaction.hash).collect()
}

/// A bloom is 256 bytes; its hash tells two apart as well.
fn short(bloom: &Bloom) -> String {
    format!("a bloom with hash {}", keccak256(bloom))
}
