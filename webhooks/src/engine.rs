//! Sends what is due, so many messages at once and no more.
//!
//! Endpoints that work, that are slow and that fail are three lanes with sockets of their own: however many there are of a kind,
//! they take none from the others. A lane is a task that claims, sends and settles.

use crate::clients::Clients;
use crate::guard::Guard;
use crate::queue::{self, Due, Health, Room};
use crate::schedule::{self, Verdict};
use crate::send::{self, Outcome};
use deadpool_postgres::Pool;
use runtime::{Failure, db, metrics};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Retries, pings and redeliveries are found by looking.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// An endpoint that takes longer to answer, or not to, is slow …
const SLOW: Duration = Duration::from_secs(1);
/// … until it was not for so long.
const SLOW_FOR: Duration = Duration::from_secs(60);
/// How often what is pending for disabled endpoints is ended.
const END_EVERY: Duration = Duration::from_secs(1);
/// What is on its way at the stop; the process has 10 s.
const DRAINED_WITHIN: Duration = Duration::from_secs(5);

/// What the engine works with.
pub struct Engine {
    pub pool: Pool,
    pub clients: Clients,
    pub guard: Guard,
    pub instance: String,
    /// What is on its way to each endpoint, over all lanes.
    busy: Mutex<HashMap<Uuid, i32>>,
    /// When an endpoint last took its time.
    slow: Mutex<HashMap<Uuid, Instant>>,
}

/// Bounds of a lane.
struct Lane {
    health: Health,
    /// Messages on their way.
    most: usize,
    /// Likewise, to one endpoint.
    an_endpoint: i32,
}

/// With what is kept open for the next message, the sockets stay below the 1,024 files that a process commonly has.
const LANES: [Lane; 3] = [
    Lane { health: Health::Well, most: 384, an_endpoint: 8 },
    Lane { health: Health::Slow, most: 128, an_endpoint: 4 },
    // One that fails is asked carefully.
    Lane { health: Health::Failing, most: 64, an_endpoint: 1 },
];

/// A message that was on its way, as it is settled.
type Sent = (Due, Outcome, Verdict);

impl Engine {
    pub fn new(pool: Pool, clients: Clients, guard: Guard, instance: String) -> Arc<Self> {
        Arc::new(Self { pool, clients, guard, instance, busy: Mutex::default(), slow: Mutex::default() })
    }

    /// Sends until `stop`, then waits a little for what is on its way.
    ///
    /// # Errors
    /// When the database fails: what is on its way then is not settled, and sent again.
    pub async fn run(self: &Arc<Self>, call: &Arc<Notify>, stop: &CancellationToken) -> Result<(), Failure> {
        let db = self.pool.get().await.map_err(db::unavailable)?;
        queue::release(&db, &self.instance).await?;
        drop(db);
        // What an earlier run had on its way was cut off with it.
        locked(&self.busy).clear();
        let mut lanes = JoinSet::new();
        for lane in &LANES {
            let (engine, call, stop) = (Arc::clone(self), Arc::clone(call), stop.clone());
            lanes.spawn(async move { engine.lane(lane, &call, &stop).await });
        }
        let (engine, stop) = (Arc::clone(self), stop.clone());
        lanes.spawn(async move { engine.end(&stop).await });
        while let Some(ended) = lanes.join_next().await {
            ended.map_err(Failure::halt)??;
        }
        Ok(())
    }

    async fn lane(&self, lane: &Lane, call: &Notify, stop: &CancellationToken) -> Result<(), Failure> {
        let mut sends = JoinSet::new();
        while !stop.is_cancelled() {
            self.begin(&mut sends, lane).await?;
            #[expect(clippy::cast_precision_loss, reason = "they are bounded by hundreds")]
            metrics::WEBHOOKS_IN_FLIGHT.gauge(&[("endpoints", lane.health.name())]).set(sends.len() as f64);
            let mut done = Vec::new();
            tokio::select! {
                Some(sent) = sends.join_next() => done.push(finished(sent)?),
                // New events are mostly of endpoints that work.
                () = call.notified(), if lane.health == Health::Well => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => {}
            }
            while let Some(sent) = sends.try_join_next() {
                done.push(finished(sent)?);
            }
            self.finish(done).await?;
        }
        let drained = tokio::time::timeout(DRAINED_WITHIN, async {
            while let Some(sent) = sends.join_next().await {
                self.finish(vec![finished(sent)?]).await?;
            }
            Ok(())
        });
        // What is left is sent again at the next start.
        drained.await.unwrap_or(Ok(()))
    }

    /// Ends what is pending for endpoints that are disabled.
    async fn end(&self, stop: &CancellationToken) -> Result<(), Failure> {
        while !stop.is_cancelled() {
            let db = self.pool.get().await.map_err(db::unavailable)?;
            let ended = queue::end(&db).await?;
            drop(db);
            if i64::try_from(ended).is_ok_and(|ended| ended < queue::END_AT_ONCE) {
                tokio::select! {
                    () = tokio::time::sleep(END_EVERY) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
        Ok(())
    }

    async fn begin(&self, sends: &mut JoinSet<Sent>, lane: &Lane) -> Result<(), Failure> {
        let most = lane.most - sends.len();
        if most == 0 {
            return Ok(());
        }
        let busy: Vec<(Uuid, i32)> = locked(&self.busy).iter().map(|(id, count)| (*id, *count)).collect();
        let slow: Vec<Uuid> = {
            let mut slow = locked(&self.slow);
            slow.retain(|_, last| last.elapsed() < SLOW_FOR);
            slow.keys().copied().collect()
        };
        let room = Room {
            instance: &self.instance,
            health: lane.health,
            slow: &slow,
            most: i64::try_from(most).unwrap_or(i64::MAX),
            an_endpoint: lane.an_endpoint,
            busy: &busy,
        };
        let db = self.pool.get().await.map_err(db::unavailable)?;
        let claimed = queue::claim(&db, room).await?;
        drop(db);
        for due in claimed {
            *locked(&self.busy).entry(due.endpoint).or_default() += 1;
            let (client, guard) = (self.clients.of(due.endpoint), self.guard.clone());
            sends.spawn(async move {
                let outcome = send::send(&client, &guard, &due).await;
                let tries = usize::try_from(due.tries).unwrap_or_default();
                let verdict = schedule::judge(tries, outcome.answer, rand::random());
                (due, outcome, verdict)
            });
        }
        Ok(())
    }

    async fn finish(&self, mut done: Vec<Sent>) -> Result<(), Failure> {
        if done.is_empty() {
            return Ok(());
        }
        for (due, outcome, verdict) in &done {
            if outcome.held > SLOW {
                locked(&self.slow).insert(due.endpoint, Instant::now());
            }
            report(due, outcome, *verdict);
        }
        let mut db = self.pool.get().await.map_err(db::unavailable)?;
        let disabled = queue::settle(&mut db, &mut done).await?;
        drop(db);
        let mut busy = locked(&self.busy);
        for (due, ..) in &done {
            if let Entry::Occupied(mut count) = busy.entry(due.endpoint) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        metrics::WEBHOOKS_DISABLED.counter(&[]).increment(u64::try_from(disabled).unwrap_or_default());
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn finished(sent: Result<Sent, JoinError>) -> Result<Sent, Failure> {
    sent.map_err(Failure::halt)
}

fn report(due: &Due, outcome: &Outcome, verdict: Verdict) {
    let label = match verdict {
        Verdict::Delivered => "delivered",
        Verdict::Again(_) => "again",
        Verdict::Failed => "failed",
        Verdict::Gone => "gone",
    };
    metrics::WEBHOOK_ATTEMPTS.counter(&[("outcome", label)]).increment(1);
    metrics::WEBHOOK_LATENCY.histogram(&[]).record(outcome.took);
    if verdict == Verdict::Delivered {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::WEBHOOK_DELAY.histogram(&[]).record((now.as_secs_f64() - due.due_at).max(0.0));
    }
}
