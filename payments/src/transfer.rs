//! A transfer as a payment holds it: what arrived at its address, and whether it counts.

use topics::{Address, Amount, BlockRef, TransferId};

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
    /// It is credited, and deep enough under the payment's policy.
    pub confirmed: bool,
    /// For the person who has to explain the transfer.
    pub label: TransferLabel,
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
