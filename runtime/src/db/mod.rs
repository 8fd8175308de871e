//! Postgres, as the roles need it: pools, migrations, which errors a retry mends, and advisory locks.

mod error;
pub mod lock;
mod migrate;
mod number;
mod pool;

pub use migrate::migrate;
pub use number::{bigint, unsigned};
pub use pool::{CommitMode, generic_plan_pool, observe, pool};
