//! Labs: what black-box tests, the demo and the benches need to run cTrip on the real stack.
//!
//! Each [`Lab`] has a database, a topic prefix, a node and a folder of its own, so that any number run side by side.

mod client;
mod faults;
mod history;
mod lab;
mod ledger;
mod node;
pub mod prepared;
mod process;
mod proxy;
mod records;
pub mod replay;
mod rig;
mod session;
mod stack;
mod tunnel;

pub use client::{Api, Payment};
pub use faults::Fault;
pub use history::{History, HistoryReader, Step};
pub use lab::{Lab, Plan, XPUB};
pub use ledger::{Row, ledger};
pub use node::{Node, PAYER, TOKEN_SYMBOL};
pub use process::{Process, free_port};
pub use proxy::{Extent, Lacks, Proxy};
pub use records::{events, records};
pub use rig::{Rig, write_chains};
pub use session::Session;
pub use stack::{Stack, root};
pub use tunnel::Tunnel;

use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Finds a program of the workspace that was built beside the running test, demo or bench, whatever `CARGO_TARGET_DIR` is.
///
/// # Errors
/// When it was not built.
pub fn built(name: &str) -> Result<PathBuf> {
    let running = std::env::current_exe()?;
    let folders = running.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no {name} beside this program: run `cargo build --workspace --bins` first, as `make` does"))
}

/// Polls `ask` every 20 ms until it returns `Some`, for a minute at most. `what` is the condition, for the error.
///
/// # Errors
/// When `ask` fails, or a minute has passed.
pub async fn eventually<T, F, R>(what: &str, mut ask: F) -> Result<T>
where
    F: FnMut() -> R,
    R: Future<Output = Result<Option<T>>>,
{
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        anyhow::ensure!(started.elapsed() < Duration::from_secs(60), "timeout after a minute, waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
