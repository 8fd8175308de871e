//! Proving a node's answer: what it says must hash to what the block's hash commits to. Pure.
//!
//! A header proves its roots, the roots prove transactions and receipts. Where a chain hashes something that we do not
//! know (a fork's new header field, a transaction type of its own), that part is not proven, and [`Proof`] says so; the
//! logs are then compared with the header's bloom, which finds missing logs but not every altered one.

use crate::block::{Block, Receipt, Transaction};
use crate::config::Verify;
use crate::credit::prove_withdrawals;
use crate::encode::{is_fixed, knows_receipt, knows_transaction};
use crate::fetch::Receipts;
use alloy::consensus::proofs::ordered_trie_root_encoded;
use alloy::primitives::{B256, Bloom, BloomInput, keccak256};
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

impl Part {
    fn gap(&self) -> Option<&str> {
        match self {
            Self::Root => None,
            Self::Bloom(why) | Self::Unproven(why) => Some(why),
        }
    }
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
    /// Credits of the beacon chain. No payment depends on them.
    pub withdrawals: Part,
}

impl Proof {
    /// The parts that a payment depends on.
    fn payments(&self) -> impl Iterator<Item = &Part> {
        [&self.header, &self.transactions, &self.receipts].into_iter()
    }

    /// What was not proven by a root, if anything: to be said once and counted.
    pub fn gaps(&self) -> impl Iterator<Item = &str> {
        self.payments().chain([&self.withdrawals]).filter_map(Part::gap)
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
    let header = header(block)?;
    let withdrawals = prove_withdrawals(block, &header)?;
    let transactions = transactions(block, &header)?;
    let proof = Proof { header, transactions, receipts: prove_receipts(block, receipts)?, withdrawals };
    if verify == Verify::Roots
        && let Some(gap) = proof.payments().find_map(Part::gap)
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

fn transactions(block: &Block, header: &Part) -> Result<Part, Unproven> {
    let mut encodings = Vec::with_capacity(block.transactions.len());
    let mut gap = None;
    for (index, transaction) in under_root(block).enumerate() {
        let encoding = transaction.encoded();
        // The root covers the encoding; the hash that we hand on is checked here.
        let hash = encoding.as_ref().map(keccak256);
        match encoding {
            Some(encoding) if hash == Some(transaction.hash) => encodings.push(encoding),
            _ if !knows_transaction(transaction.kind) => {
                gap.get_or_insert_with(|| format!("transactions of type {:#04x}", transaction.kind));
            }
            // Under Ethereum's header the types have Ethereum's encodings, and those never change: what is new is a new type. So
            // there a new field excuses nothing, or a node could add one and then say what it likes.
            _ if !transaction.unknown_fields.is_empty() && (*header != Part::Root || !is_fixed(transaction.kind)) => {
                let fields = transaction.unknown_fields.join(", ");
                gap.get_or_insert_with(|| {
                    format!("transactions of type {:#04x} with unknown fields {fields}", transaction.kind)
                });
            }
            // A field too few or too many is no fork, and an altered one none either.
            _ => {
                let got = hash.map_or_else(|| "one with fields missing".to_owned(), |hash| hash.to_string());
                return Err(Unproven::new(block.number, format!("transaction {index}"), transaction.hash, got));
            }
        }
        sender(block, index, transaction)?;
    }
    if let Some(gap) = gap {
        return Ok(Part::Unproven(gap));
    }
    let root = ordered_trie_root_encoded(&encodings);
    if root != block.transactions_root {
        return Err(Unproven::new(block.number, "the transactions", block.transactions_root, root));
    }
    Ok(Part::Root)
}

/// No hash covers the sender, and nothing is decided by it but one thing: what an address sends to itself is no payment. So where
/// a node says that, the signature has to say it too.
fn sender(block: &Block, index: usize, transaction: &Transaction) -> Result<(), Unproven> {
    let to_itself = transaction.to == Some(transaction.from) && !transaction.value.is_zero();
    if !to_itself || !is_fixed(transaction.kind) {
        return Ok(());
    }
    match transaction.signer() {
        Some(signer) if signer == transaction.from => Ok(()),
        signer => {
            let got = signer.map_or_else(|| "no valid signature".to_owned(), |signer| format!("a signature of {signer}"));
            Err(Unproven::new(block.number, format!("the sender of transaction {index}"), transaction.from, got))
        }
    }
}

/// The transactions that the block's roots cover: all but Bor's state sync.
fn under_root(block: &Block) -> impl Iterator<Item = &Transaction> {
    let all = block.transactions.len();
    block.transactions.iter().take(if state_sync(block).is_some() { all - 1 } else { all })
}

/// Bor's state sync, which no root covers: the last transaction of a block whose header is one of Bor's, where blocks have a
/// difficulty and no withdrawals. On other chains nothing passes for it, or anybody could add logs.
fn state_sync(block: &Block) -> Option<B256> {
    let bor = !block.difficulty.is_zero() && block.withdrawals_root.is_none();
    block.transactions.last().filter(|last| bor && last.is_state_sync()).map(|last| last.hash)
}

fn prove_receipts(block: &Block, receipts: &Receipts) -> Result<Part, Unproven> {
    let Receipts::All(all) = receipts else {
        bloom(block, receipts)?;
        return Ok(Part::Bloom("logs without receipts".to_owned()));
    };
    let synced = state_sync(block);
    let own: Vec<&Receipt> = all.iter().filter(|receipt| synced != Some(receipt.transaction_hash)).collect();
    same_transactions(block, &own)?;
    let root =
        own.iter().map(|receipt| receipt.encoded()).collect::<Option<Vec<_>>>().map(|all| ordered_trie_root_encoded(&all));
    if root == Some(block.receipts_root) {
        return Ok(if synced.is_none() { Part::Root } else { Part::Unproven("logs of Bor's state sync".to_owned()) });
    }
    // New types have been encoded like the others so far. One with fields of its own may not be; without them, or of a type
    // that we know, a receipt has no excuse.
    match (own.iter().find(|receipt| !knows_receipt(receipt.kind) && !receipt.unknown_fields.is_empty()), root) {
        (Some(receipt), _) => {
            bloom(block, receipts)?;
            let fields = receipt.unknown_fields.join(", ");
            Ok(Part::Bloom(format!("receipts of type {:#04x} with unknown fields {fields}", receipt.kind)))
        }
        (None, Some(root)) => Err(Unproven::new(block.number, "the receipts", block.receipts_root, root)),
        (None, None) => Err(Unproven::new(block.number, "the receipts", "status, gas and bloom in each", "receipts without")),
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
        // A new type may have no sender that we can read.
        let told = knows_transaction(transaction.kind) || !transaction.unknown_fields.iter().any(|field| field == "from");
        if told && receipt.from.is_some_and(|from| from != transaction.from) {
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
        if synced.is_some() && transaction == synced {
            continue;
        }
        got.accrue(BloomInput::Raw(log.address.as_slice()));
        for topic in &log.topics {
            got.accrue(BloomInput::Raw(topic.as_slice()));
        }
    }
    if got == expected { Ok(()) } else { Err(Unproven::new(block.number, "the logs", short(&expected), short(&got))) }
}

/// A bloom is 256 bytes; its hash tells two apart as well.
fn short(bloom: &Bloom) -> String {
    format!("a bloom with hash {}", keccak256(bloom))
}
