//! Keys of advisory locks, in one place so that no two are the same. Names have a key space of their own.

use crate::failure::Failure;
use deadpool_postgres::GenericClient;
use std::time::Duration;

/// Held while migrating.
pub const MIGRATIONS: i64 = 7_233_017;
/// Held by the relay that publishes; its other instances stand by.
pub const RELAY: i64 = 7_233_018;
/// Held while what Kafka has is compared with Postgres and written to it.
pub const CATCH_UP: i64 = 7_233_019;
/// Held by the process that compares on a schedule; the others look at the database alone.
pub const CATCH_UP_LEADER: i64 = 7_233_020;
/// Held while an account is registered.
pub const ACCOUNTS: i64 = 7_233_021;
/// Held while deliveries of a merchant's backlog of webhooks are made: two at once would break the order of a payment's.
pub const WEBHOOK_BACKLOG: i64 = 7_233_022;

/// Of a merchant's customers: who creates a static address.
pub const CUSTOMERS: i32 = 1;
/// Of merchants: who changes their webhooks.
pub const WEBHOOKS: i32 = 2;
/// Of tables: who makes and drops their partitions.
pub const PARTITIONS: i32 = 3;

/// Takes turns with whoever gives the same name of a kind, until this transaction ends. A client may choose a name for its hash, so the
/// key is two numbers: Postgres keeps these apart from the keys above, which are one. Nor does the transaction wait for any lock without
/// end, since a connection waits with it.
///
/// # Errors
/// `Retry` when the turn does not come within two seconds, or the database fails.
pub async fn take_turn(db: &impl GenericClient, kind: i32, name: &str) -> Result<(), Failure> {
    let sql = "SELECT pg_advisory_xact_lock($1, hashtext($2)) FROM set_config('lock_timeout', '2s', true)";
    let statement = db.prepare_cached(sql).await?;
    db.execute(&statement, &[&kind, &name]).await?;
    Ok(())
}

/// Has this transaction wait for no lock for longer than this, from here on: who holds what others need may be what they wait
/// for.
///
/// # Errors
/// When the database fails.
pub async fn limit_waiting(db: &impl GenericClient, limit: Duration) -> Result<(), Failure> {
    let statement = db.prepare_cached("SELECT set_config('lock_timeout', $1, true)").await?;
    db.execute(&statement, &[&format!("{}ms", limit.as_millis())]).await?;
    Ok(())
}

/// Keeps the comparison of told events out until this transaction ends: it would not see the events that are made here, nor would this
/// see what it writes down as told, and both would be told.
///
/// # Errors
/// When the database fails.
pub async fn hold_off_comparison(db: &impl GenericClient) -> Result<(), Failure> {
    let statement = db.prepare_cached("SELECT pg_advisory_xact_lock_shared($1)").await?;
    db.execute(&statement, &[&CATCH_UP]).await?;
    Ok(())
}

/// Keeps folds and cancellations out until this transaction ends. All that come meanwhile wait behind this, and a process that was paused
/// amid a fold may never end it, so this gives up after a second.
///
/// # Errors
/// `Retry` when a fold takes longer, or the database fails.
pub async fn begin_comparison(db: &impl GenericClient) -> Result<(), Failure> {
    let sql =
        format!("SET LOCAL lock_timeout = '1s'; SELECT pg_advisory_xact_lock({CATCH_UP}); SET LOCAL lock_timeout TO DEFAULT");
    db.batch_execute(&sql).await.map_err(|error| Failure::from(error).context("waiting for folds and cancellations"))
}
