//! Waiting for a condition, and never for a time.

use crate::process::tails_of_this_thread;
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Polls `ask` until it returns `Some`, for a minute at most: every 20 ms at first, and every 100 ms after a second, since each poll
/// costs the processors more than a test does that waits. `what` is the condition, for the error, which ends with the logs of what the
/// thread has started.
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
        if started.elapsed() >= Duration::from_secs(60) {
            bail!("timeout after a minute, waiting for: {what}{}", tails_of_this_thread());
        }
        let pause = (started.elapsed() / 10).clamp(Duration::from_millis(20), Duration::from_millis(100));
        tokio::time::sleep(pause).await;
    }
}
