//! Looking through a partition up to where the stage reads. All that is below has been there; what Kafka has lost of it, or does not show for
//! now, is not passed over.

use runtime::Failure;
use runtime::kafka::{PartitionReader, Record};
use std::ops::ControlFlow;

/// Where a look through the waiting records has ended.
pub enum Sought<T> {
    Found(T),
    /// There was no time for the rest, or it is not there.
    Until(i64),
    /// Nothing is found up to here, where the stage reads.
    None(i64),
}

/// Shows the records of a partition from an offset on, below a limit, until one breaks off.
pub fn seek_in<T>(
    reader: &PartitionReader,
    from: i64,
    limit: i64,
    mut see: impl FnMut(&Record<'_>) -> Result<ControlFlow<Sought<T>>, Failure>,
) -> Result<Sought<T>, Failure> {
    reader.seek(from);
    let mut next = from;
    loop {
        match next_below(reader, next, limit)? {
            Next::Record(record) => {
                if let ControlFlow::Break(sought) = see(&record)? {
                    return Ok(sought);
                }
                next = record.offset() + 1;
            }
            Next::None => return Ok(Sought::None(limit.max(from))),
            Next::Unseen => return Ok(Sought::Until(next)),
        }
    }
}

/// What comes next below a limit.
pub enum Next<'r> {
    Record(Record<'r>),
    None,
    /// The partition ends before the limit, although the stage has read up to there: Kafka has lost the rest, or does not show it yet.
    Unseen,
}

/// The next record of a partition that is read up to an offset.
pub fn next_below(reader: &PartitionReader, from: i64, limit: i64) -> Result<Next<'_>, Failure> {
    if from >= limit {
        return Ok(Next::None);
    }
    if let Some(record) = reader.next()? {
        return Ok(if record.offset() < limit { Next::Record(record) } else { Next::None });
    }
    if reader.end_now()? < limit {
        return Ok(Next::Unseen);
    }
    // It may have been shown since. Else retention has deleted what was there, or another leader that does not show it has taken over.
    reader.seek(from);
    match reader.next()? {
        Some(record) if record.offset() < limit => Ok(Next::Record(record)),
        None if reader.end_now()? < limit => Ok(Next::Unseen),
        _ => Ok(Next::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;
    use runtime::kafka::{Kafka, TransactionalProducer};
    use topics::Topic;

    #[test]
    fn what_a_partition_does_not_show_yet_is_not_looked_through() {
        const KEY: &str = "1";
        let (cluster, topic) = (MockCluster::new(1).unwrap(), Topic::Matches);
        cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap();
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let producer = TransactionalProducer::open(&kafka, "lab").unwrap();
        let write = |values: &[u8]| {
            let transaction = producer.begin().unwrap();
            values.iter().for_each(|value| transaction.send(topic, KEY, &[*value]).unwrap());
            transaction.commit().unwrap();
        };
        write(&[0, 1, 2]);
        let reader = PartitionReader::open_at_once(&kafka, topic, topic.partition_of(KEY)).unwrap();
        let end = reader.end();
        let sought = |from, limit, wanted: u8| {
            let see = |record: &Record<'_>| {
                Ok(if record.payload() == [wanted] {
                    ControlFlow::Break(Sought::Found(record.offset()))
                } else {
                    ControlFlow::Continue(())
                })
            };
            match seek_in(&reader, from, limit, see).unwrap() {
                Sought::Found(offset) => ("found", offset),
                Sought::Until(offset) => ("until", offset),
                Sought::None(offset) => ("none", offset),
            }
        };
        assert_eq!((sought(0, 2, 1), sought(0, 2, 2), sought(7, 5, 9)), (("found", 1), ("none", 2), ("none", 7)));
        // The stage has read up to 20, which Kafka has lost, or a new leader does not show yet.
        let (how, seen) = sought(0, 20, 9);
        assert!(how == "until" && seen <= end, "{how} {seen}");
        let next = |from, limit| {
            reader.seek(from);
            match next_below(&reader, from, limit).unwrap() {
                Next::Record(record) => format!("{}", record.offset()),
                Next::None => "none".to_owned(),
                Next::Unseen => "unseen".to_owned(),
            }
        };
        assert_eq!([next(1, 3), next(2, 2), next(end, 20)], ["1", "none", "unseen"]);
        write(&[9]);
        assert_eq!(sought(seen, 20, 9).0, "found", "once it is there");
    }
}
