use super::*;
use rdkafka::mocking::MockCluster;
use runtime::kafka::{Kafka, TransactionalProducer};
use topics::wire::logs_record::Log;
use topics::{MAX_LOGS_BYTES, wire};

#[path = "join_pauses_tests.rs"]
mod pauses;

struct Fake {
    topic: Topic,
    offset: i64,
    value: Vec<u8>,
    writing: Option<i64>,
}

impl ChainRecord for Fake {
    fn topic(&self) -> Topic {
        self.topic
    }

    fn partition(&self) -> i32 {
        3
    }

    fn offset(&self) -> i64 {
        self.offset
    }

    fn value(&self) -> &[u8] {
        &self.value
    }

    fn writing(&self) -> Option<i64> {
        self.writing
    }
}

fn hash(sequence: u64) -> Vec<u8> {
    vec![sequence.to_le_bytes()[0]; 32]
}

fn block(chain_id: u64, sequence: u64) -> Fake {
    let record = wire::BlockRecord { chain_id, sequence, hash: hash(sequence).into(), ..Default::default() };
    Fake { topic: Topic::Blocks, offset: i64::try_from(sequence).unwrap(), value: frame::encode(1, &record), writing: None }
}

/// A record of logs with so many bytes of data.
fn logs(offset: i64, chain_id: u64, sequence: u64, (part, parts): (u32, u32), size: usize) -> Fake {
    let log = Log { data: vec![7; size].into(), ..Default::default() };
    let hash = hash(sequence).into();
    let record = wire::LogsRecord { chain_id, sequence, hash, logs: vec![log], part, parts, ..Default::default() };
    Fake { topic: Topic::Logs, offset, value: frame::encode(1, &record), writing: None }
}

/// The record as a transaction has written it.
fn written(record: Fake, writing: i64) -> Fake {
    Fake { writing: Some(writing), ..record }
}

const LARGE: usize = MAX_LOGS_BYTES / 2;

/// Adds a record that is not done.
fn push(join: &mut Join<Fake>, record: Fake) {
    join.push(record, |_, _| false);
}

fn pair(join: &mut Join<Fake>) -> JoinedBlock<Fake> {
    let Popped::Pair(pair) = join.pop().unwrap() else { panic!("no block with all its logs") };
    *pair
}

fn is_waiting(join: &mut Join<Fake>) -> bool {
    matches!(join.pop().unwrap(), Popped::Waiting)
}

#[test]
fn a_block_waits_for_all_parts_of_its_logs_and_gets_them_in_order() {
    let mut join = Join::default();
    push(&mut join, block(1, 1));
    push(&mut join, block(1, 2));
    for (offset, part) in [(10, 1), (11, 2)] {
        push(&mut join, logs(offset, 1, 1, (part, 3), LARGE));
        // Of another chain in the partition.
        push(&mut join, logs(offset + 100, 2, 7, (0, 0), 1));
        assert!(is_waiting(&mut join), "matched before part 3 is there");
    }
    assert_eq!(join.offsets(), (None, Some(10)), "a restart must read the parts again");
    // The last part may be small.
    push(&mut join, logs(12, 1, 1, (3, 3), 5));
    push(&mut join, logs(13, 1, 2, (0, 0), 5));
    let joined = pair(&mut join);
    assert_eq!(joined.logs.iter().map(|logs| logs.offset).collect::<Vec<_>>(), [10, 11, 12]);
    let joined = pair(&mut join);
    assert_eq!((joined.block.offset, joined.logs.len(), joined.logs[0].offset), (2, 1, 13));
    assert!(is_waiting(&mut join));
}

#[test]
fn a_large_record_that_says_nothing_of_parts_is_whole() {
    for (part, sequence) in [((0, 0), 1), ((1, 1), 1), ((0, 0), 0), ((1, 1), 0)] {
        let mut join = Join::default();
        push(&mut join, block(1, sequence));
        push(&mut join, logs(10, 1, sequence, part, LARGE * 2));
        assert_eq!(pair(&mut join).logs.len(), 1);
    }
}

#[test]
fn a_missing_part_stops_the_stage_and_is_not_skipped() {
    for parts in [2, 3] {
        let mut join = Join::default();
        push(&mut join, block(1, 1));
        push(&mut join, logs(10, 1, 1, (1, parts), LARGE));
        if parts == 3 {
            push(&mut join, logs(11, 1, 1, (3, 3), 5));
        }
        push(&mut join, logs(12, 1, 2, (0, 0), 5));
        let Err(Failure::Halt(error)) = join.pop() else { panic!("matched without part 2") };
        assert!(format!("{error:#}").contains(&format!("expected part 2 of {parts}")), "{error:#}");
    }
}

/// After a restart, logs of blocks that are done are read again.
#[test]
fn parts_of_a_block_that_is_done_are_dropped() {
    let mut join = Join::default();
    for (offset, part) in [(10, 1), (11, 2)] {
        push(&mut join, logs(offset, 1, 1, (part, 2), LARGE));
    }
    push(&mut join, logs(12, 1, 2, (0, 0), 5));
    push(&mut join, block(1, 2));
    assert_eq!(pair(&mut join).logs[0].offset, 12);
}

/// As after a kill: what was matched last is read again, and part 1 of its logs is below the offset that was committed.
#[test]
fn every_part_of_logs_that_are_done_is_dropped_at_once() {
    let mut join = Join::default();
    let done_up_to_1 = |chain_id, sequence| chain_id == 1 && sequence == 1;
    join.push(logs(10, 1, 1, (1, 2), LARGE), done_up_to_1);
    join.push(logs(11, 1, 1, (2, 2), 5), done_up_to_1);
    assert_eq!(join.offsets(), (None, Some(12)));
    join.push(logs(12, 1, 2, (1, 2), LARGE), done_up_to_1);
    assert_eq!(join.offsets(), (None, Some(12)), "part 1 waits for its block");
}

/// Of a chain that is set aside, blocks may be passed over before their logs have arrived.
#[test]
fn a_block_that_is_passed_over_takes_all_parts_of_its_logs_along() {
    let mut join = Join::default();
    for sequence in 1..=3 {
        push(&mut join, block(1, sequence));
    }
    push(&mut join, logs(10, 1, 1, (1, 3), LARGE));
    push(&mut join, logs(11, 1, 1, (2, 3), LARGE));
    join.pass();
    assert_eq!(join.offsets(), (Some(2), Some(12)));
    // The last part comes late; its block is gone.
    push(&mut join, logs(12, 1, 1, (3, 3), 5));
    push(&mut join, logs(13, 1, 2, (0, 0), 5));
    assert_eq!(join.offsets(), (Some(2), Some(12)));
    join.pass();
    assert_eq!(join.offsets(), (Some(3), Some(14)));
    push(&mut join, logs(14, 1, 3, (1, 2), LARGE));
    push(&mut join, logs(15, 1, 3, (2, 2), 5));
    assert_eq!(pair(&mut join).logs.len(), 2);
    assert_eq!(join.offsets(), (Some(4), Some(16)));
}

/// Kafka has lost more of the end of `chain.blocks` than of `chain.logs`.
#[test]
fn logs_of_blocks_that_were_lost_are_not_taken_for_those_of_their_successors() {
    let mut join = Join::default();
    push(&mut join, written(logs(10, 1, 1, (0, 0), 5), 1));
    push(&mut join, written(logs(11, 1, 2, (0, 0), 5), 1));
    // The same hash and sequence, and maybe other content.
    push(&mut join, written(block(1, 1), 2));
    assert!(is_waiting(&mut join), "matched with the logs of another writing");
    push(&mut join, written(logs(12, 1, 1, (1, 2), LARGE), 2));
    assert!(is_waiting(&mut join));
    push(&mut join, written(logs(13, 1, 1, (2, 2), 5), 2));
    assert_eq!(pair(&mut join).logs.iter().map(|logs| logs.offset).collect::<Vec<_>>(), [12, 13]);
    assert_eq!(join.offsets(), (Some(2), Some(14)), "those of the other writing are left");
}

#[test]
fn logs_that_are_written_again_are_kept_when_the_block_of_before_is_passed_over() {
    let mut join = Join::default();
    for record in [block(1, 12), logs(10, 1, 12, (0, 0), 5)] {
        push(&mut join, written(record, 1));
    }
    let again =
        [block(1, 12), block(1, 13), logs(11, 1, 11, (0, 0), 5), logs(12, 1, 12, (0, 0), 5), logs(13, 1, 13, (0, 0), 5)];
    for record in again {
        push(&mut join, written(record, 2));
    }
    join.pass();
    let (first, second) = (pair(&mut join), pair(&mut join));
    assert_eq!((first.block.writing, first.logs[0].offset), (Some(2), 12));
    assert_eq!(second.logs[0].offset, 13);
}

/// Kafka has lost the least of `chain.logs`, and the most of `chain.cursors`.
#[test]
fn logs_of_later_blocks_that_were_lost_do_not_hide_those_of_a_block_that_is_written_again() {
    let lost = |join: &mut Join<Fake>| {
        push(join, written(logs(10, 1, 12, (0, 0), 5), 1));
        push(join, written(logs(11, 1, 13, (0, 0), 5), 1));
        push(join, written(block(1, 11), 2));
    };
    let mut join = Join::default();
    lost(&mut join);
    assert!(is_waiting(&mut join), "its own may come");
    for (offset, sequence) in [(12, 11), (13, 12)] {
        push(&mut join, written(logs(offset, 1, sequence, (0, 0), 5), 2));
    }
    push(&mut join, written(block(1, 12), 2));
    assert_eq!([pair(&mut join).logs[0].offset, pair(&mut join).logs[0].offset], [12, 13]);
    // Nothing came below the end that was noted.
    let mut join = Join::default();
    lost(&mut join);
    join.expect_logs_below(12);
    assert!(matches!(join.pop().unwrap(), Popped::WithoutLogs { next_with_logs: 12 }));
    // Of the same writing: its own are gone.
    let mut join = Join::default();
    push(&mut join, written(block(1, 11), 2));
    push(&mut join, written(logs(10, 1, 12, (0, 0), 5), 2));
    assert!(matches!(join.pop().unwrap(), Popped::WithoutLogs { next_with_logs: 12 }));
}

/// A retention deletes whole files, whose end may be between two parts.
#[test]
fn logs_without_their_first_part_are_gone_and_never_taken_for_a_whole() {
    for left in [2..=3, 3..=3] {
        let mut join = Join::default();
        push(&mut join, block(1, 1));
        for part in left {
            let size = if part == 3 { 5 } else { LARGE };
            push(&mut join, logs(10 + i64::from(part), 1, 1, (part, 3), size));
        }
        assert!(is_waiting(&mut join), "matched without part 1");
        push(&mut join, logs(14, 1, 2, (0, 0), 5));
        assert!(matches!(join.pop().unwrap(), Popped::WithoutLogs { next_with_logs: 2 }));
        assert_eq!(join.front().map(|block| block.offset), Some(1), "the block is not lost");
    }
}

#[test]
fn a_block_whose_logs_are_gone_is_told_from_one_that_waits() {
    let mut join = Join::default();
    push(&mut join, block(1, 1));
    push(&mut join, logs(10, 2, 7, (0, 0), 5));
    assert!(is_waiting(&mut join));
    push(&mut join, logs(11, 1, 4, (1, 2), LARGE));
    assert!(matches!(join.pop().unwrap(), Popped::WithoutLogs { next_with_logs: 4 }));
    assert_eq!(join.offsets(), (None, Some(10)));
}

#[test]
fn replayed_blocks_have_a_lane_of_their_own_in_which_parts_are_joined_by_hash() {
    let mut join = Join::default();
    push(&mut join, block(1, 0));
    push(&mut join, block(1, 1));
    push(&mut join, logs(10, 1, 1, (1, 2), LARGE));
    push(&mut join, logs(11, 1, 0, (1, 2), LARGE));
    push(&mut join, logs(12, 1, 1, (2, 2), 5));
    assert!(is_waiting(&mut join));
    push(&mut join, logs(13, 1, 0, (2, 2), 5));
    for offsets in [[11, 13], [10, 12]] {
        assert_eq!(pair(&mut join).logs.iter().map(|logs| logs.offset).collect::<Vec<_>>(), offsets);
    }
    assert_eq!(join.offsets(), (Some(2), Some(14)));
}

/// A replayed block, or its logs.
fn replayed(mut record: Fake, number: u8) -> Fake {
    let hash = vec![number; 32].into();
    record.value = match record.topic {
        Topic::Blocks => frame::encode(1, &wire::BlockRecord { hash, ..frame::decode(&record.value).unwrap() }),
        _ => frame::encode(1, &wire::LogsRecord { hash, ..frame::decode(&record.value).unwrap() }),
    };
    record
}

#[test]
fn a_replayed_block_whose_logs_are_gone_takes_no_others_along_and_waits_for_ever_no_more() {
    let mut join = Join::default();
    for number in [7, 8] {
        push(&mut join, replayed(block(1, 0), number));
    }
    push(&mut join, replayed(logs(10, 1, 0, (0, 0), 5), 8));
    assert!(is_waiting(&mut join), "the logs of 7 may be late");
    join.expect_logs_below(12);
    assert!(is_waiting(&mut join), "the logs of 7 may be late");
    push(&mut join, logs(11, 2, 5, (0, 0), 5));
    assert!(matches!(join.pop().unwrap(), Popped::WithoutLogs { .. }));
    join.pass();
    assert_eq!(pair(&mut join).logs[0].offset, 10, "the logs of 8");
    assert_eq!(join.offsets(), (Some(1), Some(11)));
}

#[test]
fn a_block_whose_logs_are_gone_holds_up_its_partition_only_while_they_may_come() {
    let mut join = Join::default();
    push(&mut join, block(1, 1));
    push(&mut join, block(1, 2));
    // However late another's are: nobody's clock counts.
    push(&mut join, logs(10, 2, 5, (0, 0), 5));
    assert!(is_waiting(&mut join));
    assert_eq!(join.expect_logs_below(14), 14);
    push(&mut join, logs(12, 2, 6, (0, 0), 5));
    assert!(is_waiting(&mut join), "they may be at offset 13");
    // The topic grows by logs of later blocks, which are read meanwhile.
    push(&mut join, block(1, 4));
    assert_eq!(join.expect_logs_below(20), 14);
    // A marker ends the transaction.
    join.read_logs_up_to(14);
    assert!(matches!(join.pop().unwrap(), Popped::WithoutLogs { next_with_logs: 2 }));
    join.pass();
    // It was read by then, so its logs would have been below that end as well.
    assert!(matches!(join.pop().unwrap(), Popped::WithoutLogs { next_with_logs: 3 }));
    join.pass();
    assert!(is_waiting(&mut join), "nothing is known of a later block's logs");
    assert_eq!(join.expect_logs_below(30), 30);
    assert!(is_waiting(&mut join));
}

#[test]
fn logs_that_come_in_time_are_used_whatever_end_was_asked_for() {
    let mut join = Join::default();
    push(&mut join, block(1, 1));
    join.expect_logs_below(12);
    push(&mut join, logs(11, 1, 1, (0, 0), 5));
    assert_eq!(pair(&mut join).logs_used, 12);
}

#[test]
fn logs_whose_block_is_gone_hold_no_offset_back() {
    let mut join = Join::default();
    push(&mut join, replayed(logs(10, 1, 0, (0, 0), 5), 7));
    push(&mut join, logs(11, 2, 1, (0, 0), 5));
    assert_eq!((join.first_waiting_logs(), join.offsets().1), (Some(10), Some(10)));
    push(&mut join, replayed(logs(12, 1, 0, (0, 0), 5), 8));
    join.drop_logs_below(11);
    assert_eq!((join.first_waiting_logs(), join.offsets().1), (Some(11), Some(11)));
    push(&mut join, block(2, 1));
    assert_eq!(pair(&mut join).logs_used, 12);
    assert_eq!(join.first_waiting_logs(), Some(12), "it is not below");
}

#[test]
fn logs_that_nobody_can_read_are_passed_over() {
    let mut join = Join::default();
    push(&mut join, block(1, 1));
    push(&mut join, Fake { value: vec![1, 2, 3], ..logs(10, 1, 1, (0, 0), 5) });
    assert!(is_waiting(&mut join));
    push(&mut join, logs(11, 1, 2, (0, 0), 5));
    assert!(matches!(join.pop().unwrap(), Popped::WithoutLogs { next_with_logs: 2 }), "matched without its logs");
}

/// A block comes again under its sequence, and the logs that were written with it the first time are gone.
#[test]
fn a_block_whose_logs_are_gone_takes_none_of_the_block_that_comes_again() {
    let mut join = Join::default();
    push(&mut join, written(block(1, 12), 1));
    push(&mut join, written(logs(10, 1, 12, (0, 0), 5), 2));
    push(&mut join, written(block(1, 12), 2));
    assert!(is_waiting(&mut join), "its own may come");
    assert_eq!(join.first_waiting_logs(), Some(10));
    join.pass();
    assert_eq!(pair(&mut join).logs[0].offset, 10);
}

#[test]
fn a_replayed_block_gets_its_own_logs_when_those_of_another_are_before_them() {
    let mut join = Join::default();
    push(&mut join, replayed(logs(10, 1, 0, (0, 0), 5), 7));
    push(&mut join, replayed(logs(11, 1, 0, (0, 0), 5), 8));
    push(&mut join, replayed(block(1, 0), 8));
    assert_eq!(pair(&mut join).logs.iter().map(|logs| logs.offset).collect::<Vec<_>>(), [11]);
    // And after them.
    for (offset, number, part) in [(12, 7, (1, 2)), (13, 7, (2, 2)), (14, 8, (0, 0))] {
        push(&mut join, replayed(logs(offset, 1, 0, part, LARGE), number));
    }
    push(&mut join, replayed(block(1, 0), 7));
    assert_eq!(pair(&mut join).logs.iter().map(|logs| logs.offset).collect::<Vec<_>>(), [12, 13]);
}

#[test]
fn replayed_logs_without_their_first_part_are_none() {
    let mut join = Join::default();
    push(&mut join, replayed(block(1, 0), 7));
    for (offset, number, part) in [(10, 7, (2, 3)), (11, 7, (3, 3)), (12, 8, (0, 0))] {
        push(&mut join, replayed(logs(offset, 1, 0, part, LARGE), number));
    }
    assert!(is_waiting(&mut join), "a backfill brings the block again");
}

#[test]
fn a_block_that_is_passed_over_takes_no_logs_of_later_ones_along() {
    let mut join = Join::default();
    for sequence in 1..=2 {
        push(&mut join, block(1, sequence));
        push(&mut join, logs(9 + i64::try_from(sequence).unwrap(), 1, sequence, (0, 0), 5));
    }
    assert_eq!((join.front().map(|block| block.offset), join.first_waiting_logs()), (Some(1), Some(10)));
    join.pass();
    assert_eq!((join.front().map(|block| block.offset), join.first_waiting_logs()), (Some(2), Some(11)));
}

#[test]
fn what_was_taken_last_is_told_with_its_offsets_and_its_writing() {
    let told = |join: &Join<Fake>| (join.next_block(), join.last_writing(), join.next_logs());
    let mut join = Join::default();
    assert_eq!(told(&join), (None, None, None));
    push(&mut join, written(block(1, 6), 40));
    push(&mut join, written(logs(10, 1, 6, (0, 0), 5), 40));
    assert_eq!(told(&join), (None, None, Some(11)));
    pair(&mut join);
    assert_eq!(told(&join), (Some(7), Some(40), Some(11)));
    push(&mut join, written(block(1, 8), 41));
    join.pass();
    assert_eq!(told(&join), (Some(9), Some(41), Some(11)));
}

#[test]
fn a_record_of_kafka_is_joined_by_its_own_place_and_by_the_mark_of_its_transaction() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(Topic::Logs.name(), Topic::Logs.partitions(), 1).unwrap();
    let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
    let producer = TransactionalProducer::open(&kafka, "lab").unwrap();
    let transaction = producer.begin().unwrap();
    let marks = [[(WRITING, "77")].as_slice(), &[(WRITING, "soon")], &[]];
    for (value, headers) in ["first", "second", "third"].into_iter().zip(marks) {
        transaction.send_with_headers(Topic::Logs, "31337", value.as_bytes(), headers).unwrap();
    }
    transaction.commit().unwrap();
    let mut seen = Vec::new();
    let mut see = |record: &dyn ChainRecord| {
        seen.push((record.topic(), record.partition(), record.offset(), record.value().to_vec(), record.writing()));
    };
    kafka.read_all(Topic::Logs, |record| see(record)).unwrap();
    let expected = |offset, value: &str, writing| {
        (Topic::Logs, Topic::Logs.partition_of("31337"), offset, value.as_bytes().to_vec(), writing)
    };
    assert_eq!(seen, [expected(0, "first", Some(77)), expected(1, "second", None), expected(2, "third", None)]);
}
