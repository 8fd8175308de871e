//! A gate in front of a pool: its connections reach only a database that is known to have all that Kafka has.
//!
//! A backup that was restored, or a standby that was promoted while it lagged, has lost what came after. No statement may run on
//! such a database before it has caught up, so a connection to a database that was not looked at yet fails, and asks for the look.
//! One from before the last look that found another database is not used again: the old server may still answer. Nor is any while the
//! last look is older than [`Gate::LEASE`]: a process that was paused, or whose looks fail, does not know whether another database has
//! taken the place of its own. A new connection tells by itself where it leads to.

use base::locked;
use deadpool_postgres::{ClientWrapper, Hook, HookError};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Tells apart the database behind one connection and that behind another, though both have the same URL: another server process,
/// another database of the name, or tables made anew. While it stays the same, nothing was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// When the server's process started; a promoted standby has another one, and so has a server on restored files.
    started: String,
    database: u32,
    table: Option<u32>,
}

/// Whether a database may be used. Cheap to clone.
#[derive(Clone, Default)]
pub struct Gate(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    opened: Notify,
    asked: Notify,
}

#[derive(Default)]
struct State {
    /// The database that it is open to, and since when.
    open: Option<(Lineage, Instant)>,
    /// The database that a new connection has led to last, and when that look began.
    looked: Option<(Lineage, Instant)>,
}

impl State {
    /// Since when it is open, if the last look is recent and has found that database.
    fn held(&self) -> Option<Instant> {
        let ((open, since), (looked, at)) = self.open.as_ref().zip(self.looked.as_ref())?;
        (open == looked && at.elapsed() < Gate::LEASE).then_some(*since)
    }
}

impl Lineage {
    /// Of the database that the connection reaches.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn of(client: &tokio_postgres::Client) -> Result<Self, tokio_postgres::Error> {
        let sql = "SELECT extract(epoch FROM pg_postmaster_start_time())::text,
                (SELECT oid FROM pg_database WHERE datname = current_database()), to_regclass('stage_offsets')::oid";
        let row = client.query_one(sql, &[]).await?;
        Ok(Self { started: row.get(0), database: row.get(1), table: row.get(2) })
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { started, database, table } = self;
        write!(f, "{started}/{database}/{}", table.unwrap_or_default())
    }
}

impl Gate {
    /// How long connections are used after a look began that has found their database.
    pub const LEASE: Duration = Duration::from_secs(4);

    /// Until no process takes a connection to another database any more, and Kafka, which has this time for an `acknowledgement`,
    /// has taken or refused the last record of one.
    pub const fn settling_time(acknowledgement: Duration) -> Duration {
        Self::LEASE.saturating_add(acknowledgement).saturating_add(Duration::from_secs(1))
    }

    /// Lets connections to this database through, and to no other.
    pub fn open(&self, lineage: Lineage) {
        let mut state = self.state();
        if state.open.as_ref().is_none_or(|(open, _)| *open != lineage) {
            state.open = Some((lineage, Instant::now()));
        }
        self.0.opened.notify_waiters();
    }

    /// Lets no connection through. Returns whether it was open.
    pub fn close(&self) -> bool {
        self.state().open.take().is_some()
    }

    /// Notes the database that a new connection has led to. The look `began` before it was opened.
    pub fn looked(&self, lineage: Lineage, began: Instant) {
        let mut state = self.state();
        if state.open.as_ref().is_some_and(|(open, _)| *open != lineage) {
            self.0.asked.notify_one();
        }
        state.looked = Some((lineage, began));
        self.0.opened.notify_waiters();
    }

    /// The database that a new connection has led to last, if that look began within this time.
    pub fn led_to(&self, longest: Duration) -> Option<Lineage> {
        let looked = self.state().looked.clone();
        looked.filter(|(_, began)| began.elapsed() < longest).map(|(lineage, _)| lineage)
    }

    pub fn is_open_to(&self, lineage: &Lineage) -> bool {
        self.state().open.as_ref().is_some_and(|(open, _)| open == lineage)
    }

    /// Whether it is open to the database behind a connection that was let through after this time.
    pub fn admits(&self, created: Instant) -> bool {
        self.state().held().is_some_and(|since| created >= since)
    }

    /// Whether it lets connections through, to whichever database.
    pub fn is_open(&self) -> bool {
        self.state().held().is_some()
    }

    /// Waits until it is open.
    pub async fn opened(&self) {
        loop {
            let opened = self.0.opened.notified();
            if self.is_open() {
                return;
            }
            opened.await;
        }
    }

    /// Waits until a connection to another database asks to be let through, `longest` at most. Returns whether one has.
    pub async fn asked(&self, longest: Duration) -> bool {
        tokio::time::timeout(longest, self.0.asked.notified()).await.is_ok()
    }

    /// The check of each new connection of a pool.
    pub(super) fn new_connection(&self) -> Hook {
        let gate = self.clone();
        Hook::async_fn(move |client: &mut ClientWrapper, _| {
            let gate = gate.clone();
            Box::pin(async move {
                let lineage = Lineage::of(client).await.map_err(HookError::Backend)?;
                if gate.is_open_to(&lineage) {
                    return Ok(());
                }
                gate.0.asked.notify_one();
                Err(HookError::message("Postgres was restarted or restored, and first catches up with the topics"))
            })
        })
    }

    /// The check of a connection that is used again.
    pub(super) fn used_connection(&self) -> Hook {
        let gate = self.clone();
        Hook::sync_fn(move |_, metrics| {
            let stale = || HookError::message("another database has taken the place of the one behind this connection");
            gate.admits(metrics.created).then_some(()).ok_or_else(stale)
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        locked(&self.0.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(started: &str) -> Lineage {
        Lineage { started: started.to_owned(), database: 1, table: Some(2) }
    }

    #[tokio::test]
    async fn a_gate_is_open_to_the_database_that_was_looked_at_and_to_no_other() {
        let gate = Gate::default();
        assert!(!gate.is_open_to(&lineage("1")));
        gate.open(lineage("1"));
        gate.looked(lineage("1"), Instant::now());
        gate.opened().await;
        assert!(gate.is_open_to(&lineage("1")) && !gate.is_open_to(&lineage("2")));
        assert!(!gate.is_open_to(&Lineage { table: Some(3), ..lineage("1") }));
        assert!(gate.close() && !gate.close());
        assert!(!gate.is_open_to(&lineage("1")));
    }

    #[test]
    fn a_connection_to_a_database_that_another_has_taken_the_place_of_is_not_used_again() {
        let gate = Gate::default();
        assert!(!gate.admits(Instant::now()), "closed");
        gate.looked(lineage("1"), Instant::now());
        gate.open(lineage("1"));
        let old = Instant::now();
        gate.open(lineage("1"));
        assert!(gate.admits(old), "the same database");
        gate.looked(lineage("2"), Instant::now());
        assert!(!gate.admits(old), "before it is compared");
        gate.open(lineage("2"));
        assert!(!gate.admits(old) && gate.admits(Instant::now()));
        gate.close();
        assert!(!gate.admits(Instant::now()));
        gate.open(lineage("2"));
        assert!(!gate.admits(old), "it was closed meanwhile");
    }

    #[tokio::test]
    async fn a_process_that_has_not_looked_for_a_while_uses_no_connection_again() {
        let gate = Gate::default();
        gate.open(lineage("1"));
        let created = Instant::now();
        assert!(!gate.admits(created), "nobody has looked");
        gate.looked(lineage("1"), created);
        assert!(gate.admits(created));
        // As after a pause, or while no look succeeds.
        gate.looked(lineage("1"), created - Gate::LEASE);
        assert!(!gate.admits(created) && gate.is_open_to(&lineage("1")));
        assert!(tokio::time::timeout(Duration::from_millis(1), gate.opened()).await.is_err());
        gate.looked(lineage("1"), created);
        assert!(gate.admits(created), "nothing has changed meanwhile");
        gate.looked(lineage("2"), created);
        assert!(gate.asked(Duration::ZERO).await, "another one is looked at");
    }
}
