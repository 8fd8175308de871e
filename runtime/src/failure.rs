use std::fmt;

/// An error that steers a loop, named by its remedy. It is made where the source error lives, which is where one knows.
#[derive(Debug)]
pub enum Failure {
    /// Tear the loop down and start it again from what was committed: a broker, a database or a node went away.
    Retry(anyhow::Error),
    /// Going on would skip or double something, or can't help: stop and say so. The loop cannot commit after it.
    Halt(anyhow::Error),
}

impl Failure {
    /// A retry with its cause.
    pub fn retry(cause: impl Into<anyhow::Error>) -> Self {
        Self::Retry(cause.into())
    }

    /// A halt with its cause.
    pub fn halt(cause: impl Into<anyhow::Error>) -> Self {
        Self::Halt(cause.into())
    }

    /// The cause with what was being done.
    #[must_use]
    pub fn context(self, what: impl fmt::Display + Send + Sync + 'static) -> Self {
        match self {
            Self::Retry(cause) => Self::Retry(cause.context(what)),
            Self::Halt(cause) => Self::Halt(cause.context(what)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry(cause) | Self::Halt(cause) => write!(f, "{cause:#}"),
        }
    }
}

/// An error and its causes on one line.
pub fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
