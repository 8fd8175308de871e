//! Reads what the detector has written, and what it has yet to read: how far a chain is matched, from the end of
//! `chain.matches`, and where `chain.blocks` goes on. Both topics have a chain in the partition of the same number.

use crate::join::head_of;
use crate::matching::RecordHead;
use crate::progress::Progress;
use runtime::Failure;
use runtime::kafka::{Kafka, PartitionReader, Record};
use std::ops::ControlFlow;
use std::time::Duration;
use topics::Topic;

/// Clocks of the machines that write records may differ by this.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);
/// A block and its logs are one transaction, which takes seconds.
const MAX_BETWEEN_BLOCK_AND_LOGS: Duration = Duration::from_secs(10 * 60);

/// Where a chain goes on in `chain.blocks`.
#[derive(Clone, Copy, Debug)]
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
        RecordHead { chain_id, sequence: *sequence, kind: *kind, number: *number, hash, parent_hash }
    }
}

/// What `chain.matches` tells of a chain.
pub struct Matched {
    pub progress: Progress,
    /// The next record has a sequence that was matched, and is another record: the chain's counter went back.
    pub contradicted: bool,
}

/// How far a chain is matched. `next` is the record of `chain.blocks` that comes next, with its head.
pub fn read_progress(kafka: &Kafka, next: &Record<'_>, head: &RecordHead<'_>) -> Result<Matched, Failure> {
    // A record is matched after it was written. So where the chain's first record is next, older matches need not be searched.
    let first_of_chain = head.sequence == 1;
    let oldest = next.timestamp_ms().filter(|_| first_of_chain).map(|written| written - millis(MAX_CLOCK_SKEW));
    let mut progress = Progress::default();
    // Whether the next record was matched, once its sequence was met.
    let mut same = None;
    // Replayed blocks since the last live record, newest first: number, hash, parent.
    let mut replayed: Vec<(u64, Vec<u8>, Vec<u8>)> = Vec::new();
    let reader = PartitionReader::open(kafka, Topic::Matches, next.partition())?;
    reader.read_back(|records| {
        for record in records.iter().rev() {
            let matched = head_of(record)?;
            let ours = matched.chain_id == head.chain_id;
            if ours && matched.sequence != 0 {
                if progress.sequence == 0 {
                    progress.advance(&matched);
                }
                if matched.sequence <= head.sequence || head.sequence == 0 {
                    same = Some(matched.sequence != head.sequence || matched.hash == head.hash);
                    return Ok(ControlFlow::Break(()));
                }
            } else if ours && progress.sequence == 0 {
                replayed.push((matched.number, matched.hash.to_vec(), matched.parent_hash.to_vec()));
            }
            if oldest.is_some_and(|oldest| record.timestamp_ms().is_some_and(|written| written < oldest)) {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for (number, hash, parent_hash) in replayed.iter().rev() {
        progress.advance(&RecordHead { number: *number, hash, parent_hash, ..RecordHead::default() });
    }
    let contradicted = progress.is_done(head.sequence) && same != Some(true);
    Ok(Matched { progress, contradicted })
}

/// Where to begin in a partition whose offsets the group has lost: well before the last match was written. It is a guess, which
/// saves reading all that was matched: where it is too late for a chain, its records show a gap, and the partition is read again.
pub fn guess_position(kafka: &Kafka, topic: Topic, partition: i32) -> Result<Option<i64>, Failure> {
    let mut last = None;
    PartitionReader::open(kafka, Topic::Matches, partition)?.read_back(|records| {
        last = records.iter().filter_map(Record::timestamp_ms).max();
        Ok(if last.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let Some(last) = last else { return Ok(None) };
    let margin = MAX_CLOCK_SKEW + if topic == Topic::Logs { MAX_BETWEEN_BLOCK_AND_LOGS } else { Duration::ZERO };
    Ok(Some(PartitionReader::open(kafka, topic, partition)?.offset_at(last - millis(margin))?))
}

/// The chain's first record after `sequence` that `chain.blocks` still has.
pub fn find_next(kafka: &Kafka, partition: i32, chain_id: u64, sequence: u64) -> Result<Option<FoundRecord>, Failure> {
    let reader = PartitionReader::open(kafka, Topic::Blocks, partition)?;
    while let Some(record) = reader.next()? {
        let head = head_of(&record)?;
        if head.chain_id == chain_id && head.sequence > sequence {
            let written = record.timestamp_ms().unwrap_or_default();
            let logs = PartitionReader::open(kafka, Topic::Logs, partition)?;
            let at =
                Resumption { blocks: record.offset(), logs: logs.offset_at(written - millis(MAX_BETWEEN_BLOCK_AND_LOGS))? };
            let RecordHead { sequence, kind, number, hash, parent_hash, .. } = head;
            let (hash, parent_hash) = (hash.to_vec(), parent_hash.to_vec());
            return Ok(Some(FoundRecord { sequence, kind, number, hash, parent_hash, at }));
        }
    }
    Ok(None)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
