//! Which errors of Postgres a retry mends.

use crate::failure::Failure;
use base::locked;
use deadpool_postgres::{HookError, PoolError};
use std::sync::Mutex;
use std::time::Instant;
use tokio_postgres::error::SqlState;

/// Classes of SQLSTATE that pass: connection, transaction state, transaction rollback, resources, operator intervention and
/// system error.
const TRANSIENT: [&str; 6] = ["08", "25", "40", "53", "57", "58"];

/// When a server last refused a write as a standby does, to which an old primary was demoted.
static REFUSED_WRITE: Mutex<Option<Instant>> = Mutex::new(None);

/// The pools try a connection again that was tried before this time.
pub(super) fn last_refused_write() -> Option<Instant> {
    *locked(&REFUSED_WRITE)
}

impl From<tokio_postgres::Error> for Failure {
    /// A lost connection, a deadlock, a lock that others keep or a serialization failure is transient. A table that is missing comes
    /// with a migration. Any other error of a query means that our SQL and the data contradict each other.
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(&SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_COLUMN | &SqlState::UNDEFINED_FUNCTION) = error.code() {
            return Self::retry(error)
                .context("the database is of another version, such as an older backup: `ctrip migrate` mends that");
        }
        if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
            *locked(&REFUSED_WRITE) = Some(Instant::now());
        }
        let passes = |code: &SqlState| TRANSIENT.contains(&&code.code()[..2]) || *code == SqlState::LOCK_NOT_AVAILABLE;
        let transient = error.code().is_none_or(passes);
        if transient { Self::retry(error) } else { Self::halt(error) }
    }
}

impl From<PoolError> for Failure {
    /// Nothing works without a connection, so the stage waits for one.
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => Self::retry(error),
            // The gate's own words, which the pool would repeat.
            PoolError::PostCreateHook(HookError::Message(message)) => Self::Retry(anyhow::Error::msg(message)),
            other => Self::retry(other),
        }
    }
}
