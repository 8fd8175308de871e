use super::*;
use rdkafka::mocking::MockCluster;
use runtime::db;
use runtime::kafka::TransactionalProducer;
use tokio::runtime::Runtime;

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
    const CHAIN: &str = "31337";
    let (cluster, topic) = (MockCluster::new(1).unwrap(), Topic::Matches);
    cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap();
    let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
    let producer = TransactionalProducer::open(&kafka, "lab").unwrap();
    let transaction = producer.begin().unwrap();
    (0..3).for_each(|_| transaction.send(topic, CHAIN, b"no match").unwrap());
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
        chain: ChainId(31337),
        item,
        batch: FOLDING.max_records,
        looked: &mut looked,
    };
    // The new beginning was at 9, which Kafka has lost, or a new leader does not show yet.
    assert!(!returning.pass_to(&reader, 9, 0).unwrap());
    assert_eq!(returning.item.next_offset, 0);
    assert!(returning.pass_to(&reader, 2, 0).is_err(), "all is seen, and to be passed over");
}
