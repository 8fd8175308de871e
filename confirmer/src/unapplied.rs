//! Which records of a chain say something new. Pure.
//!
//! As a rule each continues the one before. Where Kafka has lost the end of a topic, some records are read again, and others are written
//! again: under other sequences where more or fewer of them tell of tags, and with other content where no root proves a block's. Then
//! what was applied of late decides about each by itself, so it does not matter where a batch begins or ends: the very record that was
//! applied is passed over, and so is one that says the same of its block as the last one did, unless it continues the head. A block that
//! is witnessed is known by its hash. Whatever else does not continue the head is new as well: it is for the fold to refuse. So nothing in
//! doubt stands under a hash that was told with other content.

use payments::store::{AppliedRecords, ChainHead, OpenBlock};
use topics::{BlockRef, Kind, Matches};

/// Whether a record says that its chain begins anew.
pub(crate) fn begins_anew(record: &Matches) -> bool {
    record.kind == Kind::Replayed && record.sequence != 0
}

/// Whether each record continues the one before, and the first one the head, under a later sequence: none of them was applied before.
pub(crate) fn continue_head(head: &ChainHead, records: &[&Matches]) -> bool {
    let mut head = *head;
    records.iter().filter(|record| record.sequence != 0).all(|record| {
        let is_next = is_next(&head, record);
        advance(&mut head, record);
        is_next
    })
}

/// Records of which some were applied before.
#[derive(Debug, Default)]
pub(crate) struct Unapplied<'a> {
    /// Those that were not.
    pub(crate) new: Vec<&'a Matches>,
    /// Those that are passed over for what they say.
    pub(crate) passed: Vec<&'a Matches>,
    /// The first of the new ones that brings a block again, with other content than was applied.
    pub(crate) other: Option<&'a Matches>,
}

/// Tells the records that were not applied from those that were. `applied` gets all, so that they are known when they are read once more.
pub(crate) fn unapplied<'a>(head: &ChainHead, records: &[&'a Matches], applied: &mut AppliedRecords) -> Unapplied<'a> {
    let (mut head, mut left) = (*head, Unapplied::default());
    for (place, record) in records.iter().enumerate() {
        let rest = &records[place + 1..];
        match news(&head, record, rest, applied) {
            News::Known => continue,
            News::Nothing => left.passed.push(*record),
            News::New => {
                let is_other = record.kind == Kind::Added && !continues(&head, record) && applied.has_block(record);
                left.other = left.other.or(Some(*record).filter(|_| is_other));
                advance(&mut head, record);
                left.new.push(*record);
            }
        }
        applied.insert(record);
    }
    left
}

enum News {
    /// This very record was applied, or passed over.
    Known,
    /// What it says was told, or is not asked for.
    Nothing,
    New,
}

/// `rest` are the records after it.
fn news(head: &ChainHead, record: &Matches, rest: &[&Matches], applied: &AppliedRecords) -> News {
    if record.sequence == 0 {
        // It was applied before what took it back.
        let is_gone = rest.iter().any(|later| takes_back(later, record.block) && applied.has(later));
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
        Kind::Added if is_witnessed(head, record) && applied.has_block(record) => true,
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
        Kind::Added | Kind::Tags => false,
    }
}

/// Where no root proves a block's content and one endpoint alone has given it, the block is not witnessed by its hash.
fn is_witnessed(head: &ChainHead, record: &Matches) -> bool {
    head.witnessed.is_some_and(|witnessed| record.block.number <= witnessed)
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

fn advance(head: &mut ChainHead, record: &Matches) {
    let BlockRef { number, hash } = record.block;
    match record.kind {
        Kind::Added if record.ends_block() => {
            if head.hash.is_none() {
                head.first = number;
            }
            (head.number, head.hash, head.open) = (number, Some(hash), None);
        }
        Kind::Added => {
            head.open = Some(OpenBlock { hash, part: record.part });
            return;
        }
        // Below the first block nothing is known.
        Kind::Removed => {
            let below = record.number_below();
            (head.number, head.hash) = (below, (head.number > head.first).then_some(record.parent));
            head.witnessed = head.witnessed.map(|witnessed| witnessed.min(below));
        }
        Kind::Replayed if begins_anew(record) => {
            (head.number, head.hash, head.open) = (head.number.min(number), None, None);
            head.witnessed = None;
        }
        Kind::Replayed => return,
        Kind::Tags => {}
    }
    head.sequence = record.sequence;
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Added, Removed, Replayed, Tags};
    use topics::{Address, Amount, B256, ChainId, Source, Transfer, TransferId};

    fn hash(number: u64, branch: u8) -> B256 {
        let mut hash = B256::left_padding_from(&number.to_be_bytes());
        hash[0] = branch;
        hash
    }

    /// Of block `number` of a branch that leaves the first one at block 10.
    fn record(sequence: u64, kind: Kind, number: u64, branch: u8) -> Matches {
        Matches {
            chain: ChainId(1),
            sequence,
            kind,
            block: BlockRef { number, hash: hash(number, branch) },
            parent: hash(number - 1, if number > 11 { branch } else { 0 }),
            parent_number: None,
            timestamp: 1_000 + number,
            safe: None,
            finalized: None,
            witnessed: None,
            transfers: Vec::new(),
            part: 0,
            parts: 0,
        }
    }

    fn paying(record: Matches, amount: u64) -> Matches {
        let id =
            TransferId { chain: ChainId(1), block: record.block.hash, transaction: B256::ZERO, source: Source::Log, index: 0 };
        let (token, from, to) = (None, Address::ZERO, Address::ZERO);
        let transfer = Transfer { id, token, from, to, amount: Amount::from(amount), transaction_index: 0 };
        Matches { transfers: vec![transfer], ..record }
    }

    /// A chain whose first block is 9.
    #[derive(Clone)]
    struct Chain {
        head: ChainHead,
        applied: AppliedRecords,
    }

    impl Chain {
        fn new() -> Self {
            let mut chain = Self {
                head: ChainHead {
                    sequence: 9,
                    first: 9,
                    number: 9,
                    hash: Some(hash(9, 0)),
                    timestamp: 1_009,
                    safe: None,
                    finalized: None,
                    witnessed: None,
                    bridge: None,
                    open: None,
                },
                applied: AppliedRecords::default(),
            };
            chain.applied.insert(&record(9, Added, 9, 0));
            chain
        }

        /// As the fold does with a batch. The sequences of those that were applied, and of the first one that the fold refuses.
        fn apply(&mut self, records: &[Matches]) -> (Vec<u64>, Option<u64>) {
            let records: Vec<&Matches> = records.iter().collect();
            let mut new = Vec::new();
            let left = if continue_head(&self.head, &records) {
                records.iter().for_each(|record| self.applied.insert(record));
                records
            } else {
                unapplied(&self.head, &records, &mut self.applied).new
            };
            for record in left {
                if record.sequence != 0 && !continues(&self.head, record) {
                    return (new, Some(record.sequence));
                }
                advance(&mut self.head, record);
                self.head.witnessed = self.head.witnessed.max(record.witnessed);
                new.push(record.sequence);
            }
            (new, None)
        }
    }

    /// What is new after these, and which record is refused, wherever a batch ends.
    fn outcome(applied: &[Matches], read: &[Matches]) -> (Vec<u64>, Option<u64>) {
        let mut before = Chain::new();
        assert_eq!(before.apply(applied), (applied.iter().map(|record| record.sequence).collect(), None));
        let whole = before.clone().apply(read);
        for cut in 0..read.len() {
            let mut chain = before.clone();
            let (mut new, mut refused) = chain.apply(&read[..cut]);
            if refused.is_none() {
                let rest = chain.apply(&read[cut..]);
                new.extend(rest.0);
                refused = rest.1;
            }
            assert_eq!((new, refused), whole, "cut at {cut}");
        }
        whole
    }

    fn news(applied: &[Matches], read: &[Matches]) -> Vec<u64> {
        let (new, refused) = outcome(applied, read);
        assert_eq!(refused, None, "after {new:?}");
        new
    }

    #[test]
    fn what_is_written_again_with_fewer_or_more_tags_is_told_from_what_is_new_by_its_hash() {
        let applied = [record(10, Added, 10, 0), record(11, Tags, 10, 0), record(12, Added, 11, 0), record(13, Tags, 11, 0)];
        assert!(news(&applied, &applied[..3]).is_empty());
        let fewer = [record(10, Added, 10, 0), record(11, Added, 11, 0), record(12, Tags, 11, 0), record(13, Added, 12, 0)];
        assert_eq!(news(&applied, &fewer), [12, 13]);
        let fewest = [record(10, Added, 10, 0), record(11, Added, 11, 0), record(12, Added, 12, 0), record(13, Added, 13, 0)];
        assert_eq!(news(&applied, &fewest), [12, 13]);
        let reorg = [record(10, Added, 10, 0), record(11, Added, 11, 0), record(12, Removed, 11, 0), record(13, Added, 11, 1)];
        assert_eq!(news(&[], &reorg), [10, 11, 12, 13]);
        let leaves = [record(11, Added, 11, 0), record(12, Removed, 11, 0), record(13, Added, 11, 1), record(14, Added, 12, 1)];
        assert_eq!(news(&applied, &leaves), [12, 13, 14], "the head left the chain before its tags were told again");
        let again = [record(10, Added, 10, 0), record(11, Added, 11, 0), record(12, Removed, 11, 0), record(13, Added, 11, 0)];
        assert!(news(&again, &again).is_empty());
        let more = [record(10, Added, 10, 0), record(14, Added, 11, 0), record(15, Removed, 11, 0), record(16, Added, 11, 1)];
        assert_eq!(news(&applied, &more), [15, 16], "the head itself under a later sequence, and what comes after it");
        let most = (11..20).map(|sequence| record(sequence, Tags, 10, 0));
        let most: Vec<_> = most.chain([record(20, Added, 11, 0), record(21, Tags, 11, 0), record(22, Added, 12, 0)]).collect();
        assert_eq!(news(&applied, &most), [21, 22], "so many of a block below that they are beyond the head's sequence");
    }

    #[test]
    fn a_branch_that_was_left_is_not_entered_again() {
        let left = [record(10, Added, 10, 0), record(11, Added, 11, 0), record(12, Added, 12, 0), record(13, Tags, 12, 0)];
        let back = [record(14, Removed, 12, 0), record(15, Removed, 11, 0), record(16, Added, 11, 1), record(17, Added, 12, 1)];
        let all = [left, back].concat();
        // Wherever the broker lost its power, wherever the stage goes back to, and wherever a batch ends.
        for applied in 1..=all.len() {
            for from in 0..applied {
                assert!(news(&all[..applied], &all[from..applied]).is_empty(), "{from}..{applied}");
                let rest: Vec<u64> = all[applied..].iter().map(|record| record.sequence).collect();
                assert_eq!(news(&all[..applied], &all[from..]), rest, "{from}..{applied} and on");
            }
        }
    }

    #[test]
    fn a_part_that_is_read_again_without_those_before_it_is_known() {
        let part = |sequence, number, part| Matches { part, parts: 3, ..record(sequence, Added, number, 0) };
        let all = [record(10, Added, 10, 0), part(11, 11, 1), part(11, 11, 2), part(11, 11, 3), record(12, Removed, 11, 0)];
        for applied in 1..=all.len() {
            for from in 0..applied {
                let rest: Vec<u64> = all[applied..].iter().map(|record| record.sequence).collect();
                assert_eq!(news(&all[..applied], &all[from..]), rest, "{from}..{applied} and on");
            }
        }
        let other = paying(part(11, 11, 1), 1);
        assert_eq!(outcome(&all[..2], &[other]), (vec![], Some(11)), "the block was begun with other content");
    }

    #[test]
    fn a_block_that_comes_again_with_other_content_is_never_passed_over() {
        let lie = paying(record(11, Added, 11, 0), 1);
        let applied = [record(10, Added, 10, 0), lie.clone(), record(12, Tags, 11, 0), record(13, Tags, 11, 0)];
        let rest = [record(12, Removed, 11, 0), record(13, Added, 11, 0), record(14, Added, 12, 0)];
        // Its removal was lost, and all before it is read again: what was applied makes way.
        assert_eq!(news(&applied, &[vec![lie], rest.to_vec()].concat()), [12, 13, 14]);
        let truth = record(11, Added, 11, 0);
        let other_time = Matches { timestamp: 1_010, ..applied[1].clone() };
        let above = [record(14, Added, 12, 0), record(15, Tags, 12, 0)];
        for other in [truth, paying(record(11, Added, 11, 0), 2), other_time] {
            for sequence in [11, 12, 17] {
                let other = Matches { sequence, ..other.clone() };
                let next = Matches { sequence: sequence + 1, ..record(0, Added, 12, 0) };
                assert_eq!(outcome(&applied, &[other.clone(), next.clone()]), (vec![], Some(sequence)), "the head");
                let below = [applied.as_slice(), &above].concat();
                assert_eq!(outcome(&below, &[record(10, Added, 10, 0), other, next]), (vec![], Some(sequence)), "below it");
            }
        }
        let below = [applied.as_slice(), &above].concat();
        assert_eq!(
            outcome(&below, &[vec![applied[1].clone()], rest.to_vec()].concat()),
            (vec![], Some(12)),
            "below it, with a removal"
        );
    }

    #[test]
    fn what_lies_beyond_the_head_is_not_taken_for_old() {
        let applied = [record(10, Added, 10, 0), record(11, Added, 11, 0)];
        // A cursor was lost: the numbering has begun anew.
        assert_eq!(news(&applied, &[record(1, Added, 11, 0), record(2, Added, 12, 0)]), [2]);
        assert_eq!(outcome(&applied, &[record(1, Added, 11, 1), record(2, Added, 12, 1)]), (vec![], Some(1)));
        assert_eq!(
            news(&applied, &[record(1, Added, 8, 1), record(2, Added, 12, 0)]),
            [2],
            "nothing is known of what is so old"
        );
    }

    #[test]
    fn a_new_beginning_that_was_applied_is_not_taken_up_again() {
        let applied = [record(10, Added, 10, 0), record(30, Replayed, 90, 0)];
        assert!(news(&applied, &applied[1..]).is_empty(), "its block lies above the head that it met");
        assert_eq!(news(&applied, &[record(31, Replayed, 9, 0), record(0, Replayed, 9, 0)]), [31, 0]);
        // A block that it took back comes again.
        let next = [record(31, Replayed, 9, 0), record(32, Added, 10, 0), record(33, Added, 11, 0)];
        assert_eq!(news(&applied, &[&applied, next.as_slice()].concat()), [31, 32, 33]);
    }

    /// Kafka has lost it, and ingest goes on as before: what it took back would never come again.
    #[test]
    fn a_new_beginning_that_was_lost_lets_nothing_of_before_it_go_on() {
        let applied = [record(10, Added, 10, 0), record(11, Added, 11, 0), record(30, Replayed, 9, 0)];
        for read in [
            vec![record(30, Tags, 11, 0), record(31, Added, 12, 0)],
            vec![record(29, Added, 11, 0), record(30, Tags, 11, 0), record(31, Added, 12, 0)],
        ] {
            assert_eq!(outcome(&applied, &read), (vec![], Some(read[0].sequence)));
        }
        assert_eq!(news(&applied, &[record(31, Added, 12, 0)]), [31], "nor stops what the beginning is followed by");
    }

    #[test]
    fn what_was_told_last_of_a_block_is_what_stands() {
        let lie = paying(record(0, Added, 11, 0), 1);
        let at = |sequence, record: &Matches| Matches { sequence, ..record.clone() };
        let flips = [record(10, Added, 10, 0), record(11, Added, 11, 0), record(12, Removed, 11, 0), at(13, &lie)];
        assert_eq!(outcome(&flips, &[record(17, Added, 11, 0), record(18, Added, 12, 0)]), (vec![], Some(17)));
        assert_eq!(news(&flips, &[at(17, &lie), record(18, Added, 12, 0)]), [18]);
    }

    #[test]
    fn a_removal_that_is_next_is_applied_though_one_like_it_was() {
        let lie = |witnessed| Matches { witnessed, ..paying(record(11, Added, 11, 0), 1) };
        let applied = [record(10, Added, 10, 0), lie(None), record(12, Removed, 11, 0)];
        let again = [lie(Some(9)), record(12, Removed, 11, 0), record(13, Added, 11, 0), record(14, Added, 12, 0)];
        assert_eq!(news(&applied, &again), [11, 12, 13, 14]);
        // What is passed over by its content is known as well when it is read once more.
        let applied = [record(10, Added, 10, 0), record(11, Added, 11, 0)];
        let again = [record(11, Tags, 10, 0), record(12, Added, 11, 0), record(13, Removed, 11, 0)];
        let mut chain = Chain::new();
        chain.apply(&applied);
        assert_eq!(chain.apply(&again), (vec![13], None));
        assert_eq!(chain.apply(&again), (vec![], None));
    }

    #[test]
    fn a_block_that_is_witnessed_is_known_by_its_hash() {
        // The detector knew fewer addresses the first time, or a node had no traces.
        let again = [paying(record(17, Added, 11, 0), 1), record(18, Added, 12, 0)];
        for (witnessed, expected) in [(11, (vec![18], None)), (10, (vec![], Some(17)))] {
            let head = Matches { witnessed: Some(witnessed), ..record(11, Added, 11, 0) };
            assert_eq!(outcome(&[record(10, Added, 10, 0), head], &again), expected);
        }
        let head = Matches { witnessed: Some(11), ..record(11, Added, 11, 0) };
        assert_eq!(outcome(&[record(10, Added, 10, 0), head], &[record(17, Added, 11, 1)]), (vec![], Some(17)), "another one");
    }

    #[test]
    fn a_replayed_block_that_left_the_chain_is_not_applied_again() {
        let applied =
            [record(10, Added, 10, 0), record(0, Replayed, 7, 0), record(0, Replayed, 5, 0), record(30, Replayed, 6, 0)];
        let mut chain = Chain::new();
        chain.apply(&applied);
        assert_eq!(chain.clone().apply(&applied[1..]), (vec![0], None), "the one that stands");
        let later = [&applied[1..], &[record(0, Replayed, 7, 0)]].concat();
        assert_eq!(chain.apply(&later), (vec![0, 0], None), "the one that a backfill brings again");
        // Of the whole chain, however many blocks a backfill replays.
        assert!(!chain.applied.has(&applied[1]));
    }
}
