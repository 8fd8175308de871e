//! Where a new connection leads to. The roles of a process look in turn, since each look costs the server a session.

use super::gate::Lineage;
use super::in_time::answered;
use super::own_connection::OwnConnection;
use crate::failure::Failure;
use deadpool_postgres::Pool;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// How long a look is good for those who ask after it has ended: half the interval at which each role looks.
const MAX_AGE: Duration = Duration::from_millis(500);
/// There is time for another look before the gate's lease ends.
const LEASE_LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// The last look of the roles of this process.
pub(super) struct SharedLook<L = Lineage>(Mutex<Option<Look<L>>>);

struct Look<L> {
    lineage: L,
    began: Instant,
    ended: Instant,
}

impl SharedLook {
    pub async fn renew(&self, pool: &Pool) -> Result<(Lineage, Instant), Failure> {
        self.renew_by(async || Ok(Lineage::of(OwnConnection::open(pool).await?.db()?).await?)).await
    }
}

impl<L: Clone> SharedLook<L> {
    pub const fn new() -> Self {
        Self(Mutex::const_new(None))
    }

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
        let lineage = answered(LEASE_LOOK_TIMEOUT, look()).await?;
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
        let (last, looks) = (SharedLook::new(), AtomicUsize::new(0));
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
        let (last, started) = (SharedLook::<()>::new(), Instant::now());
        assert!(last.renew_by(async || std::future::pending().await).await.is_err());
        assert!(started.elapsed() < LEASE_LOOK_TIMEOUT * 2);
    }
}
