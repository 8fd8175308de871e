//! Joins blocks with their logs, within one partition of the two topics.
//!
//! Blocks are taken in the order of their partition. Ingest writes a block and its logs in one transaction, so the logs are
//! there too. If chains share a partition, the logs may be in another order than the blocks; those not needed yet wait. So an
//! offset of `chain.logs` is committed only when everything below it is used. After a restart some records are read again that
//! are done, and their counterpart may be gone; their sequence, which is not above their chain's, shows it.

use crate::matching::RecordHead;
use anyhow::anyhow;
use runtime::Failure;
use runtime::kafka::Record;
use std::collections::{HashMap, VecDeque};
use topics::{Topic, frame};

/// More waiting blocks than this pause the partition, and so do more waiting logs.
const MAX_WAITING: usize = 4096;

/// The records of one partition that wait for their counterpart.
#[derive(Default)]
pub struct Join<'c> {
    blocks: VecDeque<Record<'c>>,
    logs: HashMap<JoinKey, VecDeque<WaitingLogs<'c>>>,
    next_block: Option<i64>,
    next_logs: Option<i64>,
    /// The topic of the partition that is paused.
    pub paused: Option<Topic>,
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

/// What [`Join::pop`] finds.
pub enum Popped<'c> {
    Pair(Box<JoinedBlock<'c>>),
    /// There is no block, or its logs have not arrived.
    Waiting,
    /// The block's logs are gone: those that come next are of a later record, with this sequence.
    WithoutLogs {
        next_with_logs: u64,
    },
}

enum TakenLogs<'c> {
    Found(Record<'c>),
    None,
    Later(u64),
}

impl<'c> Join<'c> {
    /// Adds a record, but for logs that are done.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn push(&mut self, record: Record<'c>, is_done: impl Fn(u64, u64) -> bool) -> Result<(), Failure> {
        if record.topic == Topic::Blocks {
            self.blocks.push_back(record);
            return Ok(());
        }
        self.next_logs = Some(record.offset() + 1);
        let RecordHead { chain_id, sequence, .. } = RecordHead::read(payload(&record)?).map_err(|e| unreadable(&record, e))?;
        if !is_done(chain_id, sequence) {
            self.logs.entry((chain_id, sequence == 0)).or_default().push_back(WaitingLogs { sequence, record });
        }
        Ok(())
    }

    /// The next block.
    pub fn front(&self) -> Option<&Record<'c>> {
        self.blocks.front()
    }

    /// Passes over the next block, which is no replayed one, and its chain's logs up to it.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn pass(&mut self) -> Result<(), Failure> {
        let Some(block) = self.blocks.pop_front() else { return Ok(()) };
        self.next_block = Some(block.offset() + 1);
        let RecordHead { chain_id, sequence, .. } = RecordHead::read(payload(&block)?).map_err(|e| unreadable(&block, e))?;
        if let Some(waiting) = self.logs.get_mut(&(chain_id, false)) {
            while waiting.front().is_some_and(|logs| logs.sequence <= sequence) {
                waiting.pop_front();
            }
        }
        Ok(())
    }

    /// Takes the next block, if its logs are there.
    ///
    /// # Errors
    /// If a record can't be read, or the next logs do not belong to the block.
    pub fn pop(&mut self) -> Result<Popped<'c>, Failure> {
        let Some(front) = self.blocks.front() else {
            return Ok(Popped::Waiting);
        };
        let block = RecordHead::read(payload(front)?).map_err(|e| unreadable(front, e))?;
        let lane = (block.chain_id, block.sequence == 0);
        let logs = match self.logs.get_mut(&lane).map_or(Ok(TakenLogs::None), |waiting| take_logs(waiting, &block))? {
            TakenLogs::Found(logs) => logs,
            TakenLogs::None => return Ok(Popped::Waiting),
            TakenLogs::Later(sequence) => return Ok(Popped::WithoutLogs { next_with_logs: sequence }),
        };
        let Some(block) = self.blocks.pop_front() else {
            return Ok(Popped::Waiting);
        };
        self.next_block = Some(block.offset() + 1);
        Ok(Popped::Pair(Box::new(JoinedBlock { block, logs })))
    }

    /// The offsets to commit in `chain.blocks` and in `chain.logs`. `None` if nothing was read.
    pub fn offsets(&self) -> (Option<i64>, Option<i64>) {
        let waiting = self.logs.values().flatten().map(|waiting| waiting.record.offset()).min();
        (self.next_block, waiting.or(self.next_logs))
    }

    /// The topic that should be paused, since more of its records wait than memory should hold. Logs wait beyond the limit while
    /// a block does: its own may be the next.
    pub fn excess(&self) -> Option<Topic> {
        if self.blocks.len() > MAX_WAITING {
            Some(Topic::Blocks)
        } else if self.blocks.is_empty() && self.logs.values().map(VecDeque::len).sum::<usize>() > MAX_WAITING {
            Some(Topic::Logs)
        } else {
            None
        }
    }

    /// Whether the paused topic may be read again.
    pub fn is_relieved(&self) -> bool {
        match self.paused {
            Some(Topic::Logs) => !self.blocks.is_empty(),
            _ => self.blocks.is_empty(),
        }
    }
}

/// Takes the block's logs. Logs before them belong to blocks that are done, and are dropped.
fn take_logs<'c>(waiting: &mut VecDeque<WaitingLogs<'c>>, block: &RecordHead<'_>) -> Result<TakenLogs<'c>, Failure> {
    while let Some(front) = waiting.front() {
        if front.sequence > block.sequence {
            return Ok(TakenLogs::Later(front.sequence));
        }
        let Some(front) = waiting.pop_front() else { break };
        let hash = RecordHead::read(payload(&front.record)?).map_err(|e| unreadable(&front.record, e))?.hash;
        if front.sequence == block.sequence && hash == block.hash {
            return Ok(TakenLogs::Found(front.record));
        }
        if front.sequence == block.sequence && block.sequence != 0 {
            return Err(Failure::Halt(anyhow!(
                "chain {}: the block and the logs with sequence {} have different hashes: \
                 chain.blocks and chain.logs do not belong together",
                block.chain_id,
                block.sequence
            )));
        }
    }
    Ok(TakenLogs::None)
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
