//! Postgres, as the roles need it: pools, TLS, a gate in front of them, a replica for reads, deadlines, migrations, which errors a retry
//! mends, and advisory locks.

mod config;
mod error;
mod gate;
mod in_time;
pub mod lock;
mod lowest;
mod migrate;
mod number;
mod own_connection;
mod pool;
mod primary;
mod replica;
mod server;
mod shared_look;
mod tls;

pub use error::is_lock_timeout;
pub use gate::{Gate, Lineage};
pub use in_time::{WRITE_TIMEOUT, answered, in_time};
pub use lowest::LowestId;
pub use migrate::{Migrations, contradicting_history, migrate};
pub use number::{bigint, unsigned};
pub use own_connection::OwnConnection;
pub use pool::{Bounds, CommitMode, bounded_pool, gated_pool, generic_plan_pool, observe, pool};
pub use primary::Primary;
pub use replica::Replica;
pub use server::hosts;
pub use tls::refuses_tls;
