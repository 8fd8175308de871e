//! Which records of a chain were matched before, where some are read again. Pure.
//!
//! Kafka may lose the end of `chain.blocks` and less of that of `chain.matches`, as may a copy of both. Ingest then writes other records
//! under sequences that were matched. So what is read again is compared with what was matched, record by record; from the first
//! difference on everything is matched. What is matched twice changes nothing downstream, what is left out is lost.

use crate::matching::RecordHead;
use crate::progress::Progress;
use std::collections::VecDeque;
use std::ops::ControlFlow;

/// As many records are compared, the newest ones. A loss is of seconds or minutes; what is older is known by its sequence.
const MAX_COMPARED: usize = 1 << 16;

/// A record of `chain.blocks`, as it is known again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    sequence: u64,
    kind: i32,
    hash: Vec<u8>,
    /// Which time it was written: under the same hash and sequence the next one may have other content.
    writing: Option<i64>,
}

impl Known {
    pub fn of(head: &RecordHead<'_>, writing: Option<i64>) -> Self {
        Self { sequence: head.sequence, kind: head.kind, hash: head.hash.to_vec(), writing }
    }
}

/// What was matched and may be read again, in order.
#[derive(Debug, Default)]
pub struct Rereading {
    matched: VecDeque<Known>,
    /// There were more before these.
    has_more: bool,
}

/// What a record is that is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was matched.
    Same,
    /// It was written instead of what was matched.
    Differs,
    /// It differs, and so may some before it that were not compared.
    Unknown,
}

impl Rereading {
    pub fn is_over(&self) -> bool {
        self.matched.is_empty()
    }

    /// Judges the chain's next record; nothing is compared after the first difference.
    pub fn judge(&mut self, record: &Known) -> Verdict {
        match self.matched.front() {
            Some(first) if self.has_more && record.sequence < first.sequence => Verdict::Same,
            Some(first) if first == record => {
                self.matched.pop_front();
                self.has_more = false;
                Verdict::Same
            }
            _ => {
                self.matched.clear();
                if self.has_more { Verdict::Unknown } else { Verdict::Differs }
            }
        }
    }
}

/// Looks for a record among what was matched of its chain.
pub struct Search<'r> {
    head: &'r RecordHead<'r>,
    next: Known,
    newest: Progress,
    /// Replayed blocks since the last live record, newest first: number, hash, parent.
    replayed: Vec<(u64, Vec<u8>, Vec<u8>)>,
    again: Rereading,
    is_found: bool,
    /// After the record whose sequence is the next lower one.
    below: Option<Progress>,
}

/// What was found.
pub struct Found {
    pub progress: Progress,
    /// What was matched and may be read again from the record on.
    pub again: Rereading,
    /// The record is another one than was matched, and does not continue what was matched before it: the chain's counter went back.
    pub is_contradicted: bool,
}

impl<'r> Search<'r> {
    pub fn new(head: &'r RecordHead<'r>, writing: Option<i64>) -> Self {
        let next = Known::of(head, writing);
        let (newest, again, replayed) = (Progress::default(), Rereading::default(), Vec::new());
        Self { head, next, newest, replayed, again, is_found: false, below: None }
    }

    /// Takes what was matched, newest first, until it knows enough.
    pub fn see(&mut self, matched: &RecordHead<'_>, writing: Option<i64>) -> ControlFlow<()> {
        if matched.sequence == 0 {
            if self.newest.sequence == 0 {
                self.replayed.push((matched.number, matched.hash.to_vec(), matched.parent_hash.to_vec()));
            }
            return ControlFlow::Continue(());
        }
        if self.newest.sequence == 0 {
            self.newest.advance(matched);
        }
        if self.head.sequence == 0 || matched.sequence < self.head.sequence {
            let mut below = Progress::default();
            below.advance(matched);
            self.below = Some(below);
            return ControlFlow::Break(());
        }
        let known = Known::of(matched, writing);
        self.is_found = known == self.next;
        if self.again.matched.len() < MAX_COMPARED {
            self.again.matched.push_front(known);
        } else {
            self.again.has_more = true;
        }
        if self.is_found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// What was matched last.
    pub fn newest(mut self) -> Found {
        for (number, hash, parent_hash) in self.replayed.iter().rev() {
            self.newest.advance(&RecordHead { number: *number, hash, parent_hash, ..RecordHead::default() });
        }
        Found { progress: self.newest, again: Rereading::default(), is_contradicted: false }
    }

    /// Where the chain goes on with the record, once all that there is was seen.
    pub fn end(mut self) -> Found {
        if self.again.is_over() {
            return self.newest();
        }
        if self.is_found {
            let progress = Progress { sequence: self.head.sequence - 1, ..Progress::default() };
            return Found { progress, again: self.again, is_contradicted: false };
        }
        match self.below.take_if(|below| below.is_continued_by(self.head)) {
            Some(progress) => Found { progress, again: Rereading::default(), is_contradicted: false },
            None => Found { is_contradicted: true, ..self.newest() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Turn;
    use topics::wire::matches_record::Kind;

    /// A record of `chain.blocks`: its kind, block and parent, sequence, and the writing.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Written(Kind, u8, u8, u64, i64);

    impl Written {
        fn of<T>(&self, see: impl FnOnce(&RecordHead<'_>, Option<i64>) -> T) -> T {
            let Self(kind, block, parent, sequence, writing) = *self;
            let (hash, parent_hash) = ([block; 32], [parent; 32]);
            let head = RecordHead { chain_id: 1, sequence, kind: kind.into(), number: block.into(), ..RecordHead::default() };
            see(&RecordHead { hash: &hash, parent_hash: &parent_hash, ..head }, Some(writing))
        }
    }

    /// Blocks 1 to 4, tags, a reorg from block 3 on, and what follows, numbered from 1.
    fn history(writing: i64, tags: bool) -> Vec<Written> {
        use Kind::{Added, Removed, Tags};
        let told = [
            (Added, 1, 0),
            (Added, 2, 1),
            (Tags, 2, 1),
            (Added, 3, 2),
            (Tags, 3, 2),
            (Added, 4, 3),
            (Removed, 4, 3),
            (Removed, 3, 2),
            (Added, 13, 2),
            (Added, 14, 13),
            (Tags, 14, 13),
            (Added, 15, 14),
        ];
        let told = told.into_iter().filter(|(kind, ..)| tags || *kind != Tags).zip(1..);
        told.map(|((kind, block, parent), sequence)| Written(kind, block, parent, sequence, writing)).collect()
    }

    /// What is matched of these records, the first of which comes next after `matched`; `None` if the chain is set aside.
    fn matches(matched: &[Written], read: &[Written]) -> Option<Vec<Written>> {
        let (mut all, mut found) = (matched.to_vec(), None::<Found>);
        for record in read {
            let turn = record.of(|head, writing| {
                let is_same =
                    |found: &mut Found| !found.again.is_over() && found.again.judge(&Known::of(head, writing)) == Verdict::Same;
                let mut is_done = found.as_mut().is_some_and(is_same);
                if !is_done && found.as_ref().is_none_or(|found| found.progress.is_done(head.sequence)) {
                    let mut search = Search::new(head, writing);
                    let _ = all.iter().rev().try_for_each(|matched| matched.of(|head, writing| search.see(head, writing)));
                    is_done = is_same(found.insert(search.end()));
                }
                let found = found.as_mut().filter(|found| !found.is_contradicted)?;
                let turn = if is_done { Turn::Done } else { found.progress.turn(head) };
                found.progress.advance(head);
                Some(turn)
            })?;
            match turn {
                Turn::Next => all.push(*record),
                Turn::Done => assert!(matched.contains(record), "{record:?} is left out"),
                Turn::Gap => return None,
            }
        }
        Some(all.split_off(matched.len()))
    }

    /// Wherever the ends of the two topics and of the cursor were lost, and from wherever the rest is read again.
    #[test]
    fn what_is_written_instead_of_what_was_lost_is_matched_and_what_was_matched_is_not() {
        let before = history(1, true);
        for blocks in 0..=before.len() {
            for (cursor, tags) in (0..=blocks).flat_map(|cursor| [(cursor, true), (cursor, false)]) {
                // Ingest goes on after the last block that its cursor has.
                let tip = before[..cursor].iter().rev().map(|record| record.1).next();
                let Some(at) = history(2, tags).iter().position(|record| Some(record.1) == tip) else { continue };
                let is_stack = before[..cursor].iter().all(|record| record.0 != Kind::Removed && record.1 < 4);
                if !is_stack {
                    continue;
                }
                let again = history(2, tags).into_iter().skip(at + 1).zip(u64::try_from(cursor).unwrap() + 1..);
                let again: Vec<Written> =
                    again.map(|(record, sequence)| Written(record.0, record.1, record.2, sequence, 2)).collect();
                let now = [&before[..blocks], &again[..]].concat();
                for matched in cursor.max(1)..=before.len() {
                    for from in 0..=matched.min(blocks) {
                        let told = matches(&before[..matched], &now[from..]);
                        let told = told.unwrap_or_else(|| panic!("set aside: {blocks} {cursor} {tags} {matched} {from}"));
                        let missing = again.iter().find(|record| !told.contains(record));
                        assert_eq!(missing, None, "{blocks} {cursor} {tags} {matched} {from}");
                        let twice = before[..matched.min(blocks)].iter().find(|record| told.contains(record));
                        assert_eq!(twice, None, "{blocks} {cursor} {tags} {matched} {from}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_block_that_comes_again_under_its_hash_and_sequence_is_matched_again() {
        let (before, again) = (history(1, true), history(2, true));
        assert_eq!(matches(&before, &before[3..]), Some(Vec::new()));
        assert_eq!(matches(&before, &[&before[3..5], &again[5..]].concat()), Some(again[5..].to_vec()));
        // A counter that went back to somewhere else.
        assert_eq!(matches(&before, &[Written(Kind::Added, 99, 98, 3, 2)]), None);
        assert_eq!(matches(&before, &[Written(Kind::Added, 99, 98, 1, 2)]), None);
    }

    #[test]
    fn memory_holds_the_newest_of_what_may_be_read_again() {
        let count = u64::try_from(MAX_COMPARED).unwrap() + 10;
        let block = |sequence: u64, writing| Written(Kind::Added, 1, 1, sequence, writing);
        let matched: Vec<Written> = (1..=count).map(|sequence| block(sequence, 1)).collect();
        let search = |writing| {
            block(1, writing).of(|head, writing| {
                let mut search = Search::new(head, writing);
                let _ = matched.iter().rev().try_for_each(|matched| matched.of(|head, writing| search.see(head, writing)));
                search.end().again
            })
        };
        let judge = |again: &mut Rereading, record: Written| record.of(|head, writing| again.judge(&Known::of(head, writing)));
        let mut again = search(1);
        assert_eq!(again.matched.len(), MAX_COMPARED);
        assert!(matched.iter().all(|record| judge(&mut again, *record) == Verdict::Same));
        assert!(again.is_over());
        let mut again = search(1);
        assert_eq!(judge(&mut again, block(10, 2)), Verdict::Same, "older than what is compared");
        assert_eq!(judge(&mut again, block(11, 2)), Verdict::Unknown);
        let mut again = search(1);
        assert_eq!((judge(&mut again, block(11, 1)), judge(&mut again, block(12, 2))), (Verdict::Same, Verdict::Differs));
    }
}
