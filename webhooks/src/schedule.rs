//! When a message is sent again, and when no more. No clock, no IO.

use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// Delays after the first, second and so on failure of a message. One that fails once more after the last has failed for good.
pub const DELAYS: [Duration; 7] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * MINUTE),
    Duration::from_secs(30 * MINUTE),
    Duration::from_secs(2 * HOUR),
    Duration::from_secs(5 * HOUR),
    Duration::from_secs(10 * HOUR),
    Duration::from_secs(10 * HOUR),
];
/// Each delay is longer by up to so much of itself, so that what failed together does not come back together.
const JITTER: f64 = 0.2;
/// An endpoint that asks for more peace than this has it for so long.
const LONGEST_PEACE: Duration = Duration::from_secs(12 * HOUR);
/// An endpoint that fails is left alone after each failure for this share of the time since it last worked, so that messages don't
/// use up their schedules while it is away …
pub const REST: f64 = 0.1;
/// … and no longer than this, in which it may have come back.
pub const LONGEST_REST: Duration = Duration::from_secs(MINUTE);
/// An endpoint that took nothing for so long is disabled.
pub const DISABLE_AFTER: Duration = Duration::from_secs(5 * 24 * HOUR);

/// What an endpoint answered; none of it if it did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: Option<u16>,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// What becomes of a message after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has arrived.
    Delivered,
    /// It is sent again after this.
    Again(Duration),
    /// It is sent no more, unless somebody asks for it.
    Failed,
    /// The endpoint wants nothing any more, and is disabled.
    Gone,
}

/// How long an endpoint wants to be left in peace, with all messages.
pub fn peace(answer: Answer) -> Option<Duration> {
    let failed = !answer.status.is_some_and(|status| (200..300).contains(&status));
    answer.retry_after.filter(|_| failed).map(|after| after.min(LONGEST_PEACE))
}

/// Judges an attempt at a message that failed `tries` times before. `chance` is a random number from 0 to 1.
pub fn judge(tries: usize, answer: Answer, chance: f64) -> Verdict {
    match answer.status {
        Some(200..300) => Verdict::Delivered,
        Some(410) => Verdict::Gone,
        // A redirect is a failure too: where it leads nobody has checked.
        _ => match DELAYS.get(tries) {
            None => Verdict::Failed,
            Some(delay) => {
                let delay = delay.mul_f64(1.0 + JITTER * chance.clamp(0.0, 1.0));
                Verdict::Again(delay.max(peace(answer).unwrap_or_default()))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        Answer { status: Some(status), retry_after: None }
    }

    #[test]
    fn only_2xx_is_success_and_410_ends_it_at_once() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(judge(0, answer(status), 0.0), Verdict::Delivered, "{status}");
        }
        for status in [100, 199, 300, 301, 302, 307, 308, 400, 401, 404, 409, 429, 500, 502, 503] {
            assert_eq!(judge(0, answer(status), 0.0), Verdict::Again(DELAYS[0]), "{status}");
        }
        assert_eq!(judge(0, answer(410), 0.0), Verdict::Gone);
        assert_eq!(judge(0, Answer::default(), 0.0), Verdict::Again(DELAYS[0]), "no answer");
    }

    #[test]
    fn delays_grow_with_jitter_and_end() {
        for (tries, delay) in DELAYS.iter().enumerate() {
            assert_eq!(judge(tries, answer(500), 0.0), Verdict::Again(*delay));
            assert_eq!(judge(tries, answer(500), 1.0), Verdict::Again(delay.mul_f64(1.2)));
        }
        assert_eq!(judge(DELAYS.len(), answer(500), 0.5), Verdict::Failed);
    }

    #[test]
    fn retry_after_lengthens_a_delay_and_never_shortens_it() {
        let after = |seconds| Answer { status: Some(503), retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(judge(0, after(60), 0.0), Verdict::Again(Duration::from_secs(60)));
        assert_eq!(judge(1, after(60), 0.0), Verdict::Again(DELAYS[1]));
        assert_eq!(judge(0, after(u64::MAX), 0.0), Verdict::Again(LONGEST_PEACE));
        assert_eq!(peace(after(60)), Some(Duration::from_secs(60)));
        assert_eq!(peace(Answer { status: Some(200), ..after(60) }), None, "a success asks for nothing");
    }
}
