//! Following the head of a chain: polls it, fetches the blocks that come next, and handles reorgs.
//!
//! Polls every `poll_interval_ms`, and at once when a websocket announces a head; the announcement itself is not trusted. Far
//! behind the head, blocks are fetched by number, many at once; near the head, a branch is followed down to a block of ours.
//! This side talks to nodes; nothing here knows Kafka.

use crate::prefetch::Prefetcher;
use crate::records::{Change, FinalityTags};
use crate::reorg::{Step, TooDeep, reconcile};
use crate::window::Window;
use base::{backoff, error_chain, metrics};
use chain::{
    BlockId, BlockTag, Chain, Endpoint, FetchError, FetchOptions, FetchedBlock, Head, Heads, Rpc, RpcError, Witnesses,
    fetch_head, fetch_newest, fetch_tag, find_witnesses,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Least time between polls that websockets cause, however many heads they announce.
const MIN_POLL_DELAY: Duration = Duration::from_millis(50);
/// Early polls for an announced head, which the node that answers over HTTP may not have yet. After these the next poll waits
/// for the interval.
const MAX_EARLY_POLLS: u32 = 5;
/// Polls in a row that showed a head whose block nobody has. Then other endpoints are asked first.
const MAX_MISSING_HEADS: u32 = 3;
/// A node that is slow with its tags must not delay blocks.
const TAG_TIMEOUT: Duration = Duration::from_secs(1);

/// Changes to publish in one transaction. Never empty.
#[derive(Debug)]
pub struct Batch {
    /// In the order of the chain's history.
    pub changes: Vec<Change>,
    /// The chain's tags when the batch was put together.
    pub finality: FinalityTags,
}

/// Follows one chain from a window on. The window runs ahead of what is committed: if publishing fails, drop the follower and
/// start another from the cursor.
pub struct Follower {
    chain: Arc<Chain>,
    rpc: Arc<Rpc>,
    heads: Heads,
    announced: Option<AnnouncedHead>,
    /// Polls in a row that showed a head whose block nobody has.
    missing_heads: u32,
    window: Window,
    prefetcher: Prefetcher,
    tagged: Option<(Instant, Tagged)>,
    /// When the head was polled last.
    polled_at: Instant,
    /// Proof gaps logged so far: each is logged once.
    logged_gaps: HashSet<String>,
}

/// A head that was announced and is not published yet.
struct AnnouncedHead {
    number: u64,
    /// Polls since the announcement.
    polls: u32,
}

/// Why a step brought no changes.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    TooDeep(#[from] TooDeep),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error("a node gave block {got} as the parent of block {child}")]
    NoParent { child: u64, got: u64 },
}

impl Follower {
    /// Continues from `window`. An empty one starts at the chain's `start_block`, or at its head. Polls the head every
    /// `poll_interval_ms`, and at once when `heads` announces one.
    pub fn new(chain: Arc<Chain>, rpc: Arc<Rpc>, heads: Heads, window: Window) -> Self {
        let prefetcher = Prefetcher::new(rpc.clone(), FetchOptions::of(&chain));
        let polled_at = Instant::now();
        Self {
            chain,
            rpc,
            heads,
            announced: None,
            missing_heads: 0,
            window,
            prefetcher,
            tagged: None,
            polled_at,
            logged_gaps: HashSet::new(),
        }
    }

    /// The window, including all changes that [`next`](Self::next) returned so far.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Waits for the next changes. Retries failing nodes for as long as it takes: a chain without nodes waits, and the other
    /// chains go on.
    ///
    /// # Errors
    /// If a reorg is deeper than what can be taken back.
    pub async fn next(&mut self) -> Result<Batch, TooDeep> {
        let mut delays = backoff::delays(MAX_BACKOFF);
        loop {
            match self.step().await {
                Ok(changes) if changes.is_empty() => {
                    delays = backoff::delays(MAX_BACKOFF);
                    self.wait_for_poll().await;
                }
                Ok(changes) => {
                    let finality = self.tagged.map(|(_, tagged)| tagged.finality()).unwrap_or_default();
                    return Ok(Batch { changes, finality });
                }
                Err(StepError::TooDeep(error)) => {
                    if self.is_confirmed(error).await {
                        return Err(error);
                    }
                    let delay = delays.next().unwrap_or(MAX_BACKOFF);
                    tokio::time::sleep(delay).await;
                }
                Err(error) => {
                    self.prefetcher.clear();
                    let delay = delays.next().unwrap_or(MAX_BACKOFF);
                    tracing::warn!(chain = self.chain.name, "retry in {delay:.1?}: {}", error_chain(&error));
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// Waits until the next poll of the head is due.
    async fn wait_for_poll(&mut self) {
        let tip = self.window.tip().map(|tip| tip.number);
        let interval = self.chain.poll_interval;
        let longest = match &mut self.announced {
            Some(AnnouncedHead { number, polls }) if tip.is_none_or(|tip| tip < *number) && *polls < MAX_EARLY_POLLS => {
                let soon = MIN_POLL_DELAY * 2_u32.pow(*polls);
                *polls += 1;
                interval.min(soon)
            }
            _ => interval,
        };
        let earliest = tokio::time::Instant::now() + MIN_POLL_DELAY;
        let announced = async {
            let number = self.heads.next().await;
            tokio::time::sleep_until(earliest).await;
            number
        };
        if let Ok(number) = tokio::time::timeout(longest, announced).await {
            self.announced = number.map(|number| AnnouncedHead { number, polls: 0 });
        }
    }

    /// Whether the nodes agree on a reorg that is too deep. A single node may lag on a branch of its own, or lie: while any
    /// other node has our block, it is not trusted.
    async fn is_confirmed(&mut self, error: TooDeep) -> bool {
        self.prefetcher.clear();
        let Witnesses { with, against } = find_witnesses(&self.rpc, error.ours.number, error.ours.hash).await;
        for endpoint in against.iter().filter(|_| !with.is_empty()) {
            tracing::warn!(chain = self.chain.name, endpoint = endpoint.host(), "endpoint is on a branch of its own: {error}");
            endpoint.record_lie();
        }
        with.is_empty() && !against.is_empty()
    }

    /// Takes prefetched blocks, or polls the head and plans the next ones.
    async fn step(&mut self) -> Result<Vec<Change>, StepError> {
        if !self.prefetcher.is_empty() {
            return self.take_batch().await;
        }
        let Some((endpoint, head)) = fetch_newest(&self.rpc).await? else { return Ok(Vec::new()) };
        self.polled_at = Instant::now();
        let outcome = match self.plan(head).await {
            Ok(()) => self.take_batch().await,
            Err(error) => Err(error),
        };
        let is_missing = match &outcome {
            Ok(changes) => changes.is_empty() && reconcile(&self.window, &[head]) != Step::Known,
            Err(error) => matches!(error, StepError::NoParent { .. }),
        };
        self.track_missing_heads(&endpoint, head, is_missing);
        outcome
    }

    /// An endpoint that keeps announcing a head whose block nobody has would hide the heads of others. After some polls it
    /// ranks behind them.
    fn track_missing_heads(&mut self, endpoint: &Endpoint, head: Head, is_missing: bool) {
        self.missing_heads = if is_missing { self.missing_heads + 1 } else { 0 };
        if self.missing_heads == MAX_MISSING_HEADS {
            let (chain, number) = (&self.chain.name, head.number);
            tracing::warn!(
                chain,
                endpoint = endpoint.host(),
                "its head is block {number}, which no endpoint has; asking others first"
            );
            endpoint.record_withheld_head();
            self.missing_heads = 0;
            self.announced = Some(AnnouncedHead { number, polls: 0 });
        }
    }

    /// Takes a batch of prefetched blocks, with fresh finality tags.
    async fn take_batch(&mut self) -> Result<Vec<Change>, StepError> {
        if self.prefetcher.is_empty() {
            return Ok(Vec::new());
        }
        // The tags are fetched while the first block is under way, so they cost no time. Tags from before the last poll may be
        // older than the head, and no other block may follow for a while, so they are fetched again.
        let known = self.tagged.filter(|(asked, _)| *asked >= self.polled_at);
        let tags = fetch_tagged(self.rpc.clone(), known, self.chain.poll_interval);
        let (tags, changes) = tokio::join!(tags, self.take_blocks());
        self.tagged = Some(tags);
        if let Some(finalized) = tags.1.finalized {
            self.window.finalize(&finalized);
        }
        changes
    }

    /// Plans what to fetch for a head, and starts fetching.
    async fn plan(&mut self, head: Head) -> Result<(), StepError> {
        self.record_lag(head);
        let next = match self.window.tip() {
            Some(tip) => tip.number.saturating_add(1),
            None => self.chain.start_block.unwrap_or(head.number),
        };
        if head.number > next || self.window.tip().is_none() {
            // Behind: by number, many at once. After a reorg the first block will not fit.
            self.prefetcher.load((next..=head.number).map(BlockId::Number));
            return Ok(());
        }
        self.walk_branch(head).await
    }

    /// Follows a branch down to a block of ours, and starts fetching it.
    async fn walk_branch(&mut self, head: Head) -> Result<(), StepError> {
        let mut branch = vec![head];
        let mut newest = head;
        loop {
            match reconcile(&self.window, &branch) {
                Step::Known => return Ok(()),
                Step::TooDeep(error) => return Err(error.into()),
                Step::FetchParent(hash) => {
                    // The branch is gone already; the next poll shows another.
                    let Some(parent) = fetch_head(&self.rpc, Some(BlockId::Hash(hash))).await? else { return Ok(()) };
                    if parent.hash != hash || parent.number.checked_add(1) != Some(newest.number) {
                        return Err(StepError::NoParent { child: newest.number, got: parent.number });
                    }
                    newest = parent;
                    branch.push(parent);
                }
                Step::Extend | Step::Rewind(_) => {
                    let hashes: Vec<BlockId> = branch.iter().rev().map(|block| BlockId::Hash(block.hash)).collect();
                    self.prefetcher.load(hashes);
                    return Ok(());
                }
            }
        }
    }

    /// Takes prefetched blocks: waits for the first, then takes those that are ready.
    async fn take_blocks(&mut self) -> Result<Vec<Change>, StepError> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        while self.prefetcher.has_room(changes.len(), bytes) {
            let block = match self.prefetcher.next().await {
                Some(Ok(Some(block))) => block,
                // The end, or a block that no node has yet or any more: the next poll shows how to go on.
                Some(Ok(None)) | None => {
                    self.prefetcher.clear();
                    break;
                }
                // The blocks before it are good. A lasting error returns alone in the next step.
                Some(Err(_)) if !changes.is_empty() => {
                    self.prefetcher.clear();
                    break;
                }
                Some(Err(error)) => return Err(error.into()),
            };
            let head = block.block.head();
            match reconcile(&self.window, &[head]) {
                Step::Extend => {}
                Step::Rewind(removed) => self.rewind(removed, &mut changes),
                Step::Known => continue,
                // Its parent is not ours: a reorg below it.
                Step::FetchParent(_) | Step::TooDeep(_) => {
                    self.prefetcher.clear();
                    if changes.is_empty() {
                        self.walk_branch(head).await?;
                        continue;
                    }
                    break;
                }
            }
            bytes += block.record_bytes();
            self.log_proof_gaps(&block);
            self.window.push(head);
            changes.push(Change::Added(Box::new(block)));
        }
        Ok(changes)
    }

    /// Takes the removed blocks off the window, newest first.
    fn rewind(&mut self, removed: Vec<Head>, changes: &mut Vec<Change>) {
        let (chain, depth) = (&self.chain.name, removed.len());
        tracing::info!(chain, depth, "reorg: taking back blocks down to {}", removed.last().map_or(0, |head| head.number));
        metrics::CHAIN_REORGS.counter(&[("chain", chain)]).increment(1);
        for head in removed {
            self.window.pop();
            changes.push(Change::Removed(head));
        }
    }

    /// Logs each kind of gap once, and counts the blocks with gaps.
    fn log_proof_gaps(&mut self, block: &FetchedBlock) {
        let mut whole = true;
        for gap in block.proof.gaps() {
            whole = false;
            if self.logged_gaps.insert(gap.to_owned()) {
                tracing::warn!(chain = self.chain.name, block = block.block.number, "published without a proof by root: {gap}");
            }
        }
        if !whole {
            metrics::CHAIN_UNCHECKED.counter(&[("chain", &self.chain.name)]).increment(1);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "blocks and seconds are far below 2^52")]
    fn record_lag(&self, head: Head) {
        let labels = [("chain", self.chain.name.as_str())];
        let Some(tip) = self.window.tip() else { return };
        metrics::CHAIN_HEAD_LAG.gauge(&labels).set(head.number.saturating_sub(tip.number) as f64);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::CHAIN_HEAD_AGE.gauge(&labels).set(now.as_secs_f64() - tip.timestamp as f64);
    }
}

/// The `safe` and `finalized` blocks, as far as the endpoint has them.
#[derive(Clone, Copy, Debug, Default)]
struct Tagged {
    safe: Option<Head>,
    finalized: Option<Head>,
}

impl Tagged {
    fn finality(&self) -> FinalityTags {
        FinalityTags { safe: self.safe.map(|head| head.number), finalized: self.finalized.map(|head| head.number) }
    }
}

/// The tagged blocks, fetched again if the last answer is older than `max_age`.
async fn fetch_tagged(rpc: Arc<Rpc>, last: Option<(Instant, Tagged)>, max_age: Duration) -> (Instant, Tagged) {
    if let Some((when, tagged)) = last.filter(|(when, _)| when.elapsed() < max_age) {
        return (when, tagged);
    }
    let both = async { tokio::join!(fetch_tag(&rpc, BlockTag::Safe), fetch_tag(&rpc, BlockTag::Finalized)) };
    let (safe, finalized) = tokio::time::timeout(TAG_TIMEOUT, both).await.unwrap_or_default();
    (Instant::now(), Tagged { safe, finalized })
}
