use super::*;
use crate::output::{BLOCK_OFFSET, LOGS_OFFSET, Resumption};
use rdkafka::mocking::MockCluster;
use runtime::kafka::TransactionalProducer;
use topics::{WRITING, wire};

/// The witnessed block is read from what is written, and would be above the blocks that were just removed.
#[test]
fn the_backfill_that_is_named_goes_by_all_that_is_taken() {
    const CHAIN: &str = "31337";
    let cluster = MockCluster::new(1).unwrap();
    let topics = [Topic::Blocks, Topic::Logs, Topic::Matches, Topic::Cursors];
    topics.iter().for_each(|topic| cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap());
    let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
    let producer = TransactionalProducer::open(&kafka, "lab").unwrap();
    // Block 100 is added and removed; what comes then is missing up to block 105.
    let records = [(1, Kind::Added, 100, 99), (2, Kind::Removed, 100, 99), (6, Kind::Added, 105, 104)];
    let match_of = |sequence: u64, transaction: &Transaction<'_>| {
        let (_, kind, number, parent) = records[usize::try_from(sequence - 1).unwrap()];
        let (hash, parent_hash) = (vec![number; 32].into(), vec![parent; 32].into());
        let matched = wire::MatchesRecord {
            chain_id: 31337,
            sequence,
            kind: kind.into(),
            number: number.into(),
            hash,
            parent_hash,
            witnessed_number: (sequence == 1).then_some(100),
            ..Default::default()
        };
        let (offset, mark) = ((sequence - 1).to_string(), sequence.to_string());
        let headers = [(BLOCK_OFFSET, &*offset), (LOGS_OFFSET, &*offset), (WRITING, &*mark)];
        transaction.send_with_headers(Topic::Matches, CHAIN, &kafka.encode(&matched), &headers).unwrap();
    };
    let transaction = producer.begin().unwrap();
    for (sequence, kind, number, parent) in records {
        let (hash, parent_hash) = (vec![number; 32].into(), vec![parent; 32].into());
        let (kind, number) = (kind.into(), number.into());
        let block = wire::BlockRecord { chain_id: 31337, sequence, kind, number, hash, parent_hash, ..Default::default() };
        let mark = sequence.to_string();
        transaction.send_with_headers(Topic::Blocks, CHAIN, &kafka.encode(&block), &[(WRITING, &*mark)]).unwrap();
    }
    match_of(1, &transaction);
    transaction.commit().unwrap();
    let reader = PartitionReader::open_at_once(&kafka, Topic::Blocks, Topic::Blocks.partition_of(CHAIN)).unwrap();
    let next = || reader.next().unwrap().unwrap();
    let (added, removed, later) = (next(), next(), next());
    let mut chains = Chains::new(&kafka, &Held::new(&kafka, "gaps"));
    assert_eq!(chains.action(&added).unwrap(), Action::Pass, "it is matched");
    assert_eq!(chains.action(&removed).unwrap(), Action::Match);
    chains.advance(&removed).unwrap();
    assert_eq!(chains.action(&later).unwrap(), Action::Wait, "{:?}", chains.notices);
    let transaction = producer.begin().unwrap();
    match_of(2, &transaction);
    chains.notify(&transaction).unwrap();
    transaction.commit().unwrap();
    assert_eq!(chains.action(&later).unwrap(), Action::Pass);
    let told = &chains.notices.last().unwrap().2;
    assert!(told.contains("--from 99 --to 104"), "{told}");
}

/// Blocks up to 1,000 were matched, and 1,011 comes next.
fn named(witnessed: Option<u64>) -> String {
    let head = RecordHead { sequence: 7, kind: Kind::Added.into(), number: 1_000, hash: &[1; 32], ..RecordHead::default() };
    let mut progress = Progress::default();
    progress.advance(&head);
    let at = Resumption { blocks: 0, logs: 0 };
    let (hash, parent_hash) = (vec![3; 32], vec![2; 32]);
    let next = FoundRecord { sequence: 30, kind: Kind::Added.into(), number: 1_011, hash, parent_hash, at };
    gap(5, &progress, &next, || Ok(witnessed)).unwrap()
}

#[test]
fn the_backfill_that_is_named_says_again_all_that_is_in_doubt_before_the_gap() {
    for (witnessed, from) in [(Some(400), 400), (Some(1_000), 1_000), (Some(2_000), 1_001), (Some(0), 1), (None, 937)] {
        let (named, command) = (named(witnessed), format!("`ctrip backfill --chain 5 --from {from} --to 1010 --again` closes"));
        assert!(named.contains(&command), "{named}");
        assert_eq!(named.contains("no more than 64 blocks"), witnessed.is_none(), "{named}");
        // The confirmer may have applied something else.
        let is_in_doubt = witnessed.is_none_or(|witnessed| witnessed < 1_000);
        assert_eq!(named.contains("stand as they were matched"), is_in_doubt, "{named}");
    }
}

/// A new beginning would lose what lies in the gap.
#[test]
fn no_new_beginning_is_named_before_the_end_of_a_gap_is_there() {
    let told = no_end_of_gap(5, &Progress::default());
    assert!(told.contains("the next block of chain 5 tells which backfill") && !told.contains("restart"), "{told}");
}
