//! The chains of an assignment: what each has matched, and which are set aside.
//!
//! Chains share partitions. One whose records are missing is set aside: its records are passed over, and the others go on. Its
//! place needs no offset: what it has matched is in `chain.matches`. Once a backfill has closed the gap, the partition is read
//! again from the chain's next record; what its neighbours have matched is done, and passed over.

use crate::again::{Found, Known, Rereading, Verdict};
use crate::held::{Held, PATIENCE};
use crate::join::{ChainRecord as _, head_of};
use crate::matching::RecordHead;
use crate::output::{FoundRecord, Matched, MatchedBlock, Resumption, find_next, passed_over, read_progress, witnessed_block};
use crate::progress::{Progress, Turn};
use base::metrics;
use runtime::Failure;
use runtime::kafka::{Kafka, PartitionReader, Record, Transaction, Wait};
use std::collections::{HashMap, HashSet};
use topics::wire::ChainCursor;
use topics::wire::matches_record::Kind;
use topics::{ChainId, Topic};

/// A backfill that closes a gap begins so many blocks below it where no match tells up to which block enough endpoints had given them. As
/// many may be in doubt: the confirmer goes on over the gap only if they are said again.
const MAX_IN_DOUBT: u64 = 64;

/// A partition to be read again from where a chain goes on.
#[derive(Clone, Copy, Debug)]
pub struct Rewind {
    pub chain: ChainId,
    pub partition: i32,
    pub to: Resumption,
}

struct SetAside {
    partition: i32,
    goes_on: GoesOn,
}

/// With which record a chain that is set aside can go on.
enum GoesOn {
    /// With the one after the gap, once replayed blocks lead to it.
    At(FoundRecord),
    /// As above, but `chain.blocks` had no block after the gap yet, which ends with this sequence.
    After(u64),
    /// With a new beginning alone.
    Anew,
}

/// What to do with the front block of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Match,
    /// It is done, or its chain is set aside.
    Pass,
    /// The partition has to be read again first, or is held.
    Wait,
}

/// The chains whose records were met since the assignment.
pub struct Chains {
    kafka: Kafka,
    held: Held,
    known: HashMap<u64, Progress>,
    /// What was matched last of each chain when it was met.
    last: HashMap<u64, MatchedBlock>,
    /// What is compared of chains whose records are read again.
    again: HashMap<u64, Rereading>,
    /// The chains of which something was taken that is not written yet.
    taken: HashSet<u64>,
    aside: HashMap<u64, SetAside>,
    /// What `chain.cursors` is to say about a chain: its sequence, and why it is set aside.
    notices: Vec<(u64, u64, String)>,
    noticed: HashSet<u64>,
    /// The sequence up to which each chain has records that could not be matched. Another assignment does not read them again; a
    /// new process does, which may be of another version.
    unmatchable: HashMap<u64, u64>,
    pub rewind: Option<Rewind>,
}

impl Chains {
    pub fn new(kafka: &Kafka, held: &Held) -> Self {
        Self {
            kafka: kafka.clone(),
            held: held.clone(),
            known: HashMap::new(),
            last: HashMap::new(),
            again: HashMap::new(),
            taken: HashSet::new(),
            aside: HashMap::new(),
            notices: Vec::new(),
            noticed: HashSet::new(),
            unmatchable: HashMap::new(),
            rewind: None,
        }
    }

    /// Forgets all but what can't be matched: a new assignment begins.
    pub fn clear(&mut self) {
        *self = Self { unmatchable: std::mem::take(&mut self.unmatchable), ..Self::new(&self.kafka, &self.held) };
        self.report();
    }

    /// Whether something of the chain was taken that is not written yet.
    pub fn has_taken(&self, chain_id: u64) -> bool {
        self.taken.contains(&chain_id)
    }

    /// A new beginning is never among them: the counter may have gone back.
    fn is_unmatchable(&self, head: &RecordHead<'_>) -> bool {
        let is_live = head.sequence != 0 && head.kind != i32::from(Kind::Replayed);
        is_live && self.unmatchable.get(&head.chain_id).is_some_and(|last| head.sequence <= *last)
    }

    /// Whether logs of this chain and sequence, at that offset, were used by what is matched. Their sequence may come again.
    pub fn is_used(&self, chain_id: u64, sequence: u64, offset: i64) -> bool {
        let is_done = self.known.get(&chain_id).is_some_and(|progress| progress.is_done(sequence));
        is_done && self.last.get(&chain_id).is_some_and(|last| last.has_used(offset))
    }

    /// What to do with the next block of a partition.
    pub fn action(&mut self, record: &Record<'_>) -> Result<Action, Failure> {
        let head = match head_of(record) {
            Ok(head) => head,
            // If it was a block, the gap in its chain's sequence shows it.
            Err(failure) => {
                tracing::error!("a record that can't be read is passed over: {failure}");
                return Ok(Action::Pass);
            }
        };
        let chain_id = head.chain_id;
        if self.is_covered(record, chain_id)? || self.is_read_again(record, &head) {
            return Ok(Action::Pass);
        }
        if !self.known.contains_key(&chain_id) || self.goes_back(&head) {
            // What was taken before this record has to be written first: then it is known whether this one contradicts it.
            if self.has_taken(chain_id) {
                return Ok(Action::Wait);
            }
            if !self.look(record, &head)? {
                return Ok(Action::Wait);
            }
            if self.is_covered(record, chain_id)? || self.is_read_again(record, &head) {
                return Ok(Action::Pass);
            }
        }
        let unmatchable = self.is_unmatchable(&head);
        let progress = self.known.entry(chain_id).or_default();
        let turn = progress.turn(&head);
        if let Some(aside) = self.aside.get(&chain_id).filter(|_| head.sequence != 0) {
            let begins_anew = head.kind == i32::from(Kind::Replayed);
            let goes_on = match &aside.goes_on {
                GoesOn::At(next) => begins_anew || head.sequence >= next.sequence,
                GoesOn::After(last) if head.kind == i32::from(Kind::Added) => return self.at_gap(record, chain_id, *last),
                GoesOn::After(_) | GoesOn::Anew => begins_anew,
            };
            return Ok(if goes_on && turn == Turn::Next { Action::Match } else { Action::Pass });
        }
        match turn {
            Turn::Done => Ok(Action::Pass),
            Turn::Next if !unmatchable => Ok(Action::Match),
            Turn::Next | Turn::Gap => {
                let last = progress.sequence;
                self.at_gap(record, chain_id, last)
            }
        }
    }

    /// Whether the chain's last match is of this record or of one that comes after it. What has left the chain since a replayed block was
    /// matched is not taken back again.
    fn is_covered(&mut self, record: &Record<'_>, chain_id: u64) -> Result<bool, Failure> {
        self.last.get_mut(&chain_id).map_or(Ok(false), |last| last.covers(&self.kafka, record))
    }

    /// Whether a live record has a sequence that was matched, although the chain is not read again.
    fn goes_back(&self, head: &RecordHead<'_>) -> bool {
        let is_followed = !self.aside.contains_key(&head.chain_id) && !self.again.contains_key(&head.chain_id);
        is_followed && self.known.get(&head.chain_id).is_some_and(|progress| progress.is_done(head.sequence))
    }

    /// Looks up how far a chain is matched whose record comes next; or holds its partition, if that can't be seen yet.
    fn look(&mut self, record: &Record<'_>, head: &RecordHead<'_>) -> Result<bool, Failure> {
        let (chain_id, partition) = (head.chain_id, record.partition());
        let matches = match PartitionReader::open_within(&self.kafka, Topic::Matches, partition, PATIENCE)? {
            Ok(matches) => matches,
            Err(open) => {
                self.held.hold(partition, Wait::Transaction(open), true);
                return Ok(false);
            }
        };
        let matched = read_progress(&self.kafka, &matches, record, head)?;
        let Matched { found: Found { progress, again, is_contradicted }, last } = matched;
        let stands_on_it = progress.is_continued_by(head);
        let passed_over = last.as_ref().map_or(Ok(None), |last| passed_over(&self.kafka, last, record, stands_on_it))?;
        if let Some(sequence) = passed_over.or_else(|| is_contradicted.then_some(head.sequence)) {
            let cause = contradiction(chain_id, progress.sequence, sequence);
            self.set_aside(partition, chain_id, progress.sequence, GoesOn::Anew, cause);
        }
        self.known.insert(chain_id, progress);
        if !again.is_over() {
            self.again.insert(chain_id, again);
        }
        last.map(|last| self.last.insert(chain_id, last));
        Ok(true)
    }

    /// Whether a record is one that was matched before, of those that are compared.
    fn is_read_again(&mut self, record: &Record<'_>, head: &RecordHead<'_>) -> bool {
        let chain_id = head.chain_id;
        let Some(again) = self.again.get_mut(&chain_id).filter(|_| head.sequence != 0) else { return false };
        let verdict = again.judge(&Known::of(head, record.writing()));
        if again.is_over() {
            self.again.remove(&chain_id);
        }
        let progress = self.known.entry(chain_id).or_default();
        match verdict {
            Verdict::Same => progress.advance(head),
            Verdict::Differs => {
                tracing::warn!(
                    "chain {chain_id} has another record with sequence {} than was matched: it is matched again from there on",
                    head.sequence
                );
                return false;
            }
            Verdict::Unknown => {
                let (sequence, cause) = (progress.sequence, contradiction(chain_id, progress.sequence, head.sequence));
                self.set_aside(record.partition(), chain_id, sequence, GoesOn::Anew, cause);
            }
        }
        true
    }

    /// Forgets what was taken of a chain since its last match: a replayed block that was taken could not be matched, and what comes
    /// after it leads on from nothing.
    pub fn forget_replayed(&mut self, chain_id: u64) {
        self.known.remove(&chain_id);
        self.again.remove(&chain_id);
        self.rewind = self.rewind.filter(|rewind| rewind.chain != ChainId(chain_id));
    }

    /// Sets a chain aside one of whose records can't be read, and forgets what was taken from that one on. It is a gap like any
    /// other, which replayed blocks can close.
    pub fn set_aside_at(&mut self, partition: i32, unreadable: &RecordHead<'_>, failure: &Failure) {
        let RecordHead { chain_id, sequence, number, .. } = *unreadable;
        self.known.remove(&chain_id);
        self.again.remove(&chain_id);
        self.unmatchable.insert(chain_id, sequence);
        let cause = format!("block {number} (sequence {sequence}) can't be matched: {failure}");
        self.set_aside(partition, chain_id, sequence, GoesOn::After(sequence), cause);
    }

    /// Notes that the front block of a partition is about to be matched.
    pub fn advance(&mut self, record: &Record<'_>) -> Result<(), Failure> {
        let head = head_of(record)?;
        let progress = self.known.entry(head.chain_id).or_default();
        progress.advance(&head);
        self.taken.insert(head.chain_id);
        if head.sequence != 0 {
            if head.kind == i32::from(Kind::Replayed) {
                self.unmatchable.remove(&head.chain_id);
            }
            // It goes on by itself, or begins anew.
            if self.aside.remove(&head.chain_id).is_some() | self.noticed.insert(head.chain_id) {
                self.notices.push((head.chain_id, head.sequence, String::new()));
                self.report();
            }
        } else if let Some(aside) = self.aside.get(&head.chain_id)
            && let GoesOn::At(next) = &aside.goes_on
            && progress.turn(&next.head(head.chain_id)) == Turn::Next
            // If it is yet to come, going there would pass over what neighbours have in between.
            && next.at.blocks < record.offset()
        {
            self.rewind = Some(Rewind { chain: ChainId(head.chain_id), partition: aside.partition, to: next.at });
        }
        Ok(())
    }

    /// Reads the partition again if `chain.blocks` has what is missing, and else sets the chain aside.
    ///
    /// The gap ends with the sequence `last`, or later.
    fn at_gap(&mut self, record: &Record<'_>, chain_id: u64, last: u64) -> Result<Action, Failure> {
        // The backfill that is named begins at a block that is read from chain.matches.
        if self.has_taken(chain_id) {
            return Ok(Action::Wait);
        }
        let partition = record.partition();
        let last = self.unmatchable.get(&chain_id).map_or(last, |unmatchable| last.max(*unmatchable));
        let progress = self.known.entry(chain_id).or_default();
        let Some(next) = find_next(&self.kafka, partition, chain_id, progress, last, self.last.get(&chain_id))? else {
            self.set_aside_after_gap(partition, chain_id, last, None)?;
            return Ok(Action::Pass);
        };
        if progress.sequence == 0 && last == 0 {
            // Nothing of it was matched, so it begins with the first block that there is.
            progress.sequence = next.sequence - 1;
            if next.sequence > 1 {
                tracing::error!(
                    "chain {chain_id} begins with block {} (sequence {}), the first that chain.blocks has: what its retention deleted \
                     before is brought by `ctrip backfill --chain {chain_id} --to {}`, with --from its first block",
                    next.number,
                    next.sequence,
                    next.number.saturating_sub(1)
                );
            }
        }
        if progress.turn(&next.head(chain_id)) != Turn::Next {
            self.set_aside_after_gap(partition, chain_id, last, Some(next))?;
            return Ok(Action::Pass);
        }
        if next.at.blocks == record.offset() {
            return Ok(Action::Match);
        }
        if next.at.blocks > record.offset() {
            // It comes by itself. Going there at once would pass over what neighbours have in between.
            self.aside.insert(chain_id, SetAside { partition, goes_on: GoesOn::At(next) });
            return Ok(Action::Pass);
        }
        self.rewind = Some(Rewind { chain: ChainId(chain_id), partition, to: next.at });
        Ok(Action::Wait)
    }

    /// Sets the chain of the front block aside, whose logs are gone. `next_with_logs` is the sequence of the first logs there are.
    pub fn set_aside_before(&mut self, front: &Record<'_>, next_with_logs: u64) -> Result<(), Failure> {
        let (chain_id, last) = (head_of(front)?.chain_id, next_with_logs.saturating_sub(1));
        self.unmatchable.insert(chain_id, last);
        let progress = self.known.entry(chain_id).or_default();
        let next = find_next(&self.kafka, front.partition(), chain_id, progress, last, self.last.get(&chain_id))?;
        self.set_aside_after_gap(front.partition(), chain_id, last, next)
    }

    fn set_aside_after_gap(
        &mut self,
        partition: i32,
        chain_id: u64,
        last: u64,
        next: Option<FoundRecord>,
    ) -> Result<(), Failure> {
        let progress = self.known.entry(chain_id).or_default();
        let sequence = progress.sequence;
        // Replayed blocks would stand beside what was matched under these sequences, and what comes after them would be taken to stand on it.
        if let Some(matched) = self.last.get(&chain_id).filter(|matched| sequence < matched.sequence) {
            let cause = contradiction(chain_id, matched.sequence, sequence + 1);
            self.set_aside(partition, chain_id, sequence, GoesOn::Anew, cause);
            return Ok(());
        }
        let cause = match &next {
            Some(next) => gap(chain_id, progress, next, || witnessed_block(&self.kafka, partition, chain_id))?,
            None => no_end_of_gap(chain_id, progress),
        };
        self.set_aside(partition, chain_id, sequence, next.map_or(GoesOn::After(last), GoesOn::At), cause);
        Ok(())
    }

    fn set_aside(&mut self, partition: i32, chain_id: u64, sequence: u64, goes_on: GoesOn, cause: String) {
        tracing::error!("chain {chain_id} is set aside, the others go on: {cause}");
        self.notices.push((chain_id, sequence, cause));
        self.aside.insert(chain_id, SetAside { partition, goes_on });
        self.report();
    }

    /// Writes into `chain.cursors` which chains are set aside and which go on, for whoever shows a chain's health. All that was taken is in
    /// the transaction.
    pub fn notify(&mut self, transaction: &Transaction<'_>) -> Result<(), Failure> {
        self.taken.clear();
        for (chain_id, sequence, halted) in self.notices.drain(..) {
            let cursor = ChainCursor { chain_id, sequence, halted, ..ChainCursor::default() };
            transaction.send(Topic::Cursors, &format!("detector/{chain_id}"), &self.kafka.encode(&cursor))?;
        }
        Ok(())
    }

    fn report(&self) {
        #[expect(clippy::cast_precision_loss, reason = "there are dozens of chains")]
        metrics::SET_ASIDE.gauge(&[("kind", "detector_chain")]).set(self.aside.len() as f64);
    }
}

fn anew(chain_id: u64) -> String {
    format!("`ctrip chain restart {chain_id}` begins anew")
}

/// `ends` is the last sequence that was matched.
fn contradiction(chain_id: u64, ends: u64, sequence: u64) -> String {
    format!(
        "chain.blocks has another record with sequence {sequence} than chain.matches, which ends at {ends}: was chain.cursors lost? {}",
        anew(chain_id)
    )
}

fn matched(progress: &Progress) -> String {
    let last = progress.head.map_or("none".to_owned(), |head| head.number.to_string());
    format!("the last block matched is {last} (sequence {}), and chain.blocks goes on with", progress.sequence)
}

/// A new beginning would give up what a backfill can bring once the end of the gap is there.
fn no_end_of_gap(chain_id: u64, progress: &Progress) -> String {
    format!(
        "{} no block yet after what is missing; the next block of chain {chain_id} tells which backfill closes the gap",
        matched(progress)
    )
}

/// `next` ends the gap, and `witnessed` finds the highest block that enough endpoints had given before it.
fn gap(
    chain_id: u64,
    progress: &Progress,
    next: &FoundRecord,
    witnessed: impl FnOnce() -> Result<Option<u64>, Failure>,
) -> Result<String, Failure> {
    let found = format!(
        "{} block {} (sequence {}): what lies between was deleted by its retention, or can't be read",
        matched(progress),
        next.number,
        next.sequence
    );
    let missing = progress.head.map(|head| (head.number + 1, next.number.saturating_sub(1)));
    let Some((from, to)) = missing.filter(|(from, to)| from <= to && next.kind == i32::from(Kind::Added)) else {
        return Ok(format!("{found}; {}", anew(chain_id)));
    };
    let witnessed = witnessed()?;
    // The confirmer goes by their parents from the witnessed block on.
    let in_doubt = witnessed.map_or(from.saturating_sub(MAX_IN_DOUBT), |witnessed| witnessed.min(from));
    let closes = format!("`ctrip backfill --chain {chain_id} --from {} --to {to} --again` closes the gap", in_doubt.max(1));
    let condition = match witnessed {
        None => format!(
            ", if no more than {MAX_IN_DOUBT} blocks before it had too few witnesses, and they stand as they were matched"
        ),
        Some(witnessed) if witnessed < from.saturating_sub(1) => {
            ", if the blocks before it that had too few witnesses stand as they were matched".to_owned()
        }
        Some(_) => String::new(),
    };
    Ok(format!("{found}; {closes}{condition}; else {}", anew(chain_id)))
}

#[cfg(test)]
#[path = "chains_tests.rs"]
mod tests;
