//! A payment: what was asked for, and the facts that have arrived since.
//!
//! The status is not stored as a fact: it follows from the facts ([`Payment::status`]), so it depends on the surviving chain and
//! not on the way there. `lifecycle` changes the facts; the status that is written to the database is for queries alone.

use crate::policy::Policy;
use crate::status::{Exception, Status};
use crate::swept::{Settlement, SweptAsset};
use crate::total::Total;
use crate::transfer::ReceivedTransfer;
use std::sync::Arc;
use topics::{Address, Amount, BlockRef, ChainId, PaymentId};
use uuid::Uuid;

/// A payment with what the canonical chain has brought it: in sums, by block, and its last transfers. Its size does not depend on
/// how many transfers there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    pub id: PaymentId,
    pub merchant: Uuid,
    /// The merchant's own reference.
    pub external_id: Option<String>,
    /// The merchant's JSON object, as it was written. It may be long, and a batch has a copy of the payment for each event.
    pub metadata: Option<Arc<str>>,
    pub chain: ChainId,
    /// The chain's name when the payment was created.
    pub chain_name: String,
    pub asset: Asset,
    /// Where to pay. No other payment has it, but for the deposits at one static address.
    pub address: Address,
    /// Fingerprint of the account that the address is derived from.
    pub xpub: String,
    /// i of m/44'/60'/0'/0/i.
    pub address_index: u32,
    /// Base units to be paid.
    pub amount: Amount,
    pub terms: Terms,
    pub policy: Policy,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; a transfer in a block with a later timestamp is late. [`NEVER`] for a deposit.
    pub expires_at: u64,
    /// The static address if it is a deposit: a payment that its transfer created.
    pub deposit_address: Option<Uuid>,
    pub cancelled: bool,
    /// Number of the block whose timestamp expired it.
    pub expired_by: Option<u64>,
    /// With which transaction its confirmed money had left.
    pub settlement: Option<Settlement>,
    /// Over all blocks of the canonical chain.
    pub sums: Sums,
    /// The blocks of the canonical chain that brought it something: all of which the next inputs may confirm or take back.
    pub parts: Vec<Part>,
    /// Those on the canonical chain that records show, in the chain's order; of a block at most the last
    /// [`MAX_TRANSFERS_OF_BLOCK`].
    pub transfers: Vec<Arc<ReceivedTransfer>>,
    /// Number of its last event.
    pub sequence: u64,
    /// When that event was, in Unix seconds.
    pub updated_at: u64,
}

/// A block's transfers to a payment that are kept in memory, and all that a record shows.
pub const MAX_TRANSFERS_OF_BLOCK: usize = 100;

/// Sums of a payment's credited transfers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    pub received: Total,
    /// Of those not after `expires_at`.
    pub in_time: Total,
    /// Of those deep enough under the payment's policy.
    pub confirmed: Total,
    /// Of those that are both.
    pub confirmed_in_time: Total,
}

/// What one block has brought a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub chain: ChainId,
    pub block: BlockRef,
    /// The block's, Unix seconds.
    pub timestamp: u64,
    /// Number of transfers, those of other assets included.
    pub transfers: u64,
    /// Sum of those that are credited.
    pub credited: Total,
    /// How much of that sum is confirmed. A replay may add to a confirmed block; the next head confirms that as well.
    pub confirmed: Total,
}

/// What a merchant tolerates. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Base units that may be missing from the amount when the payment counts as paid.
    pub underpaid_tolerance: Amount,
    /// Base units above the amount that are no exception.
    pub overpaid_tolerance: Amount,
    /// Transfers after `expires_at` count as well, so that an expired payment can still be paid.
    pub accept_late: bool,
}

/// The `expires_at` of deposits, which do not expire: after every block's timestamp, and the largest bigint of Postgres.
pub const NEVER: u64 = 0x7fff_ffff_ffff_ffff;

/// The coin of a chain, or one of its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// `None` is the chain's coin.
    pub token: Option<Token>,
    pub decimals: u8,
}

/// An ERC-20 token that chains.yaml lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub symbol: String,
    /// The contract.
    pub address: Address,
}

impl Payment {
    /// Whether transfers of this token on this chain are credited to it; `None` is the coin.
    pub fn asks_for(&self, chain: ChainId, token: Option<Address>) -> bool {
        self.chain == chain && self.asset.token.as_ref().map(|token| token.address) == token
    }

    /// The asset at its address that is swept.
    pub fn swept_asset(&self) -> SweptAsset {
        let token = self.asset.token.as_ref().map(|token| token.address);
        SweptAsset { chain: self.chain, address: self.address, token }
    }

    /// The sum of all credited transfers, in time or late: the largest amount if it exceeds 256 bits.
    pub fn received(&self) -> Amount {
        self.sums.received.saturated()
    }

    /// The status, from the facts alone; the rules are at the top of [`lifecycle`](crate::lifecycle).
    pub fn status(&self) -> Status {
        if self.cancelled {
            return Status::Cancelled;
        }
        let Sums { received, in_time, confirmed, confirmed_in_time } = self.sums;
        let (paid, paid_for_good) = if self.terms.accept_late { (received, confirmed) } else { (in_time, confirmed_in_time) };
        let needed = self.needed().into();
        if paid_for_good >= needed {
            self.settlement.map_or(Status::Confirmed, |_| Status::Settled)
        } else if paid >= needed {
            Status::Detected
        } else if self.expired_by.is_some() {
            Status::Expired
        } else {
            Status::Pending
        }
    }

    /// Base units with which it counts as paid: the amount less the tolerance, but at least 1.
    pub fn needed(&self) -> Amount {
        let needed = self.amount.units().saturating_sub(self.terms.underpaid_tolerance.units());
        Amount::new(needed).max(Amount::from(1))
    }

    /// The exception, from the facts alone.
    pub fn exception(&self) -> Option<Exception> {
        let Sums { received, in_time, .. } = self.sums;
        let most = Total::from(self.amount).plus(self.terms.overpaid_tolerance);
        match self.status() {
            Status::Pending => (!received.is_zero()).then_some(Exception::Underpaid),
            Status::Detected | Status::Confirmed | Status::Settled => (received > most).then_some(Exception::Overpaid),
            Status::Expired if received != in_time => Some(Exception::Late),
            Status::Expired => (!received.is_zero()).then_some(Exception::Underpaid),
            Status::Cancelled => (!received.is_zero()).then_some(Exception::Late),
        }
    }
}
