//! Prefetching: fetches blocks in parallel and returns them in order, while the caller publishes the previous batch.

use chain::{BlockId, FetchError, FetchOptions, FetchedBlock, Rpc, fetch_block};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

/// Blocks being fetched or waiting to be published, for each that is fetched at the same time. Fetching goes on while a transaction
/// commits. Together with the batch, this bounds the memory of a catch-up.
const PREFETCHED_BLOCKS: usize = 5;
/// Per batch, in bytes of records.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// How many blocks are in hand.
#[derive(Clone, Copy, Debug)]
pub struct BatchSizes {
    /// Fetched at the same time.
    pub parallel_fetches: usize,
    /// Per batch, and so per Kafka transaction.
    pub batch_blocks: usize,
}

impl Default for BatchSizes {
    fn default() -> Self {
        Self { parallel_fetches: 8, batch_blocks: 64 }
    }
}

type FetchResult = Result<Option<FetchedBlock>, FetchError>;

/// Fetches blocks in parallel and returns them in order. Dropping it aborts the fetches.
pub struct Prefetcher {
    rpc: Arc<Rpc>,
    options: FetchOptions,
    // Boxed, since a range of numbers or a list of hashes may be loaded.
    waiting: Box<dyn Iterator<Item = BlockId> + Send>,
    running: VecDeque<AbortOnDropHandle<FetchResult>>,
    slots: Arc<Semaphore>,
    sizes: BatchSizes,
}

impl Prefetcher {
    /// An idle prefetcher.
    pub fn new(rpc: Arc<Rpc>, options: FetchOptions, sizes: BatchSizes) -> Self {
        Self {
            rpc,
            options,
            waiting: Box::new(std::iter::empty()),
            running: VecDeque::new(),
            slots: Arc::new(Semaphore::new(sizes.parallel_fetches)),
            sizes,
        }
    }

    /// Starts fetching these blocks, in place of earlier ones.
    pub fn load<I>(&mut self, blocks: I)
    where
        I: IntoIterator<Item = BlockId>,
        I::IntoIter: Send + 'static,
    {
        self.running.clear();
        self.waiting = Box::new(blocks.into_iter());
        self.fill();
    }

    /// Aborts all fetches.
    pub fn clear(&mut self) {
        self.load([]);
    }

    /// Whether nothing is being fetched.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether a batch of this size takes the next block: it waits for its first block, and takes further ones that are ready.
    pub fn has_room(&self, blocks: usize, bytes: usize) -> bool {
        let is_ready = || self.running.front().is_some_and(AbortOnDropHandle::is_finished);
        blocks < self.sizes.batch_blocks && bytes < MAX_BATCH_BYTES && (blocks == 0 || is_ready())
    }

    /// Waits for the next block in order. `None` at the end.
    pub async fn next(&mut self) -> Option<FetchResult> {
        let answer = self.running.front_mut()?.await;
        self.running.pop_front();
        self.fill();
        match answer {
            Ok(answer) => Some(answer),
            // Not aborted: aborting drops the handle as well. So the fetch panicked.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn fill(&mut self) {
        while self.running.len() < PREFETCHED_BLOCKS * self.sizes.parallel_fetches
            && let Some(id) = self.waiting.next()
        {
            let slots = self.slots.clone();
            let (rpc, options) = (self.rpc.clone(), self.options);
            self.running.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
                // Slots are granted in order. The semaphore is never closed.
                let _slot = slots.acquire_owned().await;
                fetch_block(&rpc, options, id).await
            })));
        }
    }
}
