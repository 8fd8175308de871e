//! Reads what the detector has written, and what it has yet to read: how far a chain is matched, from the end of
//! `chain.matches`, and where `chain.blocks` goes on. Both topics have a chain in the partition of the same number.

use crate::again::{Found, Search};
use crate::join::{ChainRecord as _, head_of, number_in, payload};
use crate::lookup::Lookup;
use crate::matching::RecordHead;
use crate::parts::ends_block;
use crate::progress::{Progress, Turn};
use runtime::Failure;
use runtime::kafka::{Kafka, PartitionReader, Record};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use topics::lazy::Fields;
use topics::wire::matches_record::Kind;
use topics::{Topic, number_below};

/// The header of a match that holds the offset of its block in `chain.blocks`, in decimal.
pub const BLOCK_OFFSET: &str = "ctrip-block-offset";
/// The header that holds the offset in `chain.logs` below which everything was used by then.
pub const LOGS_OFFSET: &str = "ctrip-logs-offset";

/// Clocks of the machines that write records may differ by this.
pub const MAX_CLOCK_SKEW_MS: i64 = 60 * 60 * 1000;
/// By how much the timestamps of a block's record and of the logs of an earlier one may differ. A block and its logs are one
/// transaction, which takes seconds.
const MAX_BETWEEN_BLOCK_AND_LOGS_MS: i64 = MAX_CLOCK_SKEW_MS + 10 * 60 * 1000;

/// As many records of neighbours are looked at between a match and a block that stands on it by its parent's hash. What is written
/// again after a loss comes soon; a block that stands on something else is not taken before all were looked at.
const MAX_BETWEEN: usize = 8_192;

/// As many records are looked at for the highest block that is witnessed, a chunk more or less: a chain whose endpoints do not give its blocks
/// tells it nowhere, and meanwhile its neighbours wait.
const MAX_LOOKED_BACK: usize = 65_536;

/// Where a chain goes on in `chain.blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumption {
    /// Of its next record in `chain.blocks`.
    pub blocks: i64,
    /// At or before that block's logs in `chain.logs`.
    pub logs: i64,
}

/// A record of `chain.blocks`, with its place.
pub struct FoundRecord {
    pub sequence: u64,
    pub kind: i32,
    pub number: u64,
    pub hash: Vec<u8>,
    pub parent_hash: Vec<u8>,
    pub at: Resumption,
}

impl FoundRecord {
    pub fn head(&self, chain_id: u64) -> RecordHead<'_> {
        let Self { sequence, kind, number, hash, parent_hash, .. } = self;
        let head = RecordHead { chain_id, sequence: *sequence, kind: *kind, number: *number, ..RecordHead::default() };
        RecordHead { hash, parent_hash, ..head }
    }
}

/// What `chain.matches` tells of a chain.
pub struct Matched {
    pub found: Found,
    /// What was matched last, but for replayed blocks.
    pub last: Option<MatchedBlock>,
}

/// A block that was matched, and its place in `chain.blocks`.
pub struct MatchedBlock {
    pub offset: i64,
    chain_id: u64,
    pub sequence: u64,
    hash: Vec<u8>,
    writing: Option<i64>,
    /// The offset in `chain.logs` below which everything was used by then.
    pub logs: Option<i64>,
    /// Whether `chain.blocks` has it there, once that was asked.
    is_there: Option<bool>,
}

impl MatchedBlock {
    /// Reads it from the last record of its matches; before that one the block is not whole.
    pub fn of(record: &Record<'_>) -> Option<Self> {
        let offset = number_in(record, BLOCK_OFFSET)?;
        let head = head_of(record).ok().filter(|_| is_whole(record))?;
        let (hash, logs, writing) = (head.hash.to_vec(), number_in(record, LOGS_OFFSET), record.writing());
        Some(Self { offset, chain_id: head.chain_id, sequence: head.sequence, hash, writing, logs, is_there: None })
    }

    /// Whether it is this record of its chain or one after it, in a topic that is the same still. Then that was matched, or passed over
    /// for a reason.
    pub fn covers(&mut self, kafka: &Kafka, record: &Record<'_>) -> Result<bool, Failure> {
        if record.offset() > self.offset {
            return Ok(false);
        }
        let is_there = match self.is_there {
            Some(is_there) => is_there,
            None => self.written(kafka, record.partition())?.is_some(),
        };
        self.is_there = Some(is_there);
        Ok(is_there)
    }

    /// Whether everything at an offset of `chain.logs` was used by then, unless that was lost with it.
    pub fn has_used(&self, offset: i64) -> bool {
        self.is_there != Some(false) && self.logs.is_some_and(|used| offset < used)
    }

    /// When its record was written, if `chain.blocks` has it at that offset: its retention may have deleted it, Kafka may have lost it, and
    /// a topic that was copied or made anew has offsets of its own.
    fn written(&self, kafka: &Kafka, partition: i32) -> Result<Option<i64>, Failure> {
        self.written_in(&PartitionReader::open_at_once(kafka, Topic::Blocks, partition)?)
    }

    /// As [`written`](Self::written).
    pub fn written_in(&self, blocks: &PartitionReader) -> Result<Option<i64>, Failure> {
        blocks.seek(self.offset);
        let Some(block) = blocks.next()?.filter(|block| block.offset() == self.offset) else { return Ok(None) };
        let Ok(head) = head_of(&block) else { return Ok(None) };
        let known = (self.chain_id, self.sequence, &self.hash[..], self.writing);
        let is_same = (head.chain_id, head.sequence, head.hash, block.writing()) == known;
        Ok(is_same.then(|| block.timestamp_ms().unwrap_or_default()))
    }
}

/// Whether a record of `chain.matches` is the last of its block. All are one transaction, but a copy of the topic may end between them.
fn is_whole(record: &Record<'_>) -> bool {
    payload(record).is_ok_and(|message| ends_block(message).unwrap_or(false))
}

/// How far a chain is matched, by its partition of `chain.matches`. `next` is the record of `chain.blocks` that comes next, with its
/// head.
pub fn read_progress(
    kafka: &Kafka,
    matches: &PartitionReader,
    next: &Record<'_>,
    head: &RecordHead<'_>,
) -> Result<Matched, Failure> {
    // A record is matched after it was written. So where the chain's first record is next, older matches need not be searched.
    let first_of_chain = head.sequence == 1;
    let oldest = next.timestamp_ms().filter(|_| first_of_chain).map(|written| written - MAX_CLOCK_SKEW_MS);
    let (mut search, mut last, mut is_covered) = (Search::new(head, next.writing()), None, false);
    let mut lookup = Lookup::of(head.chain_id);
    matches.read_back(|records| {
        if let Some(record) = records.first() {
            lookup.at(Topic::Matches, record.partition(), record.offset());
        }
        for record in records.iter().rev() {
            // The confirmer names what can't be read there.
            let Ok(matched) = head_of(record) else { continue };
            if matched.chain_id == head.chain_id && is_whole(record) {
                let flow = search.see(&matched, record.writing());
                if matched.sequence != 0 && last.is_none() {
                    last = MatchedBlock::of(record);
                    is_covered = last.as_mut().map_or(Ok(false), |last| last.covers(kafka, next))?;
                }
                if flow.is_break() || is_covered {
                    return Ok(ControlFlow::Break(()));
                }
            }
            if oldest.is_some_and(|oldest| record.timestamp_ms().is_some_and(|written| written < oldest)) {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let found = if is_covered { search.newest() } else { search.end() };
    Ok(Matched { found, last })
}

/// Number of the highest block that enough endpoints had given of a chain, as far as its matches tell. It may be above the head by now,
/// where blocks were removed that are not matched. `None` as well where the last records of the partition do not tell.
pub fn witnessed_block(kafka: &Kafka, partition: i32, chain_id: u64) -> Result<Option<u64>, Failure> {
    let matches = PartitionReader::open_at_once(kafka, Topic::Matches, partition)?;
    let (mut lookup, mut search, mut looked) = (Lookup::of(chain_id), WitnessedSearch::default(), 0);
    matches.read_back(|records| {
        if let Some(record) = records.first() {
            lookup.at(Topic::Matches, record.partition(), record.offset());
        }
        for record in records.iter().rev() {
            let Ok(head) = head_of(record) else { continue };
            if head.chain_id == chain_id && search.see(&head, payload(record).ok().and_then(witnessed_in)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        looked += records.len();
        Ok(if looked < MAX_LOOKED_BACK { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(search.witnessed)
}

/// Finds it in a chain's records, which it sees from the last one backwards.
#[derive(Default)]
struct WitnessedSearch {
    witnessed: Option<u64>,
    /// The lowest block that stands below those that were removed.
    below: Option<u64>,
}

impl WitnessedSearch {
    /// Breaks at the last record that tells it.
    fn see(&mut self, head: &RecordHead<'_>, told: Option<u64>) -> ControlFlow<()> {
        match Kind::try_from(head.kind) {
            _ if head.sequence == 0 => ControlFlow::Continue(()),
            Ok(Kind::Removed) => {
                let below = number_below(head.number, head.parent_number);
                self.below = self.below.into_iter().chain([below]).min();
                ControlFlow::Continue(())
            }
            // One without it leaves it where it was, but where the chain begins anew.
            kind if told.is_some() || kind == Ok(Kind::Replayed) => {
                self.witnessed = told.map(|told| self.below.map_or(told, |below| told.min(below)));
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

/// What a record of `chain.matches` says of it.
fn witnessed_in(message: &[u8]) -> Option<u64> {
    let mut fields = Fields::new(message).map_while(Result::ok);
    fields.find_map(|(number, value)| (number == 11).then(|| value.varint()))
}

/// At or before the logs of a block that was written then, and of any that comes after it, if the clocks of those who write agree.
pub fn logs_by_time(kafka: &Kafka, partition: i32, written: i64) -> Result<i64, Failure> {
    let since = BTreeMap::from([(partition, written - MAX_BETWEEN_BLOCK_AND_LOGS_MS)]);
    Ok(kafka.first_since(Topic::Logs, &since)?.get(&partition).copied().unwrap_or_default())
}

/// The sequence of the chain's first live record between the last match and `next`, if it is one that was matched, in a topic that is the
/// same still. It was written again, and passed over; what comes after it does not continue what was matched before, even if it
/// `stands_on_it` by its parent's hash.
pub fn passed_over(kafka: &Kafka, last: &MatchedBlock, next: &Record<'_>, stands_on_it: bool) -> Result<Option<u64>, Failure> {
    if next.offset() <= last.offset + 1 {
        return Ok(None);
    }
    let blocks = PartitionReader::open_at_once(kafka, Topic::Blocks, next.partition())?;
    if last.written_in(&blocks)?.is_none() {
        return Ok(None);
    }
    let mut lookup = Lookup::of(last.chain_id);
    let mut looked = 0;
    while let Some(record) = blocks.next()?.filter(|record| record.offset() < next.offset()) {
        if stands_on_it && looked == MAX_BETWEEN {
            break;
        }
        looked += 1;
        lookup.at(Topic::Blocks, record.partition(), record.offset());
        let Ok(head) = head_of(&record) else { continue };
        if head.chain_id == last.chain_id && head.sequence != 0 {
            let is_again = head.sequence <= last.sequence && head.kind != i32::from(Kind::Replayed);
            return Ok(is_again.then_some(head.sequence));
        }
    }
    Ok(None)
}

/// The chain's first record after the sequence `after` that can follow the last match, or, over a gap, that replayed blocks may lead to: the
/// first block that was added, or a new beginning. Tags and removals tell of blocks within the gap. `last` is before them all.
pub fn find_next(
    kafka: &Kafka,
    partition: i32,
    chain_id: u64,
    progress: &Progress,
    after: u64,
    last: Option<&MatchedBlock>,
) -> Result<Option<FoundRecord>, Failure> {
    let reader = PartitionReader::open_at_once(kafka, Topic::Blocks, partition)?;
    let is_there = last.map_or(Ok(None), |last| last.written_in(&reader))?.is_some();
    reader.seek(last.filter(|_| is_there).map_or(0, |last| last.offset + 1));
    let mut lookup = Lookup::of(chain_id);
    while let Some(record) = reader.next()? {
        lookup.at(Topic::Blocks, partition, record.offset());
        let Ok(head) = head_of(&record) else { continue };
        let closes = matches!(Kind::try_from(head.kind), Ok(Kind::Added | Kind::Replayed));
        if head.chain_id == chain_id && head.sequence > after && (closes || progress.turn(&head) == Turn::Next) {
            let written = record.timestamp_ms().unwrap_or_default();
            // If the block is gone, its topics may be others by now.
            let logs = match last.and_then(|last| last.logs) {
                Some(logs) if is_there => logs,
                Some(logs) => logs.min(logs_by_time(kafka, partition, written)?),
                None => logs_by_time(kafka, partition, written)?,
            };
            let at = Resumption { blocks: record.offset(), logs };
            let RecordHead { sequence, kind, number, hash, parent_hash, .. } = head;
            let (hash, parent_hash) = (hash.to_vec(), parent_hash.to_vec());
            return Ok(Some(FoundRecord { sequence, kind, number, hash, parent_hash, at }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(records: &[(u64, Kind, u64, Option<u64>)]) -> Option<u64> {
        let mut search = WitnessedSearch::default();
        for (sequence, kind, number, told) in records.iter().rev() {
            let (kind, number) = (i32::from(*kind), *number);
            let head = RecordHead { sequence: *sequence, kind, number, ..RecordHead::default() };
            if search.see(&head, *told).is_break() {
                break;
            }
        }
        search.witnessed
    }

    /// A backfill from a higher one on would not say again what a branch has put in their place.
    #[test]
    fn blocks_that_were_removed_are_witnessed_no_more() {
        use Kind::{Added, Removed, Replayed, Tags};
        let witnessed = (1, Added, 100, Some(100));
        assert_eq!(seen(&[witnessed, (2, Tags, 100, None), (0, Replayed, 40, Some(40))]), Some(100));
        let removed = [witnessed, (2, Removed, 100, None), (3, Removed, 99, None), (4, Added, 99, None), (5, Added, 100, None)];
        assert_eq!(seen(&removed), Some(98));
        assert_eq!(seen(&[&removed[..], &[(6, Tags, 100, Some(99))]].concat()), Some(99));
        assert_eq!(seen(&[(1, Added, 100, Some(90)), (2, Removed, 100, None)]), Some(90), "it was lower");
        assert_eq!(seen(&[witnessed, (2, Removed, 100, Some(100)), (3, Added, 100, None)]), Some(99));
        assert_eq!(seen(&[witnessed, (2, Replayed, 70, None), (3, Added, 71, None)]), None, "it begins anew");
        let mut skips = WitnessedSearch::default();
        let over_a_hole =
            RecordHead { sequence: 1, kind: Removed.into(), number: 100, parent_number: Some(95), ..RecordHead::default() };
        assert!(skips.see(&over_a_hole, None).is_continue());
        assert!(skips.see(&RecordHead { sequence: 1, kind: Added.into(), ..RecordHead::default() }, Some(100)).is_break());
        assert_eq!(skips.witnessed, Some(95));
    }
}
