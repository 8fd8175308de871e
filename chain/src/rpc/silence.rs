//! For how long a block waits for an endpoint to confirm what no root proves. Pure: the time is a parameter.

use std::time::{Duration, Instant};

/// Silence is old after so long. The retries of a block come sooner than that.
const OLD_SILENCE: Duration = Duration::from_secs(60);

/// Since when an endpoint has confirmed nothing that another one said.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    /// An endpoint that has confirmed nothing for so long is not waited for until it does.
    patience: Duration,
    since: Option<Instant>,
    /// When it confirmed nothing last.
    last: Option<Instant>,
    /// It is not waited for any more, and that was logged.
    is_known: bool,
}

impl Silence {
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: None, last: None, is_known: false }
    }

    /// Whether a block waits for it.
    pub fn is_waited_for(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) < self.patience)
    }

    /// It neither confirmed nor contradicted. Returns whether that is why it is not waited for from now on.
    pub fn record(&mut self, now: Instant) -> bool {
        self.since.get_or_insert(now);
        self.last = Some(now);
        let ends_now = !self.is_waited_for(now) && !self.is_known;
        self.is_known |= ends_now;
        ends_now
    }

    /// It answers that it lacks a block, which may reach it in a moment. Silence of long ago says nothing of that.
    pub fn record_absence(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > OLD_SILENCE) {
            self.since = None;
        }
    }

    /// It confirmed or contradicted. Returns whether it is waited for again.
    pub fn record_confirmation(&mut self) -> bool {
        std::mem::replace(self, Self::new(self.patience)).is_known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_endpoint_is_waited_for_a_while_and_again_once_it_confirms() {
        const PATIENCE: Duration = Duration::from_secs(15);
        let (mut silence, now) = (Silence::new(PATIENCE), Instant::now());
        assert!(silence.is_waited_for(now) && !silence.record(now));
        let before = now + PATIENCE / 2;
        assert!(silence.is_waited_for(before) && !silence.record(before));
        let after = now + PATIENCE;
        assert!(!silence.is_waited_for(after));
        assert!(silence.record(after) && !silence.record(after), "it is said once");
        silence.record_absence(after + PATIENCE);
        assert!(!silence.is_waited_for(after + PATIENCE), "it lags for long");
        let much_later = after + OLD_SILENCE * 2;
        silence.record_absence(much_later);
        assert!(silence.is_waited_for(much_later) && !silence.record(much_later), "a null of long ago is no silence of now");
        assert!(silence.record_confirmation() && !silence.record_confirmation());
        assert!(silence.is_waited_for(after));
    }
}
