//! Folds `chain.matches` into payments and their events.
//!
//! - [`lifecycle`] is the pure core: what an input makes of a payment.
//! - [`store`] keeps payments in Postgres, events beside them.
//! - [`deposit`] makes payments of transfers to static addresses.
//! - `fold` applies records of `chain.matches`: state, events and offsets in one Postgres transaction.
//! - [`history`] keeps every event with its cause, for people to look up.
//! - `relay` brings the events from Postgres to Kafka, exactly once.

pub mod deposit;
pub mod events;
pub mod fold;
pub mod history;
pub mod lifecycle;
mod payment;
mod relay;
mod role;
pub mod store;
mod working;

pub use deposit::DepositAddress;
pub use payment::{Asset, Exception, Label, NEVER, Paid, Payment, Policy, Status, Terms, Token, Unknown};
pub use role::run;
