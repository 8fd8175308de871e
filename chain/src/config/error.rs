//! Mistakes in `chains.yaml`.

use std::path::PathBuf;

/// A mistake in `chains.yaml`, or a chain that it lacks.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the chains file {path}; CHAINS_FILE says where it is, and the repository's chains.yaml has every key")]
    Read {
        /// The value of `CHAINS_FILE`.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A mistake in the file.
    #[error("{path}:{line}:{column}: {message}")]
    Invalid {
        /// The value of `CHAINS_FILE`.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
        /// The key, what was expected and what was found.
        message: String,
    },
    /// A command names a chain that the file does not have.
    #[error("no chain {name:?} in the chains file; expected one of {names}")]
    NoChain {
        name: String,
        /// The names in the file.
        names: String,
    },
}
