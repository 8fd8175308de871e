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
    fronts: Mutex<HashMap<Uuid, Front>>,
    news: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Front {
    /// Nothing is pending that was due before.
    since: OffsetDateTime,
    /// The earliest that was told since it began to move on, which the look for where to may not have.
    told: Option<OffsetDateTime>,
}

impl Fronts {
    /// Notes new deliveries, which are committed.
    pub fn tell(&self, new: NewDeliveries) {
        if !new.is_empty() {
            self.note(new);
            self.news.notify_one();
        }
    }

    fn note(&self, new: NewDeliveries) {
        let mut fronts = self.fronts();
        for (endpoint, since) in new {
            let front = fronts.entry(endpoint).or_insert(Front { since, told: None });
            front.since = front.since.min(since);
            front.told = Some(front.told.map_or(since, |told| told.min(since)));
        }
    }

    /// Waits for new deliveries; one waiter at a time.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Endpoints, and from when on something may be pending for them.
    pub fn list(&self) -> Vec<(Uuid, OffsetDateTime)> {
        self.fronts().iter().map(|(endpoint, front)| (*endpoint, front.since)).collect()
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
            pace::pause(began, INTERVAL, stop).await;
        }
        Ok(())
    }

    /// Looks through all endpoints for what is pending.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn look(&self, db: &impl GenericClient) -> Result<(), Failure> {
        self.note(queue::pending(db).await?);
        Ok(())
    }

    /// Moves each front to the oldest delivery that is pending, and forgets endpoints that nothing is pending for; one caller
    /// at a time.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn move_on(&self, db: &impl GenericClient) -> Result<(), Failure> {
        let asked = self.begin();
        if !asked.is_empty() {
            self.end(&asked, queue::pending_since(db, &asked).await?);
        }
        Ok(())
    }

    fn begin(&self) -> Vec<(Uuid, OffsetDateTime)> {
        let mut fronts = self.fronts();
        fronts.values_mut().for_each(|front| front.told = None);
        fronts.iter().map(|(endpoint, front)| (*endpoint, front.since)).collect()
    }

    fn end(&self, asked: &[(Uuid, OffsetDateTime)], found: Vec<(Uuid, OffsetDateTime)>) {
        let found: HashMap<Uuid, OffsetDateTime> = found.into_iter().collect();
        let mut fronts = self.fronts();
        for (endpoint, _) in asked {
            let Some(front) = fronts.get_mut(endpoint) else { continue };
            match found.get(endpoint).copied().into_iter().chain(front.told).min() {
                Some(since) => front.since = since,
                None => drop(fronts.remove(endpoint)),
            }
        }
    }

    fn fronts(&self) -> MutexGuard<'_, HashMap<Uuid, Front>> {
        locked(&self.fronts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_moves_on_though_its_endpoint_is_told_of_all_the_time() {
        let (fronts, endpoint) = (Fronts::default(), Uuid::nil());
        let at = |second| OffsetDateTime::UNIX_EPOCH + Duration::from_secs(second);
        fronts.tell(vec![(endpoint, at(10))]);
        let asked = fronts.begin();
        fronts.tell(vec![(endpoint, at(30))]);
        fronts.tell(vec![(endpoint, at(40))]);
        fronts.end(&asked, vec![(endpoint, at(20))]);
        assert_eq!(fronts.list(), [(endpoint, at(20))]);
        // What was told after the look is not passed over.
        let asked = fronts.begin();
        fronts.tell(vec![(endpoint, at(30))]);
        fronts.end(&asked, vec![]);
        assert_eq!(fronts.list(), [(endpoint, at(30))]);
        let asked = fronts.begin();
        fronts.end(&asked, vec![]);
        assert!(fronts.list().is_empty(), "{fronts:?}");
    }
}
