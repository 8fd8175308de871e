//! Stages: the blocking loops of a role. Each has an OS thread, restarts after [`Failure::Retry`] with back-off, and stops the
//! role after [`Failure::Halt`]. [`Failure::Reopen`] is a retry, unless it follows another one at once.

use crate::failure::Failure;
use crate::kafka::error::TWIN;
use crate::kafka::producer::TRANSACTION_TIMEOUT;
use anyhow::Context as _;
use base::{backoff, metrics};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const MAX_RESTART_DELAY: Duration = Duration::from_secs(5);

/// Runs a blocking loop on an OS thread until `stop`, upon which `body` returns `Ok`.
///
/// The body sets up everything itself, consumers and producers included, so that a restart begins from what was committed and
/// from nothing else.
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
            // The receiver is gone only while the whole process stops.
            let _ = done.send(supervise(name, &stop, &mut body));
        })
        .with_context(|| format!("starting a thread for {name}"))?;
    outcome.await.with_context(|| format!("{name} panicked"))?
}

fn supervise<F>(name: &'static str, stop: &CancellationToken, body: &mut F) -> anyhow::Result<()>
where
    F: FnMut(&CancellationToken) -> Result<(), Failure>,
{
    let mut delays = backoff::delays(MAX_RESTART_DELAY);
    let mut reopened = false;
    while !stop.is_cancelled() {
        let started = Instant::now();
        let outcome = body(stop);
        let fenced = matches!(outcome, Err(Failure::Reopen(_)));
        match outcome {
            Ok(()) => break,
            Err(Failure::Halt(cause)) => return Err(cause.context(format!("{name} halted"))),
            // A broker ends no transaction sooner.
            Err(Failure::Reopen(cause)) if reopened && started.elapsed() < TRANSACTION_TIMEOUT => {
                return Err(cause.context(TWIN).context(format!("{name} halted")));
            }
            Err(Failure::Retry(cause) | Failure::Reopen(cause)) => {
                if started.elapsed() > MAX_RESTART_DELAY * 2 {
                    delays = backoff::delays(MAX_RESTART_DELAY);
                }
                let delay = delays.next().unwrap_or(MAX_RESTART_DELAY);
                tracing::warn!(stage = name, "restarting in {delay:.1?}: {cause:#}");
                metrics::STAGE_RESTARTS.counter(&[("stage", name)]).increment(1);
                pause(stop, delay);
            }
        }
        reopened = fenced;
    }
    tracing::debug!(stage = name, "stopped");
    Ok(())
}

/// Sleeps on this thread, but not beyond `stop`.
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

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    fn fenced() -> Result<(), Failure> {
        Err(Failure::Reopen(anyhow!("fenced")))
    }

    /// Runs a stage whose body has these outcomes one after the other, and counts its runs.
    fn runs(mut outcomes: Vec<Result<(), Failure>>) -> (usize, anyhow::Result<()>) {
        let (mut count, stop) = (0, CancellationToken::new());
        let outcome = supervise("test", &stop, &mut |_: &CancellationToken| {
            count += 1;
            outcomes.remove(0)
        });
        (count, outcome)
    }

    #[test]
    fn a_pause_is_not_taken_for_a_twin() {
        let (count, outcome) = runs(vec![fenced(), Ok(())]);
        assert!(outcome.is_ok() && count == 2, "{count}: {outcome:?}");
        // A broker that was away in between.
        let (count, outcome) = runs(vec![fenced(), Err(Failure::Retry(anyhow!("away"))), fenced(), Ok(())]);
        assert!(outcome.is_ok() && count == 4, "{count}: {outcome:?}");
    }

    #[test]
    fn a_twin_stops_the_older_process_with_a_hint() {
        let (count, outcome) = runs(vec![fenced(), fenced(), Ok(())]);
        let error = format!("{:#}", outcome.unwrap_err());
        assert!(count == 2 && error.contains("CTRIP_INSTANCE"), "{count}: {error}");
    }
}
