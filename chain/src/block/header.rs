//! The block object: the header's fields, which hash to the block's hash, with the transactions and withdrawals.

use super::known_fields::{BLOCK_FIELDS_OUTSIDE_HEADER, HEADER_FIELDS};
use super::quantity::{optional_quantity, quantity};
use super::rlp::list;
use super::tolerant::deserialize_partly;
use super::transaction::Transaction;
use alloy::primitives::{Address, B64, B256, Bloom, Bytes, U256, keccak256};
use alloy::rlp::{BufMut as _, EMPTY_STRING_CODE, Encodable};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The most numbers that a chain may skip between a block and its parent. Confirmations count numbers, so none is believed that
/// jumps further.
pub const MAX_SKIPPED: u64 = 256;

/// A block's place in its chain. Reads from any block object, whatever its transactions look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// The block's height.
    #[serde(deserialize_with = "quantity")]
    pub number: u64,
    /// Hash of the header.
    pub hash: B256,
    /// Hash of the block below.
    pub parent_hash: B256,
    /// Unix seconds.
    #[serde(deserialize_with = "quantity")]
    pub timestamp: u64,
}

impl Head {
    /// Whether this block stands on `parent`, by its hash. Its number is the next one, or a greater one where the chain skips
    /// numbers: no block can lie between the two.
    pub fn stands_on(&self, parent: &Self) -> bool {
        self.parent_hash == parent.hash && self.may_stand_above(parent.number)
    }

    /// Whether a block at this height may be the parent.
    pub fn may_stand_above(&self, height: u64) -> bool {
        may_stand_above(self.number, height)
    }
}

/// Whether a block of this number may have a parent at this height.
pub fn may_stand_above(number: u64, height: u64) -> bool {
    number.checked_sub(height).is_some_and(|distance| (1..=MAX_SKIPPED + 1).contains(&distance))
}

/// A block with its transactions, as `eth_getBlockBy…(…, true)` answers it. The optional fields came with hard forks.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    #[serde(deserialize_with = "quantity")]
    pub number: u64,
    pub hash: B256,
    pub parent_hash: B256,
    #[serde(deserialize_with = "quantity")]
    pub timestamp: u64,
    pub transactions_root: B256,
    pub receipts_root: B256,
    pub logs_bloom: Option<Bloom>,
    pub transactions: Vec<Transaction>,

    pub sha3_uncles: Option<B256>,
    pub miner: Option<Address>,
    /// Some nodes name the miner so, or send both.
    pub author: Option<Address>,
    pub state_root: Option<B256>,
    #[serde(default)]
    pub difficulty: U256,
    #[serde(default, deserialize_with = "optional_quantity")]
    pub gas_limit: Option<u64>,
    #[serde(default, deserialize_with = "optional_quantity")]
    pub gas_used: Option<u64>,
    #[serde(default)]
    pub extra_data: Bytes,
    pub mix_hash: Option<B256>,
    pub nonce: Option<B64>,
    /// EIP-1559.
    pub base_fee_per_gas: Option<U256>,
    /// EIP-4895.
    pub withdrawals_root: Option<B256>,
    /// EIP-4895. Some nodes leave them out.
    pub withdrawals: Option<Vec<Withdrawal>>,
    /// EIP-4844.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub blob_gas_used: Option<u64>,
    /// EIP-4844.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub excess_blob_gas: Option<u64>,
    /// EIP-4788.
    pub parent_beacon_block_root: Option<B256>,
    /// EIP-7685.
    pub requests_hash: Option<B256>,
    /// EIP-7928.
    pub block_access_list_hash: Option<B256>,
    /// EIP-7843.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub slot_number: Option<u64>,

    /// Filled only if the header did not hash: fields that we do not know or can't read, from a hard fork or a chain with a
    /// header of its own.
    #[serde(skip)]
    pub unknown_fields: Vec<String>,
}

impl Block {
    /// Parses a block object. If a hard fork changed it, parses what can be read.
    ///
    /// # Errors
    /// When it is not JSON, or lacks what every block has.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        let (mut block, odd) = match serde_json::from_str::<Self>(json) {
            Ok(block) => (block, Vec::new()),
            Err(error) => Self::parse_leniently(json).map_err(|_| error)?,
        };
        // The field names matter only now, so only a block that does not hash is parsed twice.
        if block.header_hash() != Some(block.hash) {
            let fields: BTreeMap<String, Option<IgnoredAny>> = serde_json::from_str(json)?;
            let unknown = |name: &String| {
                !BLOCK_FIELDS_OUTSIDE_HEADER.contains(&name.as_str()) && !HEADER_FIELDS.contains(&name.as_str())
            };
            block.unknown_fields = fields.into_iter().filter_map(|(name, value)| value.map(|_| name)).filter(unknown).collect();
            block.unknown_fields.extend(odd);
        }
        Ok(block)
    }

    /// Parses a block without the fields that can't be read, in its header and in its transactions. Returns the names of
    /// the header's.
    fn parse_leniently(json: &str) -> Result<(Self, Vec<String>), serde_json::Error> {
        let mut object: Map<String, Value> = serde_json::from_str(json)?;
        let transactions: Vec<Value> = serde_json::from_value(object.remove("transactions").unwrap_or_default())?;
        object.insert("transactions".to_owned(), Value::Array(Vec::new()));
        let needed = ["number", "hash", "parentHash", "timestamp", "transactionsRoot", "receiptsRoot", "transactions"];
        let (mut block, odd): (Self, _) = deserialize_partly(object, &needed)?;
        block.transactions = transactions.into_iter().map(Transaction::parse_leniently).collect::<Result<_, _>>()?;
        Ok((block, odd))
    }

    /// Number, hash, parent and timestamp.
    pub fn head(&self) -> Head {
        Head { number: self.number, hash: self.hash, parent_hash: self.parent_hash, timestamp: self.timestamp }
    }
}

impl Block {
    /// Hashes the header from its fields. `None` if the chain's header lacks a field of Ethereum's.
    pub fn header_hash(&self) -> Option<B256> {
        let (bloom, mix_hash, nonce) = (self.logs_bloom?, self.mix_hash?, self.nonce?);
        let (uncles, miner, state_root) = (self.sha3_uncles?, self.miner.or(self.author)?, self.state_root?);
        let (gas_limit, gas_used) = (self.gas_limit?, self.gas_used?);
        // In the order in which hard forks added them: item 15 and on.
        let optional: [Option<&dyn Encodable>; 8] = [
            some(&self.base_fee_per_gas),
            some(&self.withdrawals_root),
            some(&self.blob_gas_used),
            some(&self.excess_blob_gas),
            some(&self.parent_beacon_block_root),
            some(&self.requests_hash),
            some(&self.block_access_list_hash),
            some(&self.slot_number),
        ];
        let last = optional.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let rlp = list(|out| {
            self.parent_hash.encode(out);
            uncles.encode(out);
            miner.encode(out);
            state_root.encode(out);
            self.transactions_root.encode(out);
            self.receipts_root.encode(out);
            bloom.encode(out);
            self.difficulty.encode(out);
            self.number.encode(out);
            gas_limit.encode(out);
            gas_used.encode(out);
            self.timestamp.encode(out);
            self.extra_data.encode(out);
            mix_hash.encode(out);
            nonce.encode(out);
            for field in &optional[..last] {
                match field {
                    Some(field) => field.encode(out),
                    None => out.put_u8(EMPTY_STRING_CODE),
                }
            }
        });
        Some(keccak256(rlp))
    }
}

fn some<T: Encodable>(field: &Option<T>) -> Option<&dyn Encodable> {
    field.as_ref().map(|field| field as &dyn Encodable)
}

/// EIP-4895. No payment depends on one, so a withdrawal that can't be read whole is no error.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Withdrawal {
    #[serde(default, deserialize_with = "optional_quantity")]
    pub index: Option<u64>,
    #[serde(default, deserialize_with = "optional_quantity")]
    pub validator_index: Option<u64>,
    pub address: Option<Address>,
    /// Gwei.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub amount: Option<u64>,
}
