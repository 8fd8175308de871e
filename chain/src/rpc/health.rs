//! How an endpoint behaves, and who is asked first. Pure: the time is given.
//!
//! The order of `chains.yaml` holds among endpoints that behave alike. Before that, in this order: one whose circuit lets
//! requests through, one that is not more than [`LAGS`] blocks behind the newest head that anybody told and has the blocks that it
//! tells of, one that does not ask us to wait, one that neither fails often nor takes much longer than the fastest.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

/// Failures in a row that open a circuit. A lie does so alone.
const TOLERATED: u32 = 3;
const FIRST_OPEN: Duration = Duration::from_millis(250);
const LONGEST_OPEN: Duration = Duration::from_secs(10);
/// A probe whose answer was not waited for is forgotten after this long.
const PROBE_FORGOTTEN: Duration = Duration::from_secs(15);
/// Blocks behind the newest head, from which on an endpoint lags.
pub const LAGS: u64 = 2;
/// An endpoint that told of a head and did not have it comes later for so long.
const DISTRUSTED: Duration = Duration::from_secs(30);
/// Weight of the newest answer in the running averages.
const NEWEST: f64 = 0.1;
/// Of its requests fail, from which on an endpoint comes later.
const FAILS_OFTEN: f64 = 0.3;
/// Times as slow as the fastest, and by how much, from which on an endpoint comes later.
const SLOWER: f64 = 4.0;
const MUCH: f64 = 0.1;

/// A circuit breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Circuit {
    /// Requests go through.
    #[default]
    Closed,
    /// None does, until then.
    Open(Instant),
    /// One does, and decides; since when it is on its way.
    HalfOpen(Instant),
}

impl Circuit {
    /// As the metric has it.
    pub const fn as_number(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen(_) => 1.0,
            Self::Open(_) => 2.0,
        }
    }
}

/// What is known of an endpoint's behaviour.
#[derive(Clone, Copy, Debug, Default)]
pub struct Health {
    circuit: Circuit,
    failures: u32,
    /// Times in a row that the circuit opened.
    opened: u32,
    latency: Option<f64>,
    errors: f64,
    head: Option<u64>,
    distrusted: Option<Instant>,
}

impl Health {
    /// The circuit.
    pub fn circuit(&self) -> Circuit {
        self.circuit
    }

    /// Whether a request may go through now. After an open time that is the one probe.
    pub fn admits(&mut self, now: Instant) -> bool {
        match self.circuit {
            Circuit::Closed => true,
            Circuit::Open(until) if now < until => false,
            Circuit::HalfOpen(since) if now < since + PROBE_FORGOTTEN => false,
            Circuit::Open(_) | Circuit::HalfOpen(_) => {
                self.circuit = Circuit::HalfOpen(now);
                true
            }
        }
    }

    /// Nobody waits for an answer any more. If that was the probe, another is due.
    pub fn given_up(&mut self, now: Instant) {
        if matches!(self.circuit, Circuit::HalfOpen(_)) {
            self.circuit = Circuit::Open(now);
        }
    }

    /// It did what it was asked for.
    pub fn succeeded(&mut self) {
        self.errors += NEWEST * (0.0 - self.errors);
        (self.failures, self.opened) = (0, 0);
        self.circuit = Circuit::Closed;
    }

    /// It did not. `jitter` is of 0 to 1.
    pub fn failed(&mut self, now: Instant, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= TOLERATED || self.circuit != Circuit::Closed {
            self.open(now, jitter);
        }
        self.errors += NEWEST * (1.0 - self.errors);
    }

    /// It did something else than what it was asked for, or not truly.
    pub fn lied(&mut self, now: Instant, jitter: f64) {
        self.open(now, jitter);
        self.errors += NEWEST * (1.0 - self.errors);
    }

    /// The longer the oftener in a row.
    fn open(&mut self, now: Instant, jitter: f64) {
        // Requests that were on their way when it opened say nothing new.
        if matches!(self.circuit, Circuit::Open(until) if now < until) {
            return;
        }
        let open = FIRST_OPEN.saturating_mul(1 << self.opened.min(10)).min(LONGEST_OPEN);
        self.opened = self.opened.saturating_add(1);
        self.circuit = Circuit::Open(now + open.mul_f64(1.0 - 0.25 * jitter));
    }

    /// It answered, after so long.
    pub fn answered(&mut self, after: Duration) {
        let latest = after.as_secs_f64();
        self.latency = Some(self.latency.map_or(latest, |average| average + NEWEST * (latest - average)));
    }

    /// It told of heads and did not have them.
    pub fn withheld(&mut self, now: Instant) {
        self.distrusted = Some(now + DISTRUSTED);
    }

    /// What its head is, if that means anything.
    fn true_head(&self, now: Instant) -> Option<u64> {
        self.head.filter(|_| !self.is_distrusted(now))
    }

    fn is_distrusted(&self, now: Instant) -> bool {
        self.distrusted.is_some_and(|until| now < until)
    }

    /// It told of this head. A smaller number than before is its head all the same.
    pub fn saw_head(&mut self, number: u64) {
        self.head = Some(number);
    }
}

/// An endpoint when a request is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Its behaviour.
    pub health: Health,
    /// It has asked us to wait.
    pub waits: bool,
}

/// The places of the candidates, the one to be asked first at the front.
pub fn order(candidates: &[Candidate], now: Instant) -> Vec<usize> {
    let newest = candidates.iter().filter_map(|c| c.health.true_head(now)).max();
    let fastest = candidates.iter().filter_map(|c| c.health.latency).min_by(f64::total_cmp).unwrap_or_default();
    let key = |candidate: &Candidate| {
        let Health { circuit, latency, errors, head, .. } = candidate.health;
        let closed = match circuit {
            Circuit::Closed => 2,
            // Due for its probe: somebody has to be it, but not before those that work.
            Circuit::Open(until) => u8::from(until <= now),
            Circuit::HalfOpen(_) => 0,
        };
        let lags = candidate.health.is_distrusted(now)
            || head.zip(newest).is_some_and(|(head, newest)| newest.saturating_sub(head) > LAGS);
        let slow = latency.is_some_and(|latency| latency > SLOWER * fastest && latency > fastest + MUCH);
        (Reverse(closed), lags, candidate.waits, errors > FAILS_OFTEN || slow)
    };
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    places.sort_by_key(|place| candidates.get(*place).map(key));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Candidate {
        let mut health = Health::default();
        health.answered(Duration::from_millis(20));
        health.saw_head(100);
        Candidate { health, waits: false }
    }

    #[test]
    fn the_files_order_holds_among_those_that_behave() {
        assert_eq!(order(&[sound(), sound(), sound()], Instant::now()), [0, 1, 2]);
        // A little slower or a block behind is no reason.
        let mut first = sound();
        first.health.answered(Duration::from_millis(60));
        first.health.saw_head(99);
        assert_eq!(order(&[first, sound()], Instant::now()), [0, 1]);
    }

    #[test]
    fn who_fails_lags_waits_or_crawls_comes_later() {
        let now = Instant::now();
        let mut failed = sound();
        failed.health.lied(now, 0.0);
        let mut lagging = sound();
        lagging.health.saw_head(97);
        let waiting = Candidate { waits: true, ..sound() };
        let mut slow = sound();
        (0..50).for_each(|_| slow.health.answered(Duration::from_secs(1)));
        assert_eq!(order(&[failed, lagging, waiting, slow, sound()], now), [4, 3, 2, 1, 0]);
    }

    #[test]
    fn a_head_that_is_not_to_be_had_makes_nobody_else_lag() {
        let now = Instant::now();
        let mut ahead = sound();
        ahead.health.saw_head(1_000_000);
        assert_eq!(order(&[sound(), ahead], now), [1, 0]);
        ahead.health.withheld(now);
        assert_eq!(order(&[ahead, sound()], now), [1, 0]);
        // Not for ever: it may have been a node behind the same name that was a moment ahead of the others.
        assert_eq!(order(&[ahead, sound()], now + DISTRUSTED), [0, 1]);
    }

    #[test]
    fn an_open_circuit_lets_one_probe_through_and_its_outcome_decides() {
        let (mut health, now) = (Health::default(), Instant::now());
        for _ in 1..TOLERATED {
            health.failed(now, 0.0);
            assert!(health.admits(now) && health.admits(now), "one failure is no outage");
        }
        health.failed(now, 0.0);
        assert!(!health.admits(now + FIRST_OPEN / 2));
        let later = now + FIRST_OPEN;
        assert!(health.admits(later) && !health.admits(later), "one probe and no more");
        health.failed(later, 0.0);
        assert!(!health.admits(later + FIRST_OPEN), "it opens for longer than before");
        assert!(health.admits(later + FIRST_OPEN * 2));
        health.succeeded();
        assert_eq!(health.circuit(), Circuit::Closed);
        assert!(health.admits(later) && health.admits(later));
    }

    #[test]
    fn a_probe_that_was_given_up_does_not_keep_the_circuit_shut() {
        let (mut health, now) = (Health::default(), Instant::now());
        health.lied(now, 0.0);
        assert!(health.admits(now + FIRST_OPEN) && !health.admits(now + FIRST_OPEN * 2));
        assert!(health.admits(now + FIRST_OPEN + PROBE_FORGOTTEN));
        let later = now + FIRST_OPEN + PROBE_FORGOTTEN;
        health.given_up(later);
        assert!(health.admits(later) && !health.admits(later), "another probe, at once");
    }

    #[test]
    fn many_failures_at_once_count_as_one_and_the_open_time_has_an_end() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        (0..20).for_each(|_| health.failed(now, 0.0));
        assert!(health.admits(now + FIRST_OPEN));
        for _ in 0..40 {
            now += LONGEST_OPEN;
            health.failed(now, 0.0);
        }
        assert!(!health.admits(now + LONGEST_OPEN / 2) && health.admits(now + LONGEST_OPEN));
    }
}
