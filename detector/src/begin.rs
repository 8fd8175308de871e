//! Where the partitions of an assignment begin.
//!
//! The group's offsets tell where it left off, and `chain.matches` what of that is still there: Kafka may have lost the end of
//! either, or of `chain.blocks`, whenever a partition changes hands. So each partition is looked at when it is assigned. It begins where
//! the group left off if both have what was noted with that offset: what was passed over since the newest match is not read again. Else it
//! begins after the newest match whose block is where the match says, or where the group left off, if that is before. What is read
//! again and was matched is passed over.

use crate::chains::Rewind;
use crate::held::{Held, PATIENCE, TOPICS};
use crate::join::ChainRecord as _;
use crate::lookup::Lookup;
use crate::output::{MAX_CLOCK_SKEW_MS, MatchedBlock, Resumption, logs_by_time};
use crate::written::{Note, Written};
use base::locked;
use runtime::Failure;
use runtime::kafka::{Kafka, NotedOffset, PartitionReader, Positions, Wait};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use topics::Topic;

/// How long it waits for the group's offsets. Their coordinator may be about to begin.
const OFFSETS_PATIENCE: Duration = Duration::from_secs(10);

/// Offsets of a partition in `chain.blocks` and in `chain.logs`. `None` is the beginning.
type Place = (Option<i64>, Option<i64>);

/// What tells where the partitions of each assignment begin. Those that have to wait, for a transaction or a broker, are noted in `held`.
/// What is to be read again for a chain is taken out of `rewind` once its partition has a place; what is there is noted in `written`.
pub fn positions(
    kafka: &Kafka,
    group: &'static str,
    rewind: &Arc<Mutex<Option<Rewind>>>,
    held: &Held,
    written: &Written,
) -> Positions {
    let (kafka, held, rewind, written) = (kafka.clone(), held.clone(), Arc::clone(rewind), written.clone());
    Box::new(move |assigned| {
        held.clear();
        let asked = *locked(&rewind);
        let committed = kafka.committed_within(group, assigned, OFFSETS_PATIENCE)?;
        let partitions: BTreeSet<i32> = assigned.iter().map(|(_, partition)| *partition).collect();
        let partitions: Vec<i32> = partitions.into_iter().collect();
        let mut unanswered = kafka.unanswered(&TOPICS, &partitions)?;
        let (deadline, mut begins) = (Instant::now() + PATIENCE, BTreeMap::new());
        for partition in partitions {
            if let Some(wait) = unanswered.remove(&partition) {
                held.hold(partition, wait, false);
                continue;
            }
            let (blocks, logs) = ((Topic::Blocks, partition), (Topic::Logs, partition));
            let committed = committed
                .get(&blocks)
                .zip(committed.get(&logs))
                .map(|(blocks, logs)| Committed::of(blocks.as_ref(), logs.as_ref()));
            let patience = deadline.saturating_duration_since(Instant::now());
            match begin(&kafka, group, partition, committed, &written, patience)? {
                Ok(place) => {
                    let to = asked.filter(|rewind| rewind.partition == partition).map(|rewind| rewind.to);
                    let place = earlier(place, to);
                    begins.extend([(blocks, place.0), (logs, place.1)]);
                }
                Err(wait) => held.hold(partition, wait, false),
            }
        }
        // Once: a later assignment finds the offsets that were committed since.
        locked(&rewind).take_if(|rewind| !held.holds(rewind.partition));
        Ok(begins)
    })
}

/// What the group has committed.
#[derive(Clone, Copy)]
struct Committed {
    place: Place,
    /// What was noted with the offset in `chain.blocks`.
    note: Option<Note>,
}

impl Committed {
    fn of(blocks: Option<&NotedOffset>, logs: Option<&NotedOffset>) -> Self {
        let offset = |told: Option<&NotedOffset>| told.map(|(offset, _)| *offset);
        Self { place: (offset(blocks), offset(logs)), note: blocks.and_then(|(_, note)| Note::of(note)) }
    }
}

/// Where something is to be read again, if that is before. Else Kafka has lost something before that.
fn earlier((blocks, logs): Place, to: Option<Resumption>) -> Place {
    to.map_or((blocks, logs), |to| (blocks.min(Some(to.blocks)), logs.min(Some(to.logs))))
}

fn begin(
    kafka: &Kafka,
    group: &'static str,
    partition: i32,
    committed: Option<Committed>,
    written: &Written,
    patience: Duration,
) -> Result<Result<Place, Wait>, Failure> {
    let Some(Committed { place: committed, note }) = committed else {
        return Ok(Err(Wait::Offsets { group, topics: vec![Topic::Blocks, Topic::Logs] }));
    };
    let asked = Instant::now();
    let matches = match PartitionReader::open_within(kafka, Topic::Matches, partition, patience)? {
        Ok(matches) => matches,
        Err(open) => return Ok(Err(Wait::Transaction(open))),
    };
    let matched = newest_match(&matches)?;
    written.begin(partition, matches.end(), matched.as_ref().map(|block| block.offset), asked);
    let newest = match &matched {
        // Markers of transactions that were aborted since are all that may be left of it.
        None => {
            matches.seek(0);
            if matches.next()?.is_none() { Newest::Never } else { Newest::Unknown }
        }
        Some(matched) => {
            let blocks = PartitionReader::open_at_once(kafka, Topic::Blocks, partition)?;
            if let ((Some(next), Some(_)), Some(note)) = (committed, note)
                && matched.offset == note.matched
                && is_as_noted(&blocks, matched, next, note)?
            {
                return Ok(Ok(committed));
            }
            newest(kafka, &matches, &blocks, partition)?
        }
    };
    let place = place(committed, newest);
    if let (Some(from), Some(to)) = (committed.0, place.0.or(Some(0)))
        && to < from
    {
        tracing::warn!(
            "chain.blocks/{partition} is read again from offset {to} on, although its group left off at {from}: chain.matches has \
             nothing of what lies between"
        );
    }
    Ok(Ok(place))
}

/// The newest match.
fn newest_match(matches: &PartitionReader) -> Result<Option<MatchedBlock>, Failure> {
    let mut newest = None;
    matches.read_back(|records| {
        newest = records.iter().rev().find_map(MatchedBlock::of);
        Ok(if newest.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(newest)
}

/// Whether `chain.blocks` has the block of the newest match, and before the group's offset the block that was there: Kafka has lost nothing
/// before it.
fn is_as_noted(blocks: &PartitionReader, matched: &MatchedBlock, next: i64, note: Note) -> Result<bool, Failure> {
    if matched.written_in(blocks)?.is_none() {
        return Ok(false);
    }
    blocks.seek(next - 1);
    let last = blocks.next()?.filter(|block| block.offset() == next - 1);
    Ok(last.is_some_and(|block| block.writing() == Some(note.writing)))
}

/// Up to where a partition is matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newest {
    /// Nothing was ever written to its `chain.matches`, or all of it is lost.
    Never,
    /// Nothing tells.
    Unknown,
    /// It goes on there.
    At(Resumption),
}

/// Where to begin.
fn place((blocks, logs): Place, newest: Newest) -> Place {
    match newest {
        Newest::Never => (None, None),
        Newest::Unknown => (blocks, logs),
        Newest::At(at) => {
            let is_before = blocks.is_some_and(|committed| committed < at.blocks);
            let logs = match logs {
                Some(committed) => Some(committed.min(at.logs)),
                // Blocks are read that may need older logs than the one after the newest match.
                None if is_before => None,
                None => Some(at.logs),
            };
            (Some(blocks.map_or(at.blocks, |committed| committed.min(at.blocks))), logs)
        }
    }
}

/// Looks for the newest match whose block is there still. If none is, all blocks that there are come next: the topic was cut before
/// them, or made anew, or it is a copy with offsets of its own, and what is read again is compared with what was matched.
fn newest(kafka: &Kafka, matches: &PartitionReader, blocks: &PartitionReader, partition: i32) -> Result<Newest, Failure> {
    blocks.seek(0);
    let Some((first, first_written)) = blocks.next()?.map(|first| (first.offset(), first.timestamp_ms())) else {
        return Ok(Newest::Unknown);
    };
    // A block is matched after it was written: what was matched before any that is there is of one that retention has deleted.
    let oldest = first_written.unwrap_or_default() - MAX_CLOCK_SKEW_MS;
    let (mut is_matched, mut lost, mut found) = (false, 0, None);
    let mut lookup = Lookup::of_partition(partition);
    matches.read_back(|records| {
        if let Some(record) = records.first() {
            lookup.at(Topic::Matches, partition, record.offset());
        }
        let is_old = records.first().is_some_and(|record| record.timestamp_ms().is_some_and(|written| written < oldest));
        let matched: Vec<MatchedBlock> = records.iter().rev().filter_map(MatchedBlock::of).collect();
        is_matched |= !matched.is_empty();
        // A partition that was read again has blocks that come before those of older matches.
        for run in matched.chunk_by(|newer, older| older.offset < newer.offset) {
            let reachable = run.partition_point(|block| block.offset >= first);
            if let Some((index, written)) = first_there(&run[..reachable], |block| block.written_in(blocks))? {
                lost += index;
                found = Some((run[index].offset, run[index].logs, written));
                return Ok(ControlFlow::Break(()));
            }
            lost += reachable;
            if reachable < run.len() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(if is_old { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let (at, logs, written) = match found {
        Some((offset, logs, written)) => (offset + 1, logs, written),
        None if is_matched => (first, None, first_written.unwrap_or_default()),
        None => return Ok(Newest::Unknown),
    };
    if lost > 0 {
        let topic = Topic::Blocks;
        tracing::error!("Kafka has lost the end of {topic}/{partition} from offset {at} on; {lost} records of it were matched");
    }
    let logs = logs.map_or_else(|| logs_by_time(kafka, partition, written), Ok)?;
    Ok(Newest::At(Resumption { blocks: at, logs }))
}

/// The first of these that is there, and when it was written. They come newest first, and where Kafka has cut a topic, those that
/// are gone come before all that are there; so few are looked at, however many there are.
fn first_there<T>(
    newest_first: &[T],
    mut written: impl FnMut(&T) -> Result<Option<i64>, Failure>,
) -> Result<Option<(usize, i64)>, Failure> {
    let (Some(newest), Some(oldest)) = (newest_first.first(), newest_first.last()) else { return Ok(None) };
    if let Some(at) = written(newest)? {
        return Ok(Some((0, at)));
    }
    let Some(mut at) = written(oldest)? else { return Ok(None) };
    let (mut gone, mut there) = (0, newest_first.len() - 1);
    while there - gone > 1 {
        let middle = gone.midpoint(there);
        match written(&newest_first[middle])? {
            Some(written) => (there, at) = (middle, written),
            None => gone = middle,
        }
    }
    Ok(Some((there, at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{BLOCK_OFFSET, LOGS_OFFSET};
    use rdkafka::mocking::MockCluster;
    use runtime::kafka::TransactionalProducer;
    use topics::{WRITING, wire};

    #[test]
    fn a_partition_begins_where_matches_are_missing_if_that_is_before_where_its_group_left_off() {
        let newest = Newest::At(Resumption { blocks: 50, logs: 30 });
        for (committed, expected) in [
            // The matches of 50 to 59 are lost.
            ((Some(60), Some(40)), (Some(50), Some(30))),
            // The group's offsets are older than the matches, or lost.
            ((Some(40), Some(20)), (Some(40), Some(20))),
            ((Some(40), None), (Some(40), None)),
            ((None, None), (Some(50), Some(30))),
            ((Some(60), None), (Some(50), Some(30))),
        ] {
            assert_eq!(place(committed, newest), expected, "{committed:?}");
        }
        let committed = (Some(60), Some(40));
        assert_eq!(place(committed, Newest::Unknown), committed);
        assert_eq!(place(committed, Newest::Never), (None, None), "all matches are lost");
    }

    #[test]
    fn what_is_read_again_for_a_chain_does_not_pass_over_what_is_lost() {
        let to = Some(Resumption { blocks: 50, logs: 30 });
        for (begins, expected) in [
            ((Some(60), Some(40)), (Some(50), Some(30))),
            ((Some(45), Some(35)), (Some(45), Some(30))),
            ((None, None), (None, None)),
        ] {
            assert_eq!(earlier(begins, to), expected);
            assert_eq!(earlier(begins, None), begins);
        }
    }

    /// However many were lost, and wherever the cut is.
    #[test]
    fn the_newest_match_whose_block_is_there_is_found_with_few_looks() {
        for count in [0_usize, 1, 2, 3, 1_023, 1_024, 5_000] {
            let newest_first: Vec<usize> = (0..count).rev().collect();
            for cut in [0, 1, 2, count / 2, count.saturating_sub(1), count] {
                let mut looks = 0;
                let found = first_there(&newest_first, |block| {
                    looks += 1;
                    Ok((*block < cut).then(|| i64::try_from(*block).unwrap()))
                });
                let found = found.unwrap().map(|(index, written)| (newest_first[index], written));
                let expected = cut.min(count).checked_sub(1).map(|block| (block, i64::try_from(block).unwrap()));
                assert_eq!(found, expected, "{count} {cut}");
                assert!(looks <= 2 + 13, "{looks} looks at {count}");
            }
        }
    }

    #[test]
    fn partitions_begin_though_another_one_has_no_leader_and_that_one_is_held() {
        for (index, topic) in TOPICS.into_iter().enumerate() {
            let cluster = MockCluster::new(1).unwrap();
            TOPICS.iter().for_each(|topic| cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap());
            cluster.partition_leader(topic.name(), 3, None).unwrap();
            let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
            let held = Held::new(&kafka, ["lab-blocks", "lab-logs", "lab-matches"][index]);
            let positions = positions(&kafka, "lab", &Arc::default(), &held, &Written::default());
            let assigned: Vec<_> = (2..5).flat_map(|p| [(Topic::Blocks, p), (Topic::Logs, p)]).collect();
            let begins = positions(&assigned).unwrap();
            assert!(begins.keys().all(|(_, partition)| [2, 4].contains(partition)) && begins.len() == 4, "{begins:?}");
            assert!(held.holds(3) && !held.holds(2) && !held.holds(4));
            held.look().unwrap();
            cluster.partition_leader(topic.name(), 3, Some(1)).unwrap();
            let (started, mut looked) = (Instant::now(), Ok(()));
            while held.holds(3) {
                looked = held.look();
                assert!(started.elapsed() < Duration::from_secs(60));
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(looked.is_err_and(|failure| failure.to_string().contains("can be begun")), "with a new consumer");
        }
    }

    #[test]
    fn a_partition_goes_on_where_its_group_left_off_if_kafka_has_what_was_noted_there() {
        const CHAIN: &str = "31337";
        let cluster = MockCluster::new(1).unwrap();
        let topics = [Topic::Blocks, Topic::Logs, Topic::Matches];
        topics.iter().for_each(|topic| cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap());
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let producer = TransactionalProducer::open(&kafka, "lab").unwrap();
        let partition = Topic::Blocks.partition_of(CHAIN);
        // Five blocks, of which the first two are matched. The others are of a chain that is set aside.
        let transaction = producer.begin().unwrap();
        for sequence in 1..=5_u64 {
            let (hash, mark, offset) = (vec![1; 32], sequence.to_string(), (sequence - 1).to_string());
            let block = wire::BlockRecord { chain_id: 31337, sequence, hash: hash.clone().into(), ..Default::default() };
            transaction.send_with_headers(Topic::Blocks, CHAIN, &kafka.encode(&block), &[(WRITING, &*mark)]).unwrap();
            let headers = [(BLOCK_OFFSET, &*offset), (LOGS_OFFSET, &*offset), (WRITING, &*mark)];
            let matched = wire::MatchesRecord { chain_id: 31337, sequence, hash: hash.into(), ..Default::default() };
            if sequence <= 2 {
                transaction.send_with_headers(Topic::Matches, CHAIN, &kafka.encode(&matched), &headers).unwrap();
            }
        }
        transaction.commit().unwrap();
        let written = Written::default();
        let begins = |note: Option<Note>| {
            let committed = Committed { place: (Some(5), Some(5)), note };
            let begins = begin(&kafka, "lab", partition, Some(committed), &written, PATIENCE).unwrap().unwrap();
            assert_eq!(written.matched(partition), Some(1));
            begins
        };
        let noted = Note { matched: 1, writing: 5 };
        assert_eq!(begins(Some(noted)), (Some(5), Some(5)));
        let from_newest = (Some(2), Some(1));
        assert_eq!(begins(None), from_newest, "nothing tells that nothing is lost");
        assert_eq!(begins(Some(Note { matched: 3, ..noted })), from_newest, "matches are lost");
        assert_eq!(begins(Some(Note { writing: 9, ..noted })), from_newest, "blocks are lost");
    }
}
