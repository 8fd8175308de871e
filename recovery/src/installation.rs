//! The row of `installation`: which installation a database belongs to. It is written at the first start, and each intent names it.
//!
//! Two installations on the same topics would give out the same addresses if they have the same xpub. The newcomer is refused; the
//! one that was there first says so.

use anyhow::{Context as _, Result, anyhow};
use deadpool_postgres::GenericClient;
use runtime::compared::IntentsTopic;
use runtime::db::Lineage;
use runtime::{Failure, db};
use uuid::Uuid;

/// The installation of this database; a new one if it has none yet.
///
/// # Errors
/// When the database fails.
pub async fn installation(db: &impl GenericClient) -> Result<Uuid, Failure> {
    let select = db.prepare_cached("SELECT id FROM installation").await?;
    if let Some(row) = db.query_opt(&select, &[]).await? {
        return Ok(row.get(0));
    }
    db.execute("INSERT INTO installation (id) VALUES (gen_random_uuid()) ON CONFLICT DO NOTHING", &[]).await?;
    Ok(db.query_one(&select, &[]).await?.get(0))
}

/// Notes another installation that writes to the same topics, for every process of this one.
///
/// # Errors
/// When the database fails.
pub async fn note_other(db: &impl GenericClient, other: Uuid) -> Result<(), Failure> {
    db.execute("UPDATE installation SET other = $1, other_seen_at = now()", &[&other]).await?;
    Ok(())
}

/// Another installation that has written to the same topics within a day.
///
/// # Errors
/// When the database fails.
pub async fn other(db: &impl GenericClient) -> Result<Option<Uuid>, Failure> {
    let select = "SELECT other FROM installation WHERE other_seen_at > now() - interval '1 day'";
    let select = db.prepare_cached(select).await?;
    Ok(db.query_opt(&select, &[]).await?.and_then(|row| row.get(0)))
}

/// Which database has caught up with the topics last under this row, as [`Lineage`] says it.
///
/// # Errors
/// When the database fails.
pub async fn caught_up_lineage(db: &impl GenericClient) -> Result<Option<String>, Failure> {
    let select = db.prepare_cached("SELECT lineage FROM installation").await?;
    Ok(db.query_opt(&select, &[]).await?.and_then(|row| row.get(0)))
}

/// Notes that this database has caught up; `None` that it has to anew.
///
/// # Errors
/// When the database fails.
pub async fn note_lineage(db: &impl GenericClient, lineage: Option<&Lineage>) -> Result<(), Failure> {
    db.execute("UPDATE installation SET lineage = $1", &[&lineage.map(Lineage::to_string)]).await?;
    Ok(())
}

/// Notes that the database has been compared with this `payment.intents`, to its end, and that it lacks nothing of ours.
///
/// # Errors
/// When the database fails.
pub async fn note_compared(db: &impl GenericClient, topic: &IntentsTopic) -> Result<(), Failure> {
    let IntentsTopic { name, cluster } = topic;
    db.execute("UPDATE installation SET compared = $1, compared_cluster = $2", &[name, cluster]).await?;
    Ok(())
}

/// Notes cTrip's own account, which has to be registered, in place of none or of the one that it `replaces`. Merchants of whom a restore
/// says the same are in no doubt any more.
///
/// # Errors
/// `Halt` when another is noted: new addresses would be of a wallet that nobody may have. When the database fails.
pub async fn note_own_account(db: &impl GenericClient, fingerprint: &str, replaces: Option<&str>) -> Result<(), Failure> {
    let sql = "WITH noted AS (
                   UPDATE installation SET own_account = $1 WHERE coalesce(own_account, $1) IN ($1, $2) RETURNING 1
               ), decided AS (
                   DELETE FROM restored_accounts r USING merchants m, noted
                   WHERE m.id = r.merchant_id AND coalesce(m.xpub, $1) = r.account
               )
               SELECT own_account, EXISTS (SELECT FROM noted) FROM installation";
    let row = db.query_one(sql, &[&fingerprint, &replaces]).await?;
    let (was, is_noted): (Option<&str>, bool) = (row.get(0), row.get(1));
    if !is_noted {
        // The statement above may have waited for another start, and shows what was there before that.
        let row = db.query_one("SELECT own_account FROM installation", &[]).await?;
        let noted: &str = row.try_get(0)?;
        return Err(Failure::Halt(anyhow!(
            "it is the account {fingerprint}, and the addresses of before are of {noted}: money would go to another wallet. Give the \
             xpub of before, or, if its wallet has a successor, set CTRIP_XPUB_REPLACES={noted}"
        )));
    }
    if let Some(was) = was.filter(|was| *was != fingerprint) {
        tracing::warn!("new addresses are of account {fingerprint}, and no longer of {was}");
    }
    Ok(())
}

/// The fingerprint of cTrip's own account, if one is noted.
///
/// # Errors
/// When the database fails.
pub async fn own_account(db: &impl GenericClient) -> Result<Option<String>, Failure> {
    let select = db.prepare_cached("SELECT own_account FROM installation").await?;
    Ok(db.query_opt(&select, &[]).await?.and_then(|row| row.get(0)))
}

/// Makes the database that of another installation: it takes the place of a database that was lost, and gets what the topics have, from
/// their beginning.
///
/// # Errors
/// When the database fails.
pub async fn adopt(database_url: &str, installation: Uuid) -> Result<()> {
    let db = db::pool(database_url, 1)?.get().await;
    let db = db.with_context(|| format!("Postgres at {} (DATABASE_URL)", db::hosts(database_url)))?;
    let sql = "WITH forgotten AS (DELETE FROM known_offsets)
               INSERT INTO installation (id, lineage) VALUES ($1, 'adopted')
               ON CONFLICT (singleton) DO UPDATE SET id = EXCLUDED.id, other = NULL, lineage = EXCLUDED.lineage, compared = NULL,
                   compared_cluster = NULL";
    db.execute(sql, &[&installation]).await.context("`ctrip migrate` creates the tables")?;
    Ok(())
}
