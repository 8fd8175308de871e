//! Where `sweep.events` has lost records: it was made anew, its end was cut off, or somebody gave it a retention.
//!
//! What Postgres has is written again, under the same ids. What Postgres lacks too nobody knows any more: where the topic is
//! shorter than it was, a person says first that nothing else was sent.

use crate::engine::store;
use crate::records::{signed_event, write_each};
use crate::restore::Lacking;
use alloy::primitives::B256;
use anyhow::anyhow;
use chain::Chains;
use deadpool_postgres::{Client, GenericClient as _};
use runtime::kafka::Publisher;
use runtime::{Failure, Kafka};
use std::collections::BTreeMap;
use topics::Topic;
use uuid::Uuid;

/// Records that are written again together.
const MAX_RECORDS: usize = 500;

/// Where a partition begins and ends.
type Places = BTreeMap<i32, (i64, i64)>;

/// What is the matter with the first partition that begins later or ends earlier than it did.
fn shortened(known: &Places, read: &Places) -> Option<(i32, String)> {
    let partitions = known.keys().chain(read.keys()).copied();
    let places = |of: &Places, partition| of.get(&partition).copied().unwrap_or_default();
    partitions.map(|partition| (partition, places(known, partition), places(read, partition))).find_map(
        |(partition, (began, ended), (begins, ends))| {
            let is_whole = begins <= began && ends >= ended;
            let cause = format!("is from offset {begins} to {ends}, and was from {began} to {ended}");
            (!is_whole).then_some((partition, cause))
        },
    )
}

/// Refuses a topic that has lost records since it was compared last, as this database says.
///
/// # Errors
/// If it has, until somebody has noted how it is now; or when the database fails.
pub async fn refuse(db: &Client, topic: &str, read: &Places) -> Result<(), Failure> {
    let sql = "SELECT partition, begins, next_offset FROM outgoing_compared WHERE topic = $1";
    let rows = db.query(sql, &[&topic]).await?;
    let known: Places = rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let Some((partition, cause)) = shortened(&known, read) else { return Ok(()) };
    let (begins, next) = read.get(&partition).copied().unwrap_or_default();
    Err(Failure::Retry(anyhow!(
        "{topic}/{partition} {cause}: it has lost records of what was sent, and nothing is sent until you say that Postgres has \
         all: INSERT INTO outgoing_compared VALUES ('{topic}', {partition}, {begins}, {next}) ON CONFLICT (topic, partition) DO \
         UPDATE SET begins = excluded.begins, next_offset = excluded.next_offset"
    )))
}

/// Notes how the topic is now.
///
/// # Errors
/// When the database fails.
pub async fn note(db: &Client, topic: &str, read: &Places) -> Result<(), Failure> {
    let sql = "INSERT INTO outgoing_compared (topic, partition, begins, next_offset)
               SELECT $1::text, * FROM unnest($2::integer[], $3::bigint[], $4::bigint[])
               ON CONFLICT (topic, partition) DO UPDATE SET begins = excluded.begins, next_offset = excluded.next_offset";
    let partitions: Vec<i32> = read.keys().copied().collect();
    let (begins, ends): (Vec<i64>, Vec<i64>) = read.values().copied().unzip();
    db.execute(sql, &[&topic, &partitions, &begins, &ends]).await?;
    Ok(())
}

/// Writes signed transactions again that the topic lacks, and has outcomes told again.
///
/// # Errors
/// When Kafka or the database fails.
pub async fn write_again(
    db: &Client,
    kafka: &Kafka,
    publisher: &Publisher,
    chains: &Chains,
    lacking: Lacking,
) -> Result<(), Failure> {
    let Lacking { signed, outcomes } = lacking;
    if !signed.is_empty() || !outcomes.is_empty() {
        tracing::error!(
            "{} has lost {} signed transactions and {} outcomes that Postgres has: they are written again",
            kafka.name(Topic::Sweeps),
            signed.len(),
            outcomes.len()
        );
    }
    let signed: Vec<B256> = signed.into_iter().collect();
    for hashes in signed.chunks(MAX_RECORDS) {
        let records = store::records(db, hashes, false).await?;
        let name = |id| chains.by_id(id).map_or_else(|| id.to_string(), |chain| chain.name.clone());
        let events: Vec<_> = records.iter().map(|record| signed_event(&name(record.lane.chain), record)).collect();
        write_each(kafka, publisher, &events).await.into_iter().collect::<Result<(), _>>()?;
    }
    let outcomes: Vec<Uuid> = outcomes.into_iter().collect();
    let statement = db.prepare_cached("UPDATE outgoing SET announced = NULL WHERE id = ANY($1)").await?;
    db.execute(&statement, &[&outcomes]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_that_begins_later_or_ends_earlier_has_lost_records() {
        let known = Places::from([(1, (0, 7)), (2, (3, 9))]);
        let lost = |read: &[(i32, (i64, i64))]| shortened(&known, &read.iter().copied().collect()).map(|(at, _)| at);
        assert_eq!(lost(&[(1, (0, 7)), (2, (3, 9))]), None);
        assert_eq!(lost(&[(0, (0, 1)), (1, (0, 8)), (2, (0, 10))]), None, "it grows");
        assert_eq!(lost(&[(2, (3, 9))]), Some(1), "empty");
        assert_eq!(lost(&[(1, (0, 6)), (2, (3, 9))]), Some(1), "shorter");
        assert_eq!(lost(&[(1, (0, 7)), (2, (4, 9))]), Some(2), "its first are gone");
        assert_eq!(lost(&[(0, (5, 9)), (1, (0, 7)), (2, (3, 9))]), Some(0), "it was never seen from its beginning");
    }
}
