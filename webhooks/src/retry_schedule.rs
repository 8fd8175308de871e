//! The retry schedule: when a message is retried, when it has failed for good, and when its endpoint is backed off or disabled.
//! Pure: no clock, no IO.

use crate::attempt::{ResponseHead, Verdict};
use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// Delays after the first, second and so on failure of a message. A failure after the last delay is final.
pub const RETRY_DELAYS: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * MINUTE),
    Duration::from_secs(30 * MINUTE),
    Duration::from_secs(2 * HOUR),
    Duration::from_secs(5 * HOUR),
    Duration::from_secs(10 * HOUR),
    Duration::from_secs(10 * HOUR),
];
/// After so many failures an event no longer blocks the later events of its payment.
pub const MAX_BLOCKING_FAILURES: i32 = 3;
/// Each delay is lengthened by up to this fraction, so that what failed together is not retried together.
const MAX_JITTER: f64 = 0.2;
/// A longer `Retry-After` counts as this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(12 * HOUR);
/// Back-off of an endpoint: after each failure it is sent nothing for this fraction of the time that it has been failing, so
/// that messages don't use up their retries during an outage …
pub const ENDPOINT_BACKOFF_FRACTION: f64 = 0.1;
/// … and for no longer than this, since the endpoint may be back.
pub const MAX_ENDPOINT_BACKOFF: Duration = Duration::from_secs(MINUTE);
/// An endpoint that was sent nothing for so long after a failure fails anew, and not since then. While something is pending, no two
/// attempts are further apart than [`MAX_RETRY_AFTER`].
pub const QUIET_AFTER: Duration = Duration::from_secs(24 * HOUR);
/// An endpoint that is asked and has no success for so long is disabled.
pub const DISABLE_AFTER: Duration = Duration::from_secs(5 * 24 * HOUR);

/// How long the whole endpoint is paused, as it asked with `Retry-After`. A success asks for nothing.
pub fn requested_pause(head: ResponseHead) -> Option<Duration> {
    let failed = !head.status.is_some_and(|status| (200..300).contains(&status));
    head.retry_after.filter(|_| failed).map(|after| after.min(MAX_RETRY_AFTER))
}

/// Judges an attempt to send a message that has failed `failures` times before. `chance` is a random number from 0 to 1.
pub fn judge(failures: usize, head: ResponseHead, chance: f64) -> Verdict {
    match head.status {
        Some(200..300) => Verdict::Delivered,
        Some(410) => Verdict::Gone,
        // A redirect is a failure too: its target has not passed the SSRF guard.
        _ => match RETRY_DELAYS.get(failures) {
            None => Verdict::Failed,
            Some(delay) => {
                let delay = delay.mul_f64(1.0 + MAX_JITTER * chance.clamp(0.0, 1.0));
                Verdict::Retry(delay.max(requested_pause(head).unwrap_or_default()))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16) -> ResponseHead {
        ResponseHead { status: Some(status), retry_after: None }
    }

    #[test]
    fn only_2xx_is_success_and_410_ends_it_at_once() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(judge(0, answered(status), 0.0), Verdict::Delivered, "{status}");
        }
        for status in [100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 409, 429, 500, 502, 503] {
            assert_eq!(judge(0, answered(status), 0.0), Verdict::Retry(RETRY_DELAYS[0]), "{status}");
        }
        assert_eq!(judge(0, answered(410), 0.0), Verdict::Gone);
        assert_eq!(judge(0, ResponseHead::default(), 0.0), Verdict::Retry(RETRY_DELAYS[0]), "no answer");
    }

    #[test]
    fn delays_grow_with_jitter_and_end() {
        // As docs/webhooks.md has them.
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let delays = [Duration::from_secs(5), minutes(5), minutes(30), minutes(120), minutes(300), minutes(600), minutes(600)];
        for (failures, delay) in delays.iter().enumerate() {
            assert_eq!(judge(failures, answered(500), 0.0), Verdict::Retry(*delay));
            assert_eq!(judge(failures, answered(500), 1.0), Verdict::Retry(delay.mul_f64(1.2)));
        }
        assert_eq!(judge(delays.len(), answered(500), 0.5), Verdict::Failed);
        assert_eq!(DISABLE_AFTER, minutes(5 * 24 * 60));
        assert!(QUIET_AFTER > MAX_RETRY_AFTER.max(delays[6].mul_f64(1.0 + MAX_JITTER)));
    }

    #[test]
    fn retry_after_lengthens_a_delay_and_never_shortens_it() {
        let after = |seconds| ResponseHead { status: Some(503), retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(judge(0, after(60), 0.0), Verdict::Retry(Duration::from_secs(60)));
        assert_eq!(judge(1, after(60), 0.0), Verdict::Retry(RETRY_DELAYS[1]));
        let twelve_hours = Duration::from_secs(12 * 60 * 60);
        assert_eq!(judge(0, after(u64::MAX), 0.0), Verdict::Retry(twelve_hours));
        assert_eq!(requested_pause(after(u64::MAX)), Some(twelve_hours));
        assert_eq!(requested_pause(after(60)), Some(Duration::from_secs(60)));
        for (status, asks) in [(Some(199), true), (Some(200), false), (Some(299), false), (Some(300), true), (None, true)] {
            let pause = requested_pause(ResponseHead { status, ..after(60) });
            assert_eq!(pause.is_some(), asks, "a success alone asks for nothing: {status:?}");
        }
    }
}
