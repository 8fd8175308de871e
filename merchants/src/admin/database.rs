//! The database as a command uses it: one connection, and errors that tell the operator the remedy.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use deadpool_postgres::{Client, Pool, Transaction};
use runtime::db::{self, Lineage};
use tokio_postgres::error::SqlState;

const MAX_NAME_CHARS: usize = 255;

pub fn pool(database_url: &str) -> Result<Pool> {
    db::pool(database_url, 1)
}

pub async fn connect(database_url: &str) -> Result<Client> {
    pool(database_url)?.get().await.with_context(|| format!("Postgres at {} (DATABASE_URL)", db::hosts(database_url)))
}

pub fn check_name(name: &str) -> Result<()> {
    if name.trim().is_empty() || name.chars().count() > MAX_NAME_CHARS {
        bail!("expected a merchant's name of 1 to {MAX_NAME_CHARS} characters");
    }
    Ok(())
}

/// Refuses a new merchant of this name while a restore may have taken one away, or has left one without its name: it may be the same,
/// with payments of its own.
///
/// # Errors
/// When there is such a merchant, the database has not been compared with the topics since it was restored, or it fails.
pub async fn refuse_second_merchant(db: &Transaction<'_>, name: &str) -> Result<()> {
    let lineage = Lineage::of(db.client()).await.map_err(explain)?.to_string();
    let of_other = db.query_opt("SELECT FROM installation WHERE lineage <> $1", &[&lineage]).await.map_err(explain)?;
    ensure!(
        of_other.is_none(),
        "there was no merchant {name:?}, and no role has compared Postgres with the topics since it was restarted or restored: it may \
         have lost this one. Start the roles first, then look at `ctrip merchants list`. If it is another one: `--new-merchant`"
    );
    let sql = "SELECT name FROM merchants WHERE name = 'restored ' || id ORDER BY id LIMIT 1";
    let Some(row) = db.query_opt(sql, &[]).await.map_err(explain)? else { return Ok(()) };
    let restored: &str = row.get(0);
    bail!(
        "there was no merchant {name:?}, and a restore has left {restored:?} without its name, so this one may be it. If it is: `ctrip \
         merchants update {restored:?} --rename NAME`, which keeps its payments and account; `ctrip merchants list` shows all. If it \
         is another one: `--new-merchant`"
    )
}

/// Adds the remedy to an error that an operator can mend.
pub fn explain(error: tokio_postgres::Error) -> anyhow::Error {
    match error.code() {
        Some(&SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_COLUMN) => {
            anyhow!("the database is not migrated to this version: run `ctrip migrate` first")
        }
        _ => error.into(),
    }
}

pub fn merchant_not_found(name: &str) -> anyhow::Error {
    anyhow!("there is no merchant {name:?}; `ctrip merchants list` shows all")
}
