//! Brings Postgres and the topics together again, after one of them lost what it had.
//!
//! What is in Kafka can't be taken back by a restore of the database: addresses are given out, events are told. So a database that
//! was restored from a backup, or a standby that was promoted while it lagged, catches up with the topics before anything is
//! created or folded ([`catch_up`]). The other way round, a topic that is shorter than what Kafka had acknowledged gets its
//! intents from Postgres again ([`republish`]).
//!
//! - [`Recovery`] is what a role starts: it compares, restores, and opens the [`Gate`](runtime::db::Gate) of its pool.
//! - [`known`] keeps up to which offsets the database knows all, [`installation`] which installation it belongs to.
//!
//! Left out on purpose: what a payment is, and its rows, which are the crate [`payments`]'.

mod catch_up;
mod extent;
pub mod installation;
mod known;
mod own_account;
mod recovery;
pub mod republish;

pub use catch_up::RESTORING;
pub use extent::LeftOut;
pub use recovery::Recovery;
