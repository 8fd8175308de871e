//! The share of one merchant in what all have in common: requests in hand, places in the queues of payments to create and to
//! read, connections to Postgres and places in the line for one, and large redeliveries. Orders and lines beyond it wait behind
//! the merchant's own, and not in front of others; the rest is refused.
//!
//! A client that hangs up frees nothing that its statement takes still: a request that holds a connection goes on until it
//! gives that back, and what it has of the share with it. Not for ever: nothing ends a commit that waits for a standby. What has
//! no answer in time is closed.

use crate::http::problem::Problem;
use axum::http::StatusCode;
use base::locked;
use deadpool_postgres::{Client, Object, Pool};
use runtime::db::WRITE_TIMEOUT;
use std::collections::HashMap;
use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

const MAX_REQUESTS: usize = 2048;
/// A quarter of the queue, and more than a batch has.
const MAX_QUEUED: usize = 2048;
/// Half of the largest batch: another merchant's read is in the next batch, however many one merchant sends.
const MAX_QUEUED_READS: usize = 32;
/// The pool serves in order, so another merchant's request waits for these few and not for all that this one has.
const MAX_IN_LINE: usize = 4;
/// For a place.
const MAX_WAIT: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// What the task does for a merchant.
    static WORK: Work;
}

struct Work {
    share: Arc<Share>,
    held: Arc<Held>,
}

/// What a task holds.
#[derive(Default)]
struct Held {
    connections: AtomicUsize,
    /// Nobody waits for its statements any more: the next who got such a connection would.
    is_given_up: AtomicBool,
}

/// The shares of the merchants that have sent a request.
pub struct Shares {
    /// How many connections a merchant may hold.
    connections: usize,
    patience: Duration,
    merchants: Mutex<HashMap<Uuid, Arc<Share>>>,
}

struct Share {
    /// For a place.
    max_wait: Duration,
    /// How long what a client has left behind may hold a connection.
    patience: Duration,
    requests: Arc<Semaphore>,
    queued: Arc<Semaphore>,
    queued_reads: Arc<Semaphore>,
    in_line: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    replica_connections: Arc<Semaphore>,
    redeliveries: Arc<Semaphore>,
}

impl Share {
    fn new(connections: usize, patience: Duration) -> Self {
        let places = |number| Arc::new(Semaphore::new(number));
        Self {
            max_wait: MAX_WAIT,
            patience,
            requests: places(MAX_REQUESTS),
            queued: places(MAX_QUEUED),
            queued_reads: places(MAX_QUEUED_READS),
            in_line: places(MAX_IN_LINE),
            connections: places(connections),
            replica_connections: places(connections),
            redeliveries: places(1),
        }
    }
}

impl Shares {
    /// Of a pool of so many connections. A merchant may hold half of them: its statements may all wait for one lock.
    pub fn of(connections: usize) -> Self {
        Self { connections: (connections / 2).max(1), patience: WRITE_TIMEOUT, merchants: Mutex::default() }
    }

    /// For what is read for several merchants at once: a quarter of the connections, beside the half of any of them. Nothing waits
    /// for a place in it, since each may be asked for within its own merchant's share instead.
    pub fn for_all(&self) -> OwnShare {
        OwnShare(Some(Arc::new(Share { max_wait: Duration::ZERO, ..Share::new((self.connections / 2).max(1), self.patience) })))
    }

    /// Works on a request within the merchant's share.
    ///
    /// # Errors
    /// A 429 when too many of its requests are in hand.
    pub async fn work<T>(&self, merchant: Uuid, request: impl Future<Output = T> + Send + 'static) -> Result<T, Problem> {
        let new = || Arc::new(Share::new(self.connections, self.patience));
        let share = Arc::clone(locked(&self.merchants).entry(merchant).or_insert_with(new));
        let Ok(in_hand) = Arc::clone(&share.requests).try_acquire_owned() else {
            let detail = format!("{MAX_REQUESTS} requests of yours are in hand; retry when one is answered");
            let title = "Too many requests at once";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-at-once", title, detail).retry_after(1));
        };
        let request = async move {
            let _in_hand = in_hand;
            request.await
        };
        Ok(attend(share, request).await)
    }
}

/// The share of a merchant, for what goes on after its request was answered, such as a live stream; or that for all merchants.
#[derive(Clone)]
pub struct OwnShare(Option<Arc<Share>>);

impl OwnShare {
    /// That of the request which the task works on.
    pub fn of_request() -> Self {
        Self(WORK.try_with(|work| Arc::clone(&work.share)).ok())
    }

    /// Works within it, as a request does.
    pub async fn work<T>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match &self.0 {
            Some(share) => attend(Arc::clone(share), work).await,
            None => work.await,
        }
    }
}

/// Work that goes on when it is dropped before its end, for as long as it holds a connection, since Postgres goes on with the
/// statement there, and not for longer than `patience`.
struct Attended<F: Future + Send + 'static> {
    work: Option<Pin<Box<F>>>,
    held: Arc<Held>,
    patience: Duration,
}

fn attend<T>(
    share: Arc<Share>,
    work: impl Future<Output = T> + Send + 'static,
) -> Attended<impl Future<Output = T> + Send + 'static> {
    let (held, patience) = (Arc::<Held>::default(), share.patience);
    let work = WORK.scope(Work { share, held: Arc::clone(&held) }, work);
    Attended { work: Some(Box::pin(work)), held, patience }
}

impl<F: Future + Send + 'static> Future for Attended<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        let Some(work) = &mut this.work else { return Poll::Pending };
        let outcome = ready!(work.as_mut().poll(context));
        this.work = None;
        Poll::Ready(outcome)
    }
}

impl<F: Future + Send + 'static> Drop for Attended<F> {
    fn drop(&mut self) {
        let (held, patience) = (Arc::clone(&self.held), self.patience);
        let holds_any = |held: &Held| held.connections.load(Ordering::Relaxed) > 0;
        let Some(mut work) = self.work.take().filter(|_| holds_any(&held)) else { return };
        let until_given_back = async move {
            let given_back = poll_fn(|context| {
                let has_ended = work.as_mut().poll(context).is_ready();
                if has_ended || !holds_any(&held) { Poll::Ready(()) } else { Poll::Pending }
            });
            if tokio::time::timeout(patience, given_back).await.is_err() {
                tracing::warn!(
                    "Postgres has not answered a request that was dropped {patience:?} ago: its connection is closed"
                );
                held.is_given_up.store(true, Ordering::Relaxed);
            }
            drop(work);
        };
        // Without a runtime the process ends.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(until_given_back);
        }
    }
}

/// A connection's place in the merchant's share, until it is dropped.
pub struct Place {
    held: Option<Arc<Held>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    fn taken(permit: Option<OwnedSemaphorePermit>) -> Self {
        let held = WORK.try_with(|work| Arc::clone(&work.held)).ok();
        if let Some(held) = &held {
            held.connections.fetch_add(1, Ordering::Relaxed);
        }
        Self { held, _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(held) = &self.held {
            held.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A connection, of the merchant's share until it is dropped.
pub struct HeldConnection {
    /// Until it is dropped.
    client: Option<Client>,
    is_given_up: AtomicBool,
    /// From before the pool was asked, which made sure whose server it is.
    pub began: Instant,
    /// Given back after the connection.
    place: Place,
}

impl Deref for HeldConnection {
    type Target = Client;

    fn deref(&self) -> &Client {
        self.client.as_ref().expect("it is not dropped")
    }
}

impl DerefMut for HeldConnection {
    fn deref_mut(&mut self) -> &mut Client {
        self.client.as_mut().expect("it is not dropped")
    }
}

impl HeldConnection {
    /// One that was taken in a place.
    pub const fn at(place: Place, began: Instant, client: Client) -> Self {
        Self { client: Some(client), is_given_up: AtomicBool::new(false), began, place }
    }

    /// Lets it be closed once it is dropped, and not given back: its server has not answered in time.
    pub fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }
}

impl Drop for HeldConnection {
    fn drop(&mut self) {
        let of_task = self.place.held.as_ref().map(|held| &held.is_given_up);
        let is_given_up = of_task.into_iter().chain([&self.is_given_up]).any(|it| it.load(Ordering::Relaxed));
        if let Some(client) = self.client.take().filter(|_| is_given_up) {
            drop(Object::take(client));
        }
    }
}

/// A connection, once the merchant holds few enough and has a place in the line.
///
/// # Errors
/// A 503 when none is to be had.
pub async fn connection(pool: &Pool) -> Result<HeldConnection, Problem> {
    let permit = places(|share| &share.connections, 1).await?;
    let _in_line = places(|share| &share.in_line, 1).await?;
    let began = Instant::now();
    let client = pool.get().await?;
    Ok(HeldConnection::at(Place::taken(permit), began, client))
}

/// One of the merchant's connections, for work that takes it from the pool by itself. Whoever asks for it holds none.
///
/// # Errors
/// A 503 when the merchant's requests before it take too long.
pub async fn one_connection() -> Result<Place, Problem> {
    places(|share| &share.connections, 1).await.map(Place::taken)
}

/// One of the merchant's connections to the replica, if it has one left. It may hold as many as to the primary, and no work
/// waits for one.
pub fn replica_connection() -> Option<Place> {
    match WORK.try_with(|work| Arc::clone(&work.share.replica_connections)) {
        Ok(places) => places.try_acquire_owned().ok().map(|permit| Place::taken(Some(permit))),
        Err(_) => Some(Place::taken(None)),
    }
}

/// Places for orders in the queue of payments to create, until they are dropped.
///
/// # Errors
/// A 503 when the merchant's orders before them take too long.
pub async fn in_queue(orders: u32) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    places(|share| &share.queued, orders).await
}

/// A place for a read in the queue of reads, until it is dropped.
///
/// # Errors
/// A 503 when the merchant's reads before it take too long.
pub async fn in_read_queue() -> Result<Option<OwnedSemaphorePermit>, Problem> {
    places(|share| &share.queued_reads, 1).await
}

/// The merchant's turn to redeliver many events, until it is dropped.
///
/// # Errors
/// A 429 when another such request of its runs or waits.
pub fn redelivery() -> Result<Option<OwnedSemaphorePermit>, Problem> {
    let Ok(turns) = WORK.try_with(|work| Arc::clone(&work.share.redeliveries)) else { return Ok(None) };
    turns.try_acquire_owned().map(Some).map_err(|_| {
        let detail = "A redelivery of many events of yours is running; retry when it has its answer";
        let title = "Too many redeliveries at once";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-redeliveries", title, detail).retry_after(1)
    })
}

/// `None` for what no merchant asks for.
async fn places(of: impl Fn(&Share) -> &Arc<Semaphore>, number: u32) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    let Ok((places, max_wait)) = WORK.try_with(|work| (Arc::clone(of(&work.share)), work.share.max_wait)) else {
        return Ok(None);
    };
    match tokio::time::timeout(max_wait, places.acquire_many_owned(number)).await {
        Ok(Ok(places)) => Ok(Some(places)),
        Ok(Err(_)) | Err(_) => Err(Problem::unavailable(1, "Many of your requests wait before this one; retry")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadpool_postgres::{Manager, ManagerConfig, Timeouts};
    use futures::FutureExt as _;
    use futures::future::{join_all, pending};
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio_postgres::NoTls;

    #[tokio::test]
    async fn a_merchant_redelivers_many_events_one_request_at_a_time() {
        let (shares, [one, other]) = (Shares::of(16), [1, 2].map(Uuid::from_u128));
        let begin = async |merchant| shares.work(merchant, async { redelivery() }).await.unwrap();
        let turn = begin(one).await.unwrap();
        assert_eq!(begin(one).await.unwrap_err().status(), StatusCode::TOO_MANY_REQUESTS);
        drop(begin(other).await.unwrap());
        drop(turn);
        drop(begin(one).await.unwrap());
    }

    /// Postgres goes on with the statement of a client that has left.
    #[tokio::test]
    async fn a_client_that_hangs_up_frees_nothing_that_its_statement_takes() {
        let (shares, [one, other]) = (Shares::of(2), [1, 2].map(Uuid::from_u128));
        let (answered, ended) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let request = || {
            let (answered, ended) = (Arc::clone(&answered), Arc::clone(&ended));
            async move {
                let (turn, place) = (redelivery(), one_connection().await);
                answered.acquire().await.unwrap().forget();
                drop((place, turn));
                // Behind it nothing is asked for a client that has left.
                tokio::task::yield_now().await;
                ended.add_permits(1);
            }
        };
        let is_free = async |merchant| {
            let place = shares.work(merchant, async { one_connection().now_or_never().is_some() && redelivery().is_ok() });
            place.await.unwrap()
        };
        assert!(shares.work(one, request()).now_or_never().is_none(), "it waits for Postgres, and leaves");
        tokio::task::yield_now().await;
        assert!(!is_free(one).await && is_free(other).await);
        answered.add_permits(1);
        while !is_free(one).await {
            tokio::task::yield_now().await;
        }
        assert_eq!(ended.available_permits(), 0, "it went on without a connection");

        // One that has none yet goes at once.
        let dropped = Arc::new(());
        let waits = Arc::clone(&dropped);
        let waiting = async move {
            let _waits = waits;
            pending::<()>().await;
        };
        assert!(shares.work(one, waiting).now_or_never().is_none());
        assert_eq!(Arc::strong_count(&dropped), 1);
    }

    /// A commit may wait for a standby that is away for good, and no `statement_timeout` ends that.
    #[tokio::test]
    async fn a_connection_whose_server_never_answers_is_closed_once_nobody_waits_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("postgres://ctrip@{}/ctrip?sslmode=disable", listener.local_addr().unwrap());
        // It takes connections and statements, and says nothing to those.
        tokio::spawn(async move {
            let mut clients = Vec::new();
            while let Ok((mut client, _)) = listener.accept().await {
                client.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.unwrap();
                clients.push(client);
            }
        });
        let manager = Manager::from_config(url.parse().unwrap(), NoTls, ManagerConfig::default());
        let pool = Pool::builder(manager).max_size(2).build().unwrap();
        let mut shares = Shares::of(2);
        shares.patience = Duration::from_secs(1);
        let [one, other] = [1, 2].map(Uuid::from_u128);
        let (asking, asked) = (pool.clone(), Arc::new(Semaphore::new(0)));
        let request = |asked: Arc<Semaphore>| {
            let pool = asking.clone();
            async move {
                let db = connection(&pool).await.unwrap();
                asked.add_permits(1);
                db.batch_execute("COMMIT").await.unwrap();
            }
        };
        for merchant in [one, other] {
            let mut working = Box::pin(shares.work(merchant, request(Arc::clone(&asked))));
            tokio::select! {
                _ = &mut working => panic!("it was answered"),
                permit = asked.acquire() => permit.unwrap().forget(),
            }
        }
        let free = async || pool.timeout_get(&Timeouts { wait: Some(Duration::ZERO), ..Timeouts::default() }).await.is_ok();
        tokio::task::yield_now().await;
        assert!(pool.status().size == 2 && !free().await, "both go on");
        let closed = async {
            while pool.status().size > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), closed).await.expect("they are closed");
        assert!(free().await, "the pool has room again");
        let place = shares.work(one, async { one_connection().now_or_never().is_some() }).await;
        assert!(place.unwrap(), "its merchant has its place again");
    }

    #[tokio::test]
    async fn one_merchants_requests_and_orders_leave_others_their_places() {
        let (shares, [one, other]) = (Shares::of(16), [1, 2].map(Uuid::from_u128));
        let line = || async { places(|share| &share.in_line, 1).await.map(drop) };
        let held = |of: fn(&Share) -> &Arc<Semaphore>, number| async move {
            let _places = places(of, number).await;
            pending::<()>().await;
        };
        let mut waiting = join_all((0..10).map(|_| shares.work(one, held(|share| &share.in_line, 1))));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(shares.work(one, line()).now_or_never().is_none(), "it waits for its own");
        assert!(shares.work(other, line()).now_or_never().is_some() && line().now_or_never().is_some());
        drop(waiting);
        assert!(shares.work(one, line()).now_or_never().is_some());

        let connection = || async { places(|share| &share.connections, 1).await.map(drop) };
        let mut holding = join_all((0..8).map(|_| shares.work(one, held(|share| &share.connections, 1))));
        assert!((&mut holding).now_or_never().is_none());
        assert!(shares.work(one, connection()).now_or_never().is_none(), "half of all");
        assert!(shares.work(other, connection()).now_or_never().is_some());
        drop(holding);

        let orders = |number| async move { in_queue(number).await.map(drop) };
        let mut queued = Box::pin(shares.work(one, held(|share| &share.queued, 2000)));
        assert!((&mut queued).now_or_never().is_none());
        assert!(shares.work(one, orders(100)).now_or_never().is_none());
        assert!(shares.work(other, orders(1000)).now_or_never().is_some());
        drop(queued);

        let read = || async { in_read_queue().await.map(drop) };
        let mut reads = join_all((0..MAX_QUEUED_READS).map(|_| shares.work(one, held(|share| &share.queued_reads, 1))));
        assert!((&mut reads).now_or_never().is_none());
        assert!(shares.work(one, read()).now_or_never().is_none() && shares.work(other, read()).now_or_never().is_some());
        drop(reads);

        // A read for all waits for nothing, and takes no place of a merchant's.
        let hold = || async {
            let _place = one_connection().await;
            pending::<()>().await;
        };
        let for_all = shares.for_all();
        let mut held_for_all = join_all((0..4).map(|_| for_all.work(hold())));
        assert!((&mut held_for_all).now_or_never().is_none());
        let at_once = tokio::time::timeout(MAX_WAIT / 5, for_all.work(async { one_connection().await.is_err() }));
        assert!(at_once.await.expect("it waited"), "a quarter of all");
        let mut of_one = join_all((0..8).map(|_| shares.work(one, hold())));
        assert!((&mut of_one).now_or_never().is_none() && shares.work(other, connection()).now_or_never().is_some());

        let mut in_hand = join_all((0..=MAX_REQUESTS).map(|_| shares.work(one, pending::<()>()).boxed()));
        assert!((&mut in_hand).now_or_never().is_none());
        let refused = shares.work(one, async {}).now_or_never();
        assert!(refused.is_some_and(|refused| refused.is_err_and(|it| it.status() == StatusCode::TOO_MANY_REQUESTS)));
        assert!(shares.work(other, async {}).now_or_never().is_some_and(|worked| worked.is_ok()));
    }
}
