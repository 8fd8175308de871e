//! Running the loops of a role: each on a thread of its own, started again after what passes, stopped by what does not.

use crate::failure::Failure;
use crate::metrics;
use anyhow::Context as _;
use backon::BackoffBuilder as _;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Runs a blocking loop on an OS thread until `stop`, again and again: `body` returns `Ok` when it saw `stop`.
///
/// The body sets everything up itself, consumers and producers included, so that a retry starts from what was committed
/// and from nothing else.
///
/// # Errors
/// When the body halts, or panics.
pub async fn run<F>(name: &'static str, stop: CancellationToken, mut body: F) -> anyhow::Result<()>
where
    F: FnMut(&CancellationToken) -> Result<(), Failure> + Send + 'static,
{
    let (done, outcome) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread
        .spawn(move || {
            // The receiver is gone only when the whole process stops.
            let _ = done.send(repeat(name, &stop, &mut body));
        })
        .with_context(|| format!("no thread for {name}"))?;
    outcome.await.with_context(|| format!("{name} panicked"))?
}

fn repeat<F>(name: &'static str, stop: &CancellationToken, body: &mut F) -> anyhow::Result<()>
where
    F: FnMut(&CancellationToken) -> Result<(), Failure>,
{
    let mut delays = delays(LONGEST_DELAY);
    while !stop.is_cancelled() {
        let started = Instant::now();
        match body(stop) {
            Ok(()) => break,
            Err(Failure::Halt(cause)) => return Err(cause.context(format!("{name} halted"))),
            Err(Failure::Retry(cause)) => {
                if started.elapsed() > LONGEST_DELAY * 2 {
                    delays = self::delays(LONGEST_DELAY);
                }
                let delay = delays.next().unwrap_or(LONGEST_DELAY);
                tracing::warn!(stage = name, "starting again in {delay:.1?}: {cause:#}");
                metrics::STAGE_RESTARTS.counter(&[("stage", name)]).increment(1);
                pause(stop, delay);
            }
        }
    }
    tracing::debug!(stage = name, "stopped");
    Ok(())
}

/// Delays between tries of what may take for ever: growing, with jitter, from 100 ms to `longest`.
pub fn delays(longest: Duration) -> impl Iterator<Item = Duration> {
    backon::ExponentialBuilder::new()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Waits on this thread, but not beyond `stop`.
pub fn pause(stop: &CancellationToken, delay: Duration) {
    let end = Instant::now() + delay;
    while !stop.is_cancelled() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
