//! Where a new connection leads to. The roles of a process look in turn, since each look costs the server a session.

use base::locked;
use deadpool_postgres::Pool;
use runtime::Failure;
use runtime::db::{self, Lineage, OwnConnection};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync;

/// How long a look is good for those who ask after it has ended: half the interval at which each role looks.
const MAX_AGE: Duration = Duration::from_millis(500);
/// There is time for another look before the gate's lease ends.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// By `DATABASE_URL`.
static LAST: Mutex<BTreeMap<String, LastLook>> = Mutex::new(BTreeMap::new());

/// The last look of the roles of this process. Cheap to clone.
#[derive(Clone)]
pub struct LastLook<L = Lineage>(Arc<sync::Mutex<Option<Look<L>>>>);

struct Look<L> {
    lineage: L,
    began: Instant,
    ended: Instant,
}

impl LastLook {
    pub fn at(database_url: &str) -> Self {
        locked(&LAST).entry(database_url.to_owned()).or_insert_with(|| Self(Arc::default())).clone()
    }

    /// Where a new connection of the pool leads to, and when the look began that tells so: another role's, or one that begins now.
    ///
    /// # Errors
    /// When the database fails, or does not answer in time.
    pub async fn renew(&self, pool: &Pool) -> Result<(Lineage, Instant), Failure> {
        self.renew_by(async || Ok(Lineage::of(OwnConnection::open(pool).await?.db()?).await?)).await
    }
}

impl<L: Clone> LastLook<L> {
    async fn renew_by(&self, look: impl AsyncFnOnce() -> Result<L, Failure>) -> Result<(L, Instant), Failure> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        // One that was under way is taken however long it took: two roles that each wait for the other's and then look by themselves
        // would both be too late.
        if let Some(last) = last.as_ref().filter(|last| last.ended >= asked || last.began.elapsed() < MAX_AGE) {
            return Ok((last.lineage.clone(), last.began));
        }
        // Before the connection is opened: what it leads to may change while it is.
        let began = Instant::now();
        let lineage = db::answered(LOOK_TIMEOUT, look()).await?;
        *last = Some(Look { lineage: lineage.clone(), began, ended: Instant::now() });
        Ok((lineage, began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_look_under_way_answers_all_who_wait_for_it_and_none_is_taken_for_longer_than_half_a_second() {
        let (last, looks) = (LastLook(Arc::default()), AtomicUsize::new(0));
        let renew = async |takes_ms| {
            let look = async || {
                looks.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(takes_ms)).await;
                Ok(())
            };
            last.renew_by(look).await
        };
        let started = Instant::now();
        let (first, second) = tokio::join!(renew(1_200), renew(1_200));
        assert_eq!(looks.load(Ordering::Relaxed), 1, "a look that takes longer than it is good for is waited for in turn");
        let began = first.unwrap().1;
        assert_eq!(began, second.unwrap().1);
        assert!(began >= started && began.elapsed() >= Duration::from_millis(1_200), "a look began before it was answered");
        // It began too long ago for whoever asks now.
        assert!(renew(0).await.unwrap().1 > began);
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_given_up() {
        let (last, started) = (LastLook::<()>(Arc::default()), Instant::now());
        assert!(last.renew_by(async || std::future::pending().await).await.is_err());
        assert!(started.elapsed() < LOOK_TIMEOUT * 2);
    }
}
