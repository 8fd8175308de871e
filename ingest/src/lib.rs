//! Chains → `chain.blocks`, `chain.logs`: every block with its transactions and logs, proven, in order, exactly once.
//!
//! - [`reconcile`](reconcile()) is the pure core: what a branch of the node's chain means for what was published.
//! - `follow` finds out what comes next and fetches it, with `pipeline`, many blocks at once when behind.
//! - [`records`](mod@records) turns it into records, and the window into the cursor and back.
//! - `role` publishes: data and cursor in one Kafka transaction. A chain that can't go on `halt`s until a person `resume`s it.
//! - [`backfill`](backfill()) brings a past range, as records that are never the head.
//!
//! A reorganisation is written down, tip first, so nothing downstream infers one.

mod backfill;
mod follow;
mod halt;
mod pipeline;
pub mod reconcile;
pub mod records;
mod resume;
mod role;
mod window;

pub use backfill::{Request, backfill};
pub use follow::{Batch, Follower};
pub use reconcile::{Step, TooDeep, reconcile};
pub use resume::{Resumable, resume};
pub use role::run;
pub use window::{DEPTH, Window};
