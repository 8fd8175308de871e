//! The ground floor: small helpers for crates on every floor, without Kafka, database or HTTP.
//!
//! - [`metrics`](mod@metrics) is the one list of metric names.
//! - [`backoff`] is the one schedule of delays between retries.
//! - [`error_chain`] puts an error and its causes on one line.
//! - [`locked`] takes a lock, and [`counts`] counts what is whose.
//! - [`json`], [`text`] and [`timestamp`] read and print values the same way in replies, commands and errors.

pub mod backoff;
pub mod counts;
mod error;
pub mod json;
mod lock;
pub mod metrics;
pub mod text;
pub mod timestamp;

pub use error::error_chain;
pub use lock::locked;
