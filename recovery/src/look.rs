//! Where a new connection leads to. The roles of a process look in turn, since each look costs the server a session.

use base::locked;
use deadpool_postgres::Pool;
use runtime::Failure;
use runtime::db::{Lineage, OwnConnection};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync;

/// Half the interval at which each role looks.
const MAX_AGE: Duration = Duration::from_millis(500);

/// By `DATABASE_URL`.
static LAST: Mutex<BTreeMap<String, LastLook>> = Mutex::new(BTreeMap::new());

/// The last look of the roles of this process, and when it began. Cheap to clone.
#[derive(Clone, Default)]
pub struct LastLook(Arc<sync::Mutex<Option<(Lineage, Instant)>>>);

impl LastLook {
    pub fn at(database_url: &str) -> Self {
        locked(&LAST).entry(database_url.to_owned()).or_default().clone()
    }

    /// Where a new connection of the pool leads to, and when the look began that tells so: another role's, or one that begins now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew(&self, pool: &Pool) -> Result<(Lineage, Instant), Failure> {
        let mut last = self.0.lock().await;
        if let Some(recent) = last.as_ref().filter(|(_, began)| began.elapsed() < MAX_AGE) {
            return Ok(recent.clone());
        }
        let began = Instant::now();
        let lineage = Lineage::of(OwnConnection::open(pool).await?.db()?).await?;
        Ok(last.insert((lineage, began)).clone())
    }
}
