//! Back-off: how long to wait between retries of work that must succeed in the end.

use backon::BackoffBuilder as _;
use std::time::Duration;

const MIN_DELAY: Duration = Duration::from_millis(100);

/// Delays without end: exponential with jitter, from 100 ms to `max_delay`.
pub fn delays(max_delay: Duration) -> impl Iterator<Item = Duration> {
    backon::ExponentialBuilder::new()
        .with_min_delay(MIN_DELAY)
        .with_max_delay(max_delay)
        .with_jitter()
        .without_max_times()
        .build()
}
