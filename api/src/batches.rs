//! Requests that are served together.
//!
//! A statement, a flush to disk and a round trip to Kafka cost about the same for one request as for hundreds, so the requests
//! that arrive while one batch is in flight form the next one. No request waits for a batch to fill.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};

/// A request in a queue.
pub trait Queued {
    /// Gives its merchant the place in the queue back. Returns whether its client still waits.
    fn leave_queue(&mut self) -> bool;
}

/// Of the batches of a queue.
#[derive(Clone, Copy)]
pub struct Bounds {
    /// In a larger batch the first request would wait long for the last.
    pub size: usize,
    /// That have their turn.
    pub in_flight: usize,
    /// With those that have given way.
    pub all: usize,
}

/// The turn of a batch, until it is dropped: then the next may begin.
pub type Turn = OwnedSemaphorePermit;

/// Serves requests until all senders are gone and the last batch has its answers.
pub async fn run<R: Queued, F: Future<Output = ()> + Send + 'static>(
    mut requests: mpsc::Receiver<R>,
    bounds: Bounds,
    serve: impl Fn(Vec<R>, Turn) -> F,
) {
    let (mut batches, turns) = (JoinSet::new(), Arc::new(Semaphore::new(bounds.in_flight)));
    loop {
        while let Some(ended) = batches.try_join_next() {
            log_panic(Some(ended));
        }
        if batches.len() >= bounds.all {
            log_panic(batches.join_next().await);
        }
        // A turn first: requests that arrive while there is none go into the next batch.
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { break };
        let mut batch = Vec::new();
        if requests.recv_many(&mut batch, bounds.size).await == 0 {
            break;
        }
        // Nothing for a client that disconnected or timed out in the queue.
        batch.retain_mut(R::leave_queue);
        if !batch.is_empty() {
            batches.spawn(serve(batch, turn));
        }
    }
    while !batches.is_empty() {
        log_panic(batches.join_next().await);
    }
}

/// Ends the turn of a batch that has to wait for longer than `patience`.
pub async fn give_way(turn: Turn, patience: Duration, answer: impl Future<Output = ()>) {
    let mut answer = pin!(answer);
    if tokio::time::timeout(patience, &mut answer).await.is_err() {
        drop(turn);
        answer.await;
    }
}

/// Logs that a batch panicked. The senders of its replies are dropped.
pub fn log_panic(batch: Option<Result<(), JoinError>>) {
    if let Some(Err(panic)) = batch {
        tracing::error!("a batch of requests panicked: {panic}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::locked;
    use futures::future::pending;
    use std::sync::Mutex;

    const PATIENCE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_batch_that_is_kept_waiting_gives_its_turn_to_the_next() {
        let turns = Arc::new(Semaphore::new(1));
        let turn = Arc::clone(&turns).acquire_owned().await.unwrap();
        let waiting = tokio::spawn(give_way(turn, PATIENCE, pending()));
        assert!(turns.try_acquire().is_err(), "for a while it is its own");
        let _next = tokio::time::timeout(PATIENCE * 10, turns.acquire()).await.unwrap().unwrap();
        assert!(!waiting.is_finished(), "its requests wait on");
    }

    /// Whether its client still waits.
    struct Request(u8, bool);

    impl Queued for Request {
        fn leave_queue(&mut self) -> bool {
            self.1
        }
    }

    #[tokio::test]
    async fn one_request_is_served_at_once_and_what_arrives_meanwhile_together() {
        let (send, requests) = mpsc::channel(100);
        let (served, answered) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(0)));
        let (serving, waits) = (Arc::clone(&served), Arc::clone(&answered));
        let serve = move |batch: Vec<Request>, turn| {
            let waits = Arc::clone(&waits);
            locked(&serving).push(batch.iter().map(|request| request.0).collect::<Vec<_>>());
            async move {
                waits.acquire().await.unwrap().forget();
                drop(turn);
            }
        };
        let running = tokio::spawn(run(requests, Bounds { size: 3, in_flight: 1, all: 10 }, serve));
        let until = async |batches: usize| {
            while locked(&served).len() < batches {
                tokio::task::yield_now().await;
            }
        };
        send.send(Request(0, true)).await.unwrap();
        until(1).await;
        for (number, waits) in [(1, true), (2, false), (3, true), (4, true)] {
            send.send(Request(number, waits)).await.unwrap();
            // For a batch to begin, if one may.
            tokio::task::yield_now().await;
        }
        for batches in 2..=3 {
            answered.add_permits(1);
            until(batches).await;
        }
        drop(send);
        answered.add_permits(10);
        running.await.unwrap();
        assert_eq!(
            *locked(&served),
            [vec![0], vec![1, 3], vec![4]],
            "at most three at once, and none of a client that has left"
        );
    }
}
