//! The role `api`: HTTP in, payments out.
//!
//! A create request goes through these, in this order: `auth` finds its merchant, `create::order` reads it against the
//! `chains::catalog`, `create::batcher` creates its payment together with others in one Postgres transaction, `create::intents`
//! publishes the address to Kafka, and only then `routes::payment_reply` shows it. `create::idempotency` handles retries.
//!
//! Two rules hold everywhere here:
//! - No response shows an address whose intent Kafka has not acknowledged (`create::intents`).
//! - A key sees only its own merchant's payments; another merchant's are not found.
//!
//! The rooms in order; each imports only from those before it: `http`; `batches`; `chains`; `create`; `read` and `read_queue`;
//! `event_feed`, `health_checks` and `heavy_work`; `app`, the state that handlers share; `auth`; `openapi`; `routes`, one file
//! per resource; `role`, which wires all of it. `fuzzing` is for the crate `fuzz` alone.
//!
//! Left out on purpose: private keys (addresses are derived from an xpub), and how a payment changes and where it is kept,
//! which is [`payments`]'.

mod app;
mod auth;
mod batches;
mod chains;
mod clock;
mod create;
mod event_feed;
#[doc(hidden)]
pub mod fuzzing;
mod health_checks;
mod heavy_work;
mod housekeeping;
mod http;
mod openapi;
mod read;
mod read_queue;
mod role;
mod routes;

pub use role::{bind, run, xpub};
