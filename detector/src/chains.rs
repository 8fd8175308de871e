//! The chains of an assignment: what each has matched, and which are set aside.
//!
//! Chains share partitions. One whose records are missing is set aside: its records are passed over, and the others go on. Its
//! place needs no offset: what it has matched is in `chain.matches`. Once a backfill has closed the gap, the partition is read
//! again from the chain's next record; what its neighbours have matched is done, and passed over.

use crate::join::head_of;
use crate::output::{FoundRecord, Resumption, find_next, read_progress};
use crate::progress::{Progress, Turn};
use anyhow::anyhow;
use base::metrics;
use runtime::Failure;
use runtime::kafka::{Kafka, Record, Transaction};
use std::collections::{HashMap, HashSet};
use topics::wire::ChainCursor;
use topics::wire::matches_record::Kind;
use topics::{ChainId, Topic};

/// A partition to be read again from where a chain goes on.
#[derive(Clone, Copy, Debug)]
pub struct Rewind {
    pub chain: ChainId,
    pub partition: i32,
    pub to: Resumption,
}

struct SetAside {
    partition: i32,
    /// What `chain.blocks` has after the gap; none if nothing but a new beginning helps.
    next: Option<FoundRecord>,
}

/// What to do with the front block of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Match,
    /// It is done, or its chain is set aside.
    Pass,
    /// The partition has to be read again first.
    Wait,
}

/// The chains whose records were met since the assignment.
pub struct Chains {
    kafka: Kafka,
    known: HashMap<u64, Progress>,
    /// The sequence of each chain's last record that was read.
    read: HashMap<u64, u64>,
    aside: HashMap<u64, SetAside>,
    /// What `chain.cursors` is to say about a chain: its sequence, and why it is set aside.
    notices: Vec<(u64, u64, String)>,
    noticed: HashSet<u64>,
    pub rewind: Option<Rewind>,
}

impl Chains {
    pub fn new(kafka: &Kafka) -> Self {
        let (known, read, aside) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { kafka: kafka.clone(), known, read, aside, notices: Vec::new(), noticed: HashSet::new(), rewind: None }
    }

    /// Forgets all: a new assignment begins.
    pub fn clear(&mut self) {
        *self = Self::new(&self.kafka);
        self.report();
    }

    /// Whether a record of this chain and sequence is known to be matched.
    pub fn is_done(&self, chain_id: u64, sequence: u64) -> bool {
        self.known.get(&chain_id).is_some_and(|progress| progress.is_done(sequence))
    }

    /// What to do with the next block of a partition.
    pub fn action(&mut self, record: &Record<'_>) -> Result<Action, Failure> {
        let head = head_of(record)?;
        let chain_id = head.chain_id;
        let goes_back = head.sequence != 0 && self.read.get(&chain_id).is_some_and(|last| head.sequence <= *last);
        if !self.known.contains_key(&chain_id) || (goes_back && !self.aside.contains_key(&chain_id)) {
            let matched = read_progress(&self.kafka, record, &head)?;
            self.known.insert(chain_id, matched.progress);
            if matched.contradicted || goes_back {
                self.set_aside(record.partition(), chain_id, None, head.sequence);
            }
        }
        let progress = self.known.entry(chain_id).or_default();
        let turn = progress.turn(&head);
        if let Some(aside) = self.aside.get(&chain_id).filter(|_| head.sequence != 0) {
            let begins_anew = turn == Turn::Next && head.kind == i32::from(Kind::Replayed);
            let after_gap = aside.next.as_ref().is_some_and(|next| head.sequence >= next.sequence) && turn == Turn::Next;
            return Ok(if begins_anew || after_gap { Action::Match } else { Action::Pass });
        }
        match turn {
            Turn::Done => Ok(Action::Pass),
            Turn::Next => Ok(Action::Match),
            Turn::Gap => self.at_gap(record, chain_id),
        }
    }

    /// Notes that the front block of a partition is passed over.
    pub fn pass(&mut self, record: &Record<'_>) -> Result<(), Failure> {
        let head = head_of(record)?;
        self.read.insert(head.chain_id, head.sequence);
        Ok(())
    }

    /// Notes that the front block of a partition is about to be matched.
    pub fn advance(&mut self, record: &Record<'_>) -> Result<(), Failure> {
        let head = head_of(record)?;
        let progress = self.known.entry(head.chain_id).or_default();
        progress.advance(&head);
        if head.sequence != 0 {
            self.read.insert(head.chain_id, head.sequence);
            // It goes on by itself, or begins anew.
            if self.aside.remove(&head.chain_id).is_some() | self.noticed.insert(head.chain_id) {
                self.notices.push((head.chain_id, head.sequence, String::new()));
                self.report();
            }
        } else if let Some(aside) = self.aside.get(&head.chain_id)
            && let Some(next) = &aside.next
            && progress.turn(&next.head(head.chain_id)) == Turn::Next
        {
            self.rewind = Some(Rewind { chain: ChainId(head.chain_id), partition: aside.partition, to: next.at });
        }
        Ok(())
    }

    /// Reads the partition again if `chain.blocks` has what is missing, and else sets the chain aside.
    fn at_gap(&mut self, record: &Record<'_>, chain_id: u64) -> Result<Action, Failure> {
        let partition = record.partition();
        let progress = self.known.entry(chain_id).or_default();
        let next = find(&self.kafka, partition, chain_id, progress.sequence)?;
        if progress.sequence == 0 {
            // Nothing of it was matched, so it begins with the first record that there is.
            progress.sequence = next.sequence - 1;
        }
        if progress.turn(&next.head(chain_id)) != Turn::Next {
            let sequence = next.sequence;
            self.set_aside(partition, chain_id, Some(next), sequence);
            return Ok(Action::Pass);
        }
        if next.at.blocks == record.offset() {
            return Ok(Action::Match);
        }
        self.rewind = Some(Rewind { chain: ChainId(chain_id), partition, to: next.at });
        Ok(Action::Wait)
    }

    /// Sets the chain of the front block aside, whose logs are gone. `next_with_logs` is the sequence of the first logs there are.
    pub fn set_aside_before(&mut self, front: &Record<'_>, next_with_logs: u64) -> Result<(), Failure> {
        let chain_id = head_of(front)?.chain_id;
        let next = find(&self.kafka, front.partition(), chain_id, next_with_logs.saturating_sub(1))?;
        self.set_aside(front.partition(), chain_id, Some(next), next_with_logs);
        Ok(())
    }

    fn set_aside(&mut self, partition: i32, chain_id: u64, next: Option<FoundRecord>, sequence: u64) {
        let progress = self.known.entry(chain_id).or_default();
        let cause = match &next {
            Some(next) => gap(chain_id, progress, next),
            None => format!(
                "chain.blocks has another record with sequence {sequence} than chain.matches, which ends at {}: was chain.cursors \
                 lost? `ctrip chain restart {chain_id}` begins anew",
                progress.sequence
            ),
        };
        tracing::error!("chain {chain_id} is set aside, the others go on: {cause}");
        self.notices.push((chain_id, progress.sequence, cause));
        self.aside.insert(chain_id, SetAside { partition, next });
        self.report();
    }

    /// Writes into `chain.cursors` which chains are set aside and which go on, for whoever shows a chain's health.
    pub fn notify(&mut self, transaction: &Transaction<'_>) -> Result<(), Failure> {
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

fn find(kafka: &Kafka, partition: i32, chain_id: u64, sequence: u64) -> Result<FoundRecord, Failure> {
    let found = find_next(kafka, partition, chain_id, sequence)?;
    found.ok_or_else(|| Failure::Retry(anyhow!("chain.blocks/{partition} has no record of chain {chain_id} after {sequence}")))
}

fn gap(chain_id: u64, progress: &Progress, next: &FoundRecord) -> String {
    let last = progress.head.map_or("none".to_owned(), |head| head.number.to_string());
    let found = format!(
        "the last block matched is {last} (sequence {}), and chain.blocks goes on with block {} (sequence {}): what lies between \
         was deleted by its retention before it was matched",
        progress.sequence, next.number, next.sequence
    );
    let missing = progress.head.map(|head| (head.number + 1, next.number.saturating_sub(1)));
    let anew = format!("`ctrip chain restart {chain_id}` begins anew");
    match missing.filter(|(from, to)| from <= to && next.kind == i32::from(Kind::Added)) {
        Some((from, to)) => {
            format!("{found}; `ctrip backfill --chain {chain_id} --from {from} --to {to}` closes the gap, or {anew}")
        }
        None => format!("{found}; {anew}"),
    }
}
