use super::*;
use rdkafka::mocking::MockCluster;
use runtime::db;
use runtime::kafka::TransactionalProducer;
use tokio::runtime::Runtime;
use topics::{frame, wire};

const CHAIN: &str = "31337";

#[test]
fn what_was_looked_through_is_forgotten_where_the_chain_waits_from_an_earlier_offset() {
    let looked = || Looked { from: 20, for_beginning: 90, ahead: Ahead { from: 30, to: 80, record: None }, for_said: None };
    for (offset, expected) in [(20, (80, 90)), (85, (80, 90)), (19, (0, 0))] {
        let mut looked = looked();
        looked.begin(offset);
        assert_eq!((looked.ahead.to, looked.for_beginning), expected, "{offset}");
    }
}

/// Fewer records are read at a time after a fault, and what comes after them may have been read with them before.
#[test]
fn what_comes_after_some_records_is_not_what_comes_after_those_before_them() {
    let ahead = Ahead { from: 30, to: 80, record: None };
    assert!([29, 30, 80, 81].map(|offset| ahead.is_after(offset)) == [false, true, true, false]);
}

/// Replayed blocks may be among what it does not show, and nobody brings them again.
#[test]
fn a_new_beginning_passes_over_nothing_that_the_partition_does_not_show() {
    on_records(&[b"no match"; 3].map(|value| value.to_vec()), |returning, reader| {
        // The new beginning was at 9, which Kafka has lost, or a new leader does not show yet.
        assert!(!returning.pass_to(reader, 9, 0).unwrap());
        assert_eq!(returning.item.next_offset, 0);
        assert!(returning.pass_to(reader, 2, 0).is_err(), "all is seen, and to be passed over");
    });
}

/// Kafka tells an end once for each assignment: who waited for it twice would wait until the read is given up.
#[test]
fn what_comes_after_the_records_at_a_partitions_end_is_looked_for_without_waiting_for_the_end_again() {
    let record = |sequence| wire::MatchesRecord {
        chain_id: CHAIN.parse().unwrap(),
        sequence,
        kind: wire::matches_record::Kind::Added.into(),
        hash: vec![9; 32].into(),
        parent_hash: vec![8; 32].into(),
        ..Default::default()
    };
    let values = [1, 2].map(|sequence| frame::encode(1, &record(sequence)));
    on_records(&values, |returning, reader| {
        reader.seek(0);
        let waiting = returning.read_waiting(reader, 9).unwrap().unwrap();
        assert!(waiting.records.len() == 2 && !waiting.at_end, "{} records", waiting.records.len());
        returning.item.next_offset = waiting.next;
        let begun = Instant::now();
        assert!(returning.read_waiting(reader, 9).unwrap().is_none());
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    });
}

/// A chain that returns, whose partition has these records.
fn on_records(values: &[Vec<u8>], then: impl FnOnce(&mut Returning<'_>, &PartitionReader)) {
    let (cluster, topic) = (MockCluster::new(1).unwrap(), Topic::Matches);
    cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap();
    let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
    let producer = TransactionalProducer::open(&kafka, "lab").unwrap();
    let transaction = producer.begin().unwrap();
    values.iter().for_each(|value| transaction.send(topic, CHAIN, value).unwrap());
    transaction.commit().unwrap();
    let partition = topic.partition_of(CHAIN);
    let reader = PartitionReader::open_at_once(&kafka, topic, partition).unwrap();
    let (name, item) = (topic.name().to_owned(), CHAIN.to_owned());
    let cause = "records are missing".to_owned();
    let item = SetAside { stage: FOLDING.stage.to_owned(), topic: name, partition, item, next_offset: 0, cause };
    // Nothing listens there: what is written fails.
    let (pool, runtime) = (db::pool("postgres://lab@127.0.0.1:1/lab", 1).unwrap(), Runtime::new().unwrap());
    let (chains, stop, mut looked) = (Chains::from(Vec::new()), CancellationToken::new(), Looked::default());
    let mut returning = Returning {
        pool: &pool,
        chains: &chains,
        handle: runtime.handle(),
        stop: &stop,
        chain: ChainId(CHAIN.parse().unwrap()),
        item,
        batch: FOLDING.max_records,
        looked: &mut looked,
    };
    then(&mut returning, &reader);
}
