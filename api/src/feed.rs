//! Which payments had an event just now. One reader of `payment.events` for the process wakes the streams concerned, so an open
//! stream costs nothing while nothing happens. It says *that* there is something; what it is, is in the history.

use crate::problem::Problem;
use runtime::kafka::{Kafka, Tail};
use runtime::{Failure, stage};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use topics::Topic;
use uuid::Uuid;

const WAITS: Duration = Duration::from_millis(200);
/// Payments followed at once; each has a connection, of which a process has only so many.
const MOST: usize = 10_000;

/// Wakes those who follow payments. Cheap to clone.
#[derive(Clone)]
pub struct Feed(Arc<Inner>);

struct Inner {
    followed: Mutex<HashMap<Uuid, watch::Sender<()>>>,
    stop: CancellationToken,
}

/// Someone follows a payment.
pub struct Follower {
    feed: Feed,
    payment: Uuid,
    woken: watch::Receiver<()>,
}

impl Feed {
    /// Followers are let go at `stop`.
    pub fn new(stop: CancellationToken) -> Self {
        Self(Arc::new(Inner { followed: Mutex::default(), stop }))
    }

    /// Whatever is committed after this wakes the follower; what was before is for it to look up.
    ///
    /// # Errors
    /// A 503 when too many follow already.
    pub fn follow(&self, payment: Uuid) -> Result<Follower, Problem> {
        let mut followed = self.followed();
        if followed.len() >= MOST && !followed.contains_key(&payment) {
            return Err(Problem::unavailable(
                30,
                format_args!("{MOST} payments are followed already; ask for the list instead"),
            ));
        }
        let woken = followed.entry(payment).or_insert_with(|| watch::channel(()).0).subscribe();
        Ok(Follower { feed: self.clone(), payment, woken })
    }

    /// Reads the events until `stop`.
    pub async fn read(self, kafka: Kafka) {
        let stop = self.0.stop.clone();
        let read = move |stop: &CancellationToken| -> Result<(), Failure> {
            let mut events = Tail::open(&kafka, Topic::Events)?;
            // What came while nobody read is before that place.
            self.followed().values().for_each(|followers| followers.send_replace(()));
            while !stop.is_cancelled() {
                events.poll(WAITS, |record| self.wake(record.key()))?;
            }
            Ok(())
        };
        if let Err(error) = stage::run("api-events", stop.clone(), read).await {
            tracing::error!("streams of events stand still: {error:#}");
            // Payments do not need them.
            stop.cancelled().await;
        }
    }

    fn wake(&self, key: &[u8]) {
        // What has another key is no payment's.
        let Some(payment) = std::str::from_utf8(key).ok().and_then(|key| key.parse().ok()) else { return };
        if let Some(followers) = self.followed().get(&payment) {
            followers.send_replace(());
        }
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<()>>> {
        // Nobody panics while holding the lock.
        self.0.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// Waits for an event since the last call. `false` at the stop.
    pub async fn woken(&mut self) -> bool {
        tokio::select! {
            () = self.feed.0.stop.cancelled() => false,
            woken = self.woken.changed() => woken.is_ok(),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followed = self.feed.followed();
        // This one is still counted.
        if followed.get(&self.payment).is_some_and(|followers| followers.receiver_count() <= 1) {
            followed.remove(&self.payment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_is_woken_by_its_own_payment_alone_and_leaves_nothing_behind() {
        let stop = CancellationToken::new();
        let feed = Feed::new(stop.clone());
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        let (mut first, mut second) = (feed.follow(one).unwrap(), feed.follow(one).unwrap());
        let mut third = feed.follow(other).unwrap();
        feed.wake(one.to_string().as_bytes());
        feed.wake(b"no payment");
        assert!(first.woken().await && second.woken().await);
        assert!(!third.woken.has_changed().unwrap());
        drop(first);
        feed.wake(one.to_string().as_bytes());
        assert!(second.woken().await);
        drop(second);
        assert_eq!(feed.followed().len(), 1);
        stop.cancel();
        assert!(!third.woken().await);
    }
}
