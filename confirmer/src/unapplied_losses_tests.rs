//! Every short loss of the ends of topics and of ingest's cursor, in a chain of which too few endpoints have given the blocks.

use super::*;
use std::collections::BTreeSet;

/// A block above the one that is witnessed: its number, its branch, and what it pays.
type Block = (u64, u8, u64);

/// What ingest has written, and the blocks above the witnessed one after each record.
struct Written {
    records: Vec<Matches>,
    stacks: Vec<Vec<Block>>,
}

impl Written {
    /// By an ingest whose last record is `sequence` and whose blocks are these.
    fn after(sequence: u64, stack: Vec<Block>) -> Self {
        let below = Matches { witnessed: Some(10), ..record(sequence, Added, 10, 0) };
        Self { records: vec![below], stacks: vec![stack] }
    }

    fn write(&mut self, kind: Kind, (number, branch, pays): Block, stack: Vec<Block>) {
        let sequence = self.records.last().unwrap().sequence + 1;
        self.records.push(match kind {
            Added => paying(record(sequence, kind, number, branch), pays),
            _ => record(sequence, kind, number, branch),
        });
        self.stacks.push(stack);
    }

    /// Writes what leads to these blocks from those that there are, with so many records of tags after each block.
    fn lead_to(&mut self, target: &[Block], tags: usize) {
        let mut stack = self.stacks.last().unwrap().clone();
        let stands = stack.iter().zip(target).take_while(|(one, other)| one == other).count();
        while stack.len() > stands {
            let removed = stack.pop().unwrap();
            self.write(Removed, removed, stack.clone());
        }
        for block in &target[stands..] {
            stack.push(*block);
            self.write(Added, *block, stack.clone());
            (0..tags).for_each(|_| self.write(Tags, *block, stack.clone()));
        }
    }
}

fn paid(stack: &[Matches]) -> Vec<Block> {
    let of_block = |block: &Matches| {
        let pays = block.transfers.first().map_or(0, |transfer| transfer.amount.to_string().parse().unwrap());
        (block.block.number, block.block.hash[0], pays)
    };
    stack.iter().map(of_block).filter(|(number, ..)| *number > 10).collect()
}

/// The chains that an ingest meets one after the other, of which the last one stands.
fn histories() -> [(bool, Vec<Vec<Block>>); 4] {
    let all = [(11, 0, 1), (12, 0, 2), (13, 0, 3)];
    let reorg = vec![all[..2].to_vec(), vec![(11, 1, 1), (12, 1, 2), (13, 1, 3)]];
    // An endpoint was believed that lied about what block 11 or 12 pays, or about both.
    let lie = vec![vec![(11, 0, 9), (12, 0, 2)], all.to_vec()];
    let lies = vec![vec![(11, 0, 1), (12, 0, 8)], vec![(11, 0, 9), (12, 0, 8)], all.to_vec()];
    [(true, vec![all.to_vec()]), (true, reorg), (false, lie), (false, lies)]
}

/// Ingest goes on from any of its cursors, the confirmer has applied what it has, and reads on from any place before the end of
/// what Kafka has kept of `chain.matches`.
#[test]
fn whatever_the_ends_of_topics_lose_no_other_content_stands_and_no_honest_chain_is_set_aside() {
    let (mut refused, mut read_on) = (0, 0);
    for (is_honest, met) in histories() {
        let end = met.last().unwrap();
        let next = [end.as_slice(), &[(14, end[2].1, 4)]].concat();
        for (tags, tags_again) in [(1, 0), (0, 1)] {
            let mut before = Written::after(10, Vec::new());
            met.iter().for_each(|stack| before.lead_to(stack, tags));
            for cursor in 0..before.records.len() {
                let mut again = Written::after(before.records[cursor].sequence, before.stacks[cursor].clone());
                again.lead_to(&next, tags_again);
                for applied in 1..=before.records.len() {
                    let mut chain = Chain::new();
                    chain.apply(&before.records[..applied]);
                    let known = |block: &Block| before.stacks[cursor].contains(block) || next.contains(block);
                    // Nor does ingest take back what it does not know of any more.
                    let may_stop = !is_honest || cursor >= applied || !paid(&chain.stack).iter().all(known);
                    for kept in 0..=applied {
                        for from in BTreeSet::from([0, kept]) {
                            let mut chain = chain.clone();
                            if from < applied {
                                chain.head.reading.again = None;
                            }
                            let read = [&before.records[from..kept], &again.records[1..]].concat();
                            let refuses = chain.apply(&read).1;
                            let what = format!("{met:?} {tags} {tags_again} {cursor} {applied} {from}..{kept}: {refuses:?}");
                            match refuses {
                                None => assert_eq!(paid(&chain.stack), next, "{what}"),
                                Some(_) => assert!(may_stop, "{what}"),
                            }
                            *(if refuses.is_none() { &mut read_on } else { &mut refused }) += 1;
                        }
                    }
                }
            }
        }
    }
    println!("{refused} refused, {read_on} read on");
    assert!(refused > 1_000 && read_on > 1_000, "{refused} refused, {read_on} read on");
}

/// Another backfill may have been given an older range, or the same one again, and have been stopped.
#[test]
fn what_was_said_again_stays_said_whatever_else_is_replayed() {
    let replayed = |number| record(0, Replayed, number, 0);
    let (applied, next) = (in_doubt(3), record(20, Added, 13, 0));
    for others in [vec![replayed(5)], vec![replayed(11)], vec![replayed(10), replayed(11)], vec![replayed(12), replayed(5)]] {
        for place in 1..=2 {
            let mut read = vec![replayed(11), replayed(12)];
            read.splice(place..place, others.clone());
            read.push(next.clone());
            assert_eq!(news(&applied, &read).last(), Some(&20), "{others:?} at {place}");
        }
    }
    // What it was said of leaves the chain, and comes again in doubt.
    let left = [record(13, Removed, 12, 0), paying(record(14, Added, 12, 0), 1), record(20, Added, 13, 0)];
    let left = [[replayed(11), replayed(12)].as_slice(), &left].concat();
    assert_eq!(outcome(&applied, &left).1, Some(20));
}

/// The first block makes way for a branch that begins with the one below, of which too few endpoints have given what it has now.
#[test]
fn what_was_said_of_a_block_below_the_first_says_nothing_of_what_a_branch_brings_under_its_hash() {
    let removed = Matches { parent_number: Some(8), ..record(10, Removed, 9, 0) };
    let read = [record(0, Replayed, 8, 0), removed, paying(record(11, Added, 8, 0), 1), record(20, Added, 9, 0)];
    assert_eq!(outcome(&[], &read), (vec![0, 10, 11], Some(20)));
}

#[test]
fn a_look_for_what_is_said_again_goes_on_only_behind_the_very_fault_and_head() {
    let head = Chain::new().head;
    let first = LookForSaid::after(None, 5, head);
    assert_eq!(first.looked, 5);
    let said = Reading { said: Some(BlockRef { number: 9, hash: hash(9, 0) }), ..head.reading };
    let last = Some(LookForSaid { looked: 90, head: ChainHead { reading: said, ..head }, ..first });
    let same = LookForSaid::after(last, 5, head);
    assert_eq!((same.looked, same.head.reading.said), (90, said.said));
    let others = [
        (6, head),
        (4, head),
        (5, ChainHead { sequence: 10, ..head }),
        (5, ChainHead { hash: Some(hash(9, 1)), ..head }),
        (5, ChainHead { reading: Reading { again: None, ..head.reading }, ..head }),
    ];
    for (offset, head) in others {
        let anew = LookForSaid::after(last, offset, head);
        assert_eq!((anew.looked, anew.head), (offset, head));
    }
}
