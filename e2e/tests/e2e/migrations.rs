//! Migrations of a database that is in use, and of one that nothing leads from.

use anyhow::{Result, ensure};
use e2e::{Lab, Stack, eventually};
use runtime::db::{self, Migrations};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

const TABLE: (&str, &str) = ("V1__table", "CREATE TABLE t (a int)");

/// Nothing is released of those versions, and nothing leads from them to this one.
#[tokio::test]
async fn a_database_of_a_version_before_the_first_release_is_refused_with_the_cure() -> Result<()> {
    let lab = Lab::without_topics().await?;
    let plan = lab.ctrip(&["migrate", "--plan"])?;
    ensure!(plan == "the database is at this version", "{plan}");
    let database = lab.database().await?;
    database.execute("UPDATE refinery_schema_history SET name = 'payments' WHERE version = 1", &[]).await?;
    for start in [&["migrate"][..], &["migrate", "--plan"], &["webhooks"], &["up"]] {
        let refused = lab.output(start)?;
        let error = String::from_utf8(refused.stderr)?;
        ensure!(!refused.status.success(), "{start:?}: {error}");
        for part in ["before 0.1.0", "V1__payments", "V1__schema", "empty database", "ctrip migrate"] {
            ensure!(error.contains(part), "{start:?}: no {part} in {error}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_plan_changes_nothing() -> Result<()> {
    let (url, database) = empty().await?;
    let plan = Migrations::embedded().plan(&url).await?;
    ensure!(plan.first().is_some_and(|line| line.starts_with("V1__schema: in a transaction; locks no table")), "{plan:?}");
    let tables = database.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", &[]).await?;
    ensure!(tables.is_empty(), "{tables:?}");
    Ok(())
}

/// Whoever wants the table queues behind the migration, and that behind a transaction that does not end.
#[tokio::test]
async fn a_migration_that_waits_for_a_lock_keeps_nobody_else_from_the_table() -> Result<()> {
    let (url, keeper) = empty().await?;
    Migrations::of(&[TABLE])?.run(&url).await?;
    keeper.batch_execute("BEGIN; SELECT FROM t").await?;
    let migration = migrate(&url, &[TABLE, ("V2__column", "ALTER TABLE t ADD COLUMN b int")])?;
    waits(&url, "%ADD COLUMN b%").await?;
    let reader = db::pool(&url, 1)?.get().await?;
    let read = tokio::time::timeout(Duration::from_secs(20), reader.batch_execute("SELECT FROM t")).await;
    ensure!(read.is_ok_and(|read| read.is_ok()), "the reader waits as long as the transaction takes");
    // It is tried again.
    waits(&url, "%ADD COLUMN b%").await?;
    keeper.batch_execute("COMMIT").await?;
    migration.await??;
    reader.batch_execute("SELECT b FROM t").await?;
    Ok(())
}

/// A transaction that has written to the table holds the index up, and the index holds nobody up. Another process waits for its turn.
#[tokio::test]
async fn an_index_is_built_while_others_write() -> Result<()> {
    let (url, writer) = empty().await?;
    Migrations::of(&[TABLE])?.run(&url).await?;
    writer.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await?;
    let index = "-- outside a transaction: others write meanwhile\n\nDROP INDEX CONCURRENTLY IF EXISTS i;\n\n\
                 CREATE INDEX CONCURRENTLY i ON t (a);\n";
    let both = [migrate(&url, &[TABLE, ("V2__index", index)])?, migrate(&url, &[TABLE, ("V2__index", index)])?];
    waits(&url, "CREATE INDEX%").await?;
    let other = db::pool(&url, 1)?.get().await?;
    let wrote = tokio::time::timeout(Duration::from_secs(20), other.batch_execute("INSERT INTO t VALUES (2)")).await;
    ensure!(wrote.is_ok_and(|wrote| wrote.is_ok()), "a writer waits for the index");
    writer.batch_execute("COMMIT").await?;
    for migration in both {
        migration.await??;
    }
    let valid = other.query_one("SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass", &[]).await?;
    ensure!(valid.get::<_, bool>(0), "the index is not valid");
    let history = other.query("SELECT name FROM refinery_schema_history ORDER BY version", &[]).await?;
    ensure!(history.len() == 2, "{history:?}");
    Ok(())
}

/// A newer version migrates for hours, or has: the one before restarts beside it.
#[tokio::test]
async fn a_version_that_has_nothing_to_migrate_waits_for_nobody() -> Result<()> {
    let (url, newer) = empty().await?;
    Migrations::of(&[TABLE])?.run(&url).await?;
    // As a process that migrates holds it.
    newer.execute("SELECT pg_advisory_lock($1)", &[&db::lock::MIGRATIONS]).await?;
    for applied in [false, true] {
        if applied {
            let sql =
                "INSERT INTO refinery_schema_history SELECT 2, 'newer', applied_on, checksum FROM refinery_schema_history";
            newer.execute(sql, &[]).await?;
        }
        tokio::time::timeout(Duration::from_secs(20), Migrations::of(&[TABLE])?.run(&url)).await??;
    }
    Ok(())
}

/// A row that it has filled is not kept from others until the last one is.
#[tokio::test]
async fn a_backfill_commits_step_by_step() -> Result<()> {
    let (url, database) = empty().await?;
    Migrations::of(&[TABLE])?.run(&url).await?;
    database.batch_execute("INSERT INTO t SELECT generate_series(1, 10)").await?;
    let backfill = "-- outside a transaction: five rows at a time\n\nDO $$ BEGIN\n    FOR step IN 0..1 LOOP\n        \
                    UPDATE t SET a = a + 100 WHERE a BETWEEN step * 5 + 1 AND step * 5 + 5;\n        COMMIT;\n    END LOOP;\nEND $$;\n";
    Migrations::of(&[TABLE, ("V2__backfill", backfill)])?.run(&url).await?;
    let sql = "SELECT count(*), count(DISTINCT xmin::text) FROM t WHERE a > 100";
    let row = database.query_one(sql, &[]).await?;
    let (rows, transactions): (i64, i64) = (row.get(0), row.get(1));
    ensure!((rows, transactions) == (10, 2), "{rows} rows in {transactions} transactions");
    Ok(())
}

/// One delivery that is due at `infinity`, written by hand, would stop the sending of all.
#[tokio::test]
async fn no_webhook_and_no_key_has_a_time_that_our_programs_cant_read() -> Result<()> {
    let url = Stack::attach()?.create_migrated(&format!("times_{}", Uuid::new_v4().simple())).await?;
    let db = db::pool(&url, 1)?.get().await?;
    db.batch_execute(
        "INSERT INTO merchants (id, name) VALUES (lpad('1', 32, '0')::uuid, 'shop');
         INSERT INTO api_keys (hash, merchant_id) SELECT sha256('key'), id FROM merchants;
         INSERT INTO webhook_endpoints (id, merchant_id, url, secret, old_secret, old_secret_until, enabled, disabled_at,
                 disabled_reason)
             SELECT id, id, 'https://shop.example/', '', '', now(), false, now(), 'asked' FROM merchants;
         INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state) SELECT id, 'evt', 'ping', 'pending' FROM merchants;
         INSERT INTO webhook_attempts (delivery_id, number, took_ms) SELECT id, 1, 1 FROM webhook_deliveries",
    )
    .await?;
    let tables = ["api_keys", "webhook_endpoints", "webhook_deliveries", "webhook_attempts"];
    let sql = "SELECT table_name::text, column_name::text FROM information_schema.columns
               WHERE data_type = 'timestamp with time zone' AND table_name = ANY($1)";
    let columns = db.query(sql, &[&tables.as_slice()]).await?;
    ensure!(columns.len() == 17, "{columns:?}");
    for column in columns {
        let (table, column): (&str, &str) = (column.get(0), column.get(1));
        let set = async |time: &str| db.batch_execute(&format!("UPDATE {table} SET {column} = '{time}'")).await;
        set("2030-01-01Z").await?;
        for time in ["infinity", "-infinity", "10000-01-01Z"] {
            let refused = set(time).await.err().and_then(|error| error.code().cloned());
            ensure!(refused == Some(SqlState::CHECK_VIOLATION), "{table}.{column} may be {time}: {refused:?}");
        }
    }
    Ok(())
}

/// An empty database, and a connection to it.
async fn empty() -> Result<(String, deadpool_postgres::Client)> {
    let url = Stack::attach()?.create_database(&format!("migrations_{}", Uuid::new_v4().simple())).await?;
    let client = db::pool(&url, 1)?.get().await?;
    Ok((url, client))
}

fn migrate(url: &str, files: &[(&str, &str)]) -> Result<JoinHandle<Result<()>>> {
    let (url, migrations) = (url.to_owned(), Migrations::of(files)?);
    Ok(tokio::spawn(async move { migrations.run(&url).await }))
}

/// Waits until a statement like this waits for others.
async fn waits(url: &str, statement: &str) -> Result<()> {
    let client = db::pool(url, 1)?.get().await?;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE $1 AND wait_event_type = 'Lock'";
    let what = format!("{statement} to wait");
    eventually(&what, || async { Ok((client.query_one(sql, &[&statement]).await?.get::<_, i64>(0) > 0).then_some(())) }).await
}
