//! Following a chain: what comes next, fetched and in order. The side that talks to nodes; nothing here knows Kafka.

use crate::pipeline::Pipeline;
use crate::reconcile::{Step, TooDeep, reconcile};
use crate::records::{Change, Settled};
use crate::window::Window;
use chain::{
    BlockId, Chain, Endpoint, FetchError, FetchedBlock, Head, Heads, Rpc, RpcError, Tag, Witnesses, fetch_head, fetch_newest,
    fetch_tag, witnesses,
};
use runtime::{chain_of, metrics, stage};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Between two looks at the head that websockets bring about: nodes are not asked more often, however many heads are told.
const SHORTEST_REST: Duration = Duration::from_millis(50);
/// Looks at a head that a websocket told and that the node asked over HTTP, which may be another, does not have yet. Then the next
/// is due with the interval.
const LOOKS_AGAIN: u32 = 5;
/// Looks in a row at heads that were not to be had, from which on others are asked first.
const OFTEN_IN_VAIN: u32 = 3;
/// A node that is slow with its tags must not hold blocks up.
const TAG_TIMEOUT: Duration = Duration::from_secs(1);

/// Changes to publish together, never none.
#[derive(Debug)]
pub struct Batch {
    /// In order.
    pub changes: Vec<Change>,
    /// As of now.
    pub settled: Settled,
}

/// Follows one chain from where a window stands. The window runs ahead of what is committed: after a failed publication,
/// drop the follower and start another from the cursor.
pub struct Follower {
    chain: Arc<Chain>,
    rpc: Arc<Rpc>,
    heads: Heads,
    awaited: Option<Awaited>,
    /// Looks in a row that showed a head which was not to be had.
    in_vain: u32,
    window: Window,
    pipeline: Pipeline,
    tagged: Option<(Instant, Tagged)>,
    /// When the head was looked at last.
    looked: Instant,
    told: HashSet<String>,
}

/// A head that somebody told.
struct Awaited {
    number: u64,
    /// Looks since.
    looks: u32,
}

/// Why a step came to nothing.
#[derive(Debug, thiserror::Error)]
enum Trouble {
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
    /// Goes on from `window`; an empty one starts at the chain's `start_block`, or at its head. It looks at the head once a
    /// `poll_interval`, and as soon as `heads` has one.
    pub fn new(chain: Arc<Chain>, rpc: Arc<Rpc>, heads: Heads, window: Window) -> Self {
        let pipeline = Pipeline::new(rpc.clone(), chain.reading());
        let looked = Instant::now();
        Self { chain, rpc, heads, awaited: None, in_vain: 0, window, pipeline, tagged: None, looked, told: HashSet::new() }
    }

    /// The window with all that [`next`](Self::next) gave so far.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Waits for what comes next. Nodes that fail are asked again for as long as it takes: a chain without nodes waits, and
    /// the others go on.
    ///
    /// # Errors
    /// When the nodes' chain and ours part below what can be taken back.
    pub async fn next(&mut self) -> Result<Batch, TooDeep> {
        let mut delays = stage::delays(LONGEST_DELAY);
        loop {
            match self.step().await {
                Ok(changes) if changes.is_empty() => {
                    delays = stage::delays(LONGEST_DELAY);
                    self.rest().await;
                }
                Ok(changes) => {
                    let settled = self.tagged.map(|(_, tagged)| tagged.settled()).unwrap_or_default();
                    return Ok(Batch { changes, settled });
                }
                Err(Trouble::TooDeep(error)) => {
                    if self.is_confirmed(error).await {
                        return Err(error);
                    }
                    let delay = delays.next().unwrap_or(LONGEST_DELAY);
                    tokio::time::sleep(delay).await;
                }
                Err(trouble) => {
                    self.pipeline.clear();
                    let delay = delays.next().unwrap_or(LONGEST_DELAY);
                    tracing::warn!(chain = self.chain.name, "asking again in {delay:.1?}: {}", chain_of(&trouble));
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// Waits for the next look at the head.
    async fn rest(&mut self) {
        let tip = self.window.tip().map(|tip| tip.number);
        let interval = self.chain.poll_interval;
        let longest = match &mut self.awaited {
            Some(Awaited { number, looks }) if tip.is_none_or(|tip| tip < *number) && *looks < LOOKS_AGAIN => {
                let soon = SHORTEST_REST * 2_u32.pow(*looks);
                *looks += 1;
                interval.min(soon)
            }
            _ => interval,
        };
        let earliest = tokio::time::Instant::now() + SHORTEST_REST;
        let told = async {
            let number = self.heads.next().await;
            tokio::time::sleep_until(earliest).await;
            number
        };
        if let Ok(number) = tokio::time::timeout(longest, told).await {
            self.awaited = number.map(|number| Awaited { number, looks: 0 });
        }
    }

    /// Whether the nodes agree that a block is gone that can't be taken back. A single one may lag on a branch of its own, or lie:
    /// while any of the others has our block, that one is not listened to.
    async fn is_confirmed(&mut self, error: TooDeep) -> bool {
        self.pipeline.clear();
        let Witnesses { with, against } = witnesses(&self.rpc, error.ours.number, error.ours.hash).await;
        for endpoint in against.iter().filter(|_| !with.is_empty()) {
            tracing::warn!(chain = self.chain.name, endpoint = endpoint.host(), "on a branch that others are not on: {error}");
            endpoint.lied();
        }
        with.is_empty() && !against.is_empty()
    }

    async fn step(&mut self) -> Result<Vec<Change>, Trouble> {
        if !self.pipeline.is_empty() {
            return self.bring().await;
        }
        let Some((endpoint, head)) = fetch_newest(&self.rpc).await? else { return Ok(Vec::new()) };
        self.looked = Instant::now();
        let outcome = match self.look(head).await {
            Ok(()) => self.bring().await,
            Err(trouble) => Err(trouble),
        };
        let in_vain = match &outcome {
            Ok(changes) => changes.is_empty() && reconcile(&self.window, &[head]) != Step::Known,
            Err(trouble) => matches!(trouble, Trouble::NoParent { .. }),
        };
        self.weigh(&endpoint, head, in_vain);
        outcome
    }

    /// A head that is nowhere to be had, time and again, would keep us from those that others have.
    fn weigh(&mut self, endpoint: &Endpoint, head: Head, in_vain: bool) {
        self.in_vain = if in_vain { self.in_vain + 1 } else { 0 };
        if self.in_vain == OFTEN_IN_VAIN {
            let (chain, number) = (&self.chain.name, head.number);
            tracing::warn!(
                chain,
                endpoint = endpoint.host(),
                "told of block {number}, and no endpoint has it; asking others first"
            );
            endpoint.withheld();
            self.in_vain = 0;
            self.awaited = Some(Awaited { number, looks: 0 });
        }
    }

    /// What the pipeline has.
    async fn bring(&mut self) -> Result<Vec<Change>, Trouble> {
        if self.pipeline.is_empty() {
            return Ok(Vec::new());
        }
        // While the first block is on its way, so that they cost no time.
        // What was asked before the head was seen may be out of date with it, and no other block may come for a while.
        let known = self.tagged.filter(|(asked, _)| *asked >= self.looked);
        let tags = tagged(self.rpc.clone(), known, self.chain.poll_interval);
        let (tags, changes) = tokio::join!(tags, self.take());
        self.tagged = Some(tags);
        if let Some(finalized) = tags.1.finalized {
            self.window.finalize(&finalized);
        }
        changes
    }

    /// Decides what a head means, and puts what is to be fetched into the pipeline.
    async fn look(&mut self, head: Head) -> Result<(), Trouble> {
        self.show_lag(head);
        let next = match self.window.tip() {
            Some(tip) => tip.number.saturating_add(1),
            None => self.chain.start_block.unwrap_or(head.number),
        };
        if head.number > next || self.window.tip().is_none() {
            // Behind: by number, many at once. Where the chain has another branch by now, the first block shows it.
            self.pipeline.load((next..=head.number).map(BlockId::Number));
            return Ok(());
        }
        self.walk(head).await
    }

    /// Follows a branch down to a block of ours, and puts it into the pipeline.
    async fn walk(&mut self, head: Head) -> Result<(), Trouble> {
        let mut branch = vec![head];
        let mut newest = head;
        loop {
            match reconcile(&self.window, &branch) {
                Step::Known => return Ok(()),
                Step::TooDeep(error) => return Err(error.into()),
                Step::FetchParent(hash) => {
                    // None: this branch is gone already, and the next look at the head shows another.
                    let Some(parent) = fetch_head(&self.rpc, Some(BlockId::Hash(hash))).await? else { return Ok(()) };
                    if parent.hash != hash || parent.number.checked_add(1) != Some(newest.number) {
                        return Err(Trouble::NoParent { child: newest.number, got: parent.number });
                    }
                    newest = parent;
                    branch.push(parent);
                }
                Step::Extend | Step::Rewind(_) => {
                    let hashes: Vec<BlockId> = branch.iter().rev().map(|block| BlockId::Hash(block.hash)).collect();
                    self.pipeline.load(hashes);
                    return Ok(());
                }
            }
        }
    }

    /// Takes blocks out of the pipeline: the first as soon as it is there, and then those that are there with it.
    async fn take(&mut self) -> Result<Vec<Change>, Trouble> {
        let (mut changes, mut bytes) = (Vec::new(), 0);
        while self.pipeline.goes_on(changes.len(), bytes) {
            let block = match self.pipeline.next().await {
                Some(Ok(Some(block))) => block,
                // The end, or a block that the node does not have yet or any more: the head tells how to go on.
                Some(Ok(None)) | None => {
                    self.pipeline.clear();
                    break;
                }
                // What came before it is good; the error shows again, alone, if it stays.
                Some(Err(_)) if !changes.is_empty() => {
                    self.pipeline.clear();
                    break;
                }
                Some(Err(error)) => return Err(error.into()),
            };
            let head = block.block.head();
            match reconcile(&self.window, &[head]) {
                Step::Extend => {}
                Step::Rewind(removed) => self.take_back(removed, &mut changes),
                Step::Known => continue,
                // Its parent is none of ours: the chain has changed branch below it.
                Step::FetchParent(_) | Step::TooDeep(_) => {
                    self.pipeline.clear();
                    if changes.is_empty() {
                        self.walk(head).await?;
                        continue;
                    }
                    break;
                }
            }
            bytes += block.weight();
            self.tell_gaps(&block);
            self.window.push(head);
            changes.push(Change::Added(Box::new(block)));
        }
        Ok(changes)
    }

    fn take_back(&mut self, removed: Vec<Head>, changes: &mut Vec<Change>) {
        let (chain, depth) = (&self.chain.name, removed.len());
        tracing::info!(
            chain,
            depth,
            "reorganisation: taking back down to block {}",
            removed.last().map_or(0, |head| head.number)
        );
        metrics::CHAIN_REORGS.counter(&[("chain", chain)]).increment(1);
        for head in removed {
            self.window.pop();
            changes.push(Change::Removed(head));
        }
    }

    fn tell_gaps(&mut self, block: &FetchedBlock) {
        let mut whole = true;
        for gap in block.proof.gaps() {
            whole = false;
            if self.told.insert(gap.to_owned()) {
                tracing::warn!(chain = self.chain.name, block = block.block.number, "published without a proof by root: {gap}");
            }
        }
        if !whole {
            metrics::CHAIN_UNCHECKED.counter(&[("chain", &self.chain.name)]).increment(1);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "blocks and seconds are far below 2^52")]
    fn show_lag(&self, head: Head) {
        let labels = [("chain", self.chain.name.as_str())];
        let Some(tip) = self.window.tip() else { return };
        metrics::CHAIN_HEAD_LAG.gauge(&labels).set(head.number.saturating_sub(tip.number) as f64);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::CHAIN_HEAD_AGE.gauge(&labels).set(now.as_secs_f64() - tip.timestamp as f64);
    }
}

/// What the chain calls safe and finalized, as far as the endpoint tells.
#[derive(Clone, Copy, Debug, Default)]
struct Tagged {
    safe: Option<Head>,
    finalized: Option<Head>,
}

impl Tagged {
    fn settled(&self) -> Settled {
        Settled { safe: self.safe.map(|head| head.number), finalized: self.finalized.map(|head| head.number) }
    }
}

/// What is safe and finalized, asked again when the last answer is older than `age`.
async fn tagged(rpc: Arc<Rpc>, last: Option<(Instant, Tagged)>, age: Duration) -> (Instant, Tagged) {
    if let Some((when, tagged)) = last.filter(|(when, _)| when.elapsed() < age) {
        return (when, tagged);
    }
    let both = async { tokio::join!(fetch_tag(&rpc, Tag::Safe), fetch_tag(&rpc, Tag::Finalized)) };
    let (safe, finalized) = tokio::time::timeout(TAG_TIMEOUT, both).await.unwrap_or_default();
    (Instant::now(), Tagged { safe, finalized })
}
