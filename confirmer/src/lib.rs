//! Folds `chain.matches` into payments and their events.
//!
//! - [`lifecycle`] is the pure core: what an input makes of a payment.
//! - [`store`] keeps payments in Postgres, events beside them.
//! - `fold` applies records of `chain.matches`: state, events and offsets in one Postgres transaction.
//! - `relay` brings the events from Postgres to Kafka, exactly once.

pub mod events;
pub mod fold;
pub mod lifecycle;
mod payment;
mod relay;
mod role;
pub mod store;

pub use payment::{Asset, Exception, Label, NEVER, Paid, Payment, Policy, Status, Terms, Token, Unknown};
pub use role::run;
