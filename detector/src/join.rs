//! Blocks with their logs, within one partition of the two topics.
//!
//! Blocks are taken in the order of their partition. Their logs are there too, since ingest writes both in one transaction,
//! but where chains share a partition they may lie in another order; what is not needed yet waits. So an offset of
//! `chain.logs` is not passed before everything below it is used, and after a restart some logs are read again whose
//! blocks are done: their sequence is below their chain's, which tells.

use crate::matching::RecordHead;
use anyhow::anyhow;
use runtime::Failure;
use runtime::kafka::Record;
use std::collections::{HashMap, VecDeque};
use topics::{Topic, frame};

/// Blocks waiting for their logs that are enough for now.
const ENOUGH: usize = 4096;

/// The records of one partition that are not used yet.
#[derive(Default)]
pub struct Join<'c> {
    blocks: VecDeque<Record<'c>>,
    logs: HashMap<Lane, VecDeque<Waiting<'c>>>,
    next_block: Option<i64>,
    next_logs: Option<i64>,
    /// Its blocks are not fetched for now.
    pub paused: bool,
}

/// A chain's live records and its replayed ones are written by two producers, each in its own order.
type Lane = (u64, bool);

struct Waiting<'c> {
    record: Record<'c>,
    sequence: u64,
}

/// A block's two records.
pub struct Pair<'c> {
    /// Of `chain.blocks`.
    pub block: Record<'c>,
    /// Of `chain.logs`.
    pub logs: Record<'c>,
}

impl<'c> Join<'c> {
    /// Takes a record in.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn push(&mut self, record: Record<'c>) -> Result<(), Failure> {
        if record.topic == Topic::Blocks {
            self.blocks.push_back(record);
            return Ok(());
        }
        self.next_logs = Some(record.offset() + 1);
        let RecordHead { chain_id, sequence, .. } = RecordHead::read(payload(&record)?).map_err(|e| unreadable(&record, e))?;
        self.logs.entry((chain_id, sequence == 0)).or_default().push_back(Waiting { sequence, record });
        Ok(())
    }

    /// The next block, if its logs are there.
    ///
    /// # Errors
    /// When a record can't be read, or the logs of a block are not where they should be.
    pub fn pop(&mut self) -> Result<Option<Pair<'c>>, Failure> {
        let Some(front) = self.blocks.front() else {
            return Ok(None);
        };
        let block = RecordHead::read(payload(front)?).map_err(|e| unreadable(front, e))?;
        let lane = (block.chain_id, block.sequence == 0);
        let Some(found) = self.logs.get_mut(&lane).map(|waiting| find(waiting, &block)).transpose()?.flatten() else {
            return Ok(None);
        };
        let Some(block) = self.blocks.pop_front() else {
            return Ok(None);
        };
        self.next_block = Some(block.offset() + 1);
        Ok(Some(Pair { block, logs: found }))
    }

    /// Where a successor has to begin, in `chain.blocks` and in `chain.logs`; `None` where nothing has changed.
    pub fn offsets(&self) -> (Option<i64>, Option<i64>) {
        let waiting = self.logs.values().flatten().map(|waiting| waiting.record.offset()).min();
        (self.next_block, waiting.or(self.next_logs))
    }

    /// More blocks wait than is good for memory.
    pub fn has_enough(&self) -> bool {
        self.blocks.len() > ENOUGH
    }

    /// Blocks waiting for their logs.
    pub fn waiting(&self) -> usize {
        self.blocks.len()
    }
}

/// The block's logs; what lies before them belongs to blocks that are done.
fn find<'c>(waiting: &mut VecDeque<Waiting<'c>>, block: &RecordHead<'_>) -> Result<Option<Record<'c>>, Failure> {
    while let Some(front) = waiting.pop_front() {
        let hash = RecordHead::read(payload(&front.record)?).map_err(|e| unreadable(&front.record, e))?.hash;
        if front.sequence == block.sequence && hash == block.hash {
            return Ok(Some(front.record));
        }
        if front.sequence >= block.sequence && block.sequence != 0 {
            return Err(Failure::Halt(anyhow!(
                "chain {}: the next block has sequence {}, and the next logs have {} or another hash: \
                 chain.blocks and chain.logs do not belong together",
                block.chain_id,
                block.sequence,
                front.sequence
            )));
        }
    }
    Ok(None)
}

/// The Protobuf in a record. One that can't be read stops the stage: its block would be missing downstream.
pub fn payload<'r>(record: &'r Record<'_>) -> Result<&'r [u8], Failure> {
    frame::payload(record.payload()).map_err(|e| unreadable(record, e))
}

/// Where it was.
pub fn unreadable(record: &Record<'_>, cause: impl Into<anyhow::Error>) -> Failure {
    let place = format!("{} partition {} offset {}", record.topic, record.partition(), record.offset());
    Failure::halt(cause).context(place)
}
