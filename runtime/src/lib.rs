//! What every role shares: settings, the Kafka loops, the Postgres pool, metrics, shutdown. No business rules.
//!
//! - [`kafka`] is the only place that names rdkafka. Its calls block, so each loop has an OS thread ([`stage`]).
//! - [`Failure`] says what a loop does about an error; [`stage::run`] does it.
//! - [`Folding`] is a loop whose records and offset go into Postgres together.
//! - [`metrics`](mod@metrics) is the one list of metric names.

pub mod db;
mod failure;
mod fold;
pub mod kafka;
pub mod logging;
pub mod metrics;
mod settings;
pub mod stage;

pub use failure::{Failure, chain_of};
pub use fold::{Folding, Span};
pub use kafka::Kafka;
pub use settings::Settings;
