//! What the API does with deliveries: list them, and send them again.

mod list;
mod redeliver;

pub use list::{Attempt, Delivery, STATES, list};
pub use redeliver::{RedeliverCursor, RedeliverFilter, redeliver};
