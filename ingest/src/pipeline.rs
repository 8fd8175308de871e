use chain::{BlockId, FetchError, FetchedBlock, Reading, Rpc, fetch_block};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

/// Blocks on their way at once.
const PARALLEL: usize = 8;
/// Blocks on their way or waiting to be published. They wait while a transaction commits, so that nodes and processors are
/// busy meanwhile; together with the batch they bound the memory of a catch-up.
const AHEAD: usize = 40;
/// Of one batch, and so of one Kafka transaction.
const MOST_BLOCKS: usize = 64;
/// Likewise, in bytes of records.
const MOST_BYTES: usize = 8 * 1024 * 1024;

type Answer = Result<Option<FetchedBlock>, FetchError>;

/// Fetches blocks side by side and gives them in order. The fetches run on while the caller publishes.
pub struct Pipeline {
    rpc: Arc<Rpc>,
    reading: Reading,
    // Boxed: a range of numbers and a list of hashes are both asked for.
    waiting: Box<dyn Iterator<Item = BlockId> + Send>,
    running: VecDeque<AbortOnDropHandle<Answer>>,
    slots: Arc<Semaphore>,
}

impl Pipeline {
    pub fn new(rpc: Arc<Rpc>, reading: Reading) -> Self {
        Self {
            rpc,
            reading,
            waiting: Box::new(std::iter::empty()),
            running: VecDeque::new(),
            slots: Arc::new(Semaphore::new(PARALLEL)),
        }
    }

    /// Fetches these, in place of whatever was asked for before.
    pub fn load<I>(&mut self, blocks: I)
    where
        I: IntoIterator<Item = BlockId>,
        I::IntoIter: Send + 'static,
    {
        self.running.clear();
        self.waiting = Box::new(blocks.into_iter());
        self.fill();
    }

    /// Forgets what is on its way.
    pub fn clear(&mut self) {
        self.load([]);
    }

    /// Whether nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Whether the next block belongs into a batch that has so many blocks and bytes already: the first is waited for, the others
    /// go with it if they are there.
    pub fn goes_on(&self, blocks: usize, bytes: usize) -> bool {
        let is_ready = || self.running.front().is_some_and(AbortOnDropHandle::is_finished);
        blocks < MOST_BLOCKS && bytes < MOST_BYTES && (blocks == 0 || is_ready())
    }

    /// The next block in order; `None` at the end.
    pub async fn next(&mut self) -> Option<Answer> {
        let answer = self.running.front_mut()?.await;
        self.running.pop_front();
        self.fill();
        match answer {
            Ok(answer) => Some(answer),
            // Aborting drops the handle as well, so nobody would be here to see it.
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn fill(&mut self) {
        while self.running.len() < AHEAD
            && let Some(id) = self.waiting.next()
        {
            let slots = self.slots.clone();
            let (rpc, reading) = (self.rpc.clone(), self.reading);
            self.running.push_back(AbortOnDropHandle::new(tokio::spawn(async move {
                // In the order of asking. It is never closed.
                let _slot = slots.acquire_owned().await;
                fetch_block(&rpc, reading, id).await
            })));
        }
    }
}
