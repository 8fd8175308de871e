//! What a stage does about an error.

use std::fmt;

/// An error that steers a loop, named by its remedy. Errors of a library become one by `From`, next to the code that uses the
/// library: `db::error` classifies those of Postgres, `kafka::error` those of Kafka.
#[derive(Debug)]
pub enum Failure {
    /// Tear the loop down and restart it from what was committed: a broker, a database or a node went away.
    Retry(anyhow::Error),
    /// Tear the loop down and open its producer and consumer once more: another one with its name has opened. That may be the
    /// broker itself, which ended a transaction that a pause had kept open too long. If it happens again before a transaction
    /// can time out, a twin of this process runs, and the loop waits.
    Reopen(anyhow::Error),
    /// Stop the process: continuing would skip or double records, or a retry can't help. The loop cannot commit after it.
    Halt(anyhow::Error),
}

impl Failure {
    pub fn retry(cause: impl Into<anyhow::Error>) -> Self {
        Self::Retry(cause.into())
    }

    pub fn halt(cause: impl Into<anyhow::Error>) -> Self {
        Self::Halt(cause.into())
    }

    /// Adds the operation that failed to the cause.
    #[must_use]
    pub fn context(self, what: impl fmt::Display + Send + Sync + 'static) -> Self {
        match self {
            Self::Retry(cause) => Self::Retry(cause.context(what)),
            Self::Reopen(cause) => Self::Reopen(cause.context(what)),
            Self::Halt(cause) => Self::Halt(cause.context(what)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry(cause) | Self::Reopen(cause) | Self::Halt(cause) => write!(f, "{cause:#}"),
        }
    }
}

/// For whoever steers no loop, such as a command.
impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        Self::msg(failure.to_string())
    }
}
