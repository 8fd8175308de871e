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

/// From where on transactions may cover a deposit, or one behind it: none with a lower total does, and none of a lower block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoveredFrom {
    pub total: Total,
    pub block: u64,
}

/// Goes through the deposits of a static address in one asset, in order, as far as they are covered.
#[derive(Debug)]
pub struct Walk {
    swept: Vec<Swept>,
    /// Those up to here need no second look.
    pub settled: SettledUpTo,
    at: SettledUpTo,
    /// What the settled deposits that it has not met yet have received.
    ahead: Total,
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
    /// None of the transactions that were read covers it, nor any deposit after it. Those from here on may.
    End(CoveredFrom),
}

impl Walk {
    /// All before `settled` is settled. `received` is what all settled deposits have received, wherever they stand. No
    /// transaction is read yet.
    pub fn new(settled: SettledUpTo, received: Total) -> Self {
        Self { swept: Vec::new(), settled, at: settled, ahead: received.minus(settled.received), is_held: false }
    }

    /// Which transactions may cover what it meets next.
    pub fn covered_from(&self) -> CoveredFrom {
        CoveredFrom { total: self.at.arrived.plus(self.ahead), block: self.at.block }
    }

    /// Goes on with these transactions, which are ordered by total and block: the first of those that may cover a deposit.
    pub fn read(&mut self, swept: Vec<Swept>) {
        self.swept = swept;
    }

    /// Takes the next deposit. One that ended the walk is taken again, once more transactions were read.
    pub fn step(&mut self, deposit: &ArrivedDeposit) -> Step {
        let arrived = self.at.arrived.plus(deposit.beside).plus(deposit.received);
        let ahead = match deposit.stage {
            DepositStage::Nothing => self.ahead.minus(deposit.received),
            DepositStage::Confirmation | DepositStage::Settlement => self.ahead,
        };
        // Those behind it that are settled were told to have left, so that much has to have left beside it. This does not fall
        // from one deposit to the next, nor does the block: what can't cover this one covers none after it.
        let from = CoveredFrom { total: arrived.plus(ahead), block: self.at.block.max(deposit.place.block) };
        let Some(by) = covering(&self.swept, from.total, from.block) else { return Step::End(from) };
        let received = self.at.received.plus(deposit.received);
        self.at = SettledUpTo { place: Some(deposit.place), block: from.block, arrived, received };
        self.ahead = ahead;
        self.is_held |= deposit.stage == DepositStage::Confirmation;
        if !self.is_held {
            self.settled = self.at;
        }
        match deposit.stage {
            DepositStage::Settlement => Step::Settle(*by),
            DepositStage::Confirmation | DepositStage::Nothing => Step::Pass,
        }
    }
}
