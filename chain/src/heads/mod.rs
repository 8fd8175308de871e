//! New heads announced over websockets (`eth_subscribe` to `newHeads`).
//!
//! Polling finds every block; an announcement finds it sooner. Nothing that a websocket says is trusted: it wakes the poller,
//! and the block is then fetched and proven over HTTP. Announcements are not queued: those that come while nobody waits are one
//! wake-up. Reorgs need no logs of their own, since a new branch has a new head.
//!
//! alloy's pubsub client is not used: it reconnects at a fixed interval for a limited time, logs every attempt as an error, and
//! does not notice a node that answers pings but has stopped announcing heads.

mod error;
mod listener;
mod socket;
mod timeouts;

pub use error::HeadsError;
pub use listener::Heads;
pub(crate) use socket::subscribe_once;
pub use timeouts::WsTimeouts;
