//! Sends what is due, so many messages at once and no more.
//!
//! One task claims, sends and settles. Endpoints that fail have sockets of their own, and few of them, so that however many
//! there are they take none from those that work; and no endpoint has more than [`AN_ENDPOINT`].

use crate::guard::Guard;
use crate::queue::{self, Due, Room};
use crate::schedule::{self, Verdict};
use crate::send::{self, Outcome};
use deadpool_postgres::Pool;
use reqwest::Client;
use runtime::{Failure, db, metrics};
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Messages on their way to endpoints that work.
const HEALTHY: usize = 384;
/// And to those that fail.
const FAILING: usize = 128;
const AN_ENDPOINT: i32 = 8;
/// A failing one is asked carefully.
const A_FAILING_ENDPOINT: i32 = 1;
/// Retries, pings and redeliveries are found by looking.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What is on its way at the stop; the process has 10 s.
const DRAINED_WITHIN: Duration = Duration::from_secs(5);

/// What the engine works with.
pub struct Engine {
    pub pool: Pool,
    pub client: Client,
    pub guard: Guard,
    pub instance: String,
}

/// A message that is on its way, or was.
struct Sent {
    due: Due,
    failing: bool,
    outcome: Outcome,
    verdict: Verdict,
}

#[derive(Default)]
struct OnTheirWay {
    sends: JoinSet<Sent>,
    endpoints: HashMap<Uuid, i32>,
    healthy: usize,
    failing: usize,
}

impl OnTheirWay {
    fn of(&mut self, failing: bool) -> &mut usize {
        if failing { &mut self.failing } else { &mut self.healthy }
    }

    fn room(&mut self, failing: bool) -> usize {
        let most = if failing { FAILING } else { HEALTHY };
        most.saturating_sub(*self.of(failing))
    }

    fn count(&mut self, endpoint: Uuid, failing: bool) {
        *self.of(failing) += 1;
        *self.endpoints.entry(endpoint).or_default() += 1;
        self.show();
    }

    fn uncount(&mut self, endpoint: Uuid, failing: bool) {
        *self.of(failing) -= 1;
        if let Some(count) = self.endpoints.get_mut(&endpoint) {
            *count -= 1;
            if *count == 0 {
                self.endpoints.remove(&endpoint);
            }
        }
        self.show();
    }

    fn show(&self) {
        #[expect(clippy::cast_precision_loss, reason = "they are bounded by hundreds")]
        metrics::WEBHOOKS_IN_FLIGHT.gauge(&[]).set(self.sends.len() as f64);
    }
}

impl Engine {
    /// Sends until `stop`, then waits a little for what is on its way.
    ///
    /// # Errors
    /// When the database fails: what is on its way then is not settled, and sent again.
    pub async fn run(&self, call: &Notify, stop: &CancellationToken) -> Result<(), Failure> {
        let db = self.pool.get().await.map_err(db::unavailable)?;
        queue::release(&db, &self.instance).await?;
        drop(db);
        let mut on = OnTheirWay::default();
        while !stop.is_cancelled() {
            for failing in [false, true] {
                self.begin(&mut on, failing).await?;
            }
            let mut done = Vec::new();
            tokio::select! {
                Some(sent) = on.sends.join_next() => done.push(finished(sent)?),
                () = call.notified() => {}
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

    async fn begin(&self, on: &mut OnTheirWay, failing: bool) -> Result<(), Failure> {
        let most = on.room(failing);
        if most == 0 {
            return Ok(());
        }
        let busy: Vec<(Uuid, i32)> = on.endpoints.iter().map(|(id, count)| (*id, *count)).collect();
        let room = Room {
            instance: &self.instance,
            failing,
            most: i64::try_from(most).unwrap_or(i64::MAX),
            an_endpoint: if failing { A_FAILING_ENDPOINT } else { AN_ENDPOINT },
            busy: &busy,
        };
        let db = self.pool.get().await.map_err(db::unavailable)?;
        let claimed = queue::claim(&db, room).await?;
        drop(db);
        for due in claimed {
            on.count(due.endpoint, failing);
            let (client, guard) = (self.client.clone(), self.guard.clone());
            on.sends.spawn(async move {
                let outcome = send::send(&client, &guard, &due).await;
                let tries = usize::try_from(due.tries).unwrap_or_default();
                let verdict = schedule::judge(tries, outcome.answer, rand::random());
                Sent { due, failing, outcome, verdict }
            });
        }
        Ok(())
    }

    async fn finish(&self, on: &mut OnTheirWay, done: Vec<Sent>) -> Result<(), Failure> {
        if done.is_empty() {
            return Ok(());
        }
        for sent in &done {
            on.uncount(sent.due.endpoint, sent.failing);
            report(sent);
        }
        let done: Vec<(Due, Outcome, Verdict)> =
            done.into_iter().map(|Sent { due, outcome, verdict, .. }| (due, outcome, verdict)).collect();
        let mut db = self.pool.get().await.map_err(db::unavailable)?;
        let disabled = queue::settle(&mut db, &done).await?;
        metrics::WEBHOOKS_DISABLED.counter(&[]).increment(u64::try_from(disabled.len()).unwrap_or_default());
        Ok(())
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
