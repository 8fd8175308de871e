//! The role `confirmer`: applies `chain.matches` to payments and publishes their events.
//!
//! - `role` runs the stages.
//! - [`fold`] applies batches of `chain.matches`: payments, events, chain head and offset are one Postgres transaction.
//! - `arrivals` puts a block's transfers together by payment.
//! - `aside` keeps the chain apart whose records can't be applied, `returning` brings it back.
//! - `unapplied` tells which records say something new, where some are read or written again.
//! - `orphans` credits transfers whose payment is there by now.
//! - [`sweeps`] reads what has left addresses for good, [`settle`] settles the payments that it covers.
//! - `working_set` holds the payments that a batch can change, in memory.
//! - `relay` publishes the outbox to Kafka, exactly once: `batches` tells what Kafka has of it, `looks` when a partition can be read.
//!
//! Left out on purpose: the rules of a payment's life and its SQL, which are the crate [`payments`]'.

mod arrivals;
mod aside;
mod batches;
pub mod fold;
pub mod orphans;
mod relay;
pub mod returning;
mod role;
mod seek;
pub mod settle;
pub mod sweeps;
mod unapplied;
mod working_set;

pub use role::run;
