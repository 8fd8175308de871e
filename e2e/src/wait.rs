//! Waiting for a condition, and never for a time.

use anyhow::Result;
use std::time::{Duration, Instant};

/// Polls `ask` until it returns `Some`, for a minute at most: every 20 ms at first, and every 100 ms after a second, since each poll
/// costs the processors more than a test does that waits. `what` is the condition, for the error.
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
        let pause = (started.elapsed() / 10).clamp(Duration::from_millis(20), Duration::from_millis(100));
        tokio::time::sleep(pause).await;
    }
}
