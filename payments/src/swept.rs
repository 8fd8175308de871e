//! What final transactions have moved out of addresses, and what of the money that arrived there it covers.
//!
//! Money of one asset at one address can't be told apart: a transaction takes so much of it, and not these transfers. So each is known
//! by the total that has left with it and before, and it covers what arrived first: all transfers of the asset, in the chain's order,
//! also those below the minimum, which are credited to nothing. They are in the balance, and leave with it. Were they left out, a later
//! payment would pass for swept while its money is there still. What came in a token before it was listed is never swept, and is in no
//! total. A total has what gas took from the address too, and the dust that stays since it is worth no gas: else no payment in the coin
//! would ever be covered.
//!
//! Nothing covers what arrived in a later block: where more has left than is known to have arrived, as coin that no trace has shown, the
//! surplus is of before. And nothing covers twice: what is found before a deposit that is settled has not left with what that one was
//! told to have left with.

use crate::total::Total;
use topics::{Address, Amount, B256, BlockRef, ChainId};
use uuid::Uuid;

/// The transaction with which the last of a payment's confirmed money had left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    pub transaction: B256,
    /// Final, on the payment's chain.
    pub block: BlockRef,
    /// The block's, or when the payment had its last event if that was later; Unix seconds.
    pub timestamp: u64,
    /// Of the whole transaction, in wei; none where nobody could tell.
    pub fee: Option<Amount>,
}

/// An asset at an address: what sweeps take from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SweptAsset {
    pub chain: ChainId,
    pub address: Address,
    /// `None` is the coin.
    pub token: Option<Address>,
}

/// A final transaction that has moved something out of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Base units that had left with it, and with those before it: moved, taken by gas, or given up as dust.
    pub total: Amount,
    pub settlement: Settlement,
}

/// The first of these transactions, which are ordered by their totals and blocks, with which all had left that had `arrived` up to a block.
pub fn covering(swept: &[Swept], arrived: Total, block: u64) -> Option<&Settlement> {
    let first = swept.partition_point(|swept| Total::from(swept.total) < arrived);
    swept.iter().skip(first).map(|swept| &swept.settlement).find(|settlement| settlement.block.number >= block)
}

/// Where a deposit stands among those of its address and asset: in the chain's order, and in a block by its id. The timestamp comes first
/// since it has an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DepositPlace {
    /// The block's, Unix seconds.
    pub timestamp: u64,
    /// Number of its block; 0 once a reorg has taken it back.
    pub block: u64,
    pub id: Uuid,
}

/// A deposit at a static address, as it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrivedDeposit {
    pub place: DepositPlace,
    /// Nothing once a reorg has taken it back.
    pub received: Total,
    /// What has arrived since the deposit before it, and is none.
    pub beside: Total,
    pub stage: DepositStage,
}

/// What a deposit waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepositStage {
    Confirmation,
    Settlement,
    Nothing,
}

/// Up to where all deposits of a static address in one asset are settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SettledUpTo {
    /// None before the first.
    pub place: Option<DepositPlace>,
    /// Number of the highest block up to there.
    pub block: u64,
    /// All that has arrived up to there.
    pub arrived: Total,
    /// What of that deposits have received.
    pub received: Total,
}

/// Goes through the deposits of a static address in one asset, in order, as far as they are covered.
#[derive(Debug)]
pub struct Walk<'a> {
    swept: &'a [Swept],
    /// Those up to here need no second look.
    pub settled: SettledUpTo,
    at: SettledUpTo,
    /// What the settled deposits that it has not met yet have received.
    ahead: Total,
    /// Of all these transactions.
    highest_block: u64,
    /// One waits for its confirmation: the next walk begins with it.
    is_held: bool,
}

/// What a [`Walk`] says of a deposit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is to be settled with this transaction.
    Settle(Settlement),
    /// It is settled, or waits for something else.
    Pass,
    /// It is not covered, and so is none after it.
    End,
}

impl<'a> Walk<'a> {
    /// `swept` is ordered by total and block. All before `settled` is settled. `received` is what all settled deposits have received,
    /// wherever they stand.
    pub fn new(swept: &'a [Swept], settled: SettledUpTo, received: Total) -> Self {
        let highest_block = swept.iter().map(|swept| swept.settlement.block.number).max().unwrap_or_default();
        Self { swept, settled, at: settled, ahead: received.minus(settled.received), highest_block, is_held: false }
    }

    /// Takes the next deposit.
    pub fn step(&mut self, deposit: &ArrivedDeposit) -> Step {
        let arrived = self.at.arrived.plus(deposit.beside).plus(deposit.received);
        let ahead = match deposit.stage {
            DepositStage::Nothing => self.ahead.minus(deposit.received),
            DepositStage::Confirmation | DepositStage::Settlement => self.ahead,
        };
        // Those behind it that are settled were told to have left, so that much has to have left beside it.
        let needed = arrived.plus(ahead);
        let is_reached = self.swept.last().is_some_and(|last| Total::from(last.total) >= needed);
        if !is_reached || self.highest_block < deposit.place.block {
            return Step::End;
        }
        let (block, received) = (self.at.block.max(deposit.place.block), self.at.received.plus(deposit.received));
        self.at = SettledUpTo { place: Some(deposit.place), block, arrived, received };
        self.ahead = ahead;
        let step = match deposit.stage {
            DepositStage::Settlement => {
                covering(self.swept, needed, deposit.place.block).map_or(Step::Pass, |by| Step::Settle(*by))
            }
            DepositStage::Confirmation | DepositStage::Nothing => Step::Pass,
        };
        self.is_held |= deposit.stage != DepositStage::Nothing && step == Step::Pass;
        if !self.is_held {
            self.settled = self.at;
        }
        step
    }
}
