//! How often something is looked for that may take long: what was deleted is passed over row by row as long as an older
//! transaction is open, such as that of a dump.

use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A look may take one part in so many of the time.
const SHARE: u32 = 20;
/// However long a look takes.
const MAX_REST: Duration = Duration::from_secs(60);

/// How long to rest after a look that took so long, and `least` at least.
pub fn rest(took: Duration, least: Duration) -> Duration {
    least.max((took * SHARE).min(MAX_REST))
}

/// Rests after a look that began then, or until `stop`.
pub async fn pause(began: Instant, least: Duration, stop: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(rest(began.elapsed(), least)) => {}
        () = stop.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_takes_long_is_rare_and_still_comes() {
        let rest = |took| rest(Duration::from_millis(took), Duration::from_millis(200)).as_millis();
        assert_eq!((rest(0), rest(10), rest(100), rest(3_600_000)), (200, 200, 2_000, 60_000));
    }
}
