//! Wakes the live streams of payments' events.
//!
//! One reader of `payment.events` per process wakes the streams of the payments that had an event, so an open stream costs
//! nothing while nothing happens. A wake-up says only *that* there is an event; what it is, the stream reads from the history.

use crate::http::problem::Problem;
use runtime::kafka::{Kafka, Tail};
use runtime::{Failure, stage};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use topics::Topic;
use uuid::Uuid;

const POLL_TIMEOUT: Duration = Duration::from_millis(200);
/// Each stream holds a connection, of which a process has a limited number.
const MAX_FOLLOWED_PAYMENTS: usize = 10_000;

/// The payments that open streams follow. Cheap to clone.
#[derive(Clone)]
pub struct EventFeed(Arc<Inner>);

struct Inner {
    followed: Mutex<HashMap<Uuid, watch::Sender<()>>>,
    stop: CancellationToken,
}

/// A stream's subscription to one payment; dropping it ends it.
pub struct Subscription {
    feed: EventFeed,
    payment: Uuid,
    woken: watch::Receiver<()>,
}

impl EventFeed {
    /// Subscriptions end at `stop`.
    pub fn new(stop: CancellationToken) -> Self {
        Self(Arc::new(Inner { followed: Mutex::default(), stop }))
    }

    /// Every event committed after this call wakes the subscriber; earlier ones it has to read from the history.
    ///
    /// # Errors
    /// A 503 when the process already follows [`MAX_FOLLOWED_PAYMENTS`].
    pub fn subscribe(&self, payment: Uuid) -> Result<Subscription, Problem> {
        let mut followed = self.followed();
        if followed.len() >= MAX_FOLLOWED_PAYMENTS && !followed.contains_key(&payment) {
            return Err(Problem::unavailable(
                30,
                format_args!("The limit of {MAX_FOLLOWED_PAYMENTS} streamed payments is reached; request the list instead"),
            ));
        }
        let woken = followed.entry(payment).or_insert_with(|| watch::channel(()).0).subscribe();
        Ok(Subscription { feed: self.clone(), payment, woken })
    }

    /// Reads `payment.events` until `stop`.
    pub async fn run(self, kafka: Kafka) {
        let stop = self.0.stop.clone();
        let read = move |stop: &CancellationToken| -> Result<(), Failure> {
            let mut events = Tail::open(&kafka, Topic::Events)?;
            // The tail begins at the topic's end; events written while nobody read are before it.
            self.followed().values().for_each(|subscribers| subscribers.send_replace(()));
            while !stop.is_cancelled() {
                events.poll(POLL_TIMEOUT, |record| self.wake(record.key()))?;
            }
            Ok(())
        };
        if let Err(error) = stage::run("api-events", stop.clone(), read).await {
            tracing::error!("reading payment.events stopped, so live streams get no new events: {error:#}");
            // Creating payments does not depend on it.
            stage::waits("api-events", &format!("{error:#}"));
            stop.cancelled().await;
        }
    }

    fn wake(&self, key: &[u8]) {
        // A record with any other key is not about a payment.
        let Some(payment) = std::str::from_utf8(key).ok().and_then(|key| key.parse().ok()) else { return };
        if let Some(subscribers) = self.followed().get(&payment) {
            subscribers.send_replace(());
        }
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<Uuid, watch::Sender<()>>> {
        // Nobody panics while holding the lock.
        self.0.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscription {
    /// Waits for an event since the last call; `false` at the stop.
    pub async fn woken(&mut self) -> bool {
        tokio::select! {
            () = self.feed.0.stop.cancelled() => false,
            woken = self.woken.changed() => woken.is_ok(),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut followed = self.feed.followed();
        // This receiver is still counted.
        if followed.get(&self.payment).is_some_and(|subscribers| subscribers.receiver_count() <= 1) {
            followed.remove(&self.payment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_subscriber_is_woken_by_its_own_payment_alone_and_leaves_nothing_behind() {
        let stop = CancellationToken::new();
        let feed = EventFeed::new(stop.clone());
        let (one, other) = (Uuid::now_v7(), Uuid::now_v7());
        let (mut first, mut second) = (feed.subscribe(one).unwrap(), feed.subscribe(one).unwrap());
        let mut third = feed.subscribe(other).unwrap();
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
