//! Receipts and logs, one by one and for a whole block.

use super::header::Block;
use super::known_fields::RECEIPT_FIELDS;
use super::quantity::{optional_quantity, quantity, said_price};
use super::tolerant::{KeepsUnknownFields, deserialize_keeping_unknown};
use alloy::primitives::{Address, B256, Bloom, Bytes};
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;

/// A receipt with everything that the receipts root covers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Receipt {
    pub transaction_hash: B256,
    pub block_hash: Option<B256>,
    pub from: Option<Address>,
    #[serde(default, rename = "type", deserialize_with = "quantity")]
    pub kind: u64,
    /// Since Byzantium.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub status: Option<u64>,
    /// Before Byzantium: the state root after the transaction.
    pub root: Option<B256>,
    #[serde(default, deserialize_with = "optional_quantity")]
    pub cumulative_gas_used: Option<u64>,
    pub logs_bloom: Option<Bloom>,
    pub logs: Vec<Log>,
    /// OP Stack deposits.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub deposit_nonce: Option<u64>,
    /// OP Stack deposits, since Canyon.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub deposit_receipt_version: Option<u64>,
    /// Since London, if the node says it. No root covers it.
    #[serde(default, deserialize_with = "said_price")]
    pub effective_gas_price: Option<u128>,

    /// Fields that we do not know. The root may cover them.
    #[serde(skip)]
    pub unknown_fields: Vec<String>,
}

impl<'de> Deserialize<'de> for Receipt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_keeping_unknown(deserializer)
    }
}

impl<'de> KeepsUnknownFields<'de> for Receipt {
    const WHAT: &'static str = "a receipt";
    const KNOWN: &'static [&'static str] = &RECEIPT_FIELDS;

    fn deserialize_known<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }

    fn unknown_fields(&mut self) -> &mut Vec<String> {
        &mut self.unknown_fields
    }
}

/// A log as `eth_getLogs` and receipts have it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    pub address: Address,
    pub topics: Vec<B256>,
    pub data: Bytes,
    pub block_hash: Option<B256>,
    pub transaction_hash: Option<B256>,
    #[serde(default, deserialize_with = "optional_quantity")]
    pub log_index: Option<u64>,
}

/// The receipts of a block, or what a node without `eth_getBlockReceipts` offers instead.
#[derive(Clone, Debug)]
pub enum Receipts {
    /// One receipt per transaction.
    All(Vec<Receipt>),
    /// All logs, and the receipts of the transactions that carry value.
    Logs {
        /// `eth_getLogs` by the block's hash.
        logs: Vec<Log>,
        /// The receipts by transaction hash.
        paying: HashMap<B256, Receipt>,
    },
}

impl Receipts {
    /// All logs in order, with the hashes of their transactions.
    pub fn logs(&self) -> impl Iterator<Item = (Option<B256>, &Log)> {
        let (all, logs) = match self {
            Self::All(all) => (all.as_slice(), [].as_slice()),
            Self::Logs { logs, .. } => ([].as_slice(), logs.as_slice()),
        };
        let of_receipts = all.iter().flat_map(|receipt| receipt.logs.iter().map(|log| (Some(receipt.transaction_hash), log)));
        of_receipts.chain(logs.iter().map(|log| (log.transaction_hash, log)))
    }

    /// The receipt of each transaction of the block, in order, as far as there is one here.
    pub(crate) fn of(&self, block: &Block) -> Vec<Option<&Receipt>> {
        let by_hash: HashMap<B256, &Receipt> = match self {
            Self::All(all) => all.iter().map(|receipt| (receipt.transaction_hash, receipt)).collect(),
            Self::Logs { paying, .. } => paying.values().map(|receipt| (receipt.transaction_hash, receipt)).collect(),
        };
        block.transactions.iter().map(|transaction| by_hash.get(&transaction.hash).copied()).collect()
    }
}

/// How a transaction ended, as its receipt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiptStatus {
    /// The receipt has no status (before Byzantium), or there is no receipt. Such a transaction pays nothing.
    Unknown,
    /// Its transfers are valid.
    Success,
    /// It changed nothing but the fees.
    Reverted,
}

impl From<Option<u64>> for ReceiptStatus {
    fn from(status: Option<u64>) -> Self {
        match status {
            None => Self::Unknown,
            Some(1) => Self::Success,
            Some(_) => Self::Reverted,
        }
    }
}
