//! Wakes the live streams of payments' events, and reads each event once for all of them.
//!
//! One reader of `payment.events` per process wakes the streams of the payments that had an event, so an open stream costs
//! nothing while nothing happens. A wake-up says only *that* there is an event; what it is, the first stream of the payment reads
//! from the history, and the others take what it has read.
//!
//! A stream holds its connection for as long as its client likes. So there are limits on those of one key, of one merchant, and on
//! all of them.

use crate::http::problem::Problem;
use axum::http::StatusCode;
use base::counts::Counts;
use base::locked;
use merchants::KeyId;
use payments::history::RecordedEvent;
use runtime::kafka::{Kafka, Tail};
use runtime::{Failure, stage};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Mutex as AsyncMutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use topics::Topic;
use uuid::Uuid;

const POLL_TIMEOUT: Duration = Duration::from_millis(200);
/// Events that are read at once.
pub const MAX_EVENTS: usize = 100;
/// Seconds until a client that is refused a stream may find room for one.
const RETRY_AFTER: u32 = 30;

/// The payments that open streams follow. Cheap to clone.
#[derive(Clone)]
pub struct EventFeed(Arc<Inner>);

struct Inner {
    limits: StreamLimits,
    streams: Mutex<Streams>,
    stop: CancellationToken,
    /// The stop, or that no event is read any more.
    ended: CancellationToken,
}

/// How many streams may be open.
#[derive(Clone, Copy)]
pub struct StreamLimits {
    pub all: usize,
    pub of_merchant: usize,
    pub of_key: usize,
}

#[derive(Default)]
struct Streams {
    followed: HashMap<Uuid, Arc<Followed>>,
    open: usize,
    of_merchant: Counts<Uuid>,
    of_key: Counts<KeyId>,
}

/// A payment that streams follow.
#[derive(Default)]
struct Followed {
    /// How often it was woken.
    wakes: watch::Sender<u64>,
    recent: AsyncMutex<Recent>,
}

/// What was read from the history last.
#[derive(Default)]
struct Recent {
    /// Those after this sequence number, at most [`MAX_EVENTS`].
    after: u64,
    events: Vec<Arc<RecordedEvent>>,
    /// How often the payment had been woken before; `None` if nothing was read yet.
    wakes: Option<u64>,
}

/// A stream's subscription to one payment; dropping it ends it.
pub struct Subscription {
    feed: EventFeed,
    payment: Uuid,
    merchant: Uuid,
    key: KeyId,
    followed: Arc<Followed>,
    wakes: watch::Receiver<u64>,
}

impl StreamLimits {
    /// Leaves half of the connections to requests, and no merchant more than a quarter of the rest.
    pub fn within(connections: usize) -> Self {
        let share = |of: usize, parts: usize| (of / parts).max(1);
        let all = share(connections, 2);
        Self { all, of_merchant: share(all, 4), of_key: share(all, 8) }
    }
}

impl EventFeed {
    /// Subscriptions end at `stop`.
    pub fn new(limits: StreamLimits, stop: CancellationToken) -> Self {
        let ended = stop.child_token();
        Self(Arc::new(Inner { limits, streams: Mutex::default(), stop, ended }))
    }

    /// Every event committed after this call wakes the subscriber; earlier ones it has to read from the history.
    ///
    /// # Errors
    /// A 429 when the key or the merchant has as many streams as it may, a 503 when the process has.
    pub fn subscribe(&self, merchant: Uuid, key: KeyId, payment: Uuid) -> Result<Subscription, Problem> {
        let limits = self.0.limits;
        let mut streams = self.streams();
        if streams.of_key.of(&key) >= limits.of_key {
            return Err(too_many(limits.of_key, "key"));
        }
        if streams.of_merchant.of(&merchant) >= limits.of_merchant {
            return Err(too_many(limits.of_merchant, "merchant"));
        }
        if streams.open >= limits.all {
            let detail = format!("The limit of {} streams is reached; request the list instead", limits.all);
            return Err(Problem::unavailable(RETRY_AFTER, detail));
        }
        streams.open += 1;
        streams.of_merchant.add(merchant, 1);
        streams.of_key.add(key, 1);
        let followed = Arc::clone(streams.followed.entry(payment).or_default());
        let wakes = followed.wakes.subscribe();
        Ok(Subscription { feed: self.clone(), payment, merchant, key, followed, wakes })
    }

    /// Reads `payment.events` until `stop`.
    pub async fn run(self, kafka: Kafka) {
        let feed = self.clone();
        let read = move |stop: &CancellationToken| -> Result<(), Failure> {
            let mut events = Tail::open(&kafka, Topic::Events)?;
            // The tail begins at the topic's end; events written while nobody read are before it.
            feed.streams().followed.values().for_each(|followed| followed.wake());
            while !stop.is_cancelled() {
                events.poll(POLL_TIMEOUT, |record| feed.wake(record.key()))?;
            }
            Ok(())
        };
        self.run_stage(read).await;
    }

    async fn run_stage(&self, read: impl FnMut(&CancellationToken) -> Result<(), Failure> + Send + 'static) {
        let Inner { stop, ended, .. } = &*self.0;
        if let Err(error) = stage::run("api-events", stop.clone(), read).await {
            tracing::error!("reading payment.events stopped, so live streams end after what the history has: {error:#}");
            // Creating payments does not depend on it. Clients come back with their last event's id, and so miss none.
            stage::waits("api-events", &format!("{error:#}"));
            ended.cancel();
            stop.cancelled().await;
        }
    }

    fn wake(&self, key: &[u8]) {
        // A record with any other key is not about a payment.
        let Some(payment) = std::str::from_utf8(key).ok().and_then(|key| key.parse().ok()) else { return };
        if let Some(followed) = self.streams().followed.get(&payment) {
            followed.wake();
        }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        locked(&self.0.streams)
    }
}

/// A 429.
fn too_many(limit: usize, whose: &str) -> Problem {
    let detail = format!("The {whose} has {limit} streams open, which is the limit; close one, or request the list instead");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-streams", "Too many live streams", detail).retry_after(RETRY_AFTER)
}

impl Followed {
    fn wake(&self) {
        self.wakes.send_modify(|wakes| *wakes += 1);
    }
}

impl Recent {
    /// Whether it has what a stream that knows all up to `after` does not know yet.
    fn is_enough(&self, after: u64, wakes: u64) -> bool {
        let is_whole = self.events.len() < MAX_EVENTS;
        self.wakes == Some(wakes)
            && after >= self.after
            && (is_whole || self.events.last().is_some_and(|last| last.event.sequence > after))
    }
}

impl Subscription {
    /// The next events of the payment after this sequence number, [`MAX_EVENTS`] at most. `read` reads them from the history, unless
    /// another stream has done so since the last event.
    ///
    /// # Errors
    /// Those of `read`.
    pub async fn events(
        &self,
        after: u64,
        read: impl AsyncFnOnce() -> Result<Vec<RecordedEvent>, Failure>,
    ) -> Result<Vec<Arc<RecordedEvent>>, Failure> {
        let mut recent = self.followed.recent.lock().await;
        // Before it is read: an event that comes meanwhile is another wake-up.
        let wakes = *self.followed.wakes.borrow();
        if !recent.is_enough(after, wakes) {
            let events = read().await?.into_iter().map(Arc::new).collect();
            *recent = Recent { after, events, wakes: Some(wakes) };
        }
        Ok(recent.events.iter().filter(|recorded| recorded.event.sequence > after).cloned().collect())
    }

    /// Waits for an event since the last call; `false` at the stop, and once no event is read any more.
    pub async fn woken(&mut self) -> bool {
        tokio::select! {
            () = self.feed.0.ended.cancelled() => false,
            woken = self.wakes.changed() => woken.is_ok(),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut streams = self.feed.streams();
        streams.open -= 1;
        streams.of_merchant.take_off(&self.merchant, 1);
        streams.of_key.take_off(&self.key, 1);
        // This receiver is still counted.
        if self.followed.wakes.receiver_count() <= 1 {
            streams.followed.remove(&self.payment);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use topics::wire::PaymentEvent;

    const LIMITS: StreamLimits = StreamLimits { all: 10, of_merchant: 6, of_key: 4 };

    fn key(number: u8) -> KeyId {
        KeyId::of(&[number; 32])
    }

    #[tokio::test]
    async fn a_subscriber_is_woken_by_its_own_payment_alone_and_leaves_nothing_behind() {
        let stop = CancellationToken::new();
        let feed = EventFeed::new(LIMITS, stop.clone());
        let (merchant, one, other) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
        let subscribe = |payment| feed.subscribe(merchant, key(1), payment).unwrap();
        let (mut first, mut second) = (subscribe(one), subscribe(one));
        let mut third = subscribe(other);
        feed.wake(one.to_string().as_bytes());
        feed.wake(b"no payment");
        assert!(first.woken().await && second.woken().await);
        assert!(!third.wakes.has_changed().unwrap());
        drop(first);
        feed.wake(one.to_string().as_bytes());
        assert!(second.woken().await);
        drop(second);
        assert_eq!(feed.streams().followed.len(), 1);
        stop.cancel();
        assert!(!third.woken().await);
        drop(third);
        let streams = feed.streams();
        assert!(
            streams.open == 0 && streams.followed.is_empty() && streams.of_merchant.is_empty() && streams.of_key.is_empty()
        );
    }

    #[tokio::test]
    async fn streams_end_when_no_event_is_read_any_more() {
        let stop = CancellationToken::new();
        let feed = EventFeed::new(LIMITS, stop.clone());
        let mut subscription = feed.subscribe(Uuid::nil(), key(1), Uuid::now_v7()).unwrap();
        let halting = feed.clone();
        let running =
            tokio::spawn(async move { halting.run_stage(|_| Err(Failure::halt(std::io::Error::other("halts")))).await });
        assert!(!tokio::time::timeout(Duration::from_secs(10), subscription.woken()).await.expect("a silent stream"));
        assert!(!running.is_finished(), "payments are created all the same");
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn no_key_no_merchant_and_not_all_together_have_more_streams_than_they_may() {
        let feed = EventFeed::new(LIMITS, CancellationToken::new());
        let (merchant, payment) = (Uuid::now_v7(), Uuid::now_v7());
        let open = |merchant: Uuid, number: u8| {
            let opened: Vec<_> = (0..20).map_while(|_| feed.subscribe(merchant, key(number), payment).ok()).collect();
            (opened.len(), feed.subscribe(merchant, key(number), payment).err().map(|problem| problem.status()), opened)
        };
        let (of_key, refused, first) = open(merchant, 1);
        assert_eq!((of_key, refused), (4, Some(StatusCode::TOO_MANY_REQUESTS)));
        let (of_second_key, refused, _second) = open(merchant, 2);
        assert_eq!((of_second_key, refused), (2, Some(StatusCode::TOO_MANY_REQUESTS)));
        let (of_other, refused, _third) = open(Uuid::now_v7(), 3);
        assert_eq!((of_other, refused), (4, Some(StatusCode::TOO_MANY_REQUESTS)));
        assert_eq!(open(Uuid::now_v7(), 4).1, Some(StatusCode::SERVICE_UNAVAILABLE));
        drop(first);
        assert_eq!(open(merchant, 1).0, 4);
    }

    /// A history that counts how often it is read.
    async fn read(of: &Subscription, after: u64, last: u64, reads: &Cell<usize>) -> Vec<u64> {
        let history = async || {
            reads.set(reads.get() + 1);
            // The others come while it is read.
            tokio::task::yield_now().await;
            let record = |sequence| RecordedEvent { event: PaymentEvent { sequence, ..Default::default() }, asked_by: None };
            Ok((after + 1..=last).take(MAX_EVENTS).map(record).collect())
        };
        of.events(after, history).await.unwrap().iter().map(|recorded| recorded.event.sequence).collect()
    }

    #[tokio::test]
    async fn an_event_is_read_once_however_many_streams_follow_its_payment() {
        let limits = StreamLimits { all: 1000, of_merchant: 1000, of_key: 1000 };
        let feed = EventFeed::new(limits, CancellationToken::new());
        let payment = Uuid::now_v7();
        let streams: Vec<_> = (0..500).map(|_| feed.subscribe(Uuid::nil(), key(1), payment).unwrap()).collect();
        let reads = Cell::new(0);
        let all = async |after: u64, last: u64| {
            let each = streams.iter().map(|stream| read(stream, after, last, &reads));
            let expected: Vec<u64> = (after + 1..=last).take(MAX_EVENTS).collect();
            for seen in futures::future::join_all(each).await {
                assert_eq!(seen, expected);
            }
            reads.replace(0)
        };
        assert_eq!(all(0, 3).await, 1);
        assert_eq!(all(3, 3).await, 0, "nothing has happened");
        feed.wake(payment.to_string().as_bytes());
        assert_eq!(all(3, 4).await, 1);
        // One that begins, and one that was slow, see all the same.
        assert_eq!(read(&streams[0], 0, 4, &reads).await, [1, 2, 3, 4]);
        assert_eq!(read(&streams[1], 2, 4, &reads).await, [3, 4]);
        // A history that is longer than what is read at once.
        feed.wake(payment.to_string().as_bytes());
        assert_eq!(all(4, 250).await, 2);
        for (from, to) in [(104, 204), (204, 250), (250, 250)] {
            assert_eq!(read(&streams[0], from, 250, &reads).await, (from + 1..=to).collect::<Vec<_>>());
        }
    }
}
