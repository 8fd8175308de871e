//! Which records of a chain say something new. Pure.
//!
//! Where Kafka has lost the end of a topic, some records are read again, and others are written again, under other sequences where more
//! or fewer of them tell of tags. So among those that may be applied already, hashes decide: what stands on the head, removes it or tells
//! of it is new. A block that is added and removed again among them changes nothing. Whatever else lies above the head is new as well:
//! it is for the fold to refuse.

use payments::store::ChainHead;
use topics::{BlockRef, Kind, Matches, Transfer};

/// Whether a record says that its chain begins anew.
pub(crate) fn begins_anew(record: &Matches) -> bool {
    record.kind == Kind::Replayed && record.sequence != 0
}

/// The records that were not applied.
pub(crate) fn unapplied<'a>(head: Option<&ChainHead>, records: &[&'a Matches]) -> Vec<&'a Matches> {
    let Some(mut head) = head.copied() else { return records.to_vec() };
    let mut left = without_passing_blocks(&head, records);
    left.retain(|record| record.sequence == 0 || is_news(&mut head, record));
    left
}

/// Leaves out blocks that are added and then removed, both under sequences that the head has passed. The head stays: its removal is new
/// if the block does not come again, or comes with other content: its hash does not tell which of the two was applied.
fn without_passing_blocks<'a>(head: &ChainHead, records: &[&'a Matches]) -> Vec<&'a Matches> {
    let mut left: Vec<&Matches> = Vec::with_capacity(records.len());
    for (place, record) in records.iter().enumerate() {
        let of_block = |other: &&Matches| (1..=head.sequence).contains(&other.sequence) && other.block == record.block;
        let begins = |other: &&Matches| other.kind == Kind::Added && other.begins_block() && of_block(other);
        let again = &records[place + 1..];
        let first = &left[left.iter().rposition(begins).unwrap_or(left.len())..];
        let comes_again = || {
            let times = (first.first(), again.iter().find(|other| begins(other)));
            matches!(times, (Some(a), Some(b)) if a.timestamp == b.timestamp)
                && transfers(first, of_block).eq(transfers(again, of_block))
        };
        let stays = || head.hash == Some(record.block.hash) && !comes_again();
        let is_passing = record.kind == Kind::Removed && of_block(record) && !stays();
        match left.iter().rposition(begins).filter(|_| is_passing) {
            Some(begin) => {
                let since = left.split_off(begin);
                left.extend(since.into_iter().filter(|other| !of_block(other)));
            }
            None => left.push(record),
        }
    }
    left
}

/// A block's transfers until it is removed, however many parts they come in.
fn transfers<'a>(records: &[&'a Matches], of_block: impl Fn(&&Matches) -> bool) -> impl Iterator<Item = &'a Transfer> {
    let told = records.iter().copied().filter(of_block).filter(|record| record.kind != Kind::Tags);
    let added = told.skip_while(|record| record.kind != Kind::Added).take_while(|record| record.kind == Kind::Added);
    added.flat_map(|record| &record.transfers)
}

/// Whether a record says something new of a chain with this head, which it becomes the next one of if so.
fn is_news(head: &mut ChainHead, record: &Matches) -> bool {
    let may_be_applied = record.sequence <= head.sequence;
    let is_beyond = record.block.number > head.number && record.timestamp > head.timestamp;
    let is_head = head.hash == Some(record.block.hash);
    let is_news = match record.kind {
        Kind::Added => !is_head && (!may_be_applied || stands_on(head, record) || is_beyond),
        Kind::Removed | Kind::Tags => !may_be_applied || is_head,
        // `ctrip chain restart` gives it a later sequence than all that was applied.
        Kind::Replayed => !may_be_applied,
    };
    if is_news {
        advance(head, record);
    }
    is_news
}

fn stands_on(head: &ChainHead, record: &Matches) -> bool {
    head.hash == Some(record.parent) && record.block.number > head.number
}

fn advance(head: &mut ChainHead, record: &Matches) {
    let BlockRef { number, hash } = record.block;
    match record.kind {
        Kind::Added if record.ends_block() => {
            (head.number, head.hash, head.timestamp) = (number, Some(hash), record.timestamp);
        }
        Kind::Added => return,
        Kind::Removed => (head.number, head.hash) = (record.number_below(), Some(record.parent)),
        Kind::Replayed if begins_anew(record) => (head.number, head.hash) = (head.number.min(number), None),
        Kind::Replayed | Kind::Tags => {}
    }
    head.sequence = record.sequence;
}

#[cfg(test)]
mod tests {
    use super::*;
    use Kind::{Added, Removed, Replayed, Tags};
    use topics::{Address, Amount, B256, ChainId, Source, TransferId};

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

    /// The sequences of the records that are new after these.
    fn news(applied: &[Matches], read: &[Matches]) -> Vec<u64> {
        let tip = BlockRef { number: 9, hash: hash(9, 0) };
        let mut head = ChainHead {
            sequence: 9,
            first: 1,
            number: tip.number,
            hash: Some(tip.hash),
            timestamp: 1_009,
            safe: None,
            finalized: None,
            witnessed: None,
            bridge: None,
            open: None,
        };
        applied.iter().for_each(|record| advance(&mut head, record));
        unapplied(Some(&head), &read.iter().collect::<Vec<_>>()).iter().map(|record| record.sequence).collect()
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
        let again = [record(11, Added, 11, 0), record(12, Removed, 11, 0), record(13, Added, 11, 0)];
        assert!(news(&again, &again).is_empty());
        let more = [record(10, Added, 10, 0), record(14, Added, 11, 0), record(15, Removed, 11, 0), record(16, Added, 11, 1)];
        assert_eq!(news(&applied, &more), [15, 16], "the head itself under a later sequence, and what comes after it");
        assert_eq!(news(&applied, &[record(15, Added, 10, 0)]), [15], "no order that the fold knows");
    }

    #[test]
    fn a_branch_that_was_left_is_not_entered_again() {
        let left = [record(10, Added, 10, 0), record(11, Added, 11, 0), record(12, Added, 12, 0), record(13, Tags, 12, 0)];
        let back = [record(14, Removed, 12, 0), record(15, Removed, 11, 0), record(16, Added, 11, 1), record(17, Added, 12, 1)];
        let all = [left, back].concat();
        // Wherever the broker lost its power, and wherever the stage goes back to.
        for applied in 1..=all.len() {
            for from in 0..applied {
                let told_again = news(&all[..applied], &all[from..applied]);
                assert!(told_again.iter().all(|sequence| *sequence == 13), "{told_again:?} of {from}..{applied}");
            }
        }
    }

    #[test]
    fn a_head_that_comes_again_with_other_content_makes_way_for_it() {
        let id = TransferId { chain: ChainId(1), block: hash(11, 0), transaction: B256::ZERO, source: Source::Log, index: 0 };
        let (token, from, to) = (None, Address::ZERO, Address::ZERO);
        let transfer = Transfer { id, token, from, to, amount: Amount::ZERO, transaction_index: 0 };
        let lie = Matches { transfers: vec![transfer], ..record(11, Added, 11, 0) };
        let other_time = Matches { timestamp: 1_010, ..record(11, Added, 11, 0) };
        let applied = [record(10, Added, 10, 0), lie.clone(), record(12, Tags, 11, 0), record(13, Tags, 11, 0)];
        let rest = [record(12, Removed, 11, 0), record(13, Added, 11, 0), record(14, Added, 12, 0)];
        for first in [lie, other_time] {
            assert_eq!(news(&applied, &[vec![first], rest.to_vec()].concat()), [12, 13, 14]);
        }
        let same = [vec![record(11, Added, 11, 0)], rest.to_vec()].concat();
        assert_eq!(news(&applied, &same), [14], "nothing tells them apart");
    }

    #[test]
    fn what_lies_beyond_the_head_is_not_taken_for_old() {
        let applied = [record(10, Added, 10, 0), record(11, Added, 11, 0)];
        // A cursor was lost: the numbering has begun anew.
        assert_eq!(news(&applied, &[record(1, Added, 11, 0), record(2, Added, 12, 0)]), [2]);
        assert_eq!(news(&applied, &[record(1, Added, 11, 1), record(2, Added, 12, 1)]), [2], "it is for the fold to refuse");
    }

    #[test]
    fn a_new_beginning_that_was_applied_is_not_taken_up_again() {
        let applied = [record(10, Added, 10, 0), record(30, Replayed, 90, 0)];
        assert!(news(&applied, &applied[1..]).is_empty(), "its block lies above the head that it met");
        assert_eq!(news(&applied, &[record(31, Replayed, 9, 0), record(0, Replayed, 9, 0)]), [31, 0]);
    }
}
