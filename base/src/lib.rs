//! The ground floor: small helpers for crates on every floor, without Kafka, database or HTTP.
//!
//! - [`metrics`](mod@metrics) is the one list of metric names.
//! - [`backoff`] is the one schedule of delays between retries.
//! - [`error_chain`] puts an error and its causes on one line.
//! - [`json`], [`text`] and [`timestamp`] read and print values the same way in replies, commands and errors.

pub mod backoff;
mod error;
pub mod json;
pub mod metrics;
pub mod text;
pub mod timestamp;

pub use error::error_chain;
