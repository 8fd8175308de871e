//! Chains → `chain.blocks`, `chain.logs`, `chain.cursors`: every block with its transactions and logs, proven, in order,
//! exactly once.
//!
//! - `follow` polls the head and fetches what comes next, with `prefetch`, many blocks at once when behind.
//! - [`reorg`] is the pure core: what a branch of the node's chain means for the blocks published, which `window` remembers.
//! - `witnesses` asks the other endpoints what they have, and counts.
//! - [`records`](mod@records) makes the records of a block, which `record_size` keeps small enough; [`cursor`](mod@cursor) stores
//!   the window.
//! - `depth` says how deep a reorg may go.
//! - `publish` writes data and cursor in one Kafka transaction. `role` runs one stage per chain.
//! - `halt` stops a chain whose reorg is too deep, until a person runs `ctrip resume` (`resume`).
//! - `restart` lets a chain begin anew that can't be continued.
//! - [`backfill`](backfill()) replays a past range, as records that are never the head.
//!
//! A reorg is written down as removed blocks, tip first, so nothing downstream infers one.

mod backfill;
mod beginning;
mod cannot_follow;
pub mod cursor;
mod depth;
mod follow;
mod halt;
mod nodes;
mod prefetch;
mod publish;
mod record_size;
pub mod records;
pub mod reorg;
mod restart;
mod resume;
mod role;
mod window;
mod witnesses;

pub use backfill::{BackfillRequest, backfill};
pub use cannot_follow::CannotFollow;
pub use follow::{Batch, Follower};
pub use prefetch::BatchSizes;
pub use reorg::{Step, TooDeep, reconcile};
pub use restart::{Applied, MAX_PAID_BLOCKS, Restart, RestartPlan, Unapplied};
pub use resume::{ResumePlan, resume};
pub use role::run;
pub use window::{MIN_WINDOW_BLOCKS, Window};
