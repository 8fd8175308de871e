//! What a fault keeps from being processed, while all else of its partition goes on: rows of `set_aside`.
//!
//! A row belongs to a stage and one of its partitions, and has an offset of its own. The transactions of a [`FoldStage`] read the
//! rows of their partitions after the claim, so whoever removes a row under the same lock is noticed.

use crate::failure::Failure;
use crate::fold::{CLAIM, FoldStage, Span};
use crate::kafka::Kafka;
use anyhow::anyhow;
use base::metrics;
use deadpool_postgres::{GenericClient, Pool};
use std::collections::BTreeMap;
use tokio_postgres::Row;
use topics::Topic;

const SET_ASIDE_IN: &str = "SELECT stage, topic, partition, item, next_offset, cause FROM set_aside
    WHERE stage = $1 AND topic = $2 AND partition = $3";
/// An index entry has room for some 2,700 bytes.
const MAX_ITEM_CHARS: usize = 200;
const MAX_CAUSE_CHARS: usize = 2_000;

/// A row of `set_aside`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    pub stage: String,
    /// The topic's name with the prefix.
    pub topic: String,
    pub partition: i32,
    /// A chain's id, an event's, or a lost payment's.
    pub item: String,
    /// The first record that is not processed, or an earlier one.
    pub next_offset: i64,
    pub cause: String,
}

impl SetAside {
    fn of(row: &Row) -> Self {
        let text = |column| row.get::<_, String>(column);
        Self { stage: text(0), topic: text(1), partition: row.get(2), item: text(3), next_offset: row.get(4), cause: text(5) }
    }
}

/// All that is set aside in the topics of this prefix, by stages that keep their offsets in Postgres. After a loss that may be a row
/// for each intent.
///
/// # Errors
/// When the database fails.
pub async fn all(db: &impl GenericClient, topic_prefix: &str) -> Result<Vec<SetAside>, Failure> {
    load(db, topic_prefix, |_| true).await
}

/// The chains that are set aside.
///
/// # Errors
/// When the database fails.
pub async fn chains(db: &impl GenericClient, topic_prefix: &str) -> Result<Vec<SetAside>, Failure> {
    load(db, topic_prefix, has_chains).await
}

/// How many items each stage has set aside that are no chains.
///
/// # Errors
/// When the database fails.
pub async fn counts(db: &impl GenericClient, topic_prefix: &str) -> Result<BTreeMap<String, i64>, Failure> {
    let sql = "SELECT stage, count(*) FROM set_aside WHERE topic = ANY($1) GROUP BY stage";
    let statement = db.prepare_cached(sql).await?;
    let rows = db.query(&statement, &[&names(topic_prefix, |topic| !has_chains(topic))]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Whether what is set aside in the topic is chains.
fn has_chains(topic: Topic) -> bool {
    topic == Topic::Matches
}

fn names(topic_prefix: &str, of: impl Fn(Topic) -> bool) -> Vec<String> {
    Topic::ALL.into_iter().filter(|topic| of(*topic)).map(|topic| format!("{topic_prefix}{topic}")).collect()
}

async fn load(db: &impl GenericClient, topic_prefix: &str, of: impl Fn(Topic) -> bool) -> Result<Vec<SetAside>, Failure> {
    let sql = "SELECT stage, topic, partition, item, next_offset, cause FROM set_aside WHERE topic = ANY($1)
               ORDER BY stage, item, partition";
    let statement = db.prepare_cached(sql).await?;
    Ok(db.query(&statement, &[&names(topic_prefix, of)]).await?.iter().map(SetAside::of).collect())
}

/// Sets an item of a topic's partition aside from an offset on. One that is set aside already stays where it is. Its name and the
/// cause may have come with a record: what Postgres can't keep of them is left out.
///
/// # Errors
/// When the database fails.
pub async fn set_aside(
    db: &impl GenericClient,
    stage: &str,
    (topic, partition): (&str, i32),
    item: &str,
    next_offset: i64,
    cause: &str,
) -> Result<(), Failure> {
    let sql = "INSERT INTO set_aside (stage, topic, partition, item, next_offset, cause) VALUES ($1, $2, $3, $4, $5, $6)
               ON CONFLICT (stage, topic, partition, item) DO UPDATE SET cause = EXCLUDED.cause";
    let (item, cause) = (kept(item, MAX_ITEM_CHARS), kept(cause, MAX_CAUSE_CHARS));
    db.execute(sql, &[&stage, &topic, &partition, &item, &next_offset, &cause]).await?;
    Ok(())
}

/// Forgets items that a stage has set aside in a topic; their records stay unprocessed. Returns how many there were.
///
/// # Errors
/// When the database fails.
pub async fn forget(db: &impl GenericClient, stage: &str, topic: &str, items: &[String]) -> Result<u64, Failure> {
    let sql = "DELETE FROM set_aside WHERE stage = $1 AND topic = $2 AND item = ANY($3)";
    Ok(db.execute(sql, &[&stage, &topic, &items]).await?)
}

/// A text of Postgres has no NUL.
fn kept(text: &str, max_chars: usize) -> String {
    text.chars().filter(|char| *char != '\0').take(max_chars).collect()
}

impl FoldStage {
    /// Tells how much the stage has set aside, of a kind that is no chains.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn report_set_aside(&self, kafka: &Kafka, pool: &Pool, kind: &str) -> Result<(), Failure> {
        let counts = counts(&pool.get().await?, kafka.topic_prefix()).await?;
        #[expect(clippy::cast_precision_loss, reason = "2^52 items are not met")]
        let count = counts.get(self.stage).copied().unwrap_or_default() as f64;
        metrics::SET_ASIDE.gauge(&[("kind", kind)]).set(count);
        Ok(())
    }

    /// [`claim`](Self::claim), and then what the stage has set aside in the partition, in one round trip.
    ///
    /// # Errors
    /// As for `claim`.
    pub async fn claim_beside_set_aside(&self, db: &impl GenericClient, span: &Span) -> Result<Vec<SetAside>, Failure> {
        // Whichever were prepared first would run first.
        db.prepare_cached(CLAIM).await?;
        db.prepare_cached(SET_ASIDE_IN).await?;
        let (claimed, aside) = tokio::join!(biased; self.claim(db, span), self.set_aside_in(db, &span.topic, span.partition));
        claimed?;
        aside
    }

    /// What the stage has set aside in a partition of the topic with this name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_aside_in(&self, db: &impl GenericClient, topic: &str, partition: i32) -> Result<Vec<SetAside>, Failure> {
        let statement = db.prepare_cached(SET_ASIDE_IN).await?;
        let rows = db.query(&statement, &[&self.stage, &topic, &partition]).await?;
        Ok(rows.iter().map(SetAside::of).collect())
    }

    /// [`set_aside`] by this stage.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_aside(
        &self,
        db: &impl GenericClient,
        place: (&str, i32),
        item: &str,
        next_offset: i64,
        cause: &str,
    ) -> Result<(), Failure> {
        set_aside(db, self.stage, place, item, next_offset, cause).await
    }

    /// Advances the offset of what is set aside, and keeps its row locked until the commit.
    ///
    /// # Errors
    /// `Retry` when another instance has advanced or removed it, or the database fails.
    pub async fn claim_set_aside(&self, db: &impl GenericClient, item: &SetAside, next: i64) -> Result<(), Failure> {
        let sql = "UPDATE set_aside SET next_offset = $6
                   WHERE stage = $1 AND topic = $2 AND partition = $3 AND item = $4 AND next_offset = $5";
        let SetAside { stage, topic, partition, item, next_offset, .. } = item;
        if db.execute(sql, &[stage, topic, partition, item, next_offset, &next]).await? == 0 {
            return Err(Failure::Retry(anyhow!(
                "{item} is no longer set aside at offset {next_offset} of {topic}/{partition}"
            )));
        }
        Ok(())
    }

    /// Ends the setting aside of an item whose offset is the stage's own. Returns whether it is: further back something waits
    /// still, and what is done ahead of the stage, the stage would do again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rejoin(&self, db: &impl GenericClient, item: &SetAside) -> Result<bool, Failure> {
        // The lock of the stage's offset: no batch of the partition is half way.
        let sql = "SELECT next_offset FROM stage_offsets WHERE stage = $1 AND topic = $2 AND partition = $3 FOR UPDATE";
        let SetAside { stage, topic, partition, item, next_offset, .. } = item;
        let row = db.query_opt(sql, &[stage, topic, partition]).await?;
        if row.is_some_and(|row| row.get::<_, i64>(0) != *next_offset) {
            return Ok(false);
        }
        let sql = "DELETE FROM set_aside
                   WHERE stage = $1 AND topic = $2 AND partition = $3 AND item = $4 AND next_offset = $5";
        Ok(db.execute(sql, &[stage, topic, partition, item, next_offset]).await? > 0)
    }
}
