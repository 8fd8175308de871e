//! Blocks and logs × watched addresses → `chain.matches`. Kafka in, Kafka out: no database and no payment rules.
//!
//! - [`WatchSet`] holds every address ever issued, and nothing else.
//! - `join` pairs a block's record with its logs' record.
//! - [`matching`] keeps the transfers to watched addresses: pure, and fast, since it decodes only what may match.
//! - `role` consumes, transforms, produces and commits in one Kafka transaction, behind the intent barrier.

mod join;
pub mod matching;
mod role;
mod watch;

pub use role::run;
pub use watch::WatchSet;
