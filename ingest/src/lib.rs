//! Chains → `chain.blocks`, `chain.logs`: every block with its transactions and logs, proven, in order, exactly once.
//!
//! - [`reconcile`](reconcile()) is the pure core: what a branch of the node's chain means for what was published.
//! - `follow` finds out what comes next and fetches it, with `pipeline`, many blocks at once when behind.
//! - [`records`](mod@records) turns it into records, and the window into the cursor and back.
//! - `role` publishes: data and cursor in one Kafka transaction.
//!
//! A reorganisation is written down, tip first, so nothing downstream infers one.

mod follow;
mod pipeline;
pub mod reconcile;
pub mod records;
mod role;
mod window;

pub use follow::{Batch, Follower};
pub use reconcile::{Step, TooDeep, reconcile};
pub use role::run;
pub use window::{DEPTH, Window};
