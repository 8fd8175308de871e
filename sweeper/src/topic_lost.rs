//! Where `sweep.events` has lost records: it was made anew, its end was cut off, or somebody gave it a retention.
//!
//! What Postgres has is written again, under the same ids. What Postgres lacks too nobody knows any more: where the topic is
//! shorter than it was, or lacks what Postgres knows to have been there, a person says first that nothing else was sent. How
//! far it had grown is noted again and again, so that a backup of Postgres has it too.

use crate::engine::store;
use crate::records::{signed_event, write_each};
use crate::restore::Lacking;
use alloy::primitives::B256;
use anyhow::anyhow;
use chain::Chains;
use deadpool_postgres::{Client, GenericClient, Pool};
use runtime::db::Gate;
use runtime::kafka::{Backlog, Publisher};
use runtime::{Failure, Kafka};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;
use uuid::Uuid;

/// The stage that notes how far the topic has grown, and how often it does.
pub const STAGE: &str = "sweeper-growth";
const INTERVAL: Duration = Duration::from_secs(30);

/// Records that are written again together.
const MAX_RECORDS: usize = 500;

/// Where a partition begins and ends.
pub type Places = BTreeMap<i32, (i64, i64)>;

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

/// What there is in all, as a person is asked about it: where the topic changes meanwhile, they are asked again.
fn records(read: &Places) -> i64 {
    read.values().map(|(begins, ends)| ends - begins).sum()
}

/// What of its records the topic has lost, if it has: those that Postgres has, and those of which only their place is known.
fn loss(topic: &str, known: &Places, read: &Places, lacking: &Lacking) -> Option<String> {
    let shorter = shortened(known, read).map(|(partition, cause)| format!("{topic}/{partition} {cause}"));
    let Lacking { signed, outcomes } = lacking;
    let lacks = (!lacking.is_empty())
        .then(|| format!("{topic} lacks {} signed transactions and {} outcomes that it had", signed.len(), outcomes.len()));
    let causes: Vec<String> = shorter.into_iter().chain(lacks).collect();
    (!causes.is_empty()).then(|| causes.join("; "))
}

/// Refuses a topic that has lost records: what was `known` of it before it was read. Returns what it has lost, if a person has
/// said that Postgres has all of that.
///
/// # Errors
/// If nobody has; or when the database fails.
pub async fn refuse(
    db: &Client,
    topic: &str,
    known: &Places,
    read: &Places,
    lacking: &Lacking,
) -> Result<Option<String>, Failure> {
    let Some(cause) = loss(topic, known, read, lacking) else { return Ok(None) };
    let accepted =
        db.query_opt("SELECT accepted FROM outgoing_restored", &[]).await?.and_then(|row| row.get::<_, Option<i64>>(0));
    let records = records(read);
    if accepted == Some(records) {
        return Ok(Some(cause));
    }
    Err(Failure::Retry(anyhow!(
        "{cause}: records of what was sent are lost, and nothing is sent until you say that Postgres has all: \
         INSERT INTO outgoing_restored (lineage, accepted) VALUES ('', {records}) ON CONFLICT (singleton) DO UPDATE SET \
         accepted = excluded.accepted"
    )))
}

/// How far the topic had grown, as this database knows. It grows: to be asked before the topic is.
///
/// # Errors
/// When the database fails.
pub async fn known(db: &impl GenericClient, topic: &str) -> Result<Places, Failure> {
    let statement = db.prepare_cached("SELECT partition, begins, next_offset FROM outgoing_compared WHERE topic = $1").await?;
    Ok(db.query(&statement, &[&topic]).await?.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

/// Notes how the topic is now. Others may have seen more of it, which stays noted unless it `is_shorter` for good.
///
/// # Errors
/// When the database fails.
pub async fn note(db: &impl GenericClient, topic: &str, read: &Places, is_shorter: bool) -> Result<(), Failure> {
    let sql = "INSERT INTO outgoing_compared (topic, partition, begins, next_offset)
               SELECT $1::text, * FROM unnest($2::integer[], $3::bigint[], $4::bigint[])
               ON CONFLICT (topic, partition) DO UPDATE SET begins = excluded.begins, next_offset =
                   CASE WHEN $5 THEN excluded.next_offset ELSE greatest(outgoing_compared.next_offset, excluded.next_offset) END";
    let partitions: Vec<i32> = read.keys().copied().collect();
    let (begins, ends): (Vec<i64>, Vec<i64>) = read.values().copied().unzip();
    db.execute(&db.prepare_cached(sql).await?, &[&topic, &partitions, &begins, &ends, &is_shorter]).await?;
    Ok(())
}

/// Notes how far the topic has grown while the gate is open, and closes it where that is less than before: then the topic is
/// compared. `pool` is behind that gate.
///
/// # Errors
/// When Kafka or the database fails.
pub fn follow(kafka: &Kafka, pool: &Pool, gate: &Gate, handle: &Handle, stop: &CancellationToken) -> Result<(), Failure> {
    let (backlog, topic) = (Backlog::open(kafka)?, kafka.name(Topic::Sweeps));
    while !stop.is_cancelled() {
        if gate.is_open() {
            let known = handle.block_on(async { known(&pool.get().await?, &topic).await })?;
            let ends = backlog.ends(Topic::Sweeps)?;
            if let Some((partition, cause)) = handle.block_on(note_ends(pool, &topic, &known, &ends))? {
                tracing::error!("{topic}/{partition} {cause}: nothing is sent before it is compared");
                gate.close();
            }
        }
        handle.block_on(async { tokio::time::timeout(INTERVAL, stop.cancelled()).await.unwrap_or_default() });
    }
    Ok(())
}

/// Notes where the partitions end now, unless one has lost records.
async fn note_ends(
    pool: &Pool,
    topic: &str,
    known: &Places,
    ends: &BTreeMap<i32, i64>,
) -> Result<Option<(i32, String)>, Failure> {
    let now = ends.iter().map(|(partition, end)| {
        let began = known.get(partition).map_or(0, |(begins, _)| *begins);
        (*partition, (began, *end))
    });
    let now: Places = now.collect();
    let lost = shortened(known, &now);
    if lost.is_none() {
        note(&pool.get().await?, topic, &now, false).await?;
    }
    Ok(lost)
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
