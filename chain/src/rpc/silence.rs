//! For how long a block waits for an endpoint to confirm what no root proves. Pure: the time is a parameter.

use std::time::{Duration, Instant};

/// An endpoint that has confirmed nothing for so long is not waited for until it does.
const MAX_SILENCE: Duration = Duration::from_secs(15);

/// Since when an endpoint has confirmed nothing that another one said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silence {
    since: Option<Instant>,
    /// It is not waited for any more, and that was logged.
    is_known: bool,
}

impl Silence {
    /// Whether a block waits for it.
    pub fn is_waited_for(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) < MAX_SILENCE)
    }

    /// It neither confirmed nor contradicted. Returns whether that is why it is not waited for from now on.
    pub fn record(&mut self, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let ends_now = !self.is_waited_for(now) && !self.is_known;
        self.is_known |= ends_now;
        ends_now
    }

    /// It confirmed or contradicted. Returns whether it is waited for again.
    pub fn record_confirmation(&mut self) -> bool {
        std::mem::take(self).is_known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_endpoint_is_waited_for_a_while_and_again_once_it_confirms() {
        let (mut silence, now) = (Silence::default(), Instant::now());
        assert!(silence.is_waited_for(now) && !silence.record(now));
        let before = now + MAX_SILENCE / 2;
        assert!(silence.is_waited_for(before) && !silence.record(before));
        let after = now + MAX_SILENCE;
        assert!(!silence.is_waited_for(after));
        assert!(silence.record(after) && !silence.record(after), "it is said once");
        assert!(silence.record_confirmation() && !silence.record_confirmation());
        assert!(silence.is_waited_for(after));
    }
}
