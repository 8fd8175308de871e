//! Waiting for a condition, and never for a time.

use anyhow::Result;
use std::time::{Duration, Instant};

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
