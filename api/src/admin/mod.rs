//! What `ctrip merchants` and `ctrip keys` do: an operator's commands, straight on the database.

mod keys;
mod merchants;

pub use keys::{KeyRow, NewKey, create_key, keys, revoke_key, rotate_key};
pub use merchants::{Changes, MerchantRow, create_merchant, merchants, update_merchant};

use anyhow::{Context as _, Result, anyhow, bail};
use deadpool_postgres::{Client, Pool};
use runtime::db;
use tokio_postgres::error::SqlState;

const LONGEST_NAME: usize = 255;

fn pool(database_url: &str) -> Result<Pool> {
    db::pool(database_url, 1)
}

async fn connect(database_url: &str) -> Result<Client> {
    pool(database_url)?.get().await.context("connecting to DATABASE_URL")
}

fn check_name(name: &str) -> Result<()> {
    if name.trim().is_empty() || name.chars().count() > LONGEST_NAME {
        bail!("the merchant's name has to have 1 to {LONGEST_NAME} characters");
    }
    Ok(())
}

/// An error with what an operator can do about it.
fn told(error: tokio_postgres::Error) -> anyhow::Error {
    match error.code() {
        Some(&SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_COLUMN) => {
            anyhow!("the database is not of this version yet: run `ctrip migrate` first")
        }
        _ => error.into(),
    }
}

fn no_merchant(name: &str) -> anyhow::Error {
    anyhow!("there is no merchant {name:?}; `ctrip merchants list` shows those there are")
}
