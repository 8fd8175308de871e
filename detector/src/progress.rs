//! How far a chain is matched, and which record of `chain.blocks` comes next. Pure.
//!
//! The detector's place is in its own output. Offsets of a consumer group expire, are deleted, or are not copied with a cluster,
//! and then records are read again; `sequence` tells which of them are done.
//!
//! Where records are missing, the chain is set aside. Past blocks that a backfill replays close the gap, if their parents lead
//! from the last block matched to the first one after the gap.

use crate::matching::RecordHead;
use topics::number_below;
use topics::wire::matches_record::Kind;

/// A block's hash.
type Hash = [u8; 32];

/// The last record of a chain that was matched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// 0 before the first.
    pub sequence: u64,
    /// The head after it; none if nothing is left, or the chain begins anew.
    pub head: Option<Head>,
    /// The last of the replayed blocks that lead on from the head.
    pub bridge: Option<Head>,
}

/// The last block of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub number: u64,
    pub hash: Hash,
}

/// What to do with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It was matched before.
    Done,
    Next,
    /// Records before it are missing.
    Gap,
}

impl Progress {
    /// Whether the record with this sequence was matched before. Of replayed records, whose sequence is 0, it does not tell.
    pub fn is_done(&self, sequence: u64) -> bool {
        sequence != 0 && sequence <= self.sequence
    }

    /// What to do with the chain's next record.
    pub fn turn(&self, record: &RecordHead<'_>) -> Turn {
        if self.is_done(record.sequence) {
            return Turn::Done;
        }
        // A replayed record with a sequence says that the chain begins anew.
        let begins = record.kind == i32::from(Kind::Replayed);
        let follows = record.sequence == self.sequence + 1 || begins || self.is_linked(record);
        if follows { Turn::Next } else { Turn::Gap }
    }

    fn is_linked(&self, record: &RecordHead<'_>) -> bool {
        let tip = self.bridge.or(self.head);
        record.kind == i32::from(Kind::Added) && tip.is_some_and(|tip| tip.hash == record.parent_hash)
    }

    /// Whether a record goes on from here by what it says of its chain's blocks, whatever its sequence is.
    pub fn is_continued_by(&self, record: &RecordHead<'_>) -> bool {
        let is_of_head = || self.head.is_some_and(|head| head.hash == record.hash);
        match Kind::try_from(record.kind) {
            Ok(Kind::Added) => self.is_linked(record),
            Ok(Kind::Removed | Kind::Tags) => is_of_head(),
            Ok(Kind::Replayed) => true,
            _ => false,
        }
    }

    /// Notes that a record was matched.
    pub fn advance(&mut self, record: &RecordHead<'_>) {
        let at = |number, hash: &[u8]| hash.try_into().ok().map(|hash| Head { number, hash });
        if record.sequence == 0 {
            let leads_on = |from: Option<Head>| from.is_some_and(|from| from.hash == record.parent_hash);
            if leads_on(self.bridge) || leads_on(self.head) {
                self.bridge = at(record.number, record.hash);
            }
            return;
        }
        self.sequence = record.sequence;
        match Kind::try_from(record.kind) {
            Ok(Kind::Added) => self.head = at(record.number, record.hash),
            Ok(Kind::Removed) => self.head = at(number_below(record.number, record.parent_number), record.parent_hash),
            Ok(Kind::Replayed) => self.head = None,
            // It adds and removes nothing, and is of the head.
            _ => {
                self.head = self.head.or_else(|| at(record.number, record.hash));
                return;
            }
        }
        self.bridge = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u8, branch: u8) -> Hash {
        let mut hash = [branch; 32];
        hash[0] = number;
        hash
    }

    fn block(sequence: u64, kind: Kind, number: u8, hashes: &[Hash; 2]) -> RecordHead<'_> {
        let [parent_hash, hash] = hashes;
        let head = RecordHead { chain_id: 1, sequence, kind: kind.into(), number: number.into(), ..RecordHead::default() };
        RecordHead { hash, parent_hash, ..head }
    }

    /// Progress after block 5 with sequence 7.
    fn progress() -> Progress {
        let mut progress = Progress::default();
        progress.advance(&block(7, Kind::Added, 5, &[hash(4, 1), hash(5, 1)]));
        progress
    }

    #[test]
    fn what_is_read_again_is_done_and_what_is_replayed_is_not() {
        let progress = progress();
        for (sequence, turn) in [(1, Turn::Done), (7, Turn::Done), (8, Turn::Next), (9, Turn::Gap)] {
            assert_eq!(progress.turn(&block(sequence, Kind::Removed, 5, &[hash(4, 1), hash(5, 1)])), turn, "{sequence}");
        }
        assert!(!progress.is_done(0));
        for (sequence, turn) in [(1, Turn::Next), (300, Turn::Gap)] {
            assert_eq!(Progress::default().turn(&block(sequence, Kind::Added, 9, &[hash(8, 1), hash(9, 1)])), turn);
        }
    }

    #[test]
    fn replayed_blocks_close_a_gap_only_if_their_parents_lead_to_its_end() {
        let after = [hash(7, 1), hash(8, 1)];
        let after = block(20, Kind::Added, 8, &after);
        let mut progress = progress();
        for (replayed, turn) in [
            // Not on the head, then on it and with a block missing; the backfill runs again.
            ((7, [hash(6, 1), hash(7, 1)]), Turn::Gap),
            ((6, [hash(5, 1), hash(6, 1)]), Turn::Gap),
            ((7, [hash(6, 2), hash(7, 2)]), Turn::Gap),
            ((6, [hash(5, 1), hash(6, 1)]), Turn::Gap),
            ((7, [hash(6, 1), hash(7, 1)]), Turn::Next),
        ] {
            let (number, hashes) = replayed;
            progress.advance(&block(0, Kind::Replayed, number, &hashes));
            assert_eq!(progress.turn(&after), turn, "after block {number}");
        }
        progress.advance(&after);
        assert_eq!((progress.sequence, progress.bridge), (20, None));
        // A reorg after the gap takes replayed blocks off.
        progress.advance(&block(21, Kind::Removed, 8, &[hash(7, 1), hash(8, 1)]));
        assert_eq!(progress.head, Some(Head { number: 7, hash: hash(7, 1) }));
    }

    #[test]
    fn a_chain_that_begins_anew_continues_nothing() {
        let mut progress = progress();
        let marker = [hash(4, 1), hash(5, 1)];
        let marker = block(30, Kind::Replayed, 5, &marker);
        assert_eq!(progress.turn(&marker), Turn::Next);
        progress.advance(&marker);
        assert_eq!((progress.sequence, progress.head), (30, None));
        assert_eq!(progress.turn(&block(31, Kind::Added, 90, &[hash(89, 1), hash(90, 1)])), Turn::Next);
    }

    /// Blocks 5 and 9 with nothing in between.
    #[test]
    fn a_chain_that_skips_numbers_goes_on_and_back_over_the_hole() {
        let mut progress = progress();
        let over = [hash(5, 1), hash(9, 1)];
        let added = block(8, Kind::Added, 9, &over);
        assert_eq!(progress.turn(&added), Turn::Next);
        progress.advance(&added);
        let removed = RecordHead { parent_number: Some(5), ..block(9, Kind::Removed, 9, &over) };
        assert_eq!(progress.turn(&removed), Turn::Next);
        progress.advance(&removed);
        assert_eq!(progress.head, Some(Head { number: 5, hash: hash(5, 1) }), "a gap after it begins with block 6");
        // A gap is closed over a hole as well.
        progress.advance(&block(0, Kind::Replayed, 9, &over));
        assert_eq!(progress.turn(&block(20, Kind::Added, 12, &[hash(9, 1), hash(12, 1)])), Turn::Next);
    }

    #[test]
    fn a_record_of_tags_keeps_the_head() {
        let mut progress = progress();
        let head = progress.head;
        let hashes = [hash(4, 1), hash(5, 1)];
        progress.advance(&RecordHead { kind: 4, ..block(8, Kind::Added, 5, &hashes) });
        assert_eq!((progress.sequence, progress.head), (8, head));
    }
}
