//! Payments: what one is, the rules of its life, and where it is kept.
//!
//! - [`Payment`], [`Terms`], [`Policy`], [`ReceivedTransfer`] and [`DepositAddress`] are the facts; [`Status`] and [`Exception`]
//!   follow from them.
//! - [`lifecycle`] is the rule book, a pure function: what an input makes of a payment, and which events it emits.
//! - [`events`] and [`intents`] turn payments into records of `payment.events`, `payment.state` and `payment.intents`.
//! - [`swept`] says which payments are covered by what has left their addresses.
//! - [`told`] recognises the events that Kafka has and a restored database makes again.
//! - [`store`] keeps payments in Postgres, with their events in the outbox and in the [`history`].
//!
//! Every SQL statement about payments stands in this crate. Those that write run in the caller's transaction, but for
//! the history's partitions, which have one of their own.
//!
//! Left out on purpose: Kafka loops, which are `confirmer`'s, and HTTP, which is `api`'s.

pub mod deposit;
pub mod events;
pub mod history;
pub mod intents;
pub mod lifecycle;
mod payment;
mod policy;
mod status;
pub mod store;
pub mod swept;
pub mod told;
mod total;
mod transfer;

pub use deposit::DepositAddress;
pub use payment::{Asset, MAX_TRANSFERS_OF_BLOCK, NEVER, Part, Payment, Sums, Terms, Token};
pub use policy::Policy;
pub use status::{Exception, Status, UnknownName};
pub use swept::Settlement;
pub use total::Total;
pub use transfer::{ReceivedTransfer, TransferLabel, TransferPlace};
