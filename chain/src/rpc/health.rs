//! Endpoint health: circuit breaker, latency, error rate and head, and the ranking made of them. Pure: the time is a parameter.
//!
//! Endpoints are ranked by these criteria, in this order: the circuit lets requests through; the head is at most
//! [`MAX_LAG_BLOCKS`] behind the newest known, and the endpoint has the blocks that it announces and the same as
//! others; it is not throttled; it
//! neither fails often nor is much slower than the fastest. Among equals the order of `chains.yaml` holds.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

/// Failures in a row that open a circuit. A single lie opens it at once.
const FAILURES_TO_OPEN: u32 = 3;
const MIN_OPEN_TIME: Duration = Duration::from_millis(250);
const MAX_OPEN_TIME: Duration = Duration::from_secs(10);
/// A probe without an outcome is forgotten after this time.
const PROBE_TIMEOUT: Duration = Duration::from_secs(15);
/// An endpoint further behind the newest head than this lags.
pub const MAX_LAG_BLOCKS: u64 = 2;
/// How long an endpoint ranks behind others after it told of a head that it did not have, or contradicted the others.
const DISTRUST_TTL: Duration = Duration::from_secs(30);
/// Weight of the latest sample in the moving averages.
const AVERAGE_WEIGHT: f64 = 0.1;
/// Share of failed requests above which an endpoint ranks behind others.
const MAX_ERROR_RATE: f64 = 0.3;
/// An endpoint ranks behind others if its latency exceeds the fastest's by this factor and also by this many seconds.
const MAX_LATENCY_RATIO: f64 = 4.0;
const MAX_LATENCY_GAP_S: f64 = 0.1;

/// A circuit breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Circuit {
    /// All requests go through.
    #[default]
    Closed,
    /// No request goes through until this time.
    Open(Instant),
    /// One request, the probe, is under way since this time. Its outcome decides.
    HalfOpen(Instant),
}

impl Circuit {
    /// The metric's value.
    pub const fn as_number(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen(_) => 1.0,
            Self::Open(_) => 2.0,
        }
    }
}

/// What is known about an endpoint's behaviour.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeHealth {
    circuit: Circuit,
    failures: u32,
    /// Times in a row that the circuit opened.
    openings: u32,
    /// Moving average, in seconds.
    latency: Option<f64>,
    /// Moving average of the share of failed requests.
    errors: f64,
    head: Option<u64>,
    distrusted_until: Option<Instant>,
}

impl NodeHealth {
    pub fn circuit(&self) -> Circuit {
        self.circuit
    }

    /// Whether a request may go through now. After the open time that request is the probe.
    pub fn allow_request(&mut self, now: Instant) -> bool {
        match self.circuit {
            Circuit::Closed => true,
            Circuit::Open(until) if now < until => false,
            Circuit::HalfOpen(since) if now < since + PROBE_TIMEOUT => false,
            Circuit::Open(_) | Circuit::HalfOpen(_) => {
                self.circuit = Circuit::HalfOpen(now);
                true
            }
        }
    }

    /// The caller dropped its request. If that was the probe, another is due.
    pub fn release_probe(&mut self, now: Instant) {
        if matches!(self.circuit, Circuit::HalfOpen(_)) {
            self.circuit = Circuit::Open(now);
        }
    }

    /// A request succeeded. Closes the circuit.
    pub fn record_success(&mut self) {
        self.errors += AVERAGE_WEIGHT * (0.0 - self.errors);
        (self.failures, self.openings) = (0, 0);
        self.circuit = Circuit::Closed;
    }

    /// A request failed. `jitter` is from 0 to 1.
    pub fn record_failure(&mut self, now: Instant, jitter: f64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_TO_OPEN || self.circuit != Circuit::Closed {
            self.open(now, jitter);
        }
        self.errors += AVERAGE_WEIGHT * (1.0 - self.errors);
    }

    /// An answer failed its proof. Opens the circuit.
    pub fn record_lie(&mut self, now: Instant, jitter: f64) {
        self.open(now, jitter);
        self.errors += AVERAGE_WEIGHT * (1.0 - self.errors);
    }

    /// Opens the circuit. Each time in a row it stays open for twice as long, up to [`MAX_OPEN_TIME`].
    fn open(&mut self, now: Instant, jitter: f64) {
        // Requests that were under way when it opened say nothing new.
        if matches!(self.circuit, Circuit::Open(until) if now < until) {
            return;
        }
        let open = MIN_OPEN_TIME.saturating_mul(1 << self.openings.min(10)).min(MAX_OPEN_TIME);
        self.openings = self.openings.saturating_add(1);
        self.circuit = Circuit::Open(now + open.mul_f64(1.0 - 0.25 * jitter));
    }

    /// It answered after this time.
    pub fn record_latency(&mut self, after: Duration) {
        let latest = after.as_secs_f64();
        self.latency = Some(self.latency.map_or(latest, |average| average + AVERAGE_WEIGHT * (latest - average)));
    }

    /// It told of a head that it did not have.
    pub fn record_withheld_head(&mut self, now: Instant) {
        self.distrusted_until = Some(now + DISTRUST_TTL);
    }

    /// It has another block than ours where others have ours.
    pub fn record_contradiction(&mut self, now: Instant) {
        self.distrusted_until = Some(now + DISTRUST_TTL);
    }

    /// Its head, unless it is distrusted.
    fn trusted_head(&self, now: Instant) -> Option<u64> {
        self.head.filter(|_| !self.is_distrusted(now))
    }

    fn is_distrusted(&self, now: Instant) -> bool {
        self.distrusted_until.is_some_and(|until| now < until)
    }

    /// It told of this head. The height may be lower than before.
    pub fn record_head(&mut self, number: u64) {
        self.head = Some(number);
    }
}

/// An endpoint in the ranking.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub health: NodeHealth,
    /// Its rate limit holds requests back.
    pub is_throttled: bool,
}

/// Ranks the candidates: their indices, the one to ask first at the front.
pub fn rank(candidates: &[Candidate], now: Instant) -> Vec<usize> {
    let newest = candidates.iter().filter_map(|c| c.health.trusted_head(now)).max();
    let fastest = candidates.iter().filter_map(|c| c.health.latency).min_by(f64::total_cmp).unwrap_or_default();
    let key = |candidate: &Candidate| {
        let NodeHealth { circuit, latency, errors, head, .. } = candidate.health;
        let closed = match circuit {
            Circuit::Closed => 2,
            // Due for its probe, which comes after the endpoints that work.
            Circuit::Open(until) => u8::from(until <= now),
            Circuit::HalfOpen(_) => 0,
        };
        let lags = candidate.health.is_distrusted(now)
            || head.zip(newest).is_some_and(|(head, newest)| newest.saturating_sub(head) > MAX_LAG_BLOCKS);
        let slow =
            latency.is_some_and(|latency| latency > MAX_LATENCY_RATIO * fastest && latency > fastest + MAX_LATENCY_GAP_S);
        (Reverse(closed), lags, candidate.is_throttled, errors > MAX_ERROR_RATE || slow)
    };
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    places.sort_by_key(|place| candidates.get(*place).map(key));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Candidate {
        let mut health = NodeHealth::default();
        health.record_latency(Duration::from_millis(20));
        health.record_head(100);
        Candidate { health, is_throttled: false }
    }

    #[test]
    fn the_files_order_holds_among_healthy_endpoints() {
        assert_eq!(rank(&[healthy(), healthy(), healthy()], Instant::now()), [0, 1, 2]);
        // A little slower or a block behind is no reason.
        let mut first = healthy();
        first.health.record_latency(Duration::from_millis(60));
        first.health.record_head(99);
        assert_eq!(rank(&[first, healthy()], Instant::now()), [0, 1]);
    }

    #[test]
    fn an_endpoint_that_fails_lags_is_throttled_or_is_slow_ranks_last() {
        let now = Instant::now();
        let mut failed = healthy();
        failed.health.record_lie(now, 0.0);
        let mut lagging = healthy();
        lagging.health.record_head(97);
        let waiting = Candidate { is_throttled: true, ..healthy() };
        let mut slow = healthy();
        (0..50).for_each(|_| slow.health.record_latency(Duration::from_secs(1)));
        assert_eq!(rank(&[failed, lagging, waiting, slow, healthy()], now), [4, 3, 2, 1, 0]);
    }

    #[test]
    fn a_head_that_nobody_has_makes_no_other_endpoint_lag() {
        let now = Instant::now();
        let mut ahead = healthy();
        ahead.health.record_head(1_000_000);
        assert_eq!(rank(&[healthy(), ahead], now), [1, 0]);
        ahead.health.record_withheld_head(now);
        assert_eq!(rank(&[ahead, healthy()], now), [1, 0]);
        // Not for ever: it may have been one node of several behind the same name, a moment ahead of the others.
        assert_eq!(rank(&[ahead, healthy()], now + DISTRUST_TTL), [0, 1]);
    }

    #[test]
    fn an_open_circuit_lets_one_probe_through_and_its_outcome_decides() {
        let (mut health, now) = (NodeHealth::default(), Instant::now());
        for _ in 1..FAILURES_TO_OPEN {
            health.record_failure(now, 0.0);
            assert!(health.allow_request(now) && health.allow_request(now), "one failure is no outage");
        }
        health.record_failure(now, 0.0);
        assert!(!health.allow_request(now + MIN_OPEN_TIME / 2));
        let later = now + MIN_OPEN_TIME;
        assert!(health.allow_request(later) && !health.allow_request(later), "one probe and no more");
        health.record_failure(later, 0.0);
        assert!(!health.allow_request(later + MIN_OPEN_TIME), "it opens for longer than before");
        assert!(health.allow_request(later + MIN_OPEN_TIME * 2));
        health.record_success();
        assert_eq!(health.circuit(), Circuit::Closed);
        assert!(health.allow_request(later) && health.allow_request(later));
    }

    #[test]
    fn a_dropped_probe_does_not_block_the_circuit() {
        let (mut health, now) = (NodeHealth::default(), Instant::now());
        health.record_lie(now, 0.0);
        assert!(health.allow_request(now + MIN_OPEN_TIME) && !health.allow_request(now + MIN_OPEN_TIME * 2));
        assert!(health.allow_request(now + MIN_OPEN_TIME + PROBE_TIMEOUT));
        let later = now + MIN_OPEN_TIME + PROBE_TIMEOUT;
        health.release_probe(later);
        assert!(health.allow_request(later) && !health.allow_request(later), "another probe, at once");
    }

    #[test]
    fn many_failures_at_once_count_as_one_and_the_open_time_has_an_end() {
        let (mut health, mut now) = (NodeHealth::default(), Instant::now());
        (0..20).for_each(|_| health.record_failure(now, 0.0));
        assert!(health.allow_request(now + MIN_OPEN_TIME));
        for _ in 0..40 {
            now += MAX_OPEN_TIME;
            health.record_failure(now, 0.0);
        }
        assert!(!health.allow_request(now + MAX_OPEN_TIME / 2) && health.allow_request(now + MAX_OPEN_TIME));
    }
}
