use super::*;
use Kind::{Added, Removed, Replayed, Tags};
use topics::{Address, Amount, B256, ChainId, Source, Transfer, TransferId};

#[path = "unapplied_losses_tests.rs"]
mod losses;

fn hash(number: u64, branch: u8) -> B256 {
    let mut hash = B256::left_padding_from(&number.to_be_bytes());
    hash[0] = branch;
    hash
}

/// Of block `number` of a branch that leaves the first one at block 10.
pub(crate) fn record(sequence: u64, kind: Kind, number: u64, branch: u8) -> Matches {
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
    let id = TransferId { chain: ChainId(1), block: record.block.hash, transaction: B256::ZERO, source: Source::Log, index: 0 };
    let (token, from, to) = (None, Address::ZERO, Address::ZERO);
    let transfer = Transfer { id, token, from, to, amount: Amount::from(amount), transaction_index: 0 };
    Matches { transfers: vec![transfer], ..record }
}

/// A chain whose first block is 9.
#[derive(Clone)]
struct Chain {
    head: ChainHead,
    applied: AppliedRecords,
    /// Replayed blocks that have left it, with the sequences of the records that removed them.
    gone: HashMap<B256, u64>,
    /// The next record that is not replayed, after those that are read.
    ahead: Option<Matches>,
    /// What was applied of the blocks above the first.
    stack: Vec<Matches>,
}

impl Chain {
    fn new() -> Self {
        let mut chain = Self {
            head: ChainHead {
                sequence: 9,
                first: 9,
                number: 9,
                hash: Some(hash(9, 0)),
                makes_way: false,
                timestamp: 1_009,
                safe: None,
                finalized: None,
                witnessed: None,
                bridge: None,
                open: None,
                reading: Reading { sequence: 9, to: 9, ..Reading::before(9) },
            },
            applied: AppliedRecords::default(),
            gone: HashMap::new(),
            ahead: None,
            stack: Vec::new(),
        };
        chain.applied.insert(&record(9, Added, 9, 0));
        chain
    }

    /// As the fold does with a batch. The sequences of those that were applied, and of the first one that is refused.
    fn apply(&mut self, records: &[Matches]) -> (Vec<u64>, Option<u64>) {
        let records: Vec<&Matches> = records.iter().collect();
        let left = match continue_head(&self.head, &records) {
            Some(reading) => {
                records.iter().for_each(|record| self.applied.insert(record));
                Unapplied { new: records, reading, ..Unapplied::default() }
            }
            None => unapplied(&self.head, &records, self.ahead.as_ref(), &mut self.applied, &self.gone),
        };
        let mut new = Vec::new();
        for record in left.new {
            if record.sequence != 0 && !continues(&self.head, record) {
                return (new, Some(record.sequence));
            }
            advance(&mut self.head, record);
            new.push(record.sequence);
            match record.kind {
                Added => self.stack.push(record.clone()),
                Removed => drop(self.stack.pop()),
                Tags | Replayed => {}
            }
        }
        self.head.reading = left.reading;
        let refused = left
            .fault
            .map(|(Fault::OtherContent(record) | Fault::Missing { record, .. } | Fault::Left(record, _))| record.sequence);
        (new, refused)
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
    let leaves = [
        record(10, Added, 10, 0),
        record(11, Added, 11, 0),
        record(12, Removed, 11, 0),
        record(13, Added, 11, 1),
        record(14, Added, 12, 1),
    ];
    assert_eq!(news(&applied, &leaves), [12, 13, 14], "the head left the chain before its tags were told again");
    let again = [record(10, Added, 10, 0), record(11, Added, 11, 0), record(12, Removed, 11, 0), record(13, Added, 11, 0)];
    assert!(news(&again, &again).is_empty());
    let tags = |up_to| (11..up_to).map(|sequence| record(sequence, Tags, 10, 0));
    let more = [record(14, Added, 11, 0), record(15, Removed, 11, 0), record(16, Added, 11, 1)];
    let more: Vec<_> = [record(10, Added, 10, 0)].into_iter().chain(tags(14)).chain(more).collect();
    assert_eq!(news(&applied, &more), [15, 16], "the head itself under a later sequence, and what comes after it");
    let most = tags(20);
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
    let witnessed = Matches { witnessed: Some(10), ..record(11, Added, 11, 0) };
    let applied = [record(10, Added, 10, 0), witnessed];
    // A cursor was lost: the numbering has begun anew.
    assert_eq!(news(&applied, &[record(1, Added, 11, 0), record(2, Added, 12, 0)]), [2]);
    assert_eq!(outcome(&applied, &[record(1, Added, 11, 1), record(2, Added, 12, 1)]), (vec![], Some(1)));
    assert_eq!(news(&applied, &[record(1, Added, 8, 1), record(2, Added, 12, 0)]), [2], "nothing is known of what is so old");
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
    let below = Matches { witnessed: Some(10), ..record(10, Added, 10, 0) };
    let flips = [below, record(11, Added, 11, 0), record(12, Removed, 11, 0), at(13, &lie)];
    assert_eq!(outcome(&flips, &[record(17, Added, 11, 0), record(18, Added, 12, 0)]), (vec![], Some(17)));
    assert_eq!(news(&flips, &[at(17, &lie), record(18, Added, 12, 0)]), [18]);
}

#[test]
fn a_removal_that_is_next_is_applied_though_one_like_it_was() {
    let lie = |witnessed| Matches { witnessed, ..paying(record(11, Added, 11, 0), 1) };
    let applied = [record(10, Added, 10, 0), lie(None), record(12, Removed, 11, 0)];
    let again = [record(12, Removed, 11, 0), record(13, Added, 11, 0), record(14, Added, 12, 0)];
    let again = [[record(10, Added, 10, 0), lie(Some(9))].as_slice(), &again].concat();
    assert_eq!(news(&applied, &again), [11, 12, 13, 14]);
    // What is passed over by its content is known as well when it is read once more.
    let applied = [record(10, Added, 10, 0), record(11, Added, 11, 0)];
    let again = [record(10, Added, 10, 0), record(11, Tags, 10, 0), record(12, Added, 11, 0), record(13, Removed, 11, 0)];
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
    let applied = [record(10, Added, 10, 0), record(0, Replayed, 7, 0), record(0, Replayed, 5, 0), record(30, Replayed, 6, 0)];
    let mut chain = Chain::new();
    chain.apply(&applied);
    assert_eq!(chain.clone().apply(&applied[1..]), (vec![0], None), "the one that stands");
    let later = [&applied[1..], &[record(0, Replayed, 7, 0)]].concat();
    assert_eq!(chain.apply(&later), (vec![0, 0], None), "the one that a backfill brings again");
    // Of the whole chain, however many blocks a backfill replays.
    assert!(!chain.applied.has(&applied[1]));
}

/// A batch may end between them.
#[test]
fn a_replayed_block_is_not_applied_before_it_is_known_whether_it_has_left_the_chain_since() {
    let applied = [record(10, Added, 10, 0), record(0, Replayed, 7, 0), record(30, Replayed, 6, 0), record(31, Added, 11, 0)];
    let mut chain = Chain::new();
    chain.apply(&applied);
    chain.gone.insert(hash(7, 0), 30);
    // A backfill brings it again after it has left.
    assert_eq!(chain.clone().apply(&applied[1..2]), (vec![0], None));
    let mut back = chain.clone();
    assert_eq!(back.apply(&applied[..1]), (vec![], None), "it is read again from here on");
    assert_eq!(back.clone().apply(&applied[1..2]), (vec![], Some(0)));
    assert_eq!(back.clone().apply(&applied[1..]), (vec![], None), "what removed it comes with it");
    assert_eq!(back.apply(&applied[2..3]), (vec![], None));
    assert_eq!(back.apply(&applied[1..2]), (vec![0], None), "after what removed it");
    // Nor is it where the stage has gone back, to nobody knows where.
    chain.head.reading.again = None;
    // The record after it tells, also if it is not the one that removed it.
    let tags = [record(11, Tags, 10, 0), record(32, Tags, 11, 0)];
    let all = [&applied[..2], &tags[..1], &applied[2..], &tags[1..]].concat();
    let mut again = Chain::new();
    again.apply(&all);
    again.gone.insert(hash(7, 0), 30);
    again.head.reading.again = None;
    assert_eq!(again.clone().apply(&all[1..3]), (vec![], None));
    assert_eq!(again.clone().apply(&[all[1].clone(), record(33, Added, 12, 0)]), (vec![], Some(0)), "another one does not");
    assert_eq!(again.apply(&[all[1].clone(), all[5].clone()]), (vec![0], None), "it came after what removed it");
    assert_eq!(chain.clone().apply(&applied[1..2]), (vec![], Some(0)));
    // It may come with a later batch.
    for (next, outcome) in [(&applied[2], (vec![], None)), (&applied[3], (vec![0], None)), (&tags[1], (vec![], Some(0)))] {
        let mut chain = Chain { ahead: Some(next.clone()), ..chain.clone() };
        assert_eq!(chain.apply(&applied[1..2]), outcome, "{next:?}");
    }
    assert_eq!(chain.clone().apply(&[record(0, Replayed, 5, 0)]), (vec![0], None), "another block");
    assert_eq!(chain.apply(&[record(32, Added, 12, 0), record(0, Replayed, 7, 0)]), (vec![32, 0], None));
}

/// Blocks 10, which is witnessed, and those above it, which are not; the last one's number is 9 + `blocks`.
fn in_doubt(blocks: u64) -> Vec<Matches> {
    let below = Matches { witnessed: Some(10), ..record(10, Added, 10, 0) };
    std::iter::once(below).chain((11..10 + blocks).map(|number| record(number, Added, number, 0))).collect()
}

/// Kafka has lost the end of a topic, and ingest goes on as if it were there.
#[test]
fn what_is_in_doubt_stands_over_a_gap_only_if_it_is_said_again() {
    let witnessed = |record: Matches| Matches { witnessed: Some(record.block.number), ..record };
    let refused = |applied: &[Matches], read: &[Matches]| outcome(applied, read).1;
    let applied = in_doubt(2);
    // Lost before: the removal of block 11, and the block with other content.
    for next in [record(14, Added, 12, 0), record(14, Tags, 11, 0)] {
        for next in [next.clone(), witnessed(next)] {
            assert_eq!(refused(&applied, std::slice::from_ref(&next)), Some(14), "{next:?}");
            assert_eq!(refused(&applied, &[applied[1].clone(), next]), Some(14), "what is read again was before the gap");
        }
    }
    let anew = [record(14, Removed, 11, 0), record(15, Added, 11, 1)];
    assert_eq!(news(&applied, &anew), [14, 15], "nothing in doubt is left");
    let again = [record(14, Added, 11, 0), record(15, Added, 12, 0)];
    assert_eq!(news(&applied, &again), [15], "it is said again");
    assert_eq!(refused(&applied, &[paying(again[0].clone(), 1), again[1].clone()]), Some(14), "with other content");
    let known = [applied.as_slice(), &[witnessed(record(12, Tags, 11, 0))]].concat();
    assert_eq!(news(&known, &[record(15, Added, 12, 0)]), [15], "nothing is in doubt");
    // Other records that were lost may have been of the block below the head, which took its successor with it and brought it
    // again.
    let applied = in_doubt(3);
    for next in [record(15, Added, 12, 0), record(15, Removed, 12, 0), record(15, Tags, 12, 0)] {
        assert_eq!(refused(&applied, &[next.clone(), record(16, Added, 13, 0)]), Some(15), "{next:?}");
    }
    let again = [record(15, Added, 11, 0), record(16, Added, 12, 0), record(17, Added, 13, 0)];
    assert_eq!(news(&applied, &again), [17]);
    let with_gap = [again[0].clone(), record(17, Added, 12, 0), record(18, Added, 13, 0)];
    assert_eq!(refused(&applied, &with_gap), Some(17));
}

/// Kafka has kept more of `chain.matches` than of `chain.blocks` and ingest's cursor.
#[test]
fn what_is_written_again_under_lower_sequences_is_after_no_gap() {
    let applied = [in_doubt(1), vec![record(11, Added, 11, 0), record(12, Tags, 11, 0), record(13, Added, 12, 0)]].concat();
    let applied = [applied, vec![record(14, Tags, 12, 0), record(15, Tags, 12, 0)]].concat();
    let again = [record(12, Added, 12, 0), record(13, Added, 13, 0), record(14, Removed, 13, 0), record(15, Added, 13, 1)];
    assert_eq!(news(&applied, &again[..2]), [13]);
    assert_eq!(news(&applied, &again[..3]), [13, 14]);
    assert_eq!(news(&applied, &[record(14, Added, 13, 0)]), [14], "ingest had told the head's tags once");
    // Some of what is written again is missing, or was before.
    assert_eq!(outcome(&applied, &[again[0].clone(), record(14, Added, 13, 0)]), (vec![], Some(14)));
    let after_gap = [applied.clone(), vec![record(20, Added, 11, 0), record(21, Added, 12, 0)]].concat();
    let mut chain = Chain::new();
    assert_eq!(chain.apply(&after_gap).1, None);
    assert_eq!(chain.clone().apply(&[record(21, Added, 13, 0)]), (vec![21], None));
    for sequence in [14, 20] {
        assert_eq!(chain.clone().apply(&[record(sequence, Added, 13, 0)]), (vec![], Some(sequence)), "before the gap");
    }
    // It was told whole at first, and in parts later.
    let part = |sequence, part| Matches { part, parts: 2, ..paying(record(sequence, Added, 11, 0), part.into()) };
    let flips = [in_doubt(1), vec![record(11, Added, 11, 0), record(12, Removed, 11, 0), part(13, 1), part(13, 2)]].concat();
    assert_eq!(outcome(&flips, &[record(12, Added, 12, 0)]), (vec![], Some(12)), "ingest has the other content");
}

#[test]
fn replayed_blocks_say_again_what_is_in_doubt() {
    let replayed = |number| record(0, Replayed, number, 0);
    let (applied, next) = (in_doubt(3), record(20, Added, 13, 0));
    let all = [replayed(11), replayed(12), next.clone()];
    assert_eq!(news(&applied, &all), [0, 0, 20]);
    let from_below = [&[replayed(9), replayed(10)], all.as_slice()].concat();
    assert_eq!(news(&applied, &from_below), [0, 0, 0, 0, 20]);
    for some in [vec![replayed(12)], vec![replayed(11)], vec![replayed(12), replayed(11)]] {
        assert_eq!(outcome(&applied, &[some, vec![next.clone()]].concat()).1, Some(20));
    }
    // The block has more by now: that is credited, and what was lost may have brought less.
    for other in [paying(replayed(11), 1), Matches { timestamp: 7, ..replayed(11) }] {
        assert_eq!(outcome(&applied, &[other, replayed(12), next.clone()]).1, Some(20));
    }
    let part = |part| Matches { part, parts: 2, ..paying(replayed(11), part.into()) };
    let in_parts = [in_doubt(1), vec![Matches { sequence: 11, kind: Added, ..part(1) }]].concat();
    let whole = [in_parts, vec![Matches { sequence: 11, kind: Added, ..part(2) }]].concat();
    assert_eq!(outcome(&whole, &[part(1), part(2)]), (vec![0, 0], None));
    assert_eq!(outcome(&whole, &[part(1), Matches { part: 2, ..part(1) }]), (vec![0], Some(0)));
    // One that closed a gap was in no doubt: it may come again with more.
    let mut bridged = Chain::new();
    bridged.apply(&[in_doubt(1), vec![part(1), part(2)]].concat());
    bridged.applied.insert(&record(20, Added, 12, 0));
    let reading = Reading { sequence: 20, ..bridged.head.reading };
    bridged.head = ChainHead { number: 12, hash: Some(hash(12, 0)), sequence: 20, reading, ..bridged.head };
    let more = [paying(part(1), 8), part(2), record(21, Added, 13, 0)];
    assert_eq!(bridged.apply(&more), (vec![0, 0, 21], None));
    let whole_lie = [in_doubt(2), vec![record(12, Added, 12, 0)]].concat();
    assert_eq!(outcome(&whole_lie, &more), (vec![], Some(0)), "it came whole, and with other content");
    // One that left the chain has said nothing of what took its place.
    let left =
        [record(13, Removed, 12, 0), record(14, Removed, 11, 0), paying(record(15, Added, 11, 0), 1), record(16, Added, 12, 0)];
    let left = [[replayed(11)].as_slice(), &left, &[replayed(12), record(20, Added, 13, 0)]].concat();
    assert_eq!(outcome(&applied, &left).1, Some(20));
}

/// What was read before is known by all that it says, and the block may have had yet another content afterwards.
#[test]
fn what_a_block_has_flipped_to_is_not_taken_for_what_it_was_before() {
    let lie = |sequence| paying(record(sequence, Added, 11, 0), 1);
    let truth = |sequence| record(sequence, Added, 11, 0);
    let removed = |sequence| record(sequence, Removed, 11, 0);
    let flips = [in_doubt(1), vec![lie(11), removed(12), truth(13), record(14, Tags, 11, 0), removed(15), lie(16)]].concat();
    for from in 0..4 {
        assert_eq!(news(&flips, &[&flips[from..], &[record(17, Added, 12, 0)]].concat()), [17], "all is there");
        // Kafka has lost the rest, and ingest goes on from where it was.
        let next = [record(15, Added, 12, 0), record(15, Tags, 11, 0)];
        for next in next {
            let again = [&flips[from..5], &[next]].concat();
            assert_eq!(outcome(&flips, &again), (vec![], Some(15)), "{from}");
        }
    }
}

/// An honest block may come again with more, since an address was issued meanwhile.
#[test]
fn what_has_changed_below_a_witnessed_block_stops_nothing_where_its_chain_is_read_again() {
    let flips = [in_doubt(1), vec![record(11, Added, 11, 0), record(12, Removed, 11, 0), paying(record(13, Added, 11, 0), 1)]];
    let above = |witnessed| vec![Matches { witnessed, ..record(14, Added, 12, 0) }, record(15, Added, 13, 0)];
    for (witnessed, expected) in [(Some(11), (vec![16], None)), (Some(10), (vec![], Some(16)))] {
        let mut chain = Chain::new();
        chain.apply(&[flips.concat(), above(witnessed)].concat());
        chain.head.reading.again = None;
        assert_eq!(chain.apply(&[record(16, Added, 14, 0)]), expected, "witnessed up to {witnessed:?}");
    }
}
