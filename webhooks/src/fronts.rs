//! Which endpoints something is pending for, and from when on.
//!
//! A claim looks at these and nowhere else. What was sent stands in the index of what is pending until it is vacuumed, and no
//! vacuum removes it while an older transaction is open, such as that of a dump. So a claim begins, for each endpoint, with the
//! oldest delivery that was pending a moment ago. Whatever is made pending elsewhere, by another instance or the API, is found
//! by looking through all endpoints, which is done as often as it is cheap.

use crate::pace;
use crate::queue;
use base::locked;
use deadpool_postgres::{GenericClient, Pool};
use runtime::Failure;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How often the fronts move on, and how often all endpoints are looked through while that is cheap.
const INTERVAL: Duration = Duration::from_millis(200);

/// Endpoints with new deliveries, and from when on those are due.
pub type NewDeliveries = Vec<(Uuid, OffsetDateTime)>;

/// The endpoints that something is pending for, as far as this process knows.
#[derive(Debug, Default)]
pub struct Fronts {
    known: Mutex<Known>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    fronts: HashMap<Uuid, Front>,
    /// Grows whenever somebody tells something.
    version: u64,
}

#[derive(Debug, Clone, Copy)]
struct Front {
    /// Nothing is pending that was due before.
    since: OffsetDateTime,
    /// The version that told of it last.
    told: u64,
}

impl Fronts {
    /// Notes new deliveries, which are committed.
    pub fn tell(&self, new: NewDeliveries) {
        if new.is_empty() {
            return;
        }
        let mut known = self.known();
        known.version += 1;
        for (endpoint, since) in new {
            known.add(endpoint, since);
        }
        drop(known);
        self.news.notify_one();
    }

    /// Waits for new deliveries; one waiter at a time.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Endpoints, and from when on something may be pending for them.
    pub fn list(&self) -> Vec<(Uuid, OffsetDateTime)> {
        self.known().fronts.iter().map(|(endpoint, front)| (*endpoint, front.since)).collect()
    }

    /// Keeps them up to date, until `stop`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep(&self, pool: &Pool, stop: &CancellationToken) -> Result<(), Failure> {
        let mut look_at = Instant::now();
        while !stop.is_cancelled() {
            let db = pool.get().await?;
            let began = Instant::now();
            if began >= look_at {
                self.look(&db).await?;
                look_at = Instant::now() + pace::rest(began.elapsed(), INTERVAL);
            }
            let began = Instant::now();
            self.move_on(&db).await?;
            drop(db);
            tokio::select! {
                () = tokio::time::sleep(pace::rest(began.elapsed(), INTERVAL)) => {}
                () = stop.cancelled() => {}
            }
        }
        Ok(())
    }

    /// Looks through all endpoints for what is pending.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn look(&self, db: &impl GenericClient) -> Result<(), Failure> {
        let found = queue::pending(db).await?;
        let mut known = self.known();
        for (endpoint, since) in found {
            known.add(endpoint, since);
        }
        Ok(())
    }

    /// Moves each front to the oldest delivery that is pending, and forgets endpoints that nothing is pending for.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn move_on(&self, db: &impl GenericClient) -> Result<(), Failure> {
        let version = self.known().version;
        let asked = self.list();
        if asked.is_empty() {
            return Ok(());
        }
        let mut found: HashMap<Uuid, OffsetDateTime> = queue::pending_since(db, &asked).await?.into_iter().collect();
        let mut known = self.known();
        for (endpoint, _) in asked {
            let Some(front) = known.fronts.get_mut(&endpoint) else { continue };
            match found.remove(&endpoint) {
                // Told after the look, which does not have it.
                _ if front.told > version => {}
                Some(since) => front.since = since,
                None => drop(known.fronts.remove(&endpoint)),
            }
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        locked(&self.known)
    }
}

impl Known {
    fn add(&mut self, endpoint: Uuid, since: OffsetDateTime) {
        let told = self.version;
        let front = self.fronts.entry(endpoint).or_insert(Front { since, told });
        *front = Front { since: front.since.min(since), told };
    }
}
