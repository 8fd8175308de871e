//! The engine sends what is due, with a bounded number of messages in flight.
//!
//! Each lane is a task that claims, sends and settles in a loop. Beside them, one task fails what is pending for disabled
//! endpoints and puts what waits for an earlier event behind what does not, one makes deliveries of the backlog, and one keeps
//! the [`Fronts`], at which claims look.

use crate::attempt::{ClaimedDelivery, FinishedAttempt, Verdict};
use crate::clients::Clients;
use crate::fronts::Fronts;
use crate::in_flight::{InFlight, Room};
use crate::lane::Lane;
use crate::queue::{self, ClaimLimits, Settled};
use crate::ssrf::{Guard, SENDING, Sending};
use crate::{backlog, pace, retry_schedule, send};
use base::counts::Counts;
use base::{locked, metrics};
use deadpool_postgres::Pool;
use runtime::Failure;
use runtime::stage::Notice;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Retries, pings and redeliveries are found by polling; the fan-out announces new events.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// An endpoint that holds a connection for longer is slow …
const SLOW_THRESHOLD: Duration = Duration::from_secs(1);
/// … until it has not done so for this long.
const SLOW_TTL: Duration = Duration::from_secs(60);
const TEND_INTERVAL: Duration = Duration::from_secs(1);
/// Whoever changes an endpoint or sends a delivery again locks its row for a moment.
const MAX_LOCKED: Duration = Duration::from_secs(10);
/// For what is in flight at `stop`; the process has 10 s to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The engine; its lanes share it.
pub struct Engine {
    pool: Pool,
    clients: Arc<Clients>,
    guard: Guard,
    instance: String,
    /// Shared with the fan-out.
    fronts: Arc<Fronts>,
    /// Messages in flight per endpoint, over all lanes.
    in_flight: Mutex<Counts<Uuid>>,
    /// When each slow endpoint was last slow.
    slow: Mutex<HashMap<Uuid, Instant>>,
}

impl Engine {
    pub fn new(pool: Pool, clients: Clients, guard: Guard, instance: String, fronts: Arc<Fronts>) -> Arc<Self> {
        Arc::new(Self {
            pool,
            clients: Arc::new(clients),
            guard,
            instance,
            fronts,
            in_flight: Mutex::default(),
            slow: Mutex::default(),
        })
    }

    /// Sends until `stop`, then waits up to [`DRAIN_TIMEOUT`] for what is in flight.
    ///
    /// # Errors
    /// When the database fails. Attempts in flight are not settled then, and are sent again.
    pub async fn run(self: &Arc<Self>, stop: &CancellationToken) -> Result<(), Failure> {
        let db = self.pool.get().await?;
        queue::release_claims(&db, &self.instance).await?;
        drop(db);
        // The sends of an earlier run were cancelled with it.
        *locked(&self.in_flight) = Counts::default();
        let mut lanes = JoinSet::new();
        for lane in Lane::ALL {
            let (engine, stop) = (Arc::clone(self), stop.clone());
            lanes.spawn(async move { engine.run_lane(lane, &stop).await });
        }
        let (engine, stopped) = (Arc::clone(self), stop.clone());
        lanes.spawn(async move { engine.tend(&stopped).await });
        let (engine, stopped) = (Arc::clone(self), stop.clone());
        lanes.spawn(async move { engine.fronts.keep(&engine.pool, &stopped).await });
        let (engine, stopped) = (Arc::clone(self), stop.clone());
        lanes.spawn(async move { backlog::run(&engine.pool, &engine.fronts, &stopped).await });
        while let Some(ended) = lanes.join_next().await {
            // A panic of one lane restarts them all, and ends nothing.
            ended.map_err(Failure::retry)??;
        }
        Ok(())
    }

    async fn run_lane(&self, lane: Lane, stop: &CancellationToken) -> Result<(), Failure> {
        let mut sends = JoinSet::new();
        let mut in_flight = InFlight::of(lane.limits());
        let mut done = Vec::new();
        let mut locks = LockWatch::of(lane);
        while !stop.is_cancelled() {
            self.start_sends(&mut sends, &mut in_flight, lane).await?;
            #[expect(clippy::cast_precision_loss, reason = "a lane has hundreds in flight")]
            metrics::WEBHOOKS_IN_FLIGHT.gauge(&[("endpoints", lane.label())]).set(sends.len() as f64);
            let mut ended = Vec::new();
            tokio::select! {
                Some(sent) = sends.join_next() => ended.push(finished(sent)?),
                // Most endpoints are healthy, and so are those that most new events are for.
                () = self.fronts.news(), if lane == Lane::Healthy => {}
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = stop.cancelled() => {}
            }
            while let Some(sent) = sends.try_join_next() {
                ended.push(finished(sent)?);
            }
            for attempt in &mut ended {
                in_flight.end(&mut attempt.delivery);
                self.observe(attempt);
            }
            done.append(&mut ended);
            self.settle(&mut done).await?;
            locks.look(&done);
        }
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
            while let Some(sent) = sends.join_next().await {
                let attempt = finished(sent)?;
                self.observe(&attempt);
                done.push(attempt);
                self.settle(&mut done).await?;
            }
            Ok(())
        });
        // Attempts that are left are sent again after the next start.
        drained.await.unwrap_or(Ok(()))
    }

    /// Fails what is pending for disabled endpoints, and puts what waits for an earlier event behind what does not.
    async fn tend(&self, stop: &CancellationToken) -> Result<(), Failure> {
        while !stop.is_cancelled() {
            let (db, began) = (self.pool.get().await?, Instant::now());
            let failed = queue::fail_pending(&db).await?;
            queue::put_behind(&db, &self.fronts.list()).await?;
            drop(db);
            if i64::try_from(failed).is_ok_and(|failed| failed < queue::MAX_FAILED_PER_STATEMENT) {
                pace::pause(began, TEND_INTERVAL, stop).await;
            }
        }
        Ok(())
    }

    async fn start_sends(
        &self,
        sends: &mut JoinSet<FinishedAttempt>,
        in_flight: &mut InFlight,
        lane: Lane,
    ) -> Result<(), Failure> {
        loop {
            // Half of them at a time, since what is claimed leaves each merchant less.
            let at_once = in_flight.room().messages.div_ceil(2);
            if at_once == 0 {
                return Ok(());
            }
            let claimed = self.claim(lane, at_once, in_flight).await?;
            let is_all = claimed.len() < at_once;
            for delivery in claimed {
                locked(&self.in_flight).add(delivery.endpoint_id, 1);
                in_flight.begin(&delivery);
                let (clients, guard) = (Arc::clone(&self.clients), self.guard.clone());
                sends.spawn(async move {
                    let sending = Sending { merchant: delivery.merchant, lane };
                    let outcome = SENDING.scope(sending, send::send(&clients, &guard, &delivery)).await;
                    let failures = usize::try_from(delivery.failures).unwrap_or_default();
                    let verdict = retry_schedule::judge(failures, outcome.head, rand::random());
                    FinishedAttempt { delivery, outcome, verdict }
                });
            }
            if is_all {
                return Ok(());
            }
        }
    }

    async fn claim(&self, lane: Lane, at_once: usize, in_flight: &InFlight) -> Result<Vec<ClaimedDelivery>, Failure> {
        let fronts = self.fronts.list();
        if fronts.is_empty() {
            return Ok(Vec::new());
        }
        let (of_endpoints, of_merchants) = (listed(&locked(&self.in_flight)), in_flight.loads());
        let slow: Vec<Uuid> = {
            let mut slow = locked(&self.slow);
            slow.retain(|_, last| last.elapsed() < SLOW_TTL);
            slow.keys().copied().collect()
        };
        let (limits, Room { messages, bytes }) = (lane.limits(), in_flight.room());
        let limits = ClaimLimits {
            instance: &self.instance,
            lane,
            fronts: &fronts,
            slow: &slow,
            max_deliveries: i64::try_from(at_once).unwrap_or(i64::MAX),
            max_bytes: i64::try_from(bytes.div_ceil(2)).unwrap_or(i64::MAX),
            max_per_endpoint: limits.max_per_endpoint,
            in_flight: &of_endpoints,
            max_per_merchant: limits.per_merchant(messages),
            max_bytes_per_merchant: i64::try_from(limits.bytes_per_merchant(bytes)).unwrap_or(i64::MAX),
            in_flight_of_merchants: &of_merchants,
        };
        queue::claim_due(&self.pool.get().await?, limits).await
    }

    fn observe(&self, attempt: &FinishedAttempt) {
        if attempt.outcome.connection_held > SLOW_THRESHOLD {
            locked(&self.slow).insert(attempt.delivery.endpoint_id, Instant::now());
        }
        record_metrics(attempt);
    }

    /// Settles what is done; what stays is settled with what comes next. Until then it counts as in flight to its endpoint.
    async fn settle(&self, done: &mut Vec<FinishedAttempt>) -> Result<(), Failure> {
        if done.is_empty() {
            return Ok(());
        }
        let mut db = self.pool.get().await?;
        let Settled { attempts, disabled } = queue::settle(&mut db, done).await?;
        drop(db);
        let mut in_flight = locked(&self.in_flight);
        for attempt in &attempts {
            in_flight.take_off(&attempt.delivery.endpoint_id, 1);
        }
        metrics::WEBHOOKS_DISABLED.counter(&[]).increment(u64::try_from(disabled).unwrap_or_default());
        Ok(())
    }
}

/// Tells of an endpoint that can't be settled, since somebody keeps its row, or that of a delivery, locked. `/health` names no
/// merchant's, the log does.
struct LockWatch {
    notice: Notice,
    /// The attempt that waits longest, and since when.
    waits: Option<(i64, Instant)>,
}

impl LockWatch {
    fn of(lane: Lane) -> Self {
        Self { notice: Notice::of(format!("webhook-engine: {} endpoints", lane.label())), waits: None }
    }

    fn look(&mut self, unsettled: &[FinishedAttempt]) {
        let Some(FinishedAttempt { delivery, .. }) = unsettled.first() else {
            self.waits = None;
            self.notice.show(None);
            return;
        };
        let waiting = self.waits.filter(|(id, _)| *id == delivery.delivery_id);
        let (_, since) = *self.waits.insert(waiting.unwrap_or((delivery.delivery_id, Instant::now())));
        if since.elapsed() > MAX_LOCKED && !self.notice.is_shown() {
            tracing::error!(endpoint = %delivery.endpoint_id, delivery = delivery.delivery_id, "can't be settled");
            let cause = "a session keeps the row of a webhook endpoint or of a delivery locked, and the endpoint is sent little until its \
                         transaction ends: pg_stat_activity shows it, pg_terminate_backend ends it";
            self.notice.show(Some(cause.to_owned()));
        }
    }
}

fn listed(counts: &Counts<Uuid>) -> Vec<(Uuid, i32)> {
    counts.iter().map(|(id, count)| (*id, i32::try_from(count).unwrap_or(i32::MAX))).collect()
}

fn finished(sent: Result<FinishedAttempt, JoinError>) -> Result<FinishedAttempt, Failure> {
    sent.map_err(Failure::retry)
}

fn record_metrics(FinishedAttempt { delivery, outcome, verdict }: &FinishedAttempt) {
    let label = match verdict {
        Verdict::Delivered => "delivered",
        Verdict::Retry(_) => "again",
        Verdict::Failed => "failed",
        Verdict::Gone => "gone",
    };
    metrics::WEBHOOK_ATTEMPTS.counter(&[("outcome", label)]).increment(1);
    metrics::WEBHOOK_LATENCY.histogram(&[]).record(outcome.latency);
    if *verdict == Verdict::Delivered {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::WEBHOOK_DELAY.histogram(&[]).record((now.as_secs_f64() - delivery.due_at).max(0.0));
    }
}
