//! Payment events at merchants' endpoints, by [Standard Webhooks](https://www.standardwebhooks.com) 1.0.0.
//!
//! - `fanout` turns records of `payment.events` into deliveries, one an endpoint, in the transaction of the offsets.
//! - [`queue`] claims what is due and settles what came of it; `engine` sends in between, so many at once and no more.
//! - [`signature`], [`schedule`] and [`guard`] are the rules: how a message is signed, when it is sent again, and where it is
//!   never sent to.
//! - [`endpoints`] is what the API does with all that.
//!
//! A message is sent at least once. Its `webhook-id` is the event's id and stays across attempts, instances and redeliveries, so
//! that a receiver can tell a repetition. Events of a payment come in order while the endpoint is healthy; after
//! [`queue::ORDER_KEPT`] failures of an event the later ones no longer wait for it.

pub mod body;
pub mod clients;
pub mod endpoints;
mod engine;
mod fanout;
pub mod guard;
pub mod queue;
mod role;
pub mod schedule;
pub mod send;
pub mod signature;

pub use guard::Guard;
pub use role::run;
