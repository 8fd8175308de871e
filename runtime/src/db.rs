//! Postgres: the pool and the migrations.

use crate::failure::Failure;
use crate::metrics;
use anyhow::Context as _;
use deadpool_postgres::{ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, PoolBuilder, RecyclingMethod, Runtime};
use std::time::Duration;
use tokio_postgres::{Config, NoTls};

mod embedded {
    refinery::embed_migrations!("../migrations");
}

/// A pool of at most `size` connections, none opened yet.
///
/// # Errors
/// When the URL does not parse.
pub fn pool(url: &str, size: usize) -> anyhow::Result<Pool> {
    Ok(builder(url, size)?.build()?)
}

/// [`pool`] for statements that read ranges of indexes and nothing else, whatever their parameters are. They are planned once:
/// Postgres would otherwise plan a large one anew each time, since it can't know that a range of a large table is a short one,
/// and planning takes longer than reading. And never by a table's size when it was still small.
///
/// # Errors
/// When the URL does not parse.
pub fn pool_of_ranges(url: &str, size: usize, commits: Commits) -> anyhow::Result<Pool> {
    let settings = match commits {
        Commits::Last => "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off",
        Commits::MayBeUndone => {
            "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET synchronous_commit = off"
        }
    };
    let set = Hook::async_fn(move |client: &mut ClientWrapper, _| {
        Box::pin(async move { client.batch_execute(settings).await.map_err(HookError::Backend) })
    });
    Ok(builder(url, size)?.post_create(set).build()?)
}

/// What a commit of a pool's connections means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commits {
    /// It is on disk.
    Last,
    /// A crash of Postgres undoes those of its last half second, in order and each as a whole: for work that is then done again.
    MayBeUndone,
}

fn builder(url: &str, size: usize) -> anyhow::Result<PoolBuilder> {
    // The URL holds a password, so it is not repeated in the error.
    let mut config: Config = url.parse().context("DATABASE_URL: expected postgres://user:password@host:port/database")?;
    config.connect_timeout(Duration::from_secs(5));
    // A dead peer is noticed, and a backend never waits on a client that is gone while it holds a row's lock.
    config.keepalives_idle(Duration::from_secs(10));
    config.application_name("ctrip");
    let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let pool = Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1);
    Ok(pool.wait_timeout(Some(Duration::from_secs(10))).create_timeout(Some(Duration::from_secs(5))))
}

/// Advisory locks by number, here so that no two are the same; others are hashes of names.
pub mod lock {
    /// Held while migrating.
    pub const MIGRATIONS: i64 = 7_233_017;
    /// Held by the relay that works.
    pub const RELAY: i64 = 7_233_018;
}

/// Brings the database to this version; harmless when it is there already. Refinery locks, so processes may race.
///
/// # Errors
/// When the database can't be reached, or its history is not ours.
pub async fn migrate(url: &str) -> anyhow::Result<()> {
    let config: Config = url.parse().context("DATABASE_URL: expected postgres://user:password@host:port/database")?;
    let (mut client, connection) = config.connect(NoTls).await.context("connecting to DATABASE_URL")?;
    let driver = tokio::spawn(connection);
    // Two processes that start together would both find the first migration missing.
    client.execute("SELECT pg_advisory_lock($1)", &[&lock::MIGRATIONS]).await.context("waiting for other migrations")?;
    let report = embedded::migrations::runner().run_async(&mut client).await.context("migrating the database")?;
    for migration in report.applied_migrations() {
        tracing::info!("migrated the database: {migration}");
    }
    drop(client);
    driver.await.context("the database connection")?.context("the database connection")?;
    Ok(())
}

/// Records how a pool is used.
pub fn observe(pool: &Pool, role: &'static str) {
    let status = pool.status();
    #[expect(clippy::cast_precision_loss, reason = "a pool has dozens of connections")]
    let gauge = |state, value: usize| metrics::POOL_CONNECTIONS.gauge(&[("role", role), ("state", state)]).set(value as f64);
    gauge("open", status.size);
    gauge("idle", status.available);
    gauge("waiting", status.waiting);
}

/// What to do about a failed query: a lost connection, a deadlock or a serialisation failure passes; anything else means
/// that our SQL and the data contradict each other.
pub fn failure(error: tokio_postgres::Error) -> Failure {
    let passes = error.code().is_none_or(|code| {
        let class = &code.code()[..2];
        // Connection, transaction rollback, resources, operator intervention, system error.
        matches!(class, "08" | "40" | "53" | "57" | "58" | "25")
    });
    // An error with a cause says only "db error" itself; the chain has the rest.
    if passes { Failure::retry(error) } else { Failure::halt(error) }
}

/// What to do when no connection was to be had: wait for one.
pub fn unavailable(error: deadpool_postgres::PoolError) -> Failure {
    match error {
        deadpool_postgres::PoolError::Backend(error) => Failure::retry(error),
        other => Failure::retry(other),
    }
}
