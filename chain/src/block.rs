//! What a node says about a block, as far as we need it to prove the block and to publish it.
//!
//! Tolerant on purpose: unknown fields do no harm, and a missing one is an error only where nothing works without it.
//! Whether what was read is the whole truth is for [`prove`](crate::prove) to say.

use alloy::primitives::{Address, B64, B256, Bloom, Bytes, U256};
use serde::de::{Error, IgnoredAny, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

mod names;
mod tolerant;

use names::{IN_HEADER, NOT_IN_HEADER, OF_RECEIPT, OF_TRANSACTION};
use tolerant::{Keeps, keeping, partly};

/// The few fields that tell where a block stands. Reads from any block object, whatever its transactions look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// Height.
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

/// A block with its transactions, as `eth_getBlockBy…(…, true)` gives it. The optional fields came with forks.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
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
    /// The miner under another name, or beside it.
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
    /// EIP-4895. Not every source has them.
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

    /// Fields that we do not know or can't read, where the header did not hash: a fork, or a chain with a header of its own.
    #[serde(skip)]
    pub unknown_fields: Vec<String>,
}

impl Block {
    /// Reads a block object. Of one that a fork has changed, what can be read.
    ///
    /// # Errors
    /// When it is not JSON, or lacks what every block has.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        let (mut block, odd) = match serde_json::from_str::<Self>(json) {
            Ok(block) => (block, Vec::new()),
            Err(error) => Self::parse_partly(json).map_err(|_| error)?,
        };
        // Only then does it matter which fields there are, so a block is read twice only then.
        if block.header_hash() != Some(block.hash) {
            let fields: BTreeMap<String, Option<IgnoredAny>> = serde_json::from_str(json)?;
            let unknown = |name: &String| !NOT_IN_HEADER.contains(&name.as_str()) && !IN_HEADER.contains(&name.as_str());
            block.unknown_fields = fields.into_iter().filter_map(|(name, value)| value.map(|_| name)).filter(unknown).collect();
            block.unknown_fields.extend(odd);
        }
        Ok(block)
    }

    /// The block without what of its header can't be read, and the names of that; its transactions without what of them can't.
    fn parse_partly(json: &str) -> Result<(Self, Vec<String>), serde_json::Error> {
        let mut object: Map<String, Value> = serde_json::from_str(json)?;
        let transactions: Vec<Value> = serde_json::from_value(object.remove("transactions").unwrap_or_default())?;
        object.insert("transactions".to_owned(), Value::Array(Vec::new()));
        let needed = ["number", "hash", "parentHash", "timestamp", "transactionsRoot", "receiptsRoot", "transactions"];
        let (mut block, odd): (Self, _) = partly(object, &needed)?;
        block.transactions = transactions.into_iter().map(Transaction::parse_partly).collect::<Result<_, _>>()?;
        Ok((block, odd))
    }

    /// Where it stands.
    pub fn head(&self) -> Head {
        Head { number: self.number, hash: self.hash, parent_hash: self.parent_hash, timestamp: self.timestamp }
    }
}

/// A transaction with everything that its hash covers, for every type we can encode.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
#[allow(missing_docs)]
pub struct Transaction {
    pub hash: B256,
    /// Not covered by the hash but for the signature; nothing is decided by it.
    pub from: Address,
    /// `None` creates a contract.
    pub to: Option<Address>,
    #[serde(default)]
    pub value: U256,
    /// EIP-2718; 0 where nodes from before it say nothing.
    #[serde(default, rename = "type", deserialize_with = "quantity")]
    pub kind: u64,

    #[serde(default, deserialize_with = "quantity")]
    pub nonce: u64,
    #[serde(default, deserialize_with = "quantity")]
    pub gas: u64,
    #[serde(default, alias = "data")]
    pub input: Bytes,
    #[serde(default, deserialize_with = "optional_quantity")]
    pub chain_id: Option<u64>,
    pub gas_price: Option<U256>,
    pub max_fee_per_gas: Option<U256>,
    pub max_priority_fee_per_gas: Option<U256>,
    pub max_fee_per_blob_gas: Option<U256>,
    pub access_list: Option<Vec<AccessListItem>>,
    pub blob_versioned_hashes: Option<Vec<B256>>,
    pub authorization_list: Option<Vec<Authorization>>,
    pub v: Option<U256>,
    pub r: Option<U256>,
    pub s: Option<U256>,
    pub y_parity: Option<U256>,

    /// OP deposits.
    pub source_hash: Option<B256>,
    /// OP deposits.
    pub mint: Option<U256>,
    /// OP deposits.
    pub is_system_tx: Option<bool>,

    /// Fields that we do not know or can't read: the hash may cover them.
    #[serde(skip)]
    pub unknown_fields: Vec<String>,
}

impl<'de> Deserialize<'de> for Transaction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        keeping(deserializer)
    }
}

impl<'de> Keeps<'de> for Transaction {
    const WHAT: &'static str = "a transaction";
    const KNOWN: &'static [&'static str] = &OF_TRANSACTION;

    fn plain<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }

    fn unknown_fields(&mut self) -> &mut Vec<String> {
        &mut self.unknown_fields
    }
}

impl Transaction {
    /// Nothing works without a hash; the sender is nobody where none can be read.
    fn parse_partly(value: Value) -> Result<Self, serde_json::Error> {
        let error = match <Self as Deserialize>::deserialize(&value) {
            Ok(transaction) => return Ok(transaction),
            Err(error) => error,
        };
        let Value::Object(mut object) = value else { return Err(error) };
        let from = object.remove("from").unwrap_or_default();
        let sender = serde_json::from_value::<Address>(from).ok();
        object.insert("from".to_owned(), Value::String(sender.unwrap_or_default().to_string()));
        // A type that is no number is none that we know.
        let kind = object.get("type").is_none_or(|kind| quantity(kind).is_ok());
        let (mut transaction, odd): (Self, _) = partly(object, &["hash", "from"])?;
        transaction.unknown_fields.extend(odd);
        transaction.unknown_fields.extend(sender.is_none().then(|| "from".to_owned()));
        if !kind {
            transaction.kind = u64::MAX;
        }
        Ok(transaction)
    }

    /// Bor's state-sync pseudo transaction, before it got a type: the node adds it to the block's list, but neither it nor
    /// its receipt is under the block's roots, nor are its logs in the bloom.
    pub fn is_state_sync(&self) -> bool {
        let nothing = |n: Option<U256>| n.is_none_or(|n| n.is_zero());
        self.kind == 0
            && self.from.is_zero()
            && self.to.is_some_and(|to| to.is_zero())
            && self.gas == 0
            && self.value.is_zero()
            && nothing(self.r)
            && nothing(self.s)
    }
}

/// EIP-4895. Nothing waits for one, so one that can't be read whole is no error.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
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

/// EIP-2930.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct AccessListItem {
    pub address: Address,
    #[serde(default)]
    pub storage_keys: Vec<B256>,
}

/// EIP-7702.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Authorization {
    pub chain_id: U256,
    pub address: Address,
    #[serde(deserialize_with = "quantity")]
    pub nonce: u64,
    #[serde(alias = "v")]
    pub y_parity: U256,
    pub r: U256,
    pub s: U256,
}

/// A receipt with everything that the receipts root covers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
#[allow(missing_docs)]
pub struct Receipt {
    pub transaction_hash: B256,
    pub block_hash: Option<B256>,
    pub from: Option<Address>,
    #[serde(default, rename = "type", deserialize_with = "quantity")]
    pub kind: u64,
    /// Since Byzantium.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub status: Option<u64>,
    /// Before Byzantium: the state after the transaction.
    pub root: Option<B256>,
    #[serde(default, deserialize_with = "optional_quantity")]
    pub cumulative_gas_used: Option<u64>,
    pub logs_bloom: Option<Bloom>,
    pub logs: Vec<Log>,
    /// OP deposits.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub deposit_nonce: Option<u64>,
    /// OP deposits, since Canyon.
    #[serde(default, deserialize_with = "optional_quantity")]
    pub deposit_receipt_version: Option<u64>,

    /// Fields that we do not know: the root may cover them.
    #[serde(skip)]
    pub unknown_fields: Vec<String>,
}

impl<'de> Deserialize<'de> for Receipt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        keeping(deserializer)
    }
}

impl<'de> Keeps<'de> for Receipt {
    const WHAT: &'static str = "a receipt";
    const KNOWN: &'static [&'static str] = &OF_RECEIPT;

    fn plain<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }

    fn unknown_fields(&mut self) -> &mut Vec<String> {
        &mut self.unknown_fields
    }
}

/// A log.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Log {
    pub address: Address,
    pub topics: Vec<B256>,
    pub data: Bytes,
    pub block_hash: Option<B256>,
    pub transaction_hash: Option<B256>,
    #[serde(default, deserialize_with = "optional_quantity")]
    pub log_index: Option<u64>,
}

/// JSON-RPC's hexadecimal number. A plain one is taken too, as some nodes send it; null is 0.
fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    optional_quantity(deserializer).map(Option::unwrap_or_default)
}

fn optional_quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Quantity;
    impl Visitor<'_> for Quantity {
        type Value = Option<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number like 0x1f of up to 64 bits")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Option<u64>, E> {
            let number = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
            number.map(Some).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }

        fn visit_u64<E>(self, number: u64) -> Result<Option<u64>, E> {
            Ok(Some(number))
        }

        fn visit_unit<E>(self) -> Result<Option<u64>, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(Quantity)
}
