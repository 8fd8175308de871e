//! How long an answer usually takes, and so when one is late. Pure.
//!
//! A fixed deadline is of no use to a node that answers in 5 ms and now and then not at all. Latency is learned for each method,
//! since a block's traces take longer than its number. An endpoint that has left requests without an answer is waited for only a
//! little longer than usual before the next one goes out beside it; one that never has may hesitate.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Answers that are remembered.
const MAX_SAMPLES: usize = 32;
/// An answer is late after so many times the usual time.
const LATE_RATIO: f64 = 3.0;
/// The same, at an endpoint that leaves requests without an answer.
const LOSSY_LATE_RATIO: f64 = 1.5;
/// Earliest, at such an endpoint.
const MIN_LATE: Duration = Duration::from_millis(10);
/// Earliest, at one that answers all, and as long as nothing is known.
const CALM_LATE: Duration = Duration::from_millis(400);
const MAX_LATE: Duration = Duration::from_secs(3);
/// A request is given up after so many times the usual time.
const DEADLINE_RATIO: u32 = 20;
const MIN_DEADLINE: Duration = Duration::from_secs(2);
/// No request takes longer.
pub const MAX_DEADLINE: Duration = Duration::from_secs(10);
/// Weight of the latest request in the share of lost ones.
const LOST_WEIGHT: f64 = 0.1;
/// Share of lost requests above which an endpoint is not trusted to answer.
const MAX_LOST: f64 = 0.03;
/// Second requests that may go out without an answer in between: a node that is slow for everybody gets at most twice the load.
const MAX_SECOND_REQUESTS: u32 = 16;

/// When an answer is late, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A second request goes out beside it.
    pub late: Duration,
    /// It is given up.
    pub deadline: Duration,
}

/// What is learned about one endpoint's latency.
#[derive(Clone, Debug)]
pub struct LearnedLatency {
    methods: HashMap<&'static str, UsualLatency>,
    /// Share of requests without an answer, as a moving average.
    lost: f64,
    /// Second requests that may go out now.
    second_requests: u32,
}

/// The usual latency of one method.
#[derive(Clone, Debug, Default)]
struct UsualLatency {
    samples: VecDeque<Duration>,
    /// Requests in a row that were given up.
    given_up: u32,
}

impl Default for LearnedLatency {
    fn default() -> Self {
        Self { methods: HashMap::new(), lost: 0.0, second_requests: MAX_SECOND_REQUESTS }
    }
}

impl LearnedLatency {
    /// An answer came after this time.
    pub fn record(&mut self, method: &'static str, took: Duration) {
        self.lost -= LOST_WEIGHT * self.lost;
        self.second_requests = (self.second_requests + 1).min(MAX_SECOND_REQUESTS);
        let usual = self.methods.entry(method).or_default();
        usual.given_up = usual.given_up.saturating_sub(1);
        if usual.samples.len() == MAX_SAMPLES {
            usual.samples.pop_front();
        }
        usual.samples.push_back(took);
    }

    /// A request had no answer when another one had.
    pub fn record_lost(&mut self) {
        self.lost += LOST_WEIGHT * (1.0 - self.lost);
    }

    /// No answer came until the deadline. The next one is later, or a node that has become slow would never be heard.
    pub fn record_given_up(&mut self, method: &'static str) {
        self.record_lost();
        let usual = self.methods.entry(method).or_default();
        usual.given_up = usual.given_up.saturating_add(1);
    }

    /// Whether a second request may go out. Counts it.
    pub fn allow_second_request(&mut self) -> bool {
        let left = self.second_requests.checked_sub(1);
        self.second_requests = left.unwrap_or_default();
        left.is_some()
    }

    /// The patience for the next request.
    pub fn patience(&self, method: &'static str) -> Patience {
        let (earliest, ratio) = if self.lost > MAX_LOST { (MIN_LATE, LOSSY_LATE_RATIO) } else { (CALM_LATE, LATE_RATIO) };
        let Some((usual, given_up)) = self.methods.get(method).and_then(|one| Some((one.usual()?, one.given_up))) else {
            // As the slowest of the others, until more is known.
            let others = self.methods.values().filter_map(UsualLatency::usual).max();
            let late = others.map_or(CALM_LATE, |usual| usual.mul_f64(ratio).clamp(earliest, CALM_LATE));
            return Patience { late, deadline: MAX_DEADLINE };
        };
        let deadline = (usual * DEADLINE_RATIO).max(MIN_DEADLINE).saturating_mul(1 << given_up.min(4));
        Patience { late: usual.mul_f64(ratio).clamp(earliest, MAX_LATE), deadline: deadline.min(MAX_DEADLINE) }
    }
}

impl UsualLatency {
    /// The time that nine answers of ten take at most.
    fn usual(&self) -> Option<Duration> {
        let mut sorted: Vec<Duration> = self.samples.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get((sorted.len() * 9 / 10).min(sorted.len().saturating_sub(1))).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const METHOD: &str = "eth_blockNumber";

    fn learned(times: usize, took: Duration) -> LearnedLatency {
        let mut learned = LearnedLatency::default();
        (0..times).for_each(|_| learned.record(METHOD, took));
        learned
    }

    #[test]
    fn patience_follows_the_usual_latency_and_never_exceeds_ten_seconds() {
        let unknown = Patience { late: CALM_LATE, deadline: MAX_DEADLINE };
        assert_eq!(LearnedLatency::default().patience(METHOD), unknown);
        let mut fast = learned(100, MS * 5);
        assert_eq!(fast.patience(METHOD), Patience { late: CALM_LATE, deadline: MIN_DEADLINE });
        assert_eq!(fast.patience("debug_traceBlockByHash"), unknown, "another method takes another time");
        // One slow answer is none.
        fast.record(METHOD, MS * 900);
        assert_eq!(fast.patience(METHOD).late, CALM_LATE);
        assert_eq!(learned(100, MS * 200).patience(METHOD), Patience { late: MS * 600, deadline: MS * 4000 });
        assert_eq!(learned(100, MS * 9000).patience(METHOD), Patience { late: MAX_LATE, deadline: MAX_DEADLINE });
    }

    #[test]
    fn an_endpoint_that_loses_requests_is_asked_again_soon_until_it_answers_them_all() {
        let mut lossy = learned(100, MS * 5);
        lossy.record_lost();
        assert_eq!(lossy.patience(METHOD).late, MIN_LATE);
        assert_eq!(lossy.patience("eth_getLogs").late, MIN_LATE, "whatever the method");
        (0..20).for_each(|_| lossy.record(METHOD, MS * 5));
        assert_eq!(lossy.patience(METHOD).late, CALM_LATE);
    }

    #[test]
    fn a_node_that_answers_nothing_gets_no_second_requests_without_end() {
        let mut silent = LearnedLatency::default();
        assert_eq!((0..100).filter(|_| silent.allow_second_request()).count(), 16);
        silent.record(METHOD, MS);
        assert!(silent.allow_second_request() && !silent.allow_second_request());
    }

    #[test]
    fn a_node_that_became_slow_is_heard_again() {
        let mut slow = learned(100, MS * 5);
        for expected in [4000, 8000, 10_000, 10_000] {
            slow.record_given_up(METHOD);
            assert_eq!(slow.patience(METHOD).deadline, MS * expected);
        }
        slow.record(METHOD, MS * 6000);
        assert_eq!(slow.patience(METHOD).deadline, MAX_DEADLINE, "one answer does not make it fast again");
        (0..100).for_each(|_| slow.record(METHOD, MS * 5));
        assert_eq!(slow.patience(METHOD).deadline, MIN_DEADLINE);
    }
}
