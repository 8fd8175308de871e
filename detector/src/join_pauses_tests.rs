//! How many records wait at most, and which topic is paused then.

use super::*;

#[test]
fn each_topic_is_paused_when_too_much_of_it_waits_and_logs_never_while_a_block_waits_for_its_last_part() {
    let mut join = Join::default();
    let limit = u64::try_from(MAX_WAITING).unwrap();
    for sequence in 1..=limit + 1 {
        if sequence == 1 || sequence > limit {
            assert_eq!(join.pauses(false), [], "no more than may");
        }
        push(&mut join, logs(i64::try_from(sequence).unwrap(), 2, sequence, (0, 0), 5));
    }
    assert_eq!(join.pauses(false), [(Topic::Logs, true)]);
    assert_eq!(join.pauses(false), []);
    push(&mut join, block(1, 1));
    assert_eq!(join.pauses(false), [(Topic::Logs, false)], "the logs of block 1 would never come");
    for sequence in 2..=limit + 1 {
        push(&mut join, block(1, sequence));
    }
    assert_eq!(join.pauses(false), [(Topic::Blocks, true)]);
    assert_eq!(join.pauses(false), []);
}

#[test]
fn nothing_more_is_read_of_a_partition_while_it_is_held() {
    let mut join = Join::default();
    push(&mut join, block(1, 1));
    assert_eq!(join.pauses(true), [(Topic::Blocks, true), (Topic::Logs, true)]);
    assert_eq!(join.pauses(true), []);
    assert_eq!(join.pauses(false), [(Topic::Blocks, false), (Topic::Logs, false)]);
    // One that is paused already stays so when the other goes on.
    for sequence in 2..=u64::try_from(MAX_WAITING).unwrap() + 1 {
        push(&mut join, block(1, sequence));
    }
    assert_eq!(join.pauses(false), [(Topic::Blocks, true)]);
    assert_eq!(join.pauses(true), [(Topic::Logs, true)]);
    assert_eq!(join.pauses(false), [(Topic::Logs, false)]);
}

#[test]
fn replayed_blocks_without_logs_hold_no_more_than_memory_may() {
    let mut join = Join::default();
    push(&mut join, replayed(block(1, 0), 7));
    let limit = 4 * i64::try_from(MAX_WAITING).unwrap();
    for offset in 0..limit {
        push(&mut join, logs(10 + offset, 2, 5, (0, 0), 5));
        assert!(offset % 1000 != 0 || is_waiting(&mut join));
    }
    assert!(is_waiting(&mut join));
    push(&mut join, logs(10 + limit, 2, 5, (0, 0), 5));
    assert!(matches!(join.pop().unwrap(), Popped::WithoutLogs { .. }));
}

#[test]
fn a_topic_is_paused_when_few_large_records_of_it_wait() {
    let large = |offset, bytes| Fake { topic: Topic::Blocks, offset, value: vec![0; bytes], writing: None };
    let mut join = Join::default();
    for offset in 0..2 {
        push(&mut join, large(offset, 64 << 20));
        assert_eq!(join.pauses(false), [], "as much as memory should hold");
    }
    push(&mut join, large(2, 1));
    assert_eq!(join.pauses(false), [(Topic::Blocks, true)]);
}
