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
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Retries, pings and redeliveries are found by looking.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// An endpoint that takes longer to answer is slow.
const SLOW: Duration = Duration::from_secs(1);
/// What is on its way at the stop; the process has 10 s.
const DRAINED_WITHIN: Duration = Duration::from_secs(5);

/// What the engine works with.
pub struct Engine {
    pub pool: Pool,
    pub clients: Clients,
    pub guard: Guard,
    pub instance: String,
    slow: Mutex<HashSet<Uuid>>,
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
    Lane { health: Health::Slow, most: 64, an_endpoint: 8 },
    // One that fails is asked carefully.
    Lane { health: Health::Failing, most: 64, an_endpoint: 1 },
];

/// A message that was on its way.
struct Sent {
    due: Due,
    outcome: Outcome,
    verdict: Verdict,
}

/// What a lane has on its way.
#[derive(Default)]
struct OnTheirWay {
    sends: JoinSet<Sent>,
    endpoints: HashMap<Uuid, i32>,
}

impl OnTheirWay {
    fn count(&mut self, endpoint: Uuid) {
        *self.endpoints.entry(endpoint).or_default() += 1;
    }

    fn uncount(&mut self, endpoint: Uuid) {
        if let Some(count) = self.endpoints.get_mut(&endpoint) {
            *count -= 1;
            if *count == 0 {
                self.endpoints.remove(&endpoint);
            }
        }
    }

    fn show(&self, health: Health) {
        #[expect(clippy::cast_precision_loss, reason = "they are bounded by hundreds")]
        metrics::WEBHOOKS_IN_FLIGHT.gauge(&[("endpoints", health.name())]).set(self.sends.len() as f64);
    }
}

impl Engine {
    pub fn new(pool: Pool, clients: Clients, guard: Guard, instance: String) -> Arc<Self> {
        Arc::new(Self { pool, clients, guard, instance, slow: Mutex::default() })
    }

    /// Sends until `stop`, then waits a little for what is on its way.
    ///
    /// # Errors
    /// When the database fails: what is on its way then is not settled, and sent again.
    pub async fn run(self: &Arc<Self>, call: &Arc<Notify>, stop: &CancellationToken) -> Result<(), Failure> {
        let db = self.pool.get().await.map_err(db::unavailable)?;
        queue::release(&db, &self.instance).await?;
        drop(db);
        let mut lanes = JoinSet::new();
        for lane in &LANES {
            let (engine, call, stop) = (Arc::clone(self), Arc::clone(call), stop.clone());
            lanes.spawn(async move { engine.lane(lane, &call, &stop).await });
        }
        while let Some(ended) = lanes.join_next().await {
            ended.map_err(Failure::halt)??;
        }
        Ok(())
    }

    async fn lane(&self, lane: &Lane, call: &Notify, stop: &CancellationToken) -> Result<(), Failure> {
        let mut on = OnTheirWay::default();
        while !stop.is_cancelled() {
            self.begin(&mut on, lane).await?;
            on.show(lane.health);
            let mut done = Vec::new();
            tokio::select! {
                Some(sent) = on.sends.join_next() => done.push(finished(sent)?),
                // New events are mostly of endpoints that work.
                () = call.notified(), if lane.health == Health::Well => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => {}
            }
            while let Some(sent) = on.sends.try_join_next() {
                done.push(finished(sent)?);
            }
            self.finish(&mut on, done).await?;
        }
        let drained = tokio::time::timeout(DRAINED_WITHIN, async {
            while let Some(sent) = on.sends.join_next().await {
                self.finish(&mut on, vec![finished(sent)?]).await?;
            }
            Ok(())
        });
        // What is left is sent again at the next start.
        drained.await.unwrap_or(Ok(()))
    }

    async fn begin(&self, on: &mut OnTheirWay, lane: &Lane) -> Result<(), Failure> {
        let most = lane.most - on.sends.len();
        if most == 0 {
            return Ok(());
        }
        let busy: Vec<(Uuid, i32)> = on.endpoints.iter().map(|(id, count)| (*id, *count)).collect();
        let slow: Vec<Uuid> = self.slow().iter().copied().collect();
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
            on.count(due.endpoint);
            let (client, guard) = (self.clients.of(due.endpoint), self.guard.clone());
            on.sends.spawn(async move {
                let outcome = send::send(&client, &guard, &due).await;
                let tries = usize::try_from(due.tries).unwrap_or_default();
                let verdict = schedule::judge(tries, outcome.answer, rand::random());
                Sent { due, outcome, verdict }
            });
        }
        Ok(())
    }

    async fn finish(&self, on: &mut OnTheirWay, done: Vec<Sent>) -> Result<(), Failure> {
        if done.is_empty() {
            return Ok(());
        }
        for sent in &done {
            on.uncount(sent.due.endpoint);
            self.time(sent);
            report(sent);
        }
        let done: Vec<(Due, Outcome, Verdict)> =
            done.into_iter().map(|Sent { due, outcome, verdict, .. }| (due, outcome, verdict)).collect();
        let mut db = self.pool.get().await.map_err(db::unavailable)?;
        let disabled = queue::settle(&mut db, &done).await?;
        metrics::WEBHOOKS_DISABLED.counter(&[]).increment(u64::try_from(disabled.len()).unwrap_or_default());
        Ok(())
    }

    /// Which lane the endpoint is for, if it answered.
    fn time(&self, sent: &Sent) {
        if sent.outcome.answer.status.is_none() {
            return;
        }
        if sent.outcome.took > SLOW {
            self.slow().insert(sent.due.endpoint);
        } else {
            self.slow().remove(&sent.due.endpoint);
        }
    }

    fn slow(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn finished(sent: Result<Sent, JoinError>) -> Result<Sent, Failure> {
    sent.map_err(Failure::halt)
}

fn report(sent: &Sent) {
    let outcome = match sent.verdict {
        Verdict::Delivered => "delivered",
        Verdict::Again(_) => "again",
        Verdict::Failed => "failed",
        Verdict::Gone => "gone",
    };
    metrics::WEBHOOK_ATTEMPTS.counter(&[("outcome", outcome)]).increment(1);
    metrics::WEBHOOK_LATENCY.histogram(&[]).record(sent.outcome.took);
    if sent.verdict == Verdict::Delivered {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::WEBHOOK_DELAY.histogram(&[]).record((now.as_secs_f64() - sent.due.due_at).max(0.0));
    }
}
