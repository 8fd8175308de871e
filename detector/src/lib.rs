//! Blocks and logs × issued addresses → `chain.matches`. Kafka in, Kafka out: no database and no payment rules.
//!
//! - [`WatchSet`] holds every address ever issued, and nothing else; `address_filter` rules most recipients out before it is
//!   asked. `intents` fills it from `payment.intents`, and is the barrier that a batch waits for.
//! - `join` pairs a block's record with its logs' record. `logs_watch` tells it whether logs that do not come are gone.
//! - [`matching`] finds the transfers to watched addresses. It is pure, and fast since it decodes only what may match. `coin`
//!   says which of them are the same money. `parts` splits what is too large for a record.
//! - `progress` tells which records of a chain are done, next or missing, and `again` which of those that are read again were matched;
//!   `output` reads that from what was written (`lookup` tells
//!   when it takes long), and `chains` sets a chain aside whose records are missing. `begin` tells where a partition begins that is
//!   assigned, and `held` keeps one back that waits for a transaction.
//! - `written` notices that the end of what was written is lost.
//! - `role` consumes, matches, produces and commits in one Kafka transaction.

mod address_filter;
mod again;
mod begin;
mod chains;
mod coin;
mod held;
mod intents;
mod join;
mod logs_watch;
mod lookup;
pub mod matching;
mod output;
mod parts;
mod progress;
mod role;
mod watch_set;
mod written;

pub use role::run;
pub use watch_set::WatchSet;
