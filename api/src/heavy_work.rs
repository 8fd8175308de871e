//! Work that takes a processor for long, such as reading a batch of 8 MiB or writing a page of payments with their transfers and
//! metadata: away from the threads that serve everyone, and on half of the processors at most. What comes beyond that waits.

use crate::http::problem::Problem;
use axum::Json;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

/// The bytes of a page that is written at once.
const MAX_LIGHT_BYTES: usize = 1024 * 1024;

/// The processors that heavy work may have.
pub struct HeavyWork(Arc<Semaphore>);

impl Default for HeavyWork {
    fn default() -> Self {
        let processors = available_parallelism().map_or(1, NonZeroUsize::get);
        Self(Arc::new(Semaphore::new(processors.div_ceil(2))))
    }
}

impl HeavyWork {
    /// Does the work when its turn comes.
    ///
    /// # Errors
    /// Those of the work; a 500 if it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = Arc::clone(&self.0).acquire_owned().await.map_err(|_| Problem::internal())?;
        let worked = spawn_blocking(move || {
            // Held to the end of the work, also when nobody waits for it any more.
            let _turn = turn;
            work()
        });
        worked.await.unwrap_or_else(|panic| {
            tracing::error!("heavy work: {panic}");
            Err(Problem::internal())
        })
    }

    /// Writes a page, of about so many bytes.
    ///
    /// # Errors
    /// A 500 if that panics.
    pub async fn write<T: Serialize + Send + 'static>(&self, page: T, bytes: usize) -> Result<Response, Problem> {
        let write = || Ok(Json(page).into_response());
        if bytes > MAX_LIGHT_BYTES { self.run(write).await } else { write() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};
    use tokio::task::JoinSet;

    #[tokio::test(flavor = "multi_thread")]
    async fn heavy_work_takes_half_of_the_processors_at_most() {
        let half = available_parallelism().unwrap().get().div_ceil(2);
        let (heavy_work, [at_work, peak]) = (Arc::new(HeavyWork::default()), [(), ()].map(|()| Arc::new(AtomicUsize::new(0))));
        let mut all = JoinSet::new();
        for _ in 0..4 * half {
            let (heavy_work, at_work, peak) = (Arc::clone(&heavy_work), Arc::clone(&at_work), Arc::clone(&peak));
            all.spawn(async move {
                let work = move || {
                    let now = at_work.fetch_add(1, Ordering::SeqCst) + 1;
                    peak.fetch_max(now, Ordering::SeqCst);
                    // For those beside it to begin.
                    let until = Instant::now() + Duration::from_secs(10);
                    while peak.load(Ordering::SeqCst) < half && Instant::now() < until {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    // For one too many to begin, if it may.
                    std::thread::sleep(Duration::from_millis(20));
                    at_work.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                };
                heavy_work.run(work).await.unwrap()
            });
        }
        all.join_all().await;
        assert_eq!(peak.load(Ordering::SeqCst), half);
    }

    /// Says on which thread it is written.
    struct Page;

    impl Serialize for Page {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_str(&format!("{:?}", std::thread::current().id()))
        }
    }

    #[tokio::test]
    async fn a_large_page_is_written_away_from_the_threads_that_serve_everyone() {
        let here = format!("{:?}", std::thread::current().id());
        for (bytes, is_here) in [(MAX_LIGHT_BYTES, true), (MAX_LIGHT_BYTES + 1, false)] {
            let written = HeavyWork::default().write(Page, bytes).await.unwrap();
            let thread = axum::body::to_bytes(written.into_body(), 1000).await.unwrap();
            assert_eq!(thread == format!("{here:?}"), is_here, "{bytes} bytes, on {here}: {thread:?}");
        }
    }
}
