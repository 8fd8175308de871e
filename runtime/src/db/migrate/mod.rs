//! Migrations, embedded in the binary from `migrations/`.
//!
//! They run while roles work. A statement that waits for a lock on a table makes all others queue behind it, so none waits long: the
//! migration is rolled back and tried again. One that is marked runs outside a transaction, step by step, such as one that builds an
//! index while others write, or fills a column a thousand rows at a time.

mod history;
mod text;

use super::error::is_lock_timeout;
use super::lock;
use super::primary::Primary;
use anyhow::Context as _;
use refinery::{Migration, Runner, Target};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// How long a statement in a transaction waits for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// In between, those that have queued go on.
const PAUSE: Duration = Duration::from_secs(1);
/// After this time of trying, the migration fails.
const MAX_TRYING: Duration = Duration::from_secs(60);
const TURN_INTERVAL: Duration = Duration::from_millis(200);

mod embedded {
    refinery::embed_migrations!("../migrations");
}

/// Migrations in their order.
pub struct Migrations(Vec<Migration>);

/// Brings the database to this version, and does nothing if it is there already. Processes may race.
///
/// # Errors
/// When the database can't be reached, or its history is not ours.
pub async fn migrate(url: &str) -> anyhow::Result<()> {
    Migrations::embedded().run(url).await
}

/// Why this version does not work on the database, if it is of a version from which nothing leads here.
///
/// # Errors
/// When the database fails.
pub async fn contradicting_history(primary: &Primary) -> Result<Option<String>, tokio_postgres::Error> {
    let (client, _) = primary.open().await?;
    Ok(history::contradiction(&Migrations::embedded().0, &history::read(&client).await?))
}

impl Migrations {
    /// Those of this version.
    pub fn embedded() -> Self {
        let mut all = embedded::migrations::runner().get_migrations().clone();
        all.sort();
        Self(all)
    }

    /// Others, by name and text, in their order.
    ///
    /// # Errors
    /// When a name is not like `V1__name`.
    pub fn of(files: &[(&str, &str)]) -> anyhow::Result<Self> {
        Ok(Self(files.iter().map(|(name, sql)| Migration::unapplied(name, sql)).collect::<Result<_, _>>()?))
    }

    /// Runs those that the database lacks.
    ///
    /// # Errors
    /// As for [`migrate`].
    pub async fn run(&self, url: &str) -> anyhow::Result<()> {
        let (mut client, driver) = connect(url).await?;
        // Another process may migrate for hours, to a version that this one works beside.
        if history::pending(&self.0, &history::read(&client).await?)?.is_empty() {
            return Ok(());
        }
        take_turn(&client).await.context("waiting for other migrations")?;
        // An operator's limit is for the statements of roles.
        client.batch_execute("SET statement_timeout = 0").await?;
        for migration in history::pending(&self.0, &history::read(&client).await?)? {
            self.apply_in_time(&mut client, migration).await.with_context(|| format!("migrating the database: {migration}"))?;
            tracing::info!("applied migration {migration}");
        }
        drop(client);
        driver.await.context("the database connection")
    }

    /// A line on each of those that the database lacks. Changes nothing.
    ///
    /// # Errors
    /// As for [`migrate`].
    pub async fn plan(&self, url: &str) -> anyhow::Result<Vec<String>> {
        let (client, _) = connect(url).await?;
        Ok(history::pending(&self.0, &history::read(&client).await?)?.into_iter().map(text::plan).collect())
    }

    async fn apply_in_time(&self, client: &mut Client, migration: &Migration) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            match self.apply(client, migration).await {
                Err(error) if is_lock_timeout(&error) && started.elapsed() < MAX_TRYING => {
                    tracing::warn!("{migration} waits for a table that a transaction keeps; it is tried again in {PAUSE:?}");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) if is_lock_timeout(&error) => {
                    let cure =
                        "a transaction keeps a table for long: end it (pg_stat_activity has it), then `ctrip migrate` again";
                    return Err(error.context(cure));
                }
                outcome => return outcome,
            }
        }
    }

    async fn apply(&self, client: &mut Client, migration: &Migration) -> anyhow::Result<()> {
        let sql = migration.sql().unwrap_or_default();
        let runs_alone = text::is_outside_transaction(sql);
        // What runs outside a transaction waits for those of others, and keeps nobody out meanwhile.
        let limit = if runs_alone { Duration::ZERO } else { LOCK_TIMEOUT };
        client.batch_execute(&format!("SET lock_timeout = {}", limit.as_millis())).await?;
        let target = if runs_alone {
            for step in text::steps(sql) {
                client.batch_execute(step).await?;
            }
            Target::FakeVersion(migration.version())
        } else {
            Target::Version(migration.version())
        };
        Runner::new(&self.0).set_target(target).run_async(client).await?;
        Ok(())
    }
}

async fn connect(url: &str) -> anyhow::Result<(Client, JoinHandle<()>)> {
    let primary = Primary::of(url)?;
    let opened = tokio::time::timeout(primary.patience(), primary.open()).await;
    opened.context("DATABASE_URL: no server answers")?.context("connecting to DATABASE_URL")
}

/// Two processes that start together would otherwise both find the first migration missing. A statement that waits is a transaction that
/// is open, for which the building of an index waits in turn, so this asks again and again.
async fn take_turn(client: &Client) -> Result<(), tokio_postgres::Error> {
    let mut waits = false;
    while !client.query_one("SELECT pg_try_advisory_lock($1)", &[&lock::MIGRATIONS]).await?.get::<_, bool>(0) {
        if !std::mem::replace(&mut waits, true) {
            tracing::info!("another process migrates the database; waiting for it");
        }
        tokio::time::sleep(TURN_INTERVAL).await;
    }
    Ok(())
}
