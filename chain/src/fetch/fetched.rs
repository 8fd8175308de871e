//! A fetched block, proven and put together for publishing.

use crate::block::{Block, Log, ReceiptStatus, Receipts};
use crate::proof::{Proof, ProofError, Spent, Verify, prove, spent};
use crate::rpc::Endpoint;
use crate::trace::InternalTransfer;
use alloy::primitives::{Address, B256};
use std::collections::HashMap;
use std::sync::Arc;
use topics::{TRANSFER_TOPIC, tells_every_movement};

/// A log with its place, which is counted instead of trusting the node's numbers.
#[derive(Clone, Debug)]
pub struct PlacedLog {
    pub log: Log,
    /// Position in the block.
    pub index: u32,
    /// Position of its transaction in the block.
    pub transaction_index: u32,
    pub transaction_hash: B256,
}

/// A block that is proven as far as its chain's `verify` asks.
#[derive(Clone, Debug)]
pub struct FetchedBlock {
    /// Header and transactions.
    pub block: Block,
    /// One status per transaction, in order.
    pub statuses: Vec<ReceiptStatus>,
    /// What each transaction took, in order.
    pub spent: Vec<Spent>,
    /// All logs of the block, in order.
    pub logs: Vec<PlacedLog>,
    /// Coin that contracts moved. `None` if no traces were requested.
    pub internal: Option<Vec<InternalTransfer>>,
    /// Why `internal` may lack transfers, although they were requested.
    pub untraced: Option<String>,
    /// A part that no root proves rests on the word of one endpoint: there is no other, or none that answers. Or, where a block
    /// needs more than two witnesses, on the words of fewer.
    pub on_one_word: bool,
    /// How well each part is proven.
    pub proof: Proof,
    /// The endpoint that gave it as its block at this height, and so is its first witness. `None` if it was asked for by hash: by
    /// its hash an endpoint may give a block that is not on its chain.
    pub source: Option<Arc<Endpoint>>,
}

impl FetchedBlock {
    /// Proves a block with its receipts, and places its logs.
    ///
    /// # Errors
    /// If the proof fails.
    pub fn new(block: Block, receipts: Receipts, verify: Verify) -> Result<Self, ProofError> {
        let proof = prove(&block, &receipts, verify)?;
        let own = receipts.of(&block);
        let statuses = own.iter().map(|receipt| ReceiptStatus::from(receipt.and_then(|receipt| receipt.status))).collect();
        let spent = spent(&block, &own, &proof);
        let logs = place_logs(&block, receipts)?;
        Ok(Self { block, statuses, spent, logs, internal: None, untraced: None, on_one_word: false, proof, source: None })
    }

    /// Whether the block reports every movement of its coin as a log (EIP-7708, zkSync). Then traces add nothing.
    pub fn logs_coin_transfers(&self) -> bool {
        self.logs
            .iter()
            .any(|placed| placed.log.topics.first() == Some(&TRANSFER_TOPIC) && tells_every_movement(placed.log.address))
    }

    /// Whether `internal` has every transfer.
    pub fn is_traced(&self) -> bool {
        self.internal.is_some() && self.untraced.is_none()
    }

    /// Approximate size of its records, in bytes.
    pub fn record_bytes(&self) -> usize {
        let logs: usize = self.logs.iter().map(|log| 128 + 32 * log.log.topics.len() + log.log.data.len()).sum();
        256 + 144 * self.block.transactions.len() + logs
    }
}

impl PlacedLog {
    /// What a payment depends on.
    pub(super) fn content(&self) -> (Address, &[B256], &[u8], B256) {
        (self.log.address, &self.log.topics, &self.log.data, self.transaction_hash)
    }
}

/// Counts the logs and finds their transactions.
fn place_logs(block: &Block, receipts: Receipts) -> Result<Vec<PlacedLog>, ProofError> {
    let unknown = |what: String, got: String| ProofError::new(block.number, what, "a transaction of the block", got);
    let positions: HashMap<B256, usize> =
        block.transactions.iter().enumerate().map(|(index, transaction)| (transaction.hash, index)).collect();
    let logs: Vec<(Option<B256>, Log)> = match receipts {
        Receipts::All(all) => all
            .into_iter()
            .flat_map(|receipt| receipt.logs.into_iter().map(move |log| (Some(receipt.transaction_hash), log)))
            .collect(),
        Receipts::Logs { logs, .. } => logs.into_iter().map(|log| (log.transaction_hash, log)).collect(),
    };
    let narrow = |index: usize| u32::try_from(index).map_err(|_| unknown(format!("position {index}"), "too many".to_owned()));
    logs.into_iter()
        .enumerate()
        .map(|(index, (transaction, log))| {
            let hash = transaction.ok_or_else(|| unknown(format!("log {index}"), "none".to_owned()))?;
            let position = positions.get(&hash).ok_or_else(|| unknown(format!("log {index}"), hash.to_string()))?;
            Ok(PlacedLog { log, index: narrow(index)?, transaction_index: narrow(*position)?, transaction_hash: hash })
        })
        .collect()
}
