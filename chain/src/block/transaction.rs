//! The transaction object, with every field that its hash covers.

use super::known_fields::TRANSACTION_FIELDS;
use super::quantity::{optional_quantity, quantity};
use super::tolerant::{KeepsUnknownFields, deserialize_keeping_unknown, deserialize_partly};
use alloy::primitives::{Address, B256, Bytes, U256};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Transaction type of OP Stack deposits, which a transaction on L1 causes. Another such type is told apart where this one is: in
/// `encode`, `credit`, `trace::transfers`, `proof::spent` and `proof::withdrawals`.
pub(crate) const OP_DEPOSIT: u64 = 0x7e;
/// Transaction type of Arbitrum's own transaction, the first of each block.
pub(crate) const ARBITRUM_INTERNAL: u64 = 0x6a;

/// A transaction with everything that its hash covers, for every type that we can encode.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Transaction {
    pub hash: B256,
    /// The hash covers only the signature, so the sender is a node's word, and decides nothing but whether a transfer is to oneself:
    /// then [`signer`](Self::signer) confirms it. OP Stack deposits have no signature, and their hash covers it.
    pub from: Address,
    /// `None` for a contract creation.
    pub to: Option<Address>,
    #[serde(default)]
    pub value: U256,
    /// EIP-2718; 0 if an old node leaves it out.
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

    /// OP Stack deposits.
    pub source_hash: Option<B256>,
    /// OP Stack deposits.
    pub mint: Option<U256>,
    /// OP Stack deposits.
    pub is_system_tx: Option<bool>,
    /// Mantle's deposits: the ETH that they mint, which is a token there.
    pub eth_value: Option<U256>,
    /// Mantle's deposits: the ETH that they send on.
    pub eth_tx_value: Option<U256>,

    /// Fields that we do not know or can't read. The hash may cover them.
    #[serde(skip)]
    pub unknown_fields: Vec<String>,
}

impl<'de> Deserialize<'de> for Transaction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_keeping_unknown(deserializer)
    }
}

impl<'de> KeepsUnknownFields<'de> for Transaction {
    const WHAT: &'static str = "a transaction";
    const KNOWN: &'static [&'static str] = &TRANSACTION_FIELDS;

    fn deserialize_known<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }

    fn unknown_fields(&mut self) -> &mut Vec<String> {
        &mut self.unknown_fields
    }
}

impl Transaction {
    /// Parses a transaction without the fields that can't be read. The hash is required; an unreadable sender becomes the zero
    /// address and is listed as unknown.
    pub(super) fn parse_leniently(value: Value) -> Result<Self, serde_json::Error> {
        let error = match <Self as Deserialize>::deserialize(&value) {
            Ok(transaction) => return Ok(transaction),
            Err(error) => error,
        };
        let Value::Object(mut object) = value else { return Err(error) };
        let from = object.remove("from").unwrap_or_default();
        let sender = serde_json::from_value::<Address>(from).ok();
        object.insert("from".to_owned(), Value::String(sender.unwrap_or_default().to_string()));
        // A type that is no number is an unknown type.
        let kind = object.get("type").is_none_or(|kind| quantity(kind).is_ok());
        let (mut transaction, odd): (Self, _) = deserialize_partly(object, &["hash", "from"])?;
        transaction.unknown_fields.extend(odd);
        transaction.unknown_fields.extend(sender.is_none().then(|| "from".to_owned()));
        if !kind {
            transaction.kind = u64::MAX;
        }
        Ok(transaction)
    }

    /// Whether it is of OP Stack's type of deposits and none: Berachain has a system transaction of that type, which carries no
    /// coin. With coin it is refused, or a node could leave the hash out of a deposit and then claim anything.
    pub(crate) fn is_foreign_deposit(&self) -> bool {
        self.kind == OP_DEPOSIT && self.source_hash.is_none() && self.mint.is_none() && self.value.is_zero()
    }

    /// Whether this is Bor's state-sync pseudo transaction from before it had a type. The node adds it to the block's list, but
    /// the block's roots cover neither it nor its receipt, and the bloom does not cover its logs.
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

/// EIP-2930.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AccessListItem {
    pub address: Address,
    #[serde(default)]
    pub storage_keys: Vec<B256>,
}

/// EIP-7702.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
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
