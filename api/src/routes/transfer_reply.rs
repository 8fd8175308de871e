//! A transfer as JSON: among a payment's transfers, and as the cause of an event. A new field of both begins here.
//! Symbol and decimals are those kept with the transfer.
//!
//! The two shapes differ by the fields that only one of them has. They come from one macro, since `#[serde(flatten)]` would
//! document each as an `allOf` of parts.

use crate::chains::catalog::Catalog;
use crate::openapi::schemas;
use crate::read::Snapshot;
use base::timestamp::rfc3339;
use payments::ReceivedTransfer;
use payments::store::{self, ChainDepth};
use runtime::Failure;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use topics::wire::payment_event::{Summary, Transfer};
use topics::{Address, Amount, ChainId};
use utoipa::ToSchema;

macro_rules! transfer_reply {
    (
        $(#[$attribute:meta])* $name:ident { $($listed:tt)* }
    ) => {
        #[derive(Debug, Serialize, ToSchema)]
        $(#[$attribute])*
        pub struct $name {
            chain_id: u64,
            /// The chain's name; null if this service did not know the chain.
            #[schema(required = true)]
            chain: Option<String>,
            block_number: u64,
            #[schema(value_type = schemas::Hash)]
            block_hash: String,
            #[schema(value_type = schemas::Hash)]
            transaction_hash: String,
            #[schema(value_type = schemas::Source)]
            source: String,
            index: u32,
            #[schema(value_type = schemas::Time)]
            timestamp: String,
            /// The symbol of a listed token; null for the coin and for other tokens.
            #[schema(required = true)]
            token: Option<String>,
            #[schema(required = true, value_type = Option<schemas::Address>)]
            token_contract_address: Option<String>,
            #[schema(value_type = schemas::Address)]
            from: String,
            #[schema(value_type = schemas::Amount)]
            amount: String,
            /// In whole coins or tokens; null for a token that is not listed, as `decimals`.
            #[schema(required = true)]
            amount_decimal: Option<String>,
            #[schema(required = true)]
            decimals: Option<u8>,
            credited: bool,
            $($listed)*
            /// Its block is deep enough: for the payment if it is credited, otherwise under its chain's policy.
            confirmed: bool,
        }
    };
}

transfer_reply! {
    /// A transfer to the payment's address.
    #[schema(as = Transfer)]
    TransferReply {
        listed: bool,
        /// Less than the least that counts when it was seen (`min_transfer`): it is kept, and changes nothing.
        below_minimum: bool,
    }
}

transfer_reply! {
    /// A transfer to the payment's address, as it was right after the event.
    #[schema(as = EventTransfer)]
    EventTransferReply {}
}

/// How deep the blocks of transfers are, for those that are not credited: nothing writes down when they are confirmed.
pub struct Depths<'a> {
    catalog: &'a Catalog,
    chains: HashMap<ChainId, ChainDepth>,
}

impl<'a> Depths<'a> {
    /// Of the chains of those transfers that are not credited, and of others.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn load(
        catalog: &'a Catalog,
        db: &Snapshot,
        transfers: impl Iterator<Item = &ReceivedTransfer>,
        others: impl Iterator<Item = ChainId>,
    ) -> Result<Self, Failure> {
        let chains: BTreeSet<ChainId> =
            transfers.filter(|paid| !paid.credited).map(|paid| paid.id.chain).chain(others).collect();
        let chains: Vec<ChainId> = chains.into_iter().collect();
        let chains = if chains.is_empty() { HashMap::new() } else { store::chain_depths(&**db, &chains).await? };
        Ok(Self { catalog, chains })
    }

    /// The number of a chain's highest witnessed block.
    pub fn witnessed_head(&self, chain: ChainId) -> Option<u64> {
        self.chains.get(&chain).and_then(ChainDepth::witnessed_head)
    }

    /// A transfer as a reply.
    pub fn reply(&self, paid: &ReceivedTransfer) -> TransferReply {
        TransferReply { confirmed: if paid.credited { paid.confirmed } else { self.covers(paid) }, ..TransferReply::new(paid) }
    }

    fn covers(&self, paid: &ReceivedTransfer) -> bool {
        let (chain, depth) = (self.catalog.by_id(paid.id.chain).ok(), self.chains.get(&paid.id.chain));
        chain
            .zip(depth)
            .is_some_and(|(chain, depth)| depth.confirms(paid.block.number, chain.policy_for(paid.token, paid.amount).into()))
    }
}

impl TransferReply {
    fn new(paid: &ReceivedTransfer) -> Self {
        Self {
            chain_id: paid.id.chain.0,
            chain: paid.label.chain.clone(),
            block_number: paid.block.number,
            block_hash: paid.block.hash.to_string(),
            transaction_hash: paid.id.transaction.to_string(),
            source: paid.id.source.as_str().to_owned(),
            index: paid.id.index,
            timestamp: rfc3339(paid.timestamp),
            token: paid.label.token.clone(),
            token_contract_address: paid.token.map(|address: Address| address.to_string()),
            from: paid.from.to_string(),
            amount: paid.amount.to_string(),
            amount_decimal: paid.label.decimals.map(|decimals| paid.amount.to_decimal(decimals)),
            decimals: paid.label.decimals,
            credited: paid.credited,
            listed: paid.listed,
            below_minimum: paid.below_minimum,
            confirmed: paid.confirmed,
        }
    }
}

/// Many transfers of one block that one event tells.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventSummary)]
pub struct SummaryReply {
    count: u64,
    /// Their sum.
    #[schema(value_type = schemas::Amount)]
    amount: String,
    /// Null in a `.reverted` of more than a hundred.
    #[schema(required = true)]
    first: Option<EventTransferReply>,
    #[schema(required = true)]
    last: Option<EventTransferReply>,
}

impl SummaryReply {
    /// The summary of an event's record.
    ///
    /// # Errors
    /// When the record holds a value of the wrong length.
    pub fn new(summary: Summary) -> Result<Self, Failure> {
        Ok(Self {
            count: summary.count,
            amount: from_wire(&summary.amount)?.to_string(),
            first: summary.first.map(EventTransferReply::new).transpose()?,
            last: summary.last.map(EventTransferReply::new).transpose()?,
        })
    }
}

impl EventTransferReply {
    /// The transfer of an event's record.
    ///
    /// # Errors
    /// When the record holds a value of the wrong length.
    pub fn new(transfer: Transfer) -> Result<Self, Failure> {
        let hash = |name, bytes: &[u8]| topics::hash(name, bytes).map(|hash| hash.to_string()).map_err(Failure::halt);
        let address = |name, bytes: &[u8]| topics::address(name, bytes).map(|a| a.to_string()).map_err(Failure::halt);
        let amount = from_wire(&transfer.amount)?;
        let decimals = transfer.known_decimals();
        let token = Some(&transfer.token_address).filter(|token| !token.is_empty());
        Ok(Self {
            chain_id: transfer.chain_id,
            chain: non_empty(transfer.chain),
            block_number: transfer.block_number,
            block_hash: hash("block_hash", &transfer.block_hash)?,
            transaction_hash: hash("transaction_hash", &transfer.transaction_hash)?,
            source: transfer.source,
            index: transfer.index,
            timestamp: rfc3339(transfer.timestamp),
            token: non_empty(transfer.token),
            token_contract_address: token.map(|token| address("token_address", token)).transpose()?,
            from: address("from", &transfer.from)?,
            amount: amount.to_string(),
            amount_decimal: decimals.map(|decimals| amount.to_decimal(decimals)),
            decimals,
            credited: transfer.credited,
            confirmed: transfer.confirmed,
        })
    }
}

/// A string of a record; Protobuf has no null, so an empty one stands for it.
pub fn non_empty(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// An amount of a record, big-endian bytes.
///
/// # Errors
/// When it has more than 32 bytes.
pub fn from_wire(bytes: &[u8]) -> Result<Amount, Failure> {
    Amount::from_wire(bytes).map_err(Failure::halt)
}
