//! Joins blocks with their logs, within one partition of the two topics.
//!
//! Blocks are taken in the order of their partition. Ingest writes a block and its logs in one transaction, so the logs are
//! there too, under the same mark of that transaction. If chains share a partition, the logs may be in another order than the blocks; those not needed yet wait. So an
//! offset of `chain.logs` is committed only when everything below it is used. After a restart some records are read again that
//! are done, and their counterpart may be gone; their sequence, which is not above their chain's, shows it. A retention may delete
//! one of the two topics further than the other. A record waits for its counterpart no longer once everything was read that the other
//! topic had after the record was read (`logs_watch`).
//!
//! The logs of a block may come in parts, one after the other. A block waits for the last one.

use crate::matching::{LogsPart, RecordHead};
use anyhow::anyhow;
use runtime::Failure;
use runtime::kafka::Record;
use std::collections::{HashMap, VecDeque};
use topics::{Topic, WRITING, frame};

/// More waiting blocks than this pause their topic, and so do more waiting logs.
const MAX_WAITING: usize = 4096;
/// More bytes of waiting records than this pause it as well.
const MAX_WAITING_BYTES: usize = 128 * 1024 * 1024;

/// A record of `chain.blocks` or `chain.logs`.
pub trait ChainRecord {
    fn topic(&self) -> Topic;
    fn partition(&self) -> i32;
    fn offset(&self) -> i64;
    /// The value with its frame.
    fn value(&self) -> &[u8];
    /// Which transaction has written it, if that is told. A later one has a higher number, but for clocks that differ.
    fn writing(&self) -> Option<i64>;
}

impl ChainRecord for Record<'_> {
    fn topic(&self) -> Topic {
        self.topic
    }

    fn partition(&self) -> i32 {
        Self::partition(self)
    }

    fn offset(&self) -> i64 {
        Self::offset(self)
    }

    fn value(&self) -> &[u8] {
        Self::payload(self)
    }

    fn writing(&self) -> Option<i64> {
        number_in(self, WRITING)
    }
}

/// The number in a header.
pub fn number_in(record: &Record<'_>, header: &str) -> Option<i64> {
    std::str::from_utf8(record.header(header)?).ok()?.parse().ok()
}

/// The records of one partition that wait for their counterpart.
pub struct Join<R> {
    blocks: VecDeque<R>,
    logs: HashMap<JoinKey, VecDeque<WaitingLogs<R>>>,
    next_block: Option<i64>,
    /// Which transaction has written the block before it, if that is told.
    last_writing: Option<i64>,
    next_logs: Option<i64>,
    /// The end of `chain.logs` while a block waited, and the offset after the blocks that were read by then: their logs are below that
    /// end, or nowhere.
    logs_end: Option<(i64, i64)>,
    /// The topic of the partition that is paused, since too much of it waits.
    paused: Option<Topic>,
    /// Whether both are paused, since the partition is held.
    is_held: bool,
}

/// Chain id, and whether the record is replayed. Two producers write a chain's live and replayed records, each in its own
/// order.
type JoinKey = (u64, bool);

struct WaitingLogs<R> {
    record: R,
    sequence: u64,
}

/// A block's records.
pub struct JoinedBlock<R> {
    /// From `chain.blocks`.
    pub block: R,
    /// From `chain.logs`: all parts, in order.
    pub logs: Vec<R>,
    /// Once it was taken, everything below this offset of `chain.logs` was used.
    pub logs_used: i64,
}

/// What [`Join::pop`] finds.
pub enum Popped<R> {
    Pair(Box<JoinedBlock<R>>),
    /// There is no block, or its logs have not arrived.
    Waiting,
    /// The block's logs are gone, or some of their parts. Those that come next are of this sequence or a later one.
    WithoutLogs {
        next_with_logs: u64,
    },
}

enum TakenLogs<R> {
    Found(Vec<R>),
    None,
    Later(u64),
}

impl<R> Default for Join<R> {
    fn default() -> Self {
        let (blocks, logs) = (VecDeque::new(), HashMap::new());
        Self {
            blocks,
            logs,
            next_block: None,
            last_writing: None,
            next_logs: None,
            logs_end: None,
            paused: None,
            is_held: false,
        }
    }
}

impl<R: ChainRecord> Join<R> {
    /// Adds a record, but for logs that are done, or can't be read: their block finds itself without logs.
    pub fn push(&mut self, record: R, is_done: impl Fn(u64, u64) -> bool) {
        if record.topic() == Topic::Blocks {
            self.blocks.push_back(record);
            return;
        }
        self.next_logs = Some(record.offset() + 1);
        match head_of(&record) {
            Ok(RecordHead { chain_id, sequence, .. }) if !is_done(chain_id, sequence) => {
                self.logs.entry((chain_id, sequence == 0)).or_default().push_back(WaitingLogs { sequence, record });
            }
            Ok(_) => {}
            Err(failure) => tracing::error!("logs that can't be read are passed over: {failure}"),
        }
    }

    /// The next block.
    pub fn front(&self) -> Option<&R> {
        self.blocks.front()
    }

    /// Passes over the next block, and its chain's logs up to it, with all their parts. Those of a replayed block may be another
    /// replay's, and those of a later writing are of a block that comes again under such a sequence.
    pub fn pass(&mut self) {
        let Some(block) = self.take_block() else { return };
        let Ok(RecordHead { chain_id, sequence, .. }) = head_of(&block) else { return };
        if let Some(waiting) = self.logs.get_mut(&(chain_id, false)) {
            let is_older = |logs: &WaitingLogs<R>| logs.sequence <= sequence && logs.record.writing() <= block.writing();
            while waiting.front().is_some_and(is_older) {
                waiting.pop_front();
            }
        }
    }

    fn take_block(&mut self) -> Option<R> {
        let block = self.blocks.pop_front()?;
        (self.next_block, self.last_writing) = (Some(block.offset() + 1), block.writing());
        Some(block)
    }

    /// Drops the logs below an offset: their blocks are gone.
    pub fn drop_logs_below(&mut self, offset: i64) {
        for waiting in self.logs.values_mut() {
            while waiting.front().is_some_and(|logs| logs.record.offset() < offset) {
                waiting.pop_front();
            }
        }
    }

    /// Takes the next block, if all its logs are there.
    ///
    /// # Errors
    /// If a record can't be read, or the next logs do not belong to the block.
    pub fn pop(&mut self) -> Result<Popped<R>, Failure> {
        let Some(front) = self.blocks.front() else {
            return Ok(Popped::Waiting);
        };
        let block = head_of(front)?;
        let lane = (block.chain_id, block.sequence == 0);
        let of = Writing { head: &block, writing: front.writing() };
        let logs = match self.logs.get_mut(&lane).map_or(Ok(TakenLogs::None), |waiting| take_logs(waiting, &of))? {
            TakenLogs::Found(logs) => logs,
            TakenLogs::None if self.has_no_logs(front) || (lane.1 && self.is_flooded()) => {
                return Ok(Popped::WithoutLogs { next_with_logs: block.sequence + 1 });
            }
            TakenLogs::None => return Ok(Popped::Waiting),
            TakenLogs::Later(sequence) => return Ok(Popped::WithoutLogs { next_with_logs: sequence }),
        };
        let Some(block) = self.take_block() else {
            return Ok(Popped::Waiting);
        };
        let logs_used = self.offsets().1.unwrap_or_default();
        Ok(Popped::Pair(Box::new(JoinedBlock { block, logs, logs_used })))
    }

    /// The offset of the first logs that wait for a block.
    pub fn first_waiting_logs(&self) -> Option<i64> {
        // Each lane is in the order of its offsets.
        self.logs.values().filter_map(|lane| lane.front()).map(|waiting| waiting.record.offset()).min()
    }

    /// The offset after the last block that was taken or passed over. `None` if none was.
    pub const fn next_block(&self) -> Option<i64> {
        self.next_block
    }

    /// Which transaction has written the last block that was taken or passed over, if that is told.
    pub const fn last_writing(&self) -> Option<i64> {
        self.last_writing
    }

    /// The offset after the logs that were read. `None` if none were.
    pub const fn next_logs(&self) -> Option<i64> {
        self.next_logs
    }

    /// Notes the end that `chain.logs` has while the next block waits; the first one since that block was read counts, and is
    /// returned.
    pub fn expect_logs_below(&mut self, end: i64) -> i64 {
        let offset = |block: Option<&R>| block.map(ChainRecord::offset).unwrap_or_default();
        if let Some((end, _)) = self.logs_end.filter(|(_, below)| offset(self.blocks.front()) < *below) {
            return end;
        }
        self.logs_end = Some((end, offset(self.blocks.back()) + 1));
        end
    }

    /// Whether a block's logs are nowhere, since none of them came below the end that was noted.
    fn has_no_logs(&self, block: &R) -> bool {
        let is_noted = |(end, below): (i64, i64)| block.offset() < below && self.next_logs >= Some(end);
        self.logs_end.is_some_and(is_noted)
    }

    /// Whether far more logs wait than memory should hold. A replayed block that they wait behind has most likely lost its own, and
    /// its backfill can bring it again.
    fn is_flooded(&self) -> bool {
        is_more(self.logs.values().flatten().map(|waiting| &waiting.record), 4)
    }

    /// Notes that `chain.logs` has no more records below this offset.
    pub fn read_logs_up_to(&mut self, offset: i64) {
        self.next_logs = self.next_logs.max(Some(offset));
    }

    /// The offsets to commit in `chain.blocks` and in `chain.logs`. `None` if nothing was read.
    pub fn offsets(&self) -> (Option<i64>, Option<i64>) {
        (self.next_block, self.first_waiting_logs().or(self.next_logs))
    }

    /// What changes about the topics that are read: one is paused (`true`) while more of its records wait than memory should hold, both
    /// are while the partition is held, since nothing is taken then.
    pub fn pauses(&mut self, is_held: bool) -> Vec<(Topic, bool)> {
        let before = self.paused_topics();
        self.is_held = is_held;
        if !is_held {
            self.paused = match self.paused {
                None => self.excess(),
                Some(topic) => Some(topic).filter(|topic| !self.is_relieved(*topic)),
            };
        }
        let after = self.paused_topics();
        let changed = before.iter().zip(after).filter(|((_, was), (_, is))| was != is);
        changed.map(|(_, after)| after).collect()
    }

    fn paused_topics(&self) -> [(Topic, bool); 2] {
        [Topic::Blocks, Topic::Logs].map(|topic| (topic, self.is_held || self.paused == Some(topic)))
    }

    /// The topic that should be paused, since more of its records wait than memory should hold. Logs wait beyond the limit while
    /// a block does: its own may be the next.
    fn excess(&self) -> Option<Topic> {
        if is_more(self.blocks.iter(), 1) {
            Some(Topic::Blocks)
        } else if self.blocks.is_empty() && is_more(self.logs.values().flatten().map(|waiting| &waiting.record), 1) {
            Some(Topic::Logs)
        } else {
            None
        }
    }

    /// Whether the paused topic may be read again.
    fn is_relieved(&self, paused: Topic) -> bool {
        (paused == Topic::Logs) != self.blocks.is_empty()
    }
}

/// Whether records are more than so many times what may wait.
fn is_more<'r, R: ChainRecord + 'r>(waiting: impl Iterator<Item = &'r R>, times: usize) -> bool {
    let (mut records, mut bytes) = (0, 0);
    for record in waiting {
        records += 1;
        bytes += record.value().len();
    }
    records > times * MAX_WAITING || bytes > times * MAX_WAITING_BYTES
}

/// A block's record, by which its logs are found.
struct Writing<'b> {
    head: &'b RecordHead<'b>,
    writing: Option<i64>,
}

/// Takes the block's logs, once all their parts are there. Logs before them belong to blocks that are done, and are dropped, as
/// are the last parts of logs whose first ones are gone. Where Kafka has lost more of the end of `chain.blocks` than of `chain.logs`, the
/// logs of what was lost come first, under the same sequences or later ones.
fn take_logs<R: ChainRecord>(waiting: &mut VecDeque<WaitingLogs<R>>, block: &Writing<'_>) -> Result<TakenLogs<R>, Failure> {
    let sequence = block.head.sequence;
    if sequence == 0 {
        return take_replayed_logs(waiting, block);
    }
    while let Some(front) = waiting.front() {
        if is_of_block(front, block)? {
            let first = part_of(front)?;
            if first.part <= 1 {
                return take_parts(waiting, block, first.parts.max(1));
            }
        } else if front.sequence >= sequence {
            let is_later = front.sequence > sequence && front.record.writing() >= block.writing;
            match first_of_block(waiting, block)? {
                Some(first) => waiting.drain(..first),
                None if is_later => return Ok(TakenLogs::Later(front.sequence)),
                None => return Ok(TakenLogs::None),
            };
            continue;
        }
        waiting.pop_front();
    }
    Ok(TakenLogs::None)
}

/// Where the block's logs begin among those that wait.
fn first_of_block<R: ChainRecord>(waiting: &VecDeque<WaitingLogs<R>>, block: &Writing<'_>) -> Result<Option<usize>, Failure> {
    for (index, logs) in waiting.iter().enumerate() {
        if is_of_block(logs, block)? && part_of(logs)?.part <= 1 {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// As [`take_logs`]. A hash alone names them, so those before them are dropped only once they are found: if they are gone, the
/// others are of later blocks.
fn take_replayed_logs<R: ChainRecord>(
    waiting: &mut VecDeque<WaitingLogs<R>>,
    block: &Writing<'_>,
) -> Result<TakenLogs<R>, Failure> {
    let Some(first) = first_of_block(waiting, block)? else { return Ok(TakenLogs::None) };
    waiting.drain(..first);
    let parts = waiting.front().map_or(Ok(1), |logs| part_of(logs).map(|logs| logs.parts.max(1)))?;
    take_parts(waiting, block, parts)
}

fn is_of_block<R: ChainRecord>(logs: &WaitingLogs<R>, block: &Writing<'_>) -> Result<bool, Failure> {
    let hash = head_of(&logs.record)?.hash;
    Ok(logs.sequence == block.head.sequence && hash == block.head.hash && logs.record.writing() == block.writing)
}

/// Takes so many parts, of which the first is at the front.
fn take_parts<R: ChainRecord>(
    waiting: &mut VecDeque<WaitingLogs<R>>,
    block: &Writing<'_>,
    parts: u32,
) -> Result<TakenLogs<R>, Failure> {
    let count = usize::try_from(parts).map_err(Failure::halt)?;
    if waiting.len() < count {
        return Ok(TakenLogs::None);
    }
    for (logs, place) in waiting.iter().take(count).zip(1..).filter(|_| count > 1) {
        let part = part_of(logs)?;
        if !is_of_block(logs, block)? || part != (LogsPart { part: place, parts }) {
            let cause =
                anyhow!("expected part {place} of {parts} of the logs of sequence {}, got {part:?}", block.head.sequence);
            return Err(unreadable(&logs.record, cause));
        }
    }
    Ok(TakenLogs::Found(waiting.drain(..count).map(|logs| logs.record).collect()))
}

fn part_of<R: ChainRecord>(logs: &WaitingLogs<R>) -> Result<LogsPart, Failure> {
    LogsPart::read(payload(&logs.record)?).map_err(|e| unreadable(&logs.record, e))
}

/// The Protobuf in a record. An unreadable record halts the stage: its block would be missing downstream.
pub fn payload<R: ChainRecord>(record: &R) -> Result<&[u8], Failure> {
    frame::payload(record.value()).map_err(|e| unreadable(record, e))
}

/// The beginning of a record's Protobuf.
pub fn head_of<R: ChainRecord>(record: &R) -> Result<RecordHead<'_>, Failure> {
    RecordHead::read(payload(record)?).map_err(|e| unreadable(record, e))
}

/// Halts the stage, with the record's topic, partition and offset.
pub fn unreadable(record: &impl ChainRecord, cause: impl Into<anyhow::Error>) -> Failure {
    let place = format!("{} partition {} offset {}", record.topic(), record.partition(), record.offset());
    Failure::halt(cause).context(place)
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
