//! Migrations, embedded in the binary from `migrations/`.

use super::lock;
use super::primary::Primary;
use anyhow::Context as _;

mod embedded {
    refinery::embed_migrations!("../migrations");
}

/// Brings the database to this version, and does nothing if it is there already. Processes may race.
///
/// # Errors
/// When the database can't be reached, or its history is not ours.
pub async fn migrate(url: &str) -> anyhow::Result<()> {
    let primary = Primary::of(url)?;
    let opened = tokio::time::timeout(primary.patience(), primary.open()).await;
    let (mut client, driver) = opened.context("DATABASE_URL: no server answers")?.context("connecting to DATABASE_URL")?;
    // Two processes that start together would otherwise both find the first migration missing.
    client.execute("SELECT pg_advisory_lock($1)", &[&lock::MIGRATIONS]).await.context("waiting for other migrations")?;
    let report = embedded::migrations::runner().run_async(&mut client).await.context("migrating the database")?;
    for migration in report.applied_migrations() {
        tracing::info!("applied migration {migration}");
    }
    drop(client);
    driver.await.context("the database connection")?;
    Ok(())
}
