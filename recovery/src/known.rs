//! Rows of `known_offsets`: up to which offset of a topic the database knows all records. They are written in the transaction that
//! compared the records with the database, so a restored database has those of its backup.

use crate::catch_up::Extent;
use anyhow::anyhow;
use deadpool_postgres::GenericClient;
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

/// Begins again at these offsets: the topic of this name does not have the records any more that were known of it. What is known of it
/// under the names of other prefixes is forgotten: those lack what is written now, should the prefix be theirs again.
///
/// # Errors
/// When the database fails.
pub async fn rewind(db: &impl GenericClient, topic: Topic, name: &str, next: &Offsets) -> Result<(), Failure> {
    db.execute("DELETE FROM known_offsets WHERE right(topic, length($1)) = $1", &[&topic.name()]).await?;
    save(db, name, next, &LastRecords::new()).await
}

/// From where to compare a topic again, if it lacks records that the database knows of. A partition that does not answer tells nothing.
///
/// # Errors
/// When Kafka fails, or a partition does not answer that has to.
pub fn lost(backlog: &Backlog, topic: Topic, known: &Known, extent: Extent) -> Result<Option<Offsets>, Failure> {
    let ends = match (extent, backlog.answered_ends(topic)?) {
        (Extent::Whole, (_, left_out)) if !left_out.is_empty() => {
            return Err(Failure::Retry(anyhow!(Vec::from_iter(left_out.into_values()).join("; "))));
        }
        (_, (ends, _)) => ends,
    };
    let other = backlog.changed(topic, &known.last, &ends)?;
    let short = |partition: &i32, next: &i64| ends.get(partition).is_some_and(|end| end < next);
    if other.is_empty() && !known.next.iter().any(|(partition, next)| short(partition, next)) {
        return Ok(None);
    }
    let from = |(partition, next): (&i32, &i64)| {
        let end = ends.get(partition).copied().unwrap_or(*next);
        (*partition, if other.contains(partition) { 0 } else { end.min(*next) })
    };
    Ok(Some(known.next.iter().map(from).collect()))
}
