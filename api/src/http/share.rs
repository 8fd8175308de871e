//! The share of one merchant in what all have in common: requests in hand, places in the queue of payments to create, connections to
//! Postgres and places in the line for one, and large redeliveries. Orders and lines beyond it wait behind the merchant's own, and not in
//! front of others; the rest is refused.

use crate::http::problem::Problem;
use axum::http::StatusCode;
use base::locked;
use deadpool_postgres::{Client, Pool};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

const MAX_REQUESTS: usize = 2048;
/// A quarter of the queue, and more than a batch has.
const MAX_QUEUED: usize = 2048;
/// The pool serves in order, so another merchant's request waits for these few and not for all that this one has.
const MAX_IN_LINE: usize = 4;
/// For a place.
const MAX_WAIT: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// Of the merchant whose request the task works on.
    static SHARE: Arc<Share>;
}

/// The shares of the merchants that have sent a request.
pub struct Shares {
    /// How many connections a merchant may hold.
    connections: usize,
    merchants: Mutex<HashMap<Uuid, Arc<Share>>>,
}

struct Share {
    requests: Semaphore,
    queued: Arc<Semaphore>,
    in_line: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    redeliveries: Arc<Semaphore>,
}

impl Share {
    fn new(connections: usize) -> Self {
        let places = |number| Arc::new(Semaphore::new(number));
        Self {
            requests: Semaphore::new(MAX_REQUESTS),
            queued: places(MAX_QUEUED),
            in_line: places(MAX_IN_LINE),
            connections: places(connections),
            redeliveries: places(1),
        }
    }
}

impl Shares {
    /// Of a pool of so many connections. A merchant may hold half of them: its statements may all wait for one lock.
    pub fn of(connections: usize) -> Self {
        Self { connections: (connections / 2).max(1), merchants: Mutex::default() }
    }

    /// Works on a request within the merchant's share.
    ///
    /// # Errors
    /// A 429 when too many of its requests are in hand.
    pub async fn work<T>(&self, merchant: Uuid, request: impl Future<Output = T>) -> Result<T, Problem> {
        let new = || Arc::new(Share::new(self.connections));
        let share = Arc::clone(locked(&self.merchants).entry(merchant).or_insert_with(new));
        let Ok(_in_hand) = share.requests.try_acquire() else {
            let detail = format!("{MAX_REQUESTS} requests of yours are in hand; retry when one is answered");
            let title = "Too many requests at once";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-at-once", title, detail).retry_after(1));
        };
        Ok(SHARE.scope(Arc::clone(&share), request).await)
    }
}

/// A connection, of the merchant's share until it is dropped.
pub struct HeldConnection {
    client: Client,
    /// From before the pool was asked, which made sure whose server it is.
    pub began: Instant,
    _place: Option<OwnedSemaphorePermit>,
}

impl Deref for HeldConnection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for HeldConnection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl HeldConnection {
    /// One that is of no merchant's share.
    pub const fn unshared(client: Client, began: Instant) -> Self {
        Self { client, began, _place: None }
    }
}

/// A connection, once the merchant holds few enough and has a place in the line.
///
/// # Errors
/// A 503 when none is to be had.
pub async fn connection(pool: &Pool) -> Result<HeldConnection, Problem> {
    let place = one_connection().await?;
    let _in_line = places(|share| &share.in_line, 1).await?;
    let began = Instant::now();
    Ok(HeldConnection { client: pool.get().await?, began, _place: place })
}

/// One of the merchant's connections, for work that takes it from the pool by itself, until this is dropped. Whoever asks for it holds
/// none.
///
/// # Errors
/// A 503 when the merchant's requests before it take too long.
pub async fn one_connection() -> Result<Option<OwnedSemaphorePermit>, Problem> {
    places(|share| &share.connections, 1).await
}

/// Places for orders in the queue of payments to create, until they are dropped.
///
/// # Errors
/// A 503 when the merchant's orders before them take too long.
pub async fn in_queue(orders: u32) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    places(|share| &share.queued, orders).await
}

/// The merchant's turn to redeliver many events, until it is dropped.
///
/// # Errors
/// A 429 when another such request of its runs or waits.
pub fn redelivery() -> Result<Option<OwnedSemaphorePermit>, Problem> {
    let Ok(turns) = SHARE.try_with(|share| Arc::clone(&share.redeliveries)) else { return Ok(None) };
    turns.try_acquire_owned().map(Some).map_err(|_| {
        let detail = "A redelivery of many events of yours is running; retry when it has its answer";
        let title = "Too many redeliveries at once";
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-redeliveries", title, detail).retry_after(1)
    })
}

/// `None` for what no merchant asks for.
async fn places(of: impl Fn(&Share) -> &Arc<Semaphore>, number: u32) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    let Ok(places) = SHARE.try_with(|share| Arc::clone(of(share))) else { return Ok(None) };
    match tokio::time::timeout(MAX_WAIT, places.acquire_many_owned(number)).await {
        Ok(Ok(places)) => Ok(Some(places)),
        Ok(Err(_)) | Err(_) => Err(Problem::unavailable(1, "Many of your requests wait before this one; retry")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use futures::future::{join_all, pending};

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

        let mut in_hand = join_all((0..=MAX_REQUESTS).map(|_| shares.work(one, pending::<()>()).boxed()));
        assert!((&mut in_hand).now_or_never().is_none());
        let refused = shares.work(one, async {}).now_or_never();
        assert!(refused.is_some_and(|refused| refused.is_err_and(|it| it.status() == StatusCode::TOO_MANY_REQUESTS)));
        assert!(shares.work(other, async {}).now_or_never().is_some_and(|worked| worked.is_ok()));
    }
}
