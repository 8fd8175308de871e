//! Payment events to merchants' endpoints, as [Standard Webhooks](https://www.standardwebhooks.com) 1.0.0. All SQL about
//! webhooks is in this crate.
//!
//! - `fanout` turns records of `payment.events` into messages and deliveries, one per endpoint, in the transaction of the offsets.
//!   [`backlog`] makes those of a merchant with many, in turn with others; `subscriptions` says who gets what, `spread` writes it.
//! - `engine` claims what is due, sends it and settles the attempts, in three [`lane`]s. [`queue`] is the SQL of that, [`attempt`] the
//!   type that the two share, and [`fronts`] says where claims look.
//! - [`signature`], [`retry_schedule`] and [`ssrf`] are the rules: how a message is signed, when it is retried, and where it
//!   never goes.
//! - [`endpoints`] and [`deliveries`] are what the API calls; [`retention`] is what its housekeeping removes.
//!
//! Delivery is at least once. The `webhook-id` is the event's id and stays the same across attempts, instances and
//! redeliveries: receivers deduplicate by it. Events of a payment arrive in order while the endpoint is healthy; after
//! [`retry_schedule::MAX_BLOCKING_FAILURES`] failures an event no longer blocks the later ones of its payment.

pub mod attempt;
pub mod backlog;
mod body;
mod clients;
pub mod deliveries;
pub mod endpoints;
mod engine;
pub mod event_types;
mod fanout;
pub mod fronts;
mod in_flight;
pub mod lane;
mod pace;
pub mod queue;
pub mod retention;
pub mod retry_schedule;
mod role;
mod send;
mod service_event;
pub mod signature;
mod spread;
pub mod ssrf;
pub mod subscriptions;

pub use role::run;
pub use ssrf::Guard;
