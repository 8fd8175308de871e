//! Which records of a chain say something new. Pure.
//!
//! As a rule each continues the one before. Where Kafka has lost the end of a topic, some records are read again, and others are written
//! again: under other sequences where more or fewer of them tell of tags, and with other content where no root proves a block's. Then
//! what was applied of late decides about each by itself, so it does not matter where a batch begins or ends: the very record that was
//! applied is passed over, and so is one that says the same of its block as the last one did, unless it continues the head. A block that
//! is witnessed is known by its hash. Whatever else does not continue the head is new as well: it is for the fold to refuse. So nothing in
//! doubt stands under a hash that was told with other content.
//!
//! Nor does it where that was lost before it was read. Sequences tell whether records are missing before one, and what is in
//! doubt then has to be said again, by it and those that follow, or by replayed blocks, before it or behind: that blocks lead on
//! by their parents says nothing of what they hold.

use payments::store::{AppliedRecords, ChainHead, OpenBlock, Reading};
use std::collections::HashMap;
use std::error::Error;
use std::fmt::{self, Display, Formatter};
use topics::{B256, BlockRef, ChainId, Kind, Matches};

/// Whether a record says that its chain begins anew.
pub(crate) fn begins_anew(record: &Matches) -> bool {
    record.kind == Kind::Replayed && record.sequence != 0
}

/// The head of a chain of which nothing was applied, before these.
pub(crate) fn head_before(records: &[&Matches]) -> ChainHead {
    let first = records.iter().find(|record| record.sequence != 0).map_or(0, |record| record.sequence);
    let reading = Reading::before(first);
    ChainHead { sequence: reading.sequence, reading, ..ChainHead::default() }
}

/// How far a chain is read, if each record continues the one before, and the first one the head, under the next sequence: none
/// of them was applied before, none is missing, and none says again what is in doubt.
pub(crate) fn continue_head(head: &ChainHead, records: &[&Matches]) -> Option<Reading> {
    let mut head = *head;
    for record in records {
        let continues = match record.sequence {
            0 => head.reading.again == Some(false) && !head.has_in_doubt(record),
            _ => head.reading.again == Some(false) && is_next(&head, record) && is_read_next(&head, record),
        };
        if !continues {
            return None;
        }
        say(&mut head, record, &AppliedRecords::default());
        advance(&mut head, record);
    }
    Some(head.reading)
}

/// Records of which some were applied before.
#[derive(Debug, Default)]
pub(crate) struct Unapplied<'a> {
    /// Those that were not.
    pub(crate) new: Vec<&'a Matches>,
    /// These, and those that are passed over for what they say.
    pub(crate) remembered: Vec<&'a Matches>,
    /// How far the chain is read with them.
    pub(crate) reading: Reading,
    /// Why the next one can't be applied.
    pub(crate) fault: Option<Fault>,
}

/// A record after which something may stand that the chain does not have.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It brings its block with another one than was applied.
    OtherContent(RecordRef),
    /// It is a replayed block that has left the chain since it was applied, and may be read from before it has.
    Left(RecordRef, u64),
    /// Some before it are missing, and it says nothing of blocks above this one, up to the head, that may have another content by now.
    Missing { record: RecordRef, known: u64, head: u64 },
}

/// Which record it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordRef {
    chain: ChainId,
    sequence: u64,
    block: BlockRef,
}

impl RecordRef {
    const fn of(record: &Matches) -> Self {
        Self { chain: record.chain, sequence: record.sequence, block: record.block }
    }
}

impl Error for Fault {}

impl Display for Fault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherContent(RecordRef { chain, sequence, block }) => write!(
                f,
                "record {sequence} of chain {chain} brings block {block} with other content than was applied when too few \
                 endpoints had given it"
            ),
            Self::Left(RecordRef { chain, block, .. }, sequence) => write!(
                f,
                "replayed block {block} has left chain {chain} with record {sequence}, and nothing tells yet whether it was \
                 replayed after that"
            ),
            Self::Missing { record: RecordRef { chain, sequence, block }, known, head } => write!(
                f,
                "records of chain {chain} before {sequence}, of block {block}, are missing: they may have brought other content \
                 for blocks above {known} than was applied when too few endpoints had given them, and nothing says again what was; \
                 once block {head} is final, `ctrip backfill --chain {chain} --from {known} --to {head} --again` does, or shows \
                 what is wrong"
            ),
        }
    }
}

/// Tells the records that were not applied from those that were, up to a fault. `applied` gets all, so that they are known when
/// they are read once more. `gone` are the replayed blocks that have left the chain, with the sequences of the records that
/// removed them. `ahead` is the next record that is not replayed, where they end with replayed ones and it is known.
pub(crate) fn unapplied<'a>(
    head: &ChainHead,
    records: &[&'a Matches],
    ahead: Option<&Matches>,
    applied: &mut AppliedRecords,
    gone: &HashMap<B256, u64>,
) -> Unapplied<'a> {
    let (mut head, mut left) = (*head, Unapplied::default());
    for (place, record) in records.iter().enumerate() {
        let mut rest = records[place + 1..].iter().copied().chain(ahead);
        let removed_by = gone.get(&record.block.hash).copied().filter(|_| record.sequence == 0);
        let removed_by = removed_by.filter(|sequence| head.reading.may_precede(*sequence));
        // One that was read before tells from where the chain is read.
        let precedes = removed_by.and_then(|sequence| {
            let next = rest.clone().find(|later| later.sequence != 0).filter(|later| applied.has(later))?;
            Some(next.sequence <= sequence)
        });
        let news = if precedes == Some(true) { News::Known } else { news(&head, record, &mut rest, applied) };
        if let News::Known = news {
            read_again(&mut head, record, applied);
            continue;
        }
        left.fault = match removed_by.filter(|_| precedes.is_none()) {
            Some(sequence) => Some(Fault::Left(RecordRef::of(record), sequence)),
            None => find_fault(&head, record, &news, applied),
        };
        if left.fault.is_some() {
            break;
        }
        say(&mut head, record, applied);
        match news {
            News::New => {
                advance(&mut head, record);
                left.new.push(record);
            }
            _ => read(&mut head, record),
        }
        left.remembered.push(record);
        applied.insert(record);
    }
    left.reading = head.reading;
    left
}

fn find_fault(head: &ChainHead, record: &Matches, news: &News, applied: &AppliedRecords) -> Option<Fault> {
    if record.sequence == 0 {
        // What a part alone leaves out nobody knows. If the chain has it of a replayed block alone, enough endpoints had given it.
        let is_other = record.parts > 1 && head.has_in_doubt(record) && applied.has_added(record) && !applied.has_said(record);
        return is_other.then_some(Fault::OtherContent(RecordRef::of(record)));
    }
    if matches!(news, News::New) && record.kind == Kind::Added && !continues(head, record) && applied.has_block(record) {
        return Some(Fault::OtherContent(RecordRef::of(record)));
    }
    let known = said_again(head).unwrap_or(head.known_by_hash());
    // Of what lies higher, but not above the head, it and those that follow say all again.
    let is_missing = !follows(head, record, applied) && !begins_anew(record) && number_below(record).min(head.number) > known;
    is_missing.then_some(Fault::Missing { record: RecordRef::of(record), known, head: head.number })
}

/// Number of the highest block of whose content a record says nothing.
fn number_below(record: &Matches) -> u64 {
    match record.kind {
        // Some chains skip numbers: the parent may lie lower.
        Kind::Added => record.block.number.saturating_sub(1),
        Kind::Removed => record.number_below(),
        Kind::Tags | Kind::Replayed => record.block.number,
    }
}

/// Whether no record is missing before this one that may have brought other content for what is in doubt.
///
/// Ingest writes a record after the one whose sequence is the next lower one. Where Kafka has lost the end of its cursors and blocks,
/// it goes on from an older one, under sequences that were read: none is missing then, but what was read since may not stand any more.
/// Of a block in doubt ingest has what it had told of it by then. Unless one was ever told with two contents, that is what was told of it
/// since as well, and so what was applied. What has changed below is known by its hash. Only a second loss, or a topic that has kept too
/// little, before what was written after the first one is read, can hide that something is missing, in the sequences of before.
fn follows(head: &ChainHead, record: &Matches, applied: &AppliedRecords) -> bool {
    let is_next = is_read_next(head, record);
    let is_where_it_was = || !applied.may_have_flipped_above(head.known_by_hash());
    is_next && head.reading.again == Some(false) || (is_next || head.reading.follows(record.sequence)) && is_where_it_was()
}

/// Whether no record of the chain is missing before this one, by the sequence of the last one.
const fn is_read_next(head: &ChainHead, record: &Matches) -> bool {
    let last = head.reading.sequence;
    // All parts of a block have one.
    record.sequence == last + 1 || record.sequence == last && !record.begins_block()
}

/// Notes what a replayed block says again of what is in doubt. It may be read before it is its turn. What was said up to a block stays
/// said until that leaves the chain: another backfill may bring blocks of below.
pub(crate) fn say(head: &mut ChainHead, record: &Matches, applied: &AppliedRecords) {
    let is_further = head.reading.said.is_none_or(|said| said.number <= record.block.number);
    let is_said = || if head.has_in_doubt(record) { says_again(head, record, applied) } else { is_led_from(head, record) };
    if record.sequence == 0 && is_further && is_said() {
        head.reading.said = Some(record.block);
    }
}

/// Whether a replayed block is known by its hash: those above lead on from it.
fn is_led_from(head: &ChainHead, record: &Matches) -> bool {
    head.hash.is_some() && record.block.number <= head.known_by_hash()
}

/// Number of the head, if replayed blocks have said again what was applied of all that was in doubt.
pub(crate) fn said_again(head: &ChainHead) -> Option<u64> {
    let BlockRef { number, hash } = head.reading.said?;
    (head.hash == Some(hash)).then_some(number)
}

/// What replayed blocks behind a fault say again, as far as they were looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookForSaid {
    /// The offset of the fault, and the chain's head before it: whatever moves either on may say, or take back, something by itself.
    fault: (i64, ChainHead),
    /// The head with what they say.
    pub(crate) head: ChainHead,
    /// Up to this offset.
    pub(crate) looked: i64,
}

impl LookForSaid {
    /// The look that goes on where the last one has ended, if that was behind the same fault.
    pub(crate) fn after(last: Option<Self>, offset: i64, head: ChainHead) -> Self {
        let fault = (offset, head);
        last.filter(|last| last.fault == fault).unwrap_or(Self { fault, head, looked: offset })
    }
}

/// Whether a replayed block has the content that was applied of it while it was in doubt, and leads on from one of which that
/// is known. It is final, and as many endpoints have given it as a block needs witnesses. One in parts does not count.
fn says_again(head: &ChainHead, record: &Matches, applied: &AppliedRecords) -> bool {
    let leads_on = head.reading.said.is_some_and(|said| said.hash == record.parent)
        || record.block.number == head.known_by_hash().saturating_add(1);
    leads_on && record.parts <= 1 && applied.has_said(record)
}

enum News {
    /// This very record was applied, or passed over.
    Known,
    /// What it says was told, or is not asked for.
    Nothing,
    New,
}

/// `rest` are the records after it.
fn news<'a>(
    head: &ChainHead,
    record: &Matches,
    rest: &mut impl Iterator<Item = &'a Matches>,
    applied: &AppliedRecords,
) -> News {
    if record.sequence == 0 {
        // It was applied before what took it back.
        let is_gone = rest.any(|later| takes_back(later, record.block) && applied.has(later));
        return if is_gone { News::Known } else { News::New };
    }
    if is_next(head, record) {
        return News::New;
    }
    if applied.has(record) {
        return News::Known;
    }
    // Just after a new beginning, what was told of a block may have been taken back.
    let may_be_told = head.hash.is_some() && !continues(head, record);
    let is_told = || match record.kind {
        Kind::Added if record.block.number <= head.known_by_hash() && applied.has_block(record) => true,
        Kind::Added | Kind::Removed => applied.has_content(record) || applied.lie_above(record),
        // Tags are of a block whose own record is passed over, or refused. `ctrip chain restart` gives a new beginning a later sequence
        // than all that was applied.
        Kind::Tags | Kind::Replayed => true,
    };
    if may_be_told && is_told() { News::Nothing } else { News::New }
}

/// Whether a record takes back what a block has brought.
fn takes_back(record: &Matches, block: BlockRef) -> bool {
    match record.kind {
        Kind::Removed => record.block.hash == block.hash,
        Kind::Replayed => begins_anew(record) && record.block.number < block.number,
        // One at its height or lower, of a branch that begins below all that there was.
        Kind::Added => record.block.number <= block.number && record.block.hash != block.hash,
        Kind::Tags => false,
    }
}

fn is_next(head: &ChainHead, record: &Matches) -> bool {
    record.sequence > head.sequence && continues(head, record)
}

/// Whether a record may come next, as the fold sees it.
fn continues(head: &ChainHead, record: &Matches) -> bool {
    let is_head = head.hash == Some(record.block.hash);
    match record.kind {
        Kind::Added => {
            let is_next_part = head.open.is_none_or(|open| open.hash != record.block.hash || open.part + 1 == record.part);
            let stands = match head.hash {
                Some(hash) => hash == record.parent && record.block.number > head.number,
                None => record.sequence == head.sequence + 1,
            };
            is_next_part && stands
        }
        Kind::Removed => is_head,
        Kind::Tags => is_head || head.hash.is_none() && record.sequence == head.sequence + 1,
        Kind::Replayed => record.sequence > head.sequence,
    }
}

/// Takes a record as read that had not been read before.
fn read(head: &mut ChainHead, record: &Matches) {
    let sequence = record.sequence;
    if sequence != 0 {
        let follows = !begins_anew(record) && (is_read_next(head, record) || head.reading.follows(sequence));
        let from = if follows { head.reading.from } else { sequence };
        head.reading = Reading { sequence, from, to: sequence, again: Some(false), ..head.reading };
    }
}

/// Takes a record as read that had been read before.
fn read_again(head: &mut ChainHead, record: &Matches, applied: &AppliedRecords) {
    if record.sequence != 0 {
        head.reading = Reading { sequence: record.sequence, again: Some(!applied.ends_with(record)), ..head.reading };
    }
}

fn advance(head: &mut ChainHead, record: &Matches) {
    let BlockRef { number, hash } = record.block;
    read(head, record);
    match record.kind {
        Kind::Added if record.ends_block() => {
            // It may be what was said of, in doubt now.
            if head.hash.is_none() {
                (head.first, head.reading.said) = (number, None);
            }
            (head.number, head.hash, head.open) = (number, Some(hash), None);
            head.witnessed = head.witnessed.max(record.witnessed);
        }
        Kind::Added => {
            head.open = Some(OpenBlock { hash, part: record.part });
            return;
        }
        // Below the first block nothing is known.
        Kind::Removed => {
            let (below, is_left) = (record.number_below(), head.number > head.first);
            (head.number, head.hash) = (below, is_left.then_some(record.parent));
            head.witnessed = head.witnessed.filter(|_| is_left).map(|witnessed| witnessed.min(below));
            head.reading.said = head.reading.said.filter(|said| said.number <= below);
        }
        Kind::Replayed if begins_anew(record) => {
            (head.number, head.hash, head.open) = (head.number.min(number), None, None);
            (head.witnessed, head.reading.said) = (None, None);
        }
        Kind::Replayed => return,
        Kind::Tags if head.hash.is_some() => head.witnessed = head.witnessed.max(record.witnessed),
        Kind::Tags => {}
    }
    head.sequence = record.sequence;
}

#[cfg(test)]
#[path = "unapplied_tests.rs"]
pub(crate) mod tests;
