//! What a fault keeps from being processed, while all else of its partition goes on: rows of `set_aside`.
//!
//! A row belongs to a [`FoldStage`] and one of its partitions, and has an offset of its own. The stage's transactions read the
//! rows of their partitions after the claim, so whoever removes a row under the same lock is noticed.

use crate::failure::Failure;
use crate::fold::FoldStage;
use anyhow::anyhow;
use deadpool_postgres::GenericClient;
use tokio_postgres::Row;

/// A row of `set_aside`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    pub stage: String,
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

/// All that is set aside by stages that keep their offsets in Postgres.
///
/// # Errors
/// When the database fails.
pub async fn all(db: &impl GenericClient) -> Result<Vec<SetAside>, Failure> {
    let sql = "SELECT stage, topic, partition, item, next_offset, cause FROM set_aside ORDER BY stage, item, partition";
    let statement = db.prepare_cached(sql).await?;
    Ok(db.query(&statement, &[]).await?.iter().map(SetAside::of).collect())
}

/// Forgets an item of a stage; its records stay unprocessed.
///
/// # Errors
/// When the database fails.
pub async fn forget(db: &impl GenericClient, stage: &str, item: &str) -> Result<(), Failure> {
    db.execute("DELETE FROM set_aside WHERE stage = $1 AND item = $2", &[&stage, &item]).await?;
    Ok(())
}

impl FoldStage {
    /// What the stage has set aside in a partition. In a transaction it comes after [`claim`](Self::claim), or at the same time.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_aside_in(&self, db: &impl GenericClient, partition: i32) -> Result<Vec<SetAside>, Failure> {
        let sql = "SELECT stage, topic, partition, item, next_offset, cause FROM set_aside
                   WHERE stage = $1 AND topic = $2 AND partition = $3";
        let statement = db.prepare_cached(sql).await?;
        let rows = db.query(&statement, &[&self.stage, &self.topic.name(), &partition]).await?;
        Ok(rows.iter().map(SetAside::of).collect())
    }

    /// Sets an item aside from an offset on. One that is set aside already stays where it is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_aside(
        &self,
        db: &impl GenericClient,
        partition: i32,
        item: &str,
        next_offset: i64,
        cause: &str,
    ) -> Result<(), Failure> {
        let sql = "INSERT INTO set_aside (stage, topic, partition, item, next_offset, cause) VALUES ($1, $2, $3, $4, $5, $6)
                   ON CONFLICT (stage, topic, partition, item) DO UPDATE SET cause = EXCLUDED.cause";
        db.execute(sql, &[&self.stage, &self.topic.name(), &partition, &item, &next_offset, &cause]).await?;
        Ok(())
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
