//! Following the head of a chain: polls it, fetches the blocks that come next, and handles reorgs.
//!
//! Polls every `poll_interval_ms`, and at once when a websocket announces a head; the announcement itself is not trusted. Far
//! behind the head, blocks are fetched by number, many at once; near the head, a branch is followed down to a block of ours. A
//! number without a block is passed over: the parent of the next block shows whether the chain skips it. A block that stands on
//! our tip is published at once, whoever gave it, and witnessed afterwards; a branch replaces ours only once a majority of the
//! endpoints has left ours, in two looks running. This side talks to nodes; nothing here knows Kafka.

use crate::beginning::find_beginning;
use crate::cannot_follow::{CannotFollow, is_in_doubt, may_expire};
use crate::prefetch::{BatchSizes, Prefetcher};
use crate::records::{Change, FinalityTags};
use crate::reorg::{Step, reconcile};
use crate::window::Window;
use crate::witnesses::{Fork, Witnesses, find_fork};
use base::{backoff, error_chain, metrics};
use chain::{
    BlockId, Chain, Endpoint, FetchError, FetchOptions, FetchedBlock, Head, Heads, MAX_SKIPPED, Rpc, RpcError, Tags,
    fetch_block, fetch_head, fetch_head_from, fetch_newest, fetch_tags, look_at,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Least time between polls that websockets cause, however many heads they announce.
const MIN_POLL_DELAY: Duration = Duration::from_millis(50);
/// Early polls for an announced head, which the node that answers over HTTP may not have yet. After these the next poll waits
/// for the interval.
const MAX_EARLY_POLLS: u32 = 5;
/// Polls in a row that showed a head whose block nobody has. Then other endpoints are asked first.
const MAX_MISSING_HEADS: u32 = 3;
/// Looks at endpoints that lag, after one at the head: each later than the one before by twice as much. After these the next poll
/// looks again.
const MAX_LATE_LOOKS: u32 = 7;
/// A branch is walked down block by block this far. Below, the place where it leaves ours is searched by height: a window may have
/// thousands of blocks, and any endpoint may show a branch that leaves it at the bottom.
const MAX_WALKED_BLOCKS: usize = 16;
/// Kinds of proof gaps that are remembered: a node's own field names are in them.
const MAX_LOGGED_GAPS: usize = 100;
/// How long a chain without a `start_block` waits at its first start until as many endpoints say where its head is as a block needs
/// witnesses: one alone could let it begin above all others.
const FIRST_PATIENCE: Duration = Duration::from_secs(60);
/// What keeps the chain for so long is told: until then it may pass, as where an endpoint is asked last by now.
const LASTING: Duration = Duration::from_secs(20);
/// A node that is slow with its tags must not delay blocks.
const TAG_TIMEOUT: Duration = Duration::from_secs(1);

/// Changes to publish in one transaction. Never empty.
#[derive(Debug)]
pub struct Batch {
    /// In the order of the chain's history.
    pub changes: Vec<Change>,
    /// What was known of the chain when the batch was put together.
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
    witnesses: Witnesses,
    /// What consumers know of the chain's tags and witnesses.
    told: FinalityTags,
    /// The endpoint that showed its head last.
    source: Option<Arc<Endpoint>>,
    /// Looks since the tip was published, and when the last one was.
    late_looks: (u32, tokio::time::Instant),
    /// Polls in a row that showed a branch which no majority is on.
    disputes: u32,
    /// A reorg has left our chain below the first block ever published, so that it all makes way for what is fetched now.
    starts_over: bool,
    /// A wait for the next poll that news interrupted.
    wait: Option<Wait>,
    started_at: Instant,
    /// When the head was polled last.
    polled_at: Instant,
    /// Proof gaps logged so far: each is logged once.
    logged_gaps: HashSet<String>,
    /// Since when no step has succeeded.
    failing_since: Option<Instant>,
    /// Why it waits, where that may last.
    lasting_wait: watch::Sender<Option<String>>,
}

/// A head that was announced and is not published yet.
struct AnnouncedHead {
    number: u64,
    /// Polls since the announcement.
    polls: u32,
}

/// A wait for the next poll of the head.
struct Wait {
    /// No announcement causes a poll before.
    earliest: tokio::time::Instant,
    until: tokio::time::Instant,
    /// A head was announced meanwhile.
    announced: bool,
}

impl Wait {
    /// A back-off, which no announcement cuts short.
    fn of(delay: Duration) -> Self {
        let until = tokio::time::Instant::now() + delay;
        Self { earliest: until, until, announced: false }
    }
}

/// Why a step brought no changes.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    CannotFollow(#[from] CannotFollow),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error(
        "a node gave block {got} as the parent of block {child}; expected a lower number, and at most {MAX_SKIPPED} numbers skipped"
    )]
    NoParent { child: u64, got: u64 },
    #[error(
        "no endpoint has a block of the {MAX_SKIPPED} numbers above block {0}, although one is ahead of them; a chain that skips more \
         goes on by `ctrip chain restart`"
    )]
    NoneAbove(u64),
    #[error(
        "the content of block {0}, and of all after it, rests on the word of one endpoint; it goes on once another one gives the same, \
         or with witnesses: 1"
    )]
    FullOfDoubt(u64),
    #[error(
        "block {above} skips the numbers from {next} on, which no root proves: it is the word of one endpoint, and goes on once \
         another one gives the same, or with witnesses: 1"
    )]
    DoubtfulHole { above: u64, next: u64 },
    #[error(
        "block {0} has a timestamp more than a minute ahead of this machine's clock: it is published once as many endpoints have it as \
         a block needs witnesses"
    )]
    AheadOfTime(u64),
    #[error(
        "fewer than {0} endpoints say where the chain's head is: it begins once they do, or a minute after its start at the heads that are known; at once with a start_block, or with witnesses: 1"
    )]
    NoBeginning(usize),
}

impl StepError {
    /// What to tell of it, if the chain may wait for long, or has waited for so long.
    fn lasting(&self, waited: Duration) -> Option<String> {
        match self {
            Self::NoneAbove(_)
            | Self::FullOfDoubt(_)
            | Self::DoubtfulHole { .. }
            | Self::AheadOfTime(_)
            | Self::NoBeginning(_) => Some(self.to_string()),
            Self::Fetch(FetchError::Unproven { .. } | FetchError::Unconfirmed { .. }) if waited > LASTING => Some(format!(
                "{}; it goes on once most endpoints say the same, or one of them is taken out of chains.yaml",
                error_chain(self)
            )),
            Self::CannotFollow(_) if waited > LASTING => Some(format!(
                "{self}; it halts once as many endpoints have that as a block needs witnesses, and goes on once others give another one"
            )),
            _ => None,
        }
    }
}

/// Checks that a block can be published now.
async fn check(rpc: &Rpc, chain: &Chain, block: &FetchedBlock) -> Result<(), StepError> {
    CannotFollow::check(chain.verify, block)?;
    if may_expire(rpc, chain, block).await { Ok(()) } else { Err(StepError::AheadOfTime(block.block.number)) }
}

impl Follower {
    /// Continues from `window`. An empty one starts at the chain's `start_block` or at its head, or at the last final block below
    /// that. Polls the head every `poll_interval_ms`, and at once when `heads` announces one.
    pub fn new(chain: Arc<Chain>, rpc: Arc<Rpc>, heads: Heads, window: Window, sizes: BatchSizes) -> Self {
        let prefetcher = Prefetcher::new(rpc.clone(), FetchOptions::of(&chain), sizes);
        let polled_at = Instant::now();
        let witnesses = Witnesses::new(chain.clone(), rpc.clone());
        Self {
            chain,
            rpc,
            heads,
            announced: None,
            missing_heads: 0,
            window,
            prefetcher,
            witnesses,
            told: FinalityTags::default(),
            source: None,
            late_looks: (0, tokio::time::Instant::now()),
            disputes: 0,
            starts_over: false,
            wait: None,
            started_at: Instant::now(),
            polled_at,
            logged_gaps: HashSet::new(),
            failing_since: None,
            lasting_wait: watch::Sender::default(),
        }
    }

    /// Why it waits, where that may last until a person helps.
    pub fn lasting_wait(&self) -> watch::Receiver<Option<String>> {
        self.lasting_wait.subscribe()
    }

    /// The window, including all changes that [`next`](Self::next) returned so far.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Waits for the next changes. Retries failing nodes for as long as it takes: a chain without nodes waits, and the other
    /// chains go on.
    ///
    /// # Errors
    /// If a reorg is deeper than what can be taken back, or a block has no time or too many transactions, as far as enough nodes say so.
    pub async fn next(&mut self) -> Result<Batch, CannotFollow> {
        let mut delays = backoff::delays(MAX_BACKOFF);
        loop {
            if let Some(wait) = self.wait.take()
                && let Some(news) = self.wait_for_poll(wait).await
            {
                return Ok(news);
            }
            if let Some(refuted) = self.witnesses.take_refuted(&self.window)
                && let Some(changes) = self.replace_content(refuted).await
            {
                return Ok(self.batch(changes));
            }
            self.record_age();
            let outcome = self.step().await;
            self.tell_wait(outcome.as_ref().err());
            match outcome {
                Ok(changes) if changes.is_empty() => {
                    delays = backoff::delays(MAX_BACKOFF);
                    self.wait = Some(self.plan_wait());
                }
                Ok(changes) => return Ok(self.batch(changes)),
                Err(StepError::CannotFollow(error)) => {
                    self.prefetcher.clear();
                    if error.is_agreed(&self.rpc, &self.chain).await {
                        return Err(error);
                    }
                    self.wait = Some(Wait::of(delays.next().unwrap_or(MAX_BACKOFF)));
                }
                Err(error) => {
                    self.prefetcher.clear();
                    let delay = delays.next().unwrap_or(MAX_BACKOFF);
                    tracing::warn!(chain = self.chain.name, "retry in {delay:.1?}: {}", error_chain(&error));
                    // What it waits for may come from other endpoints.
                    self.wait = Some(Wait::of(delay));
                }
            }
        }
    }

    /// Tells of a wait that may last, and of its end.
    fn tell_wait(&mut self, error: Option<&StepError>) {
        let since = error.map(|_| *self.failing_since.get_or_insert_with(Instant::now));
        self.failing_since = since;
        let lasting = match error {
            Some(error) => match error.lasting(since.map_or(Duration::ZERO, |since| since.elapsed())) {
                Some(told) => Some(told),
                // It says nothing of what was waited for.
                None => return,
            },
            None => self.doubted(),
        };
        self.lasting_wait.send_if_modified(|told| std::mem::replace(told, lasting.clone()) != lasting);
    }

    /// What others contradict of what was published.
    fn doubted(&self) -> Option<String> {
        let refuted = self.witnesses.refuted(&self.window).map(|Head { number, .. }| {
            format!(
                "block {number} was published with content that one endpoint alone gave and others contradict: nothing from it on is \
                 confirmed, and payments in it may be wrong. It makes way as soon as theirs can be fetched"
            )
        });
        let disputed = || {
            self.witnesses.disputed(&self.window).map(|(number, others)| {
                format!(
                    "block {number} was published with content that one endpoint alone gave, and {others} has other content: nothing from \
                     it on is confirmed until most endpoints say the same. Ask another endpoint, or take the one that is wrong out of \
                     chains.yaml"
                )
            })
        };
        refuted.or_else(disputed)
    }

    /// Changes with what is known of the chain now.
    fn batch(&mut self, changes: Vec<Change>) -> Batch {
        let known = self.witnesses.settle(&mut self.window);
        self.told = self.told.advanced(known);
        if !matches!(changes[..], [Change::Tags(_)]) {
            self.late_looks.0 = 0;
        }
        self.look_at_tip();
        Batch { changes, finality: self.told }
    }

    fn look_at_tip(&mut self) {
        if let (Some(tip), Some(source)) = (self.window.tip(), &self.source) {
            self.witnesses.look(tip.number, source);
        }
        self.late_looks.1 = tokio::time::Instant::now();
    }

    /// When to look again for witnesses of the tip, if it lacks them. A block reaches other endpoints a moment later, and no poll
    /// may be due for long.
    fn next_late_look(&self) -> Option<tokio::time::Instant> {
        let (looks, last) = self.late_looks;
        let lacks = self.told.witnessed < self.window.tip().map(|tip| tip.number);
        (lacks && looks < MAX_LATE_LOOKS).then(|| last + MIN_POLL_DELAY * 2_u32.pow(looks))
    }

    /// What has become known since the last batch, if it is more.
    fn take_news(&mut self) -> Option<Batch> {
        let known = self.told.advanced(self.witnesses.settle(&mut self.window));
        let tip = *self.window.tip().filter(|_| known != self.told)?;
        Some(self.batch(vec![Change::Tags(tip)]))
    }

    /// When the next poll is due.
    fn plan_wait(&mut self) -> Wait {
        let tip = self.window.tip().map(|tip| tip.number);
        let interval = self.chain.poll_interval;
        let longest = match &mut self.announced {
            _ if self.disputes > 0 => interval.min(MIN_POLL_DELAY * 2_u32.pow(self.disputes.min(MAX_EARLY_POLLS) - 1)),
            Some(AnnouncedHead { number, polls }) if tip.is_none_or(|tip| tip < *number) && *polls < MAX_EARLY_POLLS => {
                let soon = MIN_POLL_DELAY * 2_u32.pow(*polls);
                *polls += 1;
                interval.min(soon)
            }
            _ => interval,
        };
        let now = tokio::time::Instant::now();
        Wait { earliest: now + MIN_POLL_DELAY, until: now + longest, announced: false }
    }

    /// Waits until the next poll of the head is due, or until more is known of the chain.
    async fn wait_for_poll(&mut self, mut wait: Wait) -> Option<Batch> {
        loop {
            if let Some(news) = self.take_news() {
                self.wait = Some(wait);
                return Some(news);
            }
            if self.witnesses.has_refuted(&self.window) {
                return None;
            }
            let late_look = self.next_late_look();
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(wait.until) => return None,
                () = tokio::time::sleep_until(late_look.unwrap_or(wait.until)), if late_look.is_some() => {
                    self.late_looks.0 += 1;
                    self.look_at_tip();
                }
                number = self.heads.next(), if !wait.announced => {
                    self.announced = number.map(|number| AnnouncedHead { number, polls: 0 });
                    wait.announced = true;
                    wait.until = wait.earliest.max(tokio::time::Instant::now());
                }
                news = self.witnesses.next() => self.witnesses.take(news, &mut self.window),
            }
        }
    }

    /// Takes prefetched blocks, or polls the head and plans the next ones.
    async fn step(&mut self) -> Result<Vec<Change>, StepError> {
        if !self.prefetcher.is_empty() {
            return self.take_batch().await;
        }
        let Some((endpoint, head)) = fetch_newest(&self.rpc).await? else { return Ok(Vec::new()) };
        self.polled_at = Instant::now();
        self.witnesses.shows(&endpoint, head);
        self.source = Some(endpoint.clone());
        self.starts_over = false;
        let disputes = std::mem::take(&mut self.disputes);
        let outcome = match self.plan(&endpoint, head).await {
            Ok(()) => self.take_batch().await,
            Err(error) => Err(error),
        };
        // Disputed again.
        if self.disputes > 0 {
            self.disputes = disputes + 1;
        }
        let is_missing = match &outcome {
            _ if self.disputes > 0 => false,
            Ok(changes) => changes.is_empty() && reconcile(&self.window, &[head]) != Step::Known,
            Err(error) => matches!(error, StepError::NoParent { .. } | StepError::NoneAbove(_)),
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
            self.witnesses.refresh_tags(None, None);
            return Ok(Vec::new());
        }
        // The tags are fetched while the first block is under way, so they cost no time. Tags from before the last poll may be
        // older than the head, so they are fetched again. Those of the other endpoints come when they come.
        let source = self.source.clone().filter(|source| self.witnesses.refresh_tags(Some(self.polled_at), Some(source)));
        let tags = async {
            let Some(source) = &source else { return Tags::default() };
            tokio::time::timeout(TAG_TIMEOUT, fetch_tags(source)).await.unwrap_or_default()
        };
        let (tags, changes) = tokio::join!(tags, self.take_blocks());
        if let Some(source) = &source {
            self.witnesses.tagged(source, tags);
        }
        changes
    }

    /// Plans what to fetch for a head, and starts fetching.
    async fn plan(&mut self, endpoint: &Arc<Endpoint>, head: Head) -> Result<(), StepError> {
        self.record_lag(head);
        let Some(tip) = self.window.tip() else {
            let is_patient = self.chain.start_block.is_none() && self.started_at.elapsed() < FIRST_PATIENCE;
            let blocks = find_beginning(&self.rpc, &self.chain, (endpoint, head), self.chain.start_block, is_patient).await;
            let blocks = blocks.ok_or(StepError::NoBeginning(self.chain.witnesses))?;
            self.prefetcher.load(blocks.map(BlockId::Number));
            return Ok(());
        };
        let next = tip.number.saturating_add(1);
        let is_ahead = head.number > next && matches!(reconcile(&self.window, &[head]), Step::FetchParent(_));
        if is_ahead {
            // By number, many at once. After a reorg the first block will not fit.
            self.prefetcher.load((next..=head.number).map(BlockId::Number));
            return Ok(());
        }
        // While its block is fetched.
        self.witnesses.look(tip.number.max(head.number), endpoint);
        self.walk_branch(endpoint, head).await
    }

    /// Follows an endpoint's branch down to a block of ours, and starts fetching it, unless it would replace blocks of ours that
    /// no majority has left.
    async fn walk_branch(&mut self, endpoint: &Arc<Endpoint>, head: Head) -> Result<(), StepError> {
        let mut branch = vec![head];
        let mut newest = head;
        loop {
            match reconcile(&self.window, &branch) {
                Step::Known => return Ok(()),
                Step::TooDeep(error) => return Err(CannotFollow::TooDeep(error).into()),
                Step::FetchParent(_) if branch.len() == MAX_WALKED_BLOCKS => {
                    let Some(lowest) = self.find_lowest(endpoint, newest, head).await? else { return Ok(()) };
                    newest = lowest;
                    branch.push(lowest);
                }
                // The branch has changed meanwhile.
                Step::FetchParent(_) if branch.len() > MAX_WALKED_BLOCKS => return Ok(()),
                Step::FetchParent(hash) => {
                    // The branch is gone already; the next poll shows another. Nobody else is asked: what comes of it is a vote
                    // of this endpoint.
                    let Some(parent) = fetch_head_from(endpoint, BlockId::Hash(hash)).await? else { return Ok(()) };
                    if !newest.stands_on(&parent) {
                        return Err(StepError::NoParent { child: newest.number, got: parent.number });
                    }
                    newest = parent;
                    branch.push(parent);
                }
                Step::Rewind(removed) if !self.may_rewind(endpoint, &removed, head) => {
                    self.disputes = 1;
                    return Ok(());
                }
                Step::Rewind(removed) if self.leaves_below_all(&removed) => {
                    return self.start_over(endpoint, head, newest).await;
                }
                Step::Extend | Step::Rewind(_) if branch.len() > MAX_WALKED_BLOCKS => {
                    self.prefetcher.load((newest.number..=head.number).map(BlockId::Number));
                    return Ok(());
                }
                Step::Extend | Step::Rewind(_) => {
                    let hashes: Vec<BlockId> = branch.iter().rev().map(|block| BlockId::Hash(block.hash)).collect();
                    self.prefetcher.load(hashes);
                    return Ok(());
                }
            }
        }
    }

    /// The lowest block of an endpoint's branch that is not ours, if it lies below `known` of that branch.
    async fn find_lowest(&mut self, endpoint: &Arc<Endpoint>, known: Head, head: Head) -> Result<Option<Head>, RpcError> {
        if self.window.tip().is_some_and(|tip| tip.number < known.number) {
            // It may stand on our tip.
            return Ok(None);
        }
        // From the last final block on, which nobody leaves.
        let floor = self.window.finalized().unwrap_or(0);
        let ours: Vec<Head> =
            self.window.iter().filter(|block| (floor..=known.number).contains(&block.number)).copied().collect();
        let Some(fork) = find_fork(endpoint, &ours, head.number).await? else { return Ok(None) };
        Ok(look_at(endpoint, fork.from()).await?.filter(|lowest| lowest.number >= fork.from()))
    }

    /// Whether a branch leaves our chain below the first block ever published.
    fn leaves_below_all(&self, removed: &[Head]) -> bool {
        removed.last().is_some_and(|lowest| self.window.bottom() == Some(lowest))
    }

    /// Starts fetching a branch that leaves our chain below the first block ever published. The branch's blocks below that one were
    /// never published, and may contain money that was above it. So it begins as deep as a chain does at its first start.
    async fn start_over(&mut self, endpoint: &Arc<Endpoint>, head: Head, oldest: Head) -> Result<(), StepError> {
        // Not for a head that is announced without being there.
        let there = fetch_head(&self.rpc, Some(BlockId::Number(oldest.number))).await?;
        if there.is_some_and(|there| there.hash == oldest.hash) {
            let blocks = find_beginning(&self.rpc, &self.chain, (endpoint, head), Some(oldest.number), false).await;
            let first = blocks.map_or(oldest.number, |blocks| *blocks.start());
            self.prefetcher.load((first..=head.number).map(BlockId::Number));
            self.starts_over = true;
        }
        Ok(())
    }

    /// Takes prefetched blocks: waits for the first, then takes those that are ready.
    async fn take_blocks(&mut self) -> Result<Vec<Change>, StepError> {
        let (mut changes, mut bytes, mut skipped) = (Vec::new(), 0, 0);
        while self.prefetcher.has_room(changes.len(), bytes) {
            let block = match self.prefetcher.next().await {
                Some(Ok(Some(block))) => block,
                // The chain may skip the number. If it does, the next block stands on ours; else it shows what is missing.
                Some(Ok(None)) if self.window.tip().is_some() && !self.starts_over && skipped < MAX_SKIPPED => {
                    skipped += 1;
                    continue;
                }
                Some(Ok(None)) if skipped >= MAX_SKIPPED => {
                    self.prefetcher.clear();
                    // Whoever shows a head above so many missing blocks is asked after the others, or each poll would cost as
                    // much.
                    if let Some(source) = &self.source {
                        source.record_withheld_head();
                    }
                    if changes.is_empty() {
                        return Err(StepError::NoneAbove(self.window.tip().map_or(0, |tip| tip.number)));
                    }
                    break;
                }
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
            skipped = 0;
            let head = block.block.head();
            if let Err(refused) = check(&self.rpc, &self.chain, &block).await {
                self.prefetcher.clear();
                return if changes.is_empty() { Err(refused) } else { Ok(changes) };
            }
            if std::mem::take(&mut self.starts_over) {
                self.rewind(self.window.newest_first(), &mut changes);
            }
            match reconcile(&self.window, &[head]) {
                Step::Extend | Step::Rewind(_) if let Some(hole) = self.find_doubtful_hole(&block) => {
                    self.prefetcher.clear();
                    return if changes.is_empty() { Err(hole) } else { Ok(changes) };
                }
                Step::Extend => {}
                Step::Rewind(removed) if !self.is_outdated(&block, &removed) => self.rewind(removed, &mut changes),
                Step::Known => continue,
                // Its parent is not our tip: a reorg below it, or a block between them that nobody gave by its number.
                Step::Rewind(_) | Step::FetchParent(_) | Step::TooDeep(_) => {
                    self.prefetcher.clear();
                    match block.source.clone().filter(|_| changes.is_empty()) {
                        Some(source) => self.walk_branch(&source, head).await?,
                        None => break,
                    }
                    continue;
                }
            }
            if self.window.is_full_of_doubt() {
                self.prefetcher.clear();
                let lowest = self.window.bottom().map_or(0, |bottom| bottom.number);
                return if changes.is_empty() { Err(StepError::FullOfDoubt(lowest)) } else { Ok(changes) };
            }
            bytes += block.record_bytes();
            self.add(block, &mut changes);
        }
        Ok(changes)
    }

    /// Puts a block on the tip.
    fn add(&mut self, block: FetchedBlock, changes: &mut Vec<Change>) {
        let head = block.block.head();
        self.log_proof_gaps(&block);
        self.window.push(head);
        self.rpc.record_published(&head);
        if is_in_doubt(&self.chain, &block) {
            self.window.doubt(&head, block.content_digest());
        }
        if let Some(source) = &block.source {
            self.witnesses.gave(source, head.number, &self.window);
        }
        changes.push(Change::Added(Box::new(block)));
    }

    /// Takes a block back for whose content enough endpoints have something else, with all above it, and puts theirs in its place,
    /// with what it stands on if that is not ours. Its hash is the same, so no reorg would do that. Nothing happens before all of it
    /// is there.
    async fn replace_content(&mut self, refuted: Head) -> Option<Vec<Change>> {
        let (chain, number) = (self.chain.name.clone(), refuted.number);
        let (ancestor, branch) = match self.fetch_refuting(refuted).await {
            Ok(found) => found?,
            Err(error) => {
                tracing::warn!(chain, number, "its content is contradicted, and no other is there: {}", error_chain(&error));
                return None;
            }
        };
        tracing::warn!(chain, number, "its content was one endpoint's word, and others contradict it");
        self.prefetcher.clear();
        let mut changes = Vec::new();
        let removed = match ancestor {
            Some(ancestor) => self.window.above(ancestor).copied().collect(),
            None => self.window.newest_first(),
        };
        self.rewind(removed, &mut changes);
        branch.into_iter().rev().for_each(|block| self.add(block, &mut changes));
        Some(changes)
    }

    /// Other content of a block of ours, and the blocks below it down to ours, newest first, with the number of the one that they
    /// stand on: none if it is the first block ever published that makes way. `None` if there is none that may be published.
    async fn fetch_refuting(&mut self, refuted: Head) -> Result<Option<(Option<u64>, Vec<FetchedBlock>)>, StepError> {
        let mut branch: Vec<FetchedBlock> = Vec::new();
        let mut next = refuted.hash;
        while branch.len() < MAX_WALKED_BLOCKS {
            let Some(block) = fetch_block(&self.rpc, FetchOptions::of(&self.chain), BlockId::Hash(next)).await? else { break };
            let is_ours = branch.is_empty() && self.window.doubt_of(&refuted) == Some(block.content_digest());
            if is_ours || is_in_doubt(&self.chain, &block) {
                break;
            }
            check(&self.rpc, &self.chain, &block).await?;
            let head = block.block.head();
            next = head.parent_hash;
            branch.push(block);
            let is_first = self.window.is_whole() && self.window.bottom().is_some_and(|bottom| bottom.number == head.number);
            let ancestor = self.window.parent_of(&head).map(|ours| ours.number);
            if ancestor.is_some() || is_first {
                return Ok((ancestor >= self.window.finalized()).then_some((ancestor, branch)));
            }
        }
        Ok(None)
    }

    /// The hole below a block whose header no root proves and one endpoint alone has given. Such a word may hide a block under the
    /// next one's true hash, which nobody would ever contradict.
    fn find_doubtful_hole(&self, block: &FetchedBlock) -> Option<StepError> {
        let above = block.block.head();
        let next = self.window.parent_of(&above)?.number + 1;
        let is_doubtful = is_in_doubt(&self.chain, block) && next < above.number;
        is_doubtful.then_some(StepError::DoubtfulHole { above: above.number, next })
    }

    /// Whether an endpoint's branch may replace these blocks, newest first. Each call is a look at the endpoint.
    fn may_rewind(&mut self, endpoint: &Arc<Endpoint>, removed: &[Head], head: Head) -> bool {
        let Some(lowest) = removed.last() else { return true };
        let agrees = self.window.below(lowest.number).map(|ancestor| ancestor.number);
        let may = self.witnesses.leaves(endpoint, Fork { agrees, ours: *lowest, to: head.number });
        if may {
            // Once the branch is ours.
            self.witnesses.shows(endpoint, head);
        } else {
            let (chain, depth) = (&self.chain.name, removed.len());
            tracing::debug!(chain, endpoint = endpoint.host(), depth, "a branch of its own from block {} on", lowest.number);
            // The others may be on it by now.
            self.look_at_tip();
        }
        may
    }

    /// Whether a block that was asked for by its height is of another branch than one that was let through, and the majority
    /// has not left ours for it.
    fn is_outdated(&self, block: &FetchedBlock, removed: &[Head]) -> bool {
        let lowest = removed.last().map_or(u64::MAX, |lowest| lowest.number);
        block.source.as_ref().is_some_and(|source| !self.witnesses.may_replace(source, lowest))
    }

    /// Takes the removed blocks off the window, newest first.
    fn rewind(&mut self, removed: Vec<Head>, changes: &mut Vec<Change>) {
        let (chain, depth) = (&self.chain.name, removed.len());
        tracing::info!(chain, depth, "reorg: taking back blocks down to {}", removed.last().map_or(0, |head| head.number));
        metrics::CHAIN_REORGS.counter(&[("chain", chain)]).increment(1);
        for head in removed {
            self.window.pop();
            let tip = self.window.tip().map(|tip| tip.number);
            self.witnesses.removed(tip);
            self.told = self.told.below(tip);
            changes.push(Change::Removed(head, tip));
        }
    }

    /// Logs each kind of gap once, up to so many, and counts the blocks with gaps.
    fn log_proof_gaps(&mut self, block: &FetchedBlock) {
        let mut whole = true;
        for gap in block.proof.gaps() {
            whole = false;
            if self.logged_gaps.len() < MAX_LOGGED_GAPS && self.logged_gaps.insert(gap.to_owned()) {
                tracing::warn!(chain = self.chain.name, block = block.block.number, "published without a proof by root: {gap}");
            }
        }
        if !whole {
            metrics::CHAIN_UNCHECKED.counter(&[("chain", &self.chain.name)]).increment(1);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "blocks are far below 2^52")]
    fn record_lag(&self, head: Head) {
        let labels = [("chain", self.chain.name.as_str())];
        let Some(tip) = self.window.tip() else { return };
        metrics::CHAIN_HEAD_LAG.gauge(&labels).set(head.number.saturating_sub(tip.number) as f64);
    }

    /// Also while no node answers.
    #[expect(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
    fn record_age(&self) {
        let Some(tip) = self.window.tip() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        metrics::CHAIN_HEAD_AGE.gauge(&[("chain", &self.chain.name)]).set(now.as_secs_f64() - tip.timestamp as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chain::ProofError;

    /// Of two endpoints nobody knows which one is right, and the operator was not told.
    #[test]
    fn endpoints_that_contradict_each_other_are_named_if_that_lasts() {
        let [what, expected, got] = ["the logs", "what b says", "something else from a"].map(str::to_owned);
        let source = ProofError { number: 7, what, expected, got };
        let contradicted = StepError::from(FetchError::Unproven { endpoint: "a or b".to_owned(), source });
        assert_eq!(contradicted.lasting(LASTING), None, "it may pass");
        let told = contradicted.lasting(LASTING * 2).unwrap();
        assert!(told.contains("block 7") && told.contains("a or b"), "{told}");
        let silent = "b: no answer".to_owned();
        let unconfirmed = StepError::from(FetchError::Unconfirmed { number: 7, what: "what no root proves", silent });
        assert!(unconfirmed.lasting(LASTING * 2).is_some_and(|told| told.contains("b: no answer")));
        assert_eq!(StepError::from(RpcError::AllOpen("it".to_owned())).lasting(LASTING * 2), None, "its lag is told");
    }
}
