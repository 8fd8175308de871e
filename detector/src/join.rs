//! Joins blocks with their logs, within one partition of the two topics.
//!
//! Blocks are taken in the order of their partition. Ingest writes a block and its logs in one transaction, so the logs are
//! there too. If chains share a partition, the logs may be in another order than the blocks; those not needed yet wait. So an
//! offset of `chain.logs` is committed only when everything below it is used. After a restart some logs are read again whose
//! blocks are done; their sequence, which is below their chain's, shows it.

use crate::matching::RecordHead;
use anyhow::anyhow;
use runtime::Failure;
use runtime::kafka::Record;
use std::collections::{HashMap, VecDeque};
use topics::{Topic, frame};

/// More waiting blocks than this pause the partition.
const MAX_WAITING_BLOCKS: usize = 4096;

/// The records of one partition that wait for their counterpart.
#[derive(Default)]
pub struct Join<'c> {
    blocks: VecDeque<Record<'c>>,
    logs: HashMap<JoinKey, VecDeque<WaitingLogs<'c>>>,
    next_block: Option<i64>,
    next_logs: Option<i64>,
    /// Whether `chain.blocks` of the partition is paused.
    pub paused: bool,
}

/// Chain id, and whether the record is replayed. Two producers write a chain's live and replayed records, each in its own
/// order.
type JoinKey = (u64, bool);

struct WaitingLogs<'c> {
    record: Record<'c>,
    sequence: u64,
}

/// A block's two records.
pub struct JoinedBlock<'c> {
    /// From `chain.blocks`.
    pub block: Record<'c>,
    /// From `chain.logs`.
    pub logs: Record<'c>,
}

impl<'c> Join<'c> {
    /// Adds a record.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn push(&mut self, record: Record<'c>) -> Result<(), Failure> {
        if record.topic == Topic::Blocks {
            self.blocks.push_back(record);
            return Ok(());
        }
        self.next_logs = Some(record.offset() + 1);
        let RecordHead { chain_id, sequence, .. } = RecordHead::read(payload(&record)?).map_err(|e| unreadable(&record, e))?;
        self.logs.entry((chain_id, sequence == 0)).or_default().push_back(WaitingLogs { sequence, record });
        Ok(())
    }

    /// Takes the next block, if its logs are there.
    ///
    /// # Errors
    /// If a record can't be read, or the next logs do not belong to the block.
    pub fn pop(&mut self) -> Result<Option<JoinedBlock<'c>>, Failure> {
        let Some(front) = self.blocks.front() else {
            return Ok(None);
        };
        let block = RecordHead::read(payload(front)?).map_err(|e| unreadable(front, e))?;
        let lane = (block.chain_id, block.sequence == 0);
        let Some(found) = self.logs.get_mut(&lane).map(|waiting| take_logs(waiting, &block)).transpose()?.flatten() else {
            return Ok(None);
        };
        let Some(block) = self.blocks.pop_front() else {
            return Ok(None);
        };
        self.next_block = Some(block.offset() + 1);
        Ok(Some(JoinedBlock { block, logs: found }))
    }

    /// The offsets to commit in `chain.blocks` and in `chain.logs`. `None` if nothing was read.
    pub fn offsets(&self) -> (Option<i64>, Option<i64>) {
        let waiting = self.logs.values().flatten().map(|waiting| waiting.record.offset()).min();
        (self.next_block, waiting.or(self.next_logs))
    }

    /// Whether more blocks wait than memory should hold.
    pub fn is_full(&self) -> bool {
        self.blocks.len() > MAX_WAITING_BLOCKS
    }

    /// The number of blocks that wait for their logs.
    pub fn waiting(&self) -> usize {
        self.blocks.len()
    }
}

/// Takes the block's logs. Logs before them belong to blocks that are done, and are dropped.
fn take_logs<'c>(waiting: &mut VecDeque<WaitingLogs<'c>>, block: &RecordHead<'_>) -> Result<Option<Record<'c>>, Failure> {
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

/// The Protobuf in a record. An unreadable record halts the stage: its block would be missing downstream.
pub fn payload<'r>(record: &'r Record<'_>) -> Result<&'r [u8], Failure> {
    frame::payload(record.payload()).map_err(|e| unreadable(record, e))
}

/// Halts the stage, with the record's topic, partition and offset.
pub fn unreadable(record: &Record<'_>, cause: impl Into<anyhow::Error>) -> Failure {
    let place = format!("{} partition {} offset {}", record.topic, record.partition(), record.offset());
    Failure::halt(cause).context(place)
}
