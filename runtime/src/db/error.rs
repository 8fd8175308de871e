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
    /// with a migration, and a right with a grant. Any other error of a query means that our SQL and the data contradict each other.
    fn from(error: tokio_postgres::Error) -> Self {
        if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) {
            *locked(&REFUSED_WRITE) = Some(Instant::now());
        }
        match error.code() {
            Some(code) => match remedy(code) {
                Some(remedy) => Self::retry(error).context(remedy),
                None if passes(code) => Self::retry(error),
                None => Self::halt(error),
            },
            None => Self::retry(error),
        }
    }
}

/// The command that mends what no data caused.
fn remedy(code: &SqlState) -> Option<&'static str> {
    match *code {
        SqlState::UNDEFINED_TABLE | SqlState::UNDEFINED_COLUMN | SqlState::UNDEFINED_FUNCTION => {
            Some("the database is of another version, such as an older backup: `ctrip migrate` mends that")
        }
        SqlState::INSUFFICIENT_PRIVILEGE => Some(
            "the user of DATABASE_URL lacks a right: run the script of `ctrip acl print` again, as the owner of the database",
        ),
        _ => None,
    }
}

/// Whether a statement waited too long for a lock.
pub fn is_lock_timeout(error: &anyhow::Error) -> bool {
    let code = error.chain().find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>()?.code());
    code == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

fn passes(code: &SqlState) -> bool {
    TRANSIENT.contains(&&code.code()[..2]) || *code == SqlState::LOCK_NOT_AVAILABLE
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_payment_is_blamed_for_a_right_or_a_table_that_is_missing() {
        let names = |code: &SqlState, command: &str| remedy(code).is_some_and(|remedy| remedy.contains(command));
        assert!(names(&SqlState::INSUFFICIENT_PRIVILEGE, "`ctrip acl print`"));
        assert!(names(&SqlState::UNDEFINED_TABLE, "`ctrip migrate`"));
        // These contradict the data.
        for code in [SqlState::UNIQUE_VIOLATION, SqlState::CHECK_VIOLATION, SqlState::SYNTAX_ERROR] {
            assert!(remedy(&code).is_none() && !passes(&code), "{code:?}");
        }
        assert!(passes(&SqlState::T_R_DEADLOCK_DETECTED) && passes(&SqlState::LOCK_NOT_AVAILABLE));
    }
}
