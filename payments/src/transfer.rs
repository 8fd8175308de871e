//! A transfer as a payment holds it: what arrived at its address, and whether it counts.

use topics::{Address, Amount, BlockRef, ChainId, TransferId};

/// A transfer that reached the address of a payment or a static address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedTransfer {
    pub id: TransferId,
    pub block: BlockRef,
    /// The block's, Unix seconds.
    pub timestamp: u64,
    /// Position of the transaction in the block.
    pub transaction_index: u32,
    /// The contract; `None` is the chain's coin.
    pub token: Option<Address>,
    /// The sender according to the transfer, which need not be the payer.
    pub from: Address,
    /// Base units that arrived.
    pub amount: Amount,
    /// It is of the payment's chain and asset, so it counts towards the amount.
    pub credited: bool,
    /// It is of the coin or of a token that chains.yaml lists. Others are kept and emit no event, as anyone can deploy one.
    pub listed: bool,
    /// It is less than the `min_transfer` of chains.yaml when it was seen. It is kept, pays nothing, and emits no event.
    pub below_minimum: bool,
    /// It is credited, and deep enough under the payment's policy. The API finds out for others when they are read.
    pub confirmed: bool,
    /// For the person who has to explain the transfer.
    pub label: TransferLabel,
}

/// Where a transfer stands among those of its owner: the order in which they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransferPlace {
    pub timestamp: u64,
    pub chain: ChainId,
    pub number: u64,
    pub transaction_index: u32,
    /// The name of the [`Source`](topics::Source).
    pub source: &'static str,
    pub index: u32,
}

impl ReceivedTransfer {
    pub const fn place(&self) -> TransferPlace {
        TransferPlace {
            timestamp: self.timestamp,
            chain: self.id.chain,
            number: self.block.number,
            transaction_index: self.transaction_index,
            source: self.id.source.as_str(),
            index: self.id.index,
        }
    }

    /// Whether it is part of its payment: others are kept beside it and change nothing.
    pub const fn counts(&self) -> bool {
        self.listed && !self.below_minimum
    }
}

/// What chains.yaml called a transfer's chain and token when the transfer was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferLabel {
    pub chain: Option<String>,
    /// The symbol; the coin has none.
    pub token: Option<String>,
    /// Of the coin too.
    pub decimals: Option<u8>,
}
