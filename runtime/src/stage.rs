//! Stages: the blocking loops of a role. Each has an OS thread, restarts with back-off after [`Failure::Retry`] or a panic, and
//! stops the role after [`Failure::Halt`]. [`Failure::Reopen`] is a retry, unless a twin of this process runs: then the stage
//! waits. [`waiting`] tells which stages do not run, or do not ask for records any more, and why.

use crate::failure::Failure;
use crate::kafka::error::TWIN;
use crate::kafka::producer::TRANSACTION_TIMEOUT;
use anyhow::{Context as _, anyhow, bail};
use base::{backoff, locked, metrics};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const MAX_RESTART_DELAY: Duration = Duration::from_secs(5);
/// How long a stage with a twin waits at first, and at most. The newcomer works meanwhile; after it has gone this one takes over.
const FIRST_TWIN_WAIT: Duration = Duration::from_secs(30);
const MAX_TWIN_WAIT: Duration = Duration::from_secs(600);
/// Fenced more often than this within the time means a twin, however far apart: on a quiet chain both write rarely.
const MAX_FENCES: usize = 2;
const FENCES_WITHIN: Duration = Duration::from_secs(600);
/// A stage that has not asked for records for so long says so, looked at so often.
const MAX_SILENCE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A stage that has run for so long since its last failure is well.
const WELL_AFTER: Duration = Duration::from_secs(15);

/// Runs a blocking loop on an OS thread until `stop`, upon which `body` returns `Ok`.
///
/// The body sets up everything itself, consumers and producers included, so that a restart begins from what was committed and
/// from nothing else.
///
/// # Errors
/// When the body halts.
pub async fn run<F>(name: &'static str, stop: CancellationToken, body: F) -> anyhow::Result<()>
where
    F: FnMut(&CancellationToken) -> Result<(), Failure> + Send + 'static,
{
    let (done, outcome) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    let supervisor = Supervisor { name, body, first_twin_wait: FIRST_TWIN_WAIT };
    thread
        .spawn(move || {
            // The receiver is gone only while the whole process stops.
            let _ = done.send(supervisor.run(&stop));
        })
        .with_context(|| format!("starting a thread for {name}"))?;
    let mut silence = Silence::of(name);
    tokio::pin!(outcome);
    loop {
        tokio::select! {
            ended = &mut outcome => return ended.with_context(|| format!("{name} panicked"))?,
            () = tokio::time::sleep(LOOK_INTERVAL) => silence.look(Instant::now()),
        }
    }
}

/// Waits for all stages of a role.
///
/// # Errors
/// When one halts, or ends before `stop`.
pub async fn all_ended(mut stages: JoinSet<anyhow::Result<()>>, role: &str, stop: &CancellationToken) -> anyhow::Result<()> {
    while let Some(ended) = stages.join_next().await {
        ended??;
        if !stop.is_cancelled() {
            bail!("a stage of {role} ended by itself");
        }
    }
    Ok(())
}

/// When each running stage asked for records last.
static ASKED: Mutex<BTreeMap<&'static str, Instant>> = Mutex::new(BTreeMap::new());

/// Notes that a stage asks Kafka for records.
pub(crate) fn asks(name: &'static str) {
    locked(&ASKED).insert(name, Instant::now());
}

/// Tells of a stage that asks for no more records, though it has not failed. Kafka keeps its partitions for it all the same, for as long
/// as `max.poll.interval.ms` says.
struct Silence {
    name: &'static str,
    notice: Notice,
}

impl Silence {
    fn of(name: &'static str) -> Self {
        Self { name, notice: Notice::of(format!("{name}: silence")) }
    }

    fn look(&mut self, now: Instant) {
        let asked = locked(&ASKED).get(self.name).copied();
        let silent = asked.map(|at| now.saturating_duration_since(at)).filter(|silent| *silent > MAX_SILENCE);
        self.notice.show(silent.map(|silent| {
            format!(
                "has asked Kafka for no records for {silent:.0?}: it works on one batch, or hangs. If that does not end, restart the \
                 process; nobody else gets its partitions within an hour"
            )
        }));
    }
}

/// Something that lasts too long, told in [`waiting`], and in the log once for each kind of cause, until it is over or nobody looks any
/// more.
#[derive(Debug)]
pub struct Notice {
    item: String,
    /// The causes that the log has, but for their numbers: a wait gets longer.
    logged: BTreeSet<String>,
}

impl Notice {
    /// Nothing yet, under this name.
    pub fn of(item: String) -> Self {
        Self { item, logged: BTreeSet::new() }
    }

    /// Whether it has been told and is not over.
    pub fn is_shown(&self) -> bool {
        !self.logged.is_empty()
    }

    /// Tells of it, or that it is over.
    pub fn show(&mut self, cause: Option<String>) {
        let Some(cause) = cause else { return self.end() };
        if self.is_news(&cause) {
            tracing::error!("{}: {cause}", self.item);
        }
        waits(&self.item, &cause);
    }

    /// Whether the log does not have a cause of this kind yet.
    fn is_news(&mut self, cause: &str) -> bool {
        self.logged.insert(cause.chars().filter(|c| !c.is_ascii_digit()).collect())
    }

    fn end(&mut self) {
        if !std::mem::take(&mut self.logged).is_empty() {
            resumed(&self.item);
        }
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        self.end();
    }
}

struct Supervisor<F> {
    name: &'static str,
    body: F,
    first_twin_wait: Duration,
}

impl<F: FnMut(&CancellationToken) -> Result<(), Failure>> Supervisor<F> {
    fn run(mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        let name = self.name;
        let mut delays = backoff::delays(MAX_RESTART_DELAY);
        let mut twin = TwinWatch::new(self.first_twin_wait);
        while !stop.is_cancelled() {
            let started = Instant::now();
            // After a panic the body begins anew as well, and keeps nothing.
            let outcome = catch_unwind(AssertUnwindSafe(|| (self.body)(stop)));
            locked(&ASKED).remove(name);
            let outcome = outcome.unwrap_or_else(|panic| Err(Failure::Retry(anyhow!("panicked: {}", panic_text(&*panic)))));
            if started.elapsed() > MAX_RESTART_DELAY * 2 {
                delays = backoff::delays(MAX_RESTART_DELAY);
            }
            let fenced_before = std::mem::replace(&mut twin.just_fenced, matches!(outcome, Err(Failure::Reopen(_))));
            let (cause, delay) = match outcome {
                Ok(()) => break,
                Err(Failure::Halt(cause)) => {
                    resumed(name);
                    return Err(cause.context(format!("{name} halted")));
                }
                Err(Failure::Reopen(cause)) => match twin.wait_after_fence(fenced_before, started) {
                    Some(wait) => (cause.context(TWIN), wait),
                    None => (cause, delays.next().unwrap_or(MAX_RESTART_DELAY)),
                },
                Err(Failure::Retry(cause)) => (cause, delays.next().unwrap_or(MAX_RESTART_DELAY)),
            };
            tracing::warn!(stage = name, "restarting in {delay:.1?}: {cause:#}");
            metrics::STAGE_RESTARTS.counter(&[("stage", name)]).increment(1);
            waits(name, &format!("restarts in {delay:.1?}: {cause:#}"));
            pause(stop, delay);
            restarted(name);
        }
        resumed(name);
        tracing::debug!(stage = name, "stopped");
        Ok(())
    }
}

/// Tells a twin from a pause that has outlasted a transaction.
struct TwinWatch {
    /// Whether the last run was fenced.
    just_fenced: bool,
    fences: VecDeque<Instant>,
    wait: Duration,
}

impl TwinWatch {
    fn new(first_wait: Duration) -> Self {
        Self { just_fenced: false, fences: VecDeque::new(), wait: first_wait }
    }

    /// How long to wait if a twin runs. The run that was fenced began at `started`.
    fn wait_after_fence(&mut self, fenced_before: bool, started: Instant) -> Option<Duration> {
        let now = Instant::now();
        self.fences.retain(|fence| now - *fence < FENCES_WITHIN);
        self.fences.push_back(now);
        // A broker ends no transaction sooner.
        let at_once = fenced_before && now - started < TRANSACTION_TIMEOUT;
        if !at_once && self.fences.len() <= MAX_FENCES {
            return None;
        }
        self.fences.clear();
        let wait = self.wait;
        self.wait = (wait * 2).min(MAX_TWIN_WAIT);
        Some(wait)
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

/// A stage after a failure.
struct FailedStage {
    cause: String,
    /// `None` while it waits.
    running_since: Option<Instant>,
}

impl FailedStage {
    fn is_well(&self) -> bool {
        self.running_since.is_some_and(|since| since.elapsed() > WELL_AFTER)
    }
}

/// The stages of this process that have failed, by name.
static FAILED: Mutex<BTreeMap<String, FailedStage>> = Mutex::new(BTreeMap::new());

fn failed() -> MutexGuard<'static, BTreeMap<String, FailedStage>> {
    locked(&FAILED)
}

/// The stages of this process that wait, or have just begun again after a failure: their names and causes.
pub fn waiting() -> Vec<(String, String)> {
    failed().iter().filter(|(_, stage)| !stage.is_well()).map(|(name, stage)| (name.clone(), stage.cause.clone())).collect()
}

/// For what something of this name waits, as [`waiting`] tells.
pub fn cause_of(name: &str) -> Option<String> {
    failed().get(name).filter(|stage| !stage.is_well()).map(|stage| stage.cause.clone())
}

/// Notes that a stage waits, for [`waiting`] and the metric.
pub fn waits(name: &str, cause: &str) {
    failed().insert(name.to_owned(), FailedStage { cause: cause.to_owned(), running_since: None });
    report();
}

/// Notes that this process goes on without a chain, for [`waiting`], the metric and the log.
pub fn leaves_out(chain: &str, cause: &str) {
    tracing::error!(chain, "left out, while the other chains go on: {cause}");
    waits(&format!("chain {chain}"), cause);
}

/// Notes that this process goes on with a chain that it had left out.
pub fn includes(chain: &str) {
    resumed(&format!("chain {chain}"));
}

/// Notes that a stage runs again after a failure.
fn restarted(name: &str) {
    if let Some(stage) = failed().get_mut(name) {
        stage.running_since = Some(Instant::now());
    }
    report();
}

/// Notes that a stage waits no more.
pub fn resumed(name: &str) {
    failed().remove(name);
    report();
}

fn report() {
    let waiting = failed().values().filter(|stage| stage.running_since.is_none()).count();
    #[expect(clippy::cast_precision_loss, reason = "there are dozens of stages")]
    metrics::SET_ASIDE.gauge(&[("kind", "stage")]).set(waiting as f64);
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

    fn fenced() -> Result<(), Failure> {
        Err(Failure::Reopen(anyhow!("fenced")))
    }

    /// Runs a stage whose body has these outcomes one after the other, and counts its runs. `seen` is what [`waiting`] told of it
    /// at the beginning of each run.
    fn runs(name: &'static str, mut outcomes: Vec<Result<(), Failure>>) -> (Vec<String>, anyhow::Result<()>) {
        let (mut seen, stop) = (Vec::new(), CancellationToken::new());
        let body = |_: &CancellationToken| {
            seen.push(cause_of(name).unwrap_or_default());
            outcomes.remove(0)
        };
        let outcome = Supervisor { name, body, first_twin_wait: Duration::from_millis(1) }.run(&stop);
        (seen, outcome)
    }

    fn tells_of_a_twin(seen: &[String]) -> Vec<bool> {
        seen.iter().map(|cause| cause.contains("CTRIP_INSTANCE")).collect()
    }

    #[test]
    fn each_kind_of_cause_is_logged_once_however_long_it_lasts() {
        let mut notice = Notice::of("lab: causes".to_owned());
        let causes =
            ["no broker answers for 10s", "no broker answers for 20s", "another installation's", "no broker answers for 9s"];
        assert_eq!(causes.map(|cause| notice.is_news(cause)), [true, false, true, false]);
        notice.show(None);
        assert!(!notice.is_shown() && notice.is_news(causes[0]), "it was over in between");
    }

    #[test]
    fn a_pause_is_not_taken_for_a_twin() {
        let (seen, outcome) = runs("pause", vec![fenced(), Ok(())]);
        assert!(outcome.is_ok() && tells_of_a_twin(&seen) == [false, false], "{seen:?}: {outcome:?}");
        // A broker that was away in between.
        let (seen, outcome) = runs("away", vec![fenced(), Err(Failure::Retry(anyhow!("away"))), fenced(), Ok(())]);
        assert!(outcome.is_ok() && tells_of_a_twin(&seen) == [false; 4], "{seen:?}: {outcome:?}");
    }

    #[test]
    fn the_older_of_two_twins_says_so_waits_and_ends_nothing() {
        let (seen, outcome) = runs("twin", vec![fenced(), fenced(), Ok(())]);
        assert!(outcome.is_ok() && tells_of_a_twin(&seen) == [false, false, true], "{seen:?}: {outcome:?}");
        assert!(!waiting().iter().any(|(stage, _)| stage == "twin"), "after its end");
        // On a quiet chain the fences are far apart.
        let long_ago = Instant::now() - TRANSACTION_TIMEOUT * 2;
        let mut watch = TwinWatch::new(FIRST_TWIN_WAIT);
        let waits: Vec<bool> = (0..3).map(|_| watch.wait_after_fence(true, long_ago).is_some()).collect();
        assert_eq!(waits, [false, false, true]);
    }

    #[test]
    fn a_stage_that_hangs_is_told_until_it_asks_for_records_again() {
        let told = || cause_of("hanging: silence");
        let (mut silence, start) = (Silence::of("hanging"), Instant::now());
        let mut after = |seconds| {
            silence.look(start + Duration::from_secs(seconds));
            told()
        };
        assert_eq!(after(100), None, "it has not begun");
        asks("hanging");
        assert_eq!(after(30), None);
        assert!(after(70).is_some_and(|cause| cause.contains("restart")));
        asks("hanging");
        assert_eq!(after(30), None);
        assert!(after(70).is_some());
        drop(silence);
        assert_eq!(told(), None, "its stage has ended");
    }

    #[test]
    fn a_panic_restarts_its_stage_and_is_told() {
        let (mut runs, stop) = (0, CancellationToken::new());
        let mut told = Vec::new();
        let body = |_: &CancellationToken| {
            runs += 1;
            told.extend(waiting().into_iter().filter(|(stage, _)| stage == "panic"));
            assert!(runs > 1, "a bug");
            Ok(())
        };
        let outcome = Supervisor { name: "panic", body, first_twin_wait: FIRST_TWIN_WAIT }.run(&stop);
        assert!(outcome.is_ok() && runs == 2, "{runs}: {outcome:?}");
        assert!(told.len() == 1 && told[0].1.contains("a bug"), "{told:?}");
    }
}
