//! Debian's Prometheus.

use crate::stack::optional_part;
use anyhow::Result;
use std::path::PathBuf;

/// The path of promtool. `None` where it can't be had, which the test run then says.
///
/// # Errors
/// When it can't be downloaded.
pub fn promtool() -> Result<Option<PathBuf>> {
    optional_part("promtool")
}
