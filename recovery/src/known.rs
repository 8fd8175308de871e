//! Rows of `known_offsets`: up to which offset of a topic the database knows all records. They are written in the transaction that
//! compared the records with the database, so a restored database has those of its backup.

use crate::extent::Extent;
use anyhow::anyhow;
use deadpool_postgres::{Client, GenericClient};
use runtime::Failure;
use runtime::kafka::{Backlog, Mark, Offsets};
use std::collections::BTreeMap;
use topics::Topic;

/// The last record that was read of each partition.
pub type LastRecords = BTreeMap<i32, Mark>;

/// What is known of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The next offset of each partition; none before the first time.
    pub next: Offsets,
    pub last: LastRecords,
}

/// What the database knows of a topic, by its name with the prefix.
///
/// # Errors
/// When the database fails.
pub async fn load(db: &impl GenericClient, topic: &str) -> Result<Known, Failure> {
    let statement = db
        .prepare_cached("SELECT partition, next_offset, last_offset, last_record FROM known_offsets WHERE topic = $1")
        .await?;
    let mut known = Known::default();
    for row in db.query(&statement, &[&topic]).await? {
        let partition: i32 = row.get(0);
        known.next.insert(partition, row.get(1));
        if let (Some(offset), Some(bytes)) = (row.get(2), row.get(3)) {
            known.last.insert(partition, Mark { offset, bytes });
        }
    }
    Ok(known)
}

/// Writes the offsets up to which all is known now, and the last records of those partitions that had any.
///
/// # Errors
/// When the database fails.
pub async fn save(db: &impl GenericClient, topic: &str, next: &Offsets, last: &LastRecords) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "INSERT INTO known_offsets (topic, partition, next_offset, last_offset, last_record)
             SELECT $1, partition, next_offset, last_offset, last_record
             FROM unnest($2::integer[], $3::bigint[], $4::bigint[], $5::bytea[]) AS t (partition, next_offset, last_offset, last_record)
             ON CONFLICT (topic, partition) DO UPDATE SET next_offset = EXCLUDED.next_offset, updated_at = now(),
                 last_offset = coalesce(EXCLUDED.last_offset, known_offsets.last_offset),
                 last_record = coalesce(EXCLUDED.last_record, known_offsets.last_record)",
        )
        .await?;
    let partitions: Vec<i32> = next.keys().copied().collect();
    let offsets: Vec<i64> = next.values().copied().collect();
    let last_offsets: Vec<Option<i64>> = partitions.iter().map(|p| last.get(p).map(|mark| mark.offset)).collect();
    let records: Vec<Option<&[u8]>> = partitions.iter().map(|p| last.get(p).map(|mark| mark.bytes.as_slice())).collect();
    db.execute(&statement, &[&topic, &partitions, &offsets, &last_offsets, &records]).await?;
    Ok(())
}

/// Begins again with what is known still: the topic of this name does not have all records any more that were known of it. What is known
/// of it under the names of other prefixes is forgotten: those lack what is written now, should the prefix be theirs again.
///
/// # Errors
/// When the database fails.
pub async fn rewind(client: &mut Client, topic: Topic, name: &str, known: &Known) -> Result<(), Failure> {
    let transaction = client.transaction().await?;
    transaction.execute("DELETE FROM known_offsets WHERE right(topic, length($1)) = $1", &[&topic.name()]).await?;
    save(&transaction, name, &known.next, &known.last).await?;
    Ok(transaction.commit().await?)
}

/// What is known still of a topic, if it lacks records that the database knows of. A partition that does not answer tells nothing; so
/// where another one lacks some, that is known, and mended, once all answer.
///
/// # Errors
/// When Kafka fails, or a partition does not answer that has to.
pub fn lost(backlog: &Backlog, topic: Topic, known: &Known, extent: Extent) -> Result<Option<Known>, Failure> {
    let (ends, unanswered) = extent.ends(backlog, topic)?;
    let other = backlog.changed(topic, &known.last, &ends)?;
    let mut kept = known.clone();
    for (partition, next) in &mut kept.next {
        let end = ends.get(partition).copied().unwrap_or(*next);
        let from = if other.contains(partition) { 0 } else { end.min(*next) };
        if from < *next {
            *next = from;
            kept.last.remove(partition);
        }
    }
    if kept == *known {
        return Ok(None);
    }
    if !unanswered.is_empty() {
        // Publishing intents again would fail there, and so begin anew at each look.
        let causes = Vec::from_iter(unanswered.into_values()).join("; ");
        return Err(Failure::Retry(anyhow!(
            "{topic} lacks records that Kafka had acknowledged, and is mended once all of it answers: {causes}"
        )));
    }
    Ok(Some(kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;
    use runtime::Kafka;

    /// Its intents would be published again at each look.
    #[test]
    fn a_topic_that_lacks_records_is_mended_once_all_its_partitions_answer() {
        let (cluster, topic) = (MockCluster::new(1).unwrap(), Topic::Intents);
        cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap();
        let backlog = Backlog::open(&Kafka::on_brokers(&cluster.bootstrap_servers())).unwrap();
        let known = |of_five| Known { next: Offsets::from([(3, 4), (5, of_five)]), last: LastRecords::new() };
        let lost = |known: &Known| super::lost(&backlog, topic, known, Extent::Answered);
        cluster.partition_leader(topic.name(), 3, None).unwrap();
        assert_eq!(lost(&known(0)).unwrap(), None, "one that does not answer tells nothing");
        let told = lost(&known(9)).unwrap_err().to_string();
        assert!(told.contains("payment.intents/3") && told.contains("lacks records"), "{told}");
        cluster.partition_leader(topic.name(), 3, Some(1)).unwrap();
        let mended = (0..10).find_map(|_| lost(&known(9)).ok());
        assert_eq!(mended, Some(Some(Known { next: Offsets::from([(3, 0), (5, 0)]), last: LastRecords::new() })));
    }
}
