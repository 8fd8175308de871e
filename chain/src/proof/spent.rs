//! What each transaction took, as far as the block's roots and header prove it: who reads it need believe nobody. Of whom it was
//! taken is another thing: no hash covers the sender, see [`Transaction::from`].
//!
//! - The nonce is in the transaction's hash, that of an OP Stack deposit in its receipt since Canyon.
//! - Receipts have the gas of the block up to them, so a transaction's own is the difference. It is that which is paid
//!   for, refunds taken off, on Amsterdam too.
//! - The price of gas follows from what was signed and from the header's base fee (EIP-1559). A chain may have rules of its own
//!   for it, under Ethereum's header and types, of which its receipts alone tell: none is given unless they say the same.
//!
//! Which receipt is whose, and under which base fee, is proven by the header and the transactions together: where either is
//! not, there is neither gas nor a price nor a deposit's nonce.
//!
//! Left out: the fee for blobs, for which the fork's fraction would be needed, and what an L2 takes on top, which no root covers:
//! for data on L1, and an OP chain's operator fee.

use super::part::{PartProof, Proof};
use super::receipts::STATE_SYNC_LOGS;
use super::state_sync::transactions_under_root;
use crate::block::{ARBITRUM_INTERNAL, Block, OP_DEPOSIT, Receipt, Transaction, is_fixed};
use alloy::primitives::U256;

/// What a transaction took. `None`: not proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub nonce: Option<u64>,
    pub gas_used: Option<u64>,
    /// In the coin's base units, for one gas.
    pub effective_gas_price: Option<U256>,
}

/// What each transaction of the block took, in order; with the receipt of each, as far as the node has given it.
pub(crate) fn spent(block: &Block, receipts: &[Option<&Receipt>], proof: &Proof) -> Vec<Spent> {
    let proven = Proven::new(block, proof);
    let mut gas_before = Some(0);
    let mut all: Vec<Spent> = transactions_under_root(block)
        .zip(receipts.iter().copied())
        .map(|(transaction, receipt)| {
            let gas_now = receipt.filter(|_| proven.receipts).and_then(|receipt| receipt.cumulative_gas_used);
            let gas_before = std::mem::replace(&mut gas_before, gas_now);
            Spent {
                nonce: proven.nonce(transaction, receipt),
                gas_used: gas_now.zip(gas_before).and_then(|(now, before)| now.checked_sub(before)),
                effective_gas_price: proven.price(transaction, receipt),
            }
        })
        .collect();
    // Bor's state sync, which no root covers.
    all.resize(block.transactions.len(), Spent::default());
    all
}

/// What is proven of a block.
struct Proven<'a> {
    block: &'a Block,
    /// Transactions of Ethereum's types hash to their hashes. Under Ethereum's header they do even if the block has others that we can't
    /// encode.
    hashes: bool,
    /// Which receipt is whose, and under which base fee.
    places: bool,
    /// The receipts, all of them and in order, with the gas of the block up to each.
    receipts: bool,
}

impl<'a> Proven<'a> {
    fn new(block: &'a Block, proof: &Proof) -> Self {
        let [header, transactions] = [&proof.header, &proof.transactions].map(|part| *part == PartProof::Root);
        let (hashes, places) = (transactions || header && !block.transactions_root.is_zero(), header && transactions);
        let receipts = places && proof.receipts.gap().is_none_or(|gap| gap == STATE_SYNC_LOGS);
        Self { block, hashes, places, receipts }
    }

    fn nonce(&self, transaction: &Transaction, receipt: Option<&Receipt>) -> Option<u64> {
        match transaction.kind {
            // Before Canyon the receipts' root does not cover it.
            OP_DEPOSIT => receipt.filter(|receipt| self.receipts && receipt.deposit_receipt_version.is_some())?.deposit_nonce,
            kind => (self.hashes && is_fixed(kind)).then_some(transaction.nonce),
        }
    }

    fn price(&self, transaction: &Transaction, receipt: Option<&Receipt>) -> Option<U256> {
        if !self.places {
            return None;
        }
        let said = receipt.and_then(|receipt| receipt.effective_gas_price).map(U256::from);
        let base_fee = self.block.base_fee_per_gas;
        let (price, may_be_silent) = match transaction.kind {
            // Its gas is bought on L1.
            OP_DEPOSIT => (U256::ZERO, true),
            kind if !is_fixed(kind) => return None,
            // Nobody tips there, unless the chain's owner wants it; then the receipts tell.
            _ if is_arbitrum(self.block) => (base_fee?, false),
            // Receipts from before London have no price. One that was not fetched may have another.
            0 | 1 => (transaction.gas_price?, base_fee.is_none() && receipt.is_some()),
            _ => (transaction.max_fee_per_gas?.min(base_fee?.saturating_add(transaction.max_priority_fee_per_gas?)), false),
        };
        said.map_or(may_be_silent, |said| said == price).then_some(price)
    }
}

/// Arbitrum's blocks begin with a transaction of the chain's own.
fn is_arbitrum(block: &Block) -> bool {
    block.transactions.first().is_some_and(|first| first.kind == ARBITRUM_INTERNAL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Receipts;
    use crate::proof::{Verify, prove};
    use alloy::consensus::proofs::ordered_trie_root_encoded;

    /// No block since Canyon is recorded, so one of before is mined again with a nonce in its receipt.
    #[test]
    fn the_nonce_of_a_deposit_is_proven_once_its_receipt_has_it_under_the_root() {
        let deposit = |block: &Block| block.transactions.iter().position(|one| one.kind == OP_DEPOSIT);
        let lines = testdata::lines("misc.blocks").expect("testdata");
        let parse = |line: &serde_json::Value| Block::parse(&line["block"].to_string()).expect("a block");
        let line = lines.iter().find(|line| deposit(&parse(line)).is_some()).expect("a deposit");
        let mut block = parse(line);
        let at = deposit(&block).expect("a deposit");
        let mut all: Vec<Receipt> = serde_json::from_value(line["receipts"].clone()).expect("receipts");
        (all[at].deposit_nonce, all[at].deposit_receipt_version) = (Some(7), Some(1));
        let encoded: Vec<Vec<u8>> = all.iter().map(|receipt| receipt.encoded().expect("an encoding")).collect();
        block.receipts_root = ordered_trie_root_encoded(&encoded);
        block.hash = block.header_hash().expect("a hash");
        all.iter_mut().for_each(|receipt| {
            receipt.block_hash = Some(block.hash);
            receipt.logs.iter_mut().for_each(|log| log.block_hash = Some(block.hash));
        });
        let receipts = Receipts::All(all);
        let nonce = |block: &Block| {
            spent(block, &receipts.of(block), &prove(block, &receipts, Verify::Auto).expect("a proof"))[at].nonce
        };
        assert_eq!(nonce(&block), Some(7));
        // Whose receipt it is, no root tells any more.
        let unsigned = &mut block.transactions[at];
        (unsigned.source_hash, unsigned.mint, unsigned.value) = (None, None, U256::ZERO);
        assert_eq!(nonce(&block), None);
    }
}
