//! What every role shares: settings, clients of Kafka, Postgres and the schema registry, stages, logs and metrics. No business
//! rules.
//!
//! - [`kafka`] is the only place in the pipeline that names rdkafka. Its calls block, so each loop has an OS thread ([`stage`]).
//! - [`Registry`] registers and reads schemas.
//! - [`Failure`] says what a stage does about an error; [`stage::run`] does it.
//! - [`FoldStage`] is a stage whose effects and offset are one Postgres transaction.
//! - [`HeldPartitions`] are those that a stage holds while the others go on.
//! - [`set_aside`] is what such a stage keeps from being processed while all else goes on.
//! - [`compared`] tells with which topics the database was compared, and waits for it.
//! - [`SharedTask`] is work for which several may wait.
//! - [`db`] has the connection pools and the migrations.
//! - [`http`] is a server that strangers can reach; [`exporter`] serves the metrics that [`base::metrics`] lists.

pub mod compared;
pub mod db;
pub mod exporter;
mod failure;
mod fold;
mod held;
pub mod http;
pub mod kafka;
pub mod logging;
mod registry;
pub mod set_aside;
pub mod settings;
mod shared_task;
pub mod stage;

pub use failure::Failure;
pub use fold::{FoldStage, OnReturn, Span};
pub use held::{Found, HeldPartitions};
pub use kafka::Kafka;
pub use registry::{Registry, RegistryError};
pub use set_aside::SetAside;
pub use settings::{KafkaSettings, RegistrySettings, SaslMechanism, Secret, SecurityProtocol, Settings};
pub use shared_task::SharedTask;
