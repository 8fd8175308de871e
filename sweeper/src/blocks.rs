//! Records of `chain.blocks` as what happened to a chain. Pure.
//!
//! The records of a chain are a stack. Where one is missing, or does not stand on the one before, history is believed up to
//! what was final, and goes on from there: what is in a block that was not read, counts and receipts tell.

use crate::engine::fold::ChainEvent;
use alloy::primitives::B256;
use std::collections::VecDeque;
use topics::wire::BlockRecord;
use topics::wire::block_record::{Kind, Status, Transaction};
use topics::{Amount, BlockRef};

/// Where a chain calls no block final, one with so many above it is: no reorg that is followed reaches below
/// (`MIN_WINDOW_BLOCKS` of ingest). Some chains leave numbers out.
const DEPTH_WITHOUT_TAG: usize = 256;
/// A record with so many bytes of transactions may lack some, which are in `chain.logs` (`KEPT_BYTES` of ingest, less one
/// transaction).
const MAYBE_MORE_BYTES: usize = 4 * 1024 * 1024 - 1024;

/// Up to where a chain was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Of the last record; `None` if what comes next follows on nothing.
    pub sequence: Option<u64>,
    /// The newest block; `None` between one that was removed and the next.
    pub head: Option<B256>,
    /// The highest block that the chain has called final.
    pub finalized: Option<u64>,
    /// The highest block that is witnessed.
    pub witnessed: Option<u64>,
    /// Up to which block all is final and witnessed.
    pub final_number: Option<u64>,
    /// The numbers of the newest blocks, the lowest first, as many as make one final where the chain has called none so.
    pub recent: VecDeque<u64>,
}

/// What a record says, in this order. Of a block that was added the transactions are still to be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Added(BlockRef),
    Removed(BlockRef),
    Restarted(u64),
    Final(u64),
}

impl Change {
    /// As the engine takes it, where it brings no transactions.
    pub fn event(&self) -> ChainEvent {
        match *self {
            Self::Added(block) => ChainEvent::Added { block, transactions: Vec::new() },
            Self::Removed(block) => ChainEvent::Removed(block),
            Self::Restarted(above) => ChainEvent::Restarted(above),
            Self::Final(number) => ChainEvent::Final(number),
        }
    }
}

/// A transaction of a block, as far as its record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub succeeded: Option<bool>,
    pub gas_used: Option<u64>,
    pub gas_price: Option<u128>,
}

/// A price as records have it; `None` where it is more than any can be.
pub fn wei(wire: &[u8]) -> Option<u128> {
    Amount::from_wire(wire).ok()?.units().try_into().ok()
}

impl Outcome {
    pub fn of(transaction: &Transaction) -> Self {
        Self {
            succeeded: match transaction.status() {
                Status::Unknown => None,
                Status::Success => Some(true),
                Status::Reverted => Some(false),
            },
            gas_used: transaction.gas_used,
            gas_price: transaction.effective_gas_price.as_deref().and_then(wei),
        }
    }
}

impl Place {
    /// Reads a record. One that can't be read counts as one that is missing.
    pub fn read(&mut self, record: &BlockRecord) -> Vec<Change> {
        let Some((block, parent)) = references(record) else {
            self.sequence = None;
            return Vec::new();
        };
        // A backfill's is history, and never the head.
        if record.kind() == Kind::Replayed && record.sequence == 0 {
            return Vec::new();
        }
        let mut changes = Vec::new();
        let follows = self.sequence.is_some_and(|last| record.sequence == last + 1);
        let stands = |on: B256| self.head.is_none_or(|head| head == on);
        let is_next = follows
            && match record.kind() {
                Kind::Added => stands(parent),
                Kind::Removed | Kind::Tags => stands(block.hash),
                Kind::Replayed | Kind::Unspecified => true,
            };
        let may_lack_some = transaction_bytes(record) >= MAYBE_MORE_BYTES;
        if !is_next || may_lack_some {
            changes.push(self.begin_anew(self.final_number.unwrap_or(0)));
        }
        self.sequence = Some(record.sequence);
        let mut tip = block.number;
        match record.kind() {
            Kind::Added => {
                changes.push(Change::Added(block));
                self.head = Some(block.hash);
                self.recent.push_back(block.number);
            }
            Kind::Removed => {
                changes.push(Change::Removed(block));
                self.head = None;
                self.recent.pop_back();
                tip = record.parent_number.unwrap_or(block.number.saturating_sub(1));
                self.witnessed = self.witnessed.map(|witnessed| witnessed.min(tip));
            }
            // What is final stays so, wherever somebody has the chain begin anew.
            Kind::Replayed => changes.push(self.begin_anew(block.number.max(self.final_number.unwrap_or(0)))),
            Kind::Tags | Kind::Unspecified => {}
        }
        self.witnessed = record.witnessed_number.map(|number| number.min(tip)).max(self.witnessed);
        self.finalized = record.finalized_number.max(self.finalized);
        if self.finalized.is_some() {
            self.recent.clear();
        }
        while self.recent.len() > DEPTH_WITHOUT_TAG + 1 {
            self.recent.pop_front();
        }
        let deep = self.recent.front().filter(|_| self.recent.len() > DEPTH_WITHOUT_TAG).copied();
        let is_final = self.witnessed.zip(self.finalized.or(deep)).map(|(witnessed, number)| witnessed.min(number).min(tip));
        if is_final > self.final_number && self.head.is_some() {
            self.final_number = is_final;
            changes.extend(is_final.map(Change::Final));
        }
        changes
    }

    /// All above a number has left the chain, and blocks may be missing.
    fn begin_anew(&mut self, above: u64) -> Change {
        self.head = None;
        self.recent.clear();
        self.witnessed = self.witnessed.map(|witnessed| witnessed.min(above));
        Change::Restarted(above)
    }
}

fn references(record: &BlockRecord) -> Option<(BlockRef, B256)> {
    let hash = B256::try_from(&record.hash[..]).ok()?;
    Some((BlockRef { number: record.number, hash }, B256::try_from(&record.parent_hash[..]).unwrap_or_default()))
}

fn transaction_bytes(record: &BlockRecord) -> usize {
    record.transactions.iter().map(topics::length_in_part).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> B256 {
        B256::from(alloy::primitives::U256::from(number))
    }

    fn block(number: u64) -> BlockRef {
        BlockRef { number, hash: hash(number) }
    }

    fn record(sequence: u64, kind: Kind, number: u64) -> BlockRecord {
        BlockRecord {
            sequence,
            kind: kind.into(),
            number,
            hash: hash(number).to_vec().into(),
            parent_hash: hash(number - 1).to_vec().into(),
            ..BlockRecord::default()
        }
    }

    fn with_tags(record: BlockRecord, finalized: Option<u64>, witnessed: Option<u64>) -> BlockRecord {
        BlockRecord { finalized_number: finalized, witnessed_number: witnessed, ..record }
    }

    #[test]
    fn records_that_follow_each_other_are_told_as_they_are() {
        let mut place = Place::default();
        assert_eq!(place.read(&record(7, Kind::Added, 10)), [Change::Restarted(0), Change::Added(block(10))]);
        assert_eq!(place.read(&record(8, Kind::Added, 11)), [Change::Added(block(11))]);
        assert_eq!(place.read(&record(0, Kind::Replayed, 3)), [], "a backfill");
        assert_eq!(place.read(&record(9, Kind::Tags, 11)), []);
        assert_eq!(place.read(&record(10, Kind::Removed, 11)), [Change::Removed(block(11))]);
        assert_eq!(place.read(&record(11, Kind::Added, 11)), [Change::Added(block(11))]);
        assert_eq!(place.read(&record(12, Kind::Replayed, 9)), [Change::Restarted(9)], "a restart");
        assert_eq!(place.read(&record(13, Kind::Added, 40)), [Change::Added(block(40))], "it may stand on any parent");
        place.read(&with_tags(record(14, Kind::Added, 41), Some(40), Some(41)));
        assert_eq!(place.read(&record(15, Kind::Replayed, 9)), [Change::Restarted(40)], "above what is final");
    }

    #[test]
    fn what_does_not_follow_begins_anew_above_what_is_final() {
        let mut begun = Place::default();
        begun.read(&record(7, Kind::Added, 10));
        begun.read(&with_tags(record(8, Kind::Added, 11), Some(10), Some(11)));
        assert_eq!(begun.final_number, Some(10));
        let other = BlockRecord { parent_hash: hash(99).to_vec().into(), ..record(9, Kind::Added, 12) };
        let unreadable = BlockRecord { hash: vec![1].into(), ..record(9, Kind::Added, 12) };
        let many = Transaction { hash: vec![7; 32].into(), value: vec![7; 1024].into(), ..Transaction::default() };
        let large = BlockRecord { transactions: vec![many; 4096], ..record(9, Kind::Added, 12) };
        for (name, record, told) in [
            ("a record is missing", record(10, Kind::Added, 12), true),
            ("another parent", other, true),
            ("one is read again", record(8, Kind::Added, 11), true),
            ("another block is removed", record(9, Kind::Removed, 10), true),
            ("some of its transactions may be elsewhere", large, true),
            ("it can't be read", unreadable, false),
        ] {
            let mut place = begun.clone();
            let changes = place.read(&record);
            assert_eq!(changes.first() == Some(&Change::Restarted(10)), told, "{name}: {changes:?}");
            let next = place.read(&self::record(record.sequence + 1, Kind::Added, 13));
            assert_eq!(next.first() == Some(&Change::Restarted(10)), !told || name.contains("again"), "{name}: {next:?}");
        }
    }

    #[test]
    fn final_is_what_is_final_and_witnessed() {
        let mut place = Place::default();
        let mut finals = |record: BlockRecord| {
            let changes = place.read(&record);
            let last =
                changes.into_iter().find_map(|change| if let Change::Final(number) = change { Some(number) } else { None });
            (last, place.witnessed)
        };
        assert_eq!(finals(with_tags(record(1, Kind::Added, 10), Some(9), None)), (None, None), "nobody witnesses it");
        assert_eq!(finals(with_tags(record(2, Kind::Added, 11), Some(9), Some(7))), (Some(7), Some(7)));
        assert_eq!(finals(with_tags(record(3, Kind::Tags, 11), None, Some(10))), (Some(9), Some(10)), "as it was");
        assert_eq!(finals(with_tags(record(4, Kind::Added, 12), Some(9), Some(12))), (None, Some(12)));
        assert_eq!(finals(record(5, Kind::Removed, 12)), (None, Some(11)));
        assert_eq!(finals(with_tags(record(6, Kind::Added, 12), Some(12), None)), (Some(11), Some(11)));
    }

    #[test]
    fn without_a_tag_a_block_is_final_when_no_reorg_reaches_it() {
        // Each second number is left out.
        let mut place = Place::default();
        let added = |sequence: u64| {
            let number = 2 * sequence;
            let parent_hash = hash(number - 2).to_vec().into();
            with_tags(BlockRecord { parent_hash, ..record(sequence, Kind::Added, number) }, None, Some(number))
        };
        (1..=256).for_each(|sequence| _ = place.read(&added(sequence)));
        assert_eq!(place.final_number, None, "as many as may leave the chain");
        assert_eq!(place.read(&added(257)), [Change::Added(block(514)), Change::Final(2)]);
        assert_eq!(place.read(&added(258)), [Change::Added(block(516)), Change::Final(4)]);
        place.read(&record(259, Kind::Removed, 516));
        assert_eq!((place.recent.len(), place.final_number), (256, Some(4)));
        // It has a tag after all, which is lower: what was told stays.
        let tagged = BlockRecord { finalized_number: Some(1), ..added(258) };
        assert_eq!(place.read(&BlockRecord { sequence: 260, ..tagged }), [Change::Added(block(516))]);
        assert_eq!((place.recent.len(), place.final_number), (0, Some(4)));
    }

    #[test]
    fn a_transaction_says_what_its_record_proves() {
        let of = |status: Status, price: Option<&[u8]>| {
            let effective_gas_price = price.map(|price| price.to_vec().into());
            Outcome::of(&Transaction {
                status: status.into(),
                gas_used: Some(3),
                effective_gas_price,
                ..Transaction::default()
            })
        };
        let outcome = |succeeded, gas_price| Outcome { succeeded, gas_used: Some(3), gas_price };
        assert_eq!(of(Status::Success, Some(&[1, 0])), outcome(Some(true), Some(256)));
        assert_eq!(of(Status::Reverted, Some(&[])), outcome(Some(false), Some(0)));
        assert_eq!(of(Status::Unknown, None), outcome(None, None));
        assert_eq!(of(Status::Success, Some(&[1; 17])), outcome(Some(true), None), "no price");
    }
}
