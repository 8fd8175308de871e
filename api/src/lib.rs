//! HTTP in, payments out.
//!
//! A create request goes through these, in this order: `auth` says whose it is (with `keys` and `merchant`), `order` reads it against the `catalog` of
//! chains, `batch` makes its payment together with others in one Postgres transaction, `intents` brings the address to
//! Kafka, and only then `reply` shows it. `replay` is the way of a request that comes again.
//!
//! Two rules hold everywhere here:
//! - No answer shows an address whose intent Kafka has not acknowledged (`intents`).
//! - A key sees its own merchant's payments; another's are not found.
//!
//! Absent on purpose: private keys (addresses come from an xpub), and any knowledge of how a payment changes, which is
//! `confirmer::lifecycle`'s.

mod account;
mod addresses;
pub mod admin;
mod app;
mod around;
mod auth;
mod batch;
mod bulk;
mod catalog;
mod chains;
mod cursor;
mod extract;
mod feed;
mod fields;
mod flight;
mod halts;
mod heads;
mod health;
mod history;
mod housekeeping;
mod intents;
mod keys;
mod list;
mod merchant;
mod nodes;
mod openapi;
mod order;
mod page;
mod payments;
mod problem;
mod replay;
mod reply;
mod role;
mod server;
mod webhooks;

pub use keys::Scope;
pub use role::{run, xpub};
