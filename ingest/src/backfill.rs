//! `ctrip backfill`: publishes a past range of a chain as replayed records.
//!
//! Replayed records are history and never the head: their kind says so, and their sequence is 0. So only blocks are replayed
//! that no reorg can take back, and only those that enough endpoints have: an old block confirms at once. The progress of a
//! range is the offset of a consumer group of its own, committed in the Kafka transaction of the blocks: after a kill the
//! backfill continues after the last block published, and publishes none twice.

use crate::cannot_follow::{CannotFollow, is_in_doubt};
use crate::cursor::restore;
use crate::depth::last_final_block;
use crate::halt;
use crate::nodes::connect;
use crate::prefetch::{BatchSizes, Prefetcher};
use crate::publish::OutgoingRecords;
use crate::records::{Change, FinalityTags, records};
use crate::window::Window;
use anyhow::{Context as _, anyhow, bail, ensure};
use base::{backoff, error_chain, metrics};
use chain::{
    BlockId, Chain, Chains, Endpoint, FetchOptions, FetchedBlock, Head, MAX_SKIPPED, Rpc, fetch_block, fetch_standings,
    find_witnesses,
};
use runtime::kafka::{GroupMetadata, Kafka, TransactionalProducer};
use runtime::{Failure, Settings, stage};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;

const NAME: &str = "backfill";
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Failed attempts because a block does not fit the one before it. More of them are no passing disagreement between nodes.
const MAX_MISMATCHES: usize = 20;

/// The range to replay.
#[derive(Clone, Debug)]
pub struct BackfillRequest {
    /// The chain's name in `chains.yaml`.
    pub chain: String,
    /// Height of the first block.
    pub from: u64,
    /// Height of the last block.
    pub to: u64,
    /// Starts over, even if some or all of the range was replayed before.
    pub again: bool,
}

/// Replays the range, and calls `progress` with the number of blocks published so far. Returns when all are, or at `stop`.
///
/// # Errors
/// If the range is empty or not final yet, or a dependency can't be reached.
pub async fn backfill(
    settings: &Settings,
    request: BackfillRequest,
    stop: CancellationToken,
    progress: impl Fn(u64) + Send + 'static,
) -> anyhow::Result<()> {
    ensure!(request.from <= request.to, "--from {} is above --to {}", request.from, request.to);
    let chains = Chains::load(&settings.chains_file)?.only(&request.chain).resolve().await?;
    let (chain, rpc) = connect(chains.named(&request.chain)?.clone()).await?;
    let limit = last_final_block(&fetch_standings(&rpc, None).await, chain.witnesses).with_context(|| {
        format!("fewer than {} endpoints of {} answer, which is what witnesses asks for", chain.witnesses, chain.name)
    })?;
    ensure!(
        request.to <= limit,
        "block {} can still be taken back by a reorg; expected --to {limit} at most, the last block that can't",
        request.to
    );
    let (kafka, sizes) = (Kafka::connect(settings).await?, BatchSizes::of(settings));
    let handle = Handle::current();
    let mut again = request.again;
    stage::run(NAME, stop, move |stop| {
        let mut backfill = Backfill::open(&kafka, &chain, &rpc, &request, sizes)?;
        if again {
            backfill.start_over(request.from)?;
            // Once: after a failure it continues.
            again = false;
        }
        backfill.run(&handle, &request, &progress, stop)
    })
    .await
}

struct Backfill<'a> {
    kafka: &'a Kafka,
    chain: &'a Chain,
    rpc: &'a Rpc,
    producer: TransactionalProducer,
    group: GroupMetadata,
    prefetcher: Prefetcher,
    window: Window,
    /// Height of the next block.
    next: u64,
    /// The last block published in this run.
    last: Option<Head>,
    mismatches: usize,
}

impl<'a> Backfill<'a> {
    fn open(
        kafka: &'a Kafka,
        chain: &'a Arc<Chain>,
        rpc: &'a Arc<Rpc>,
        request: &BackfillRequest,
        sizes: BatchSizes,
    ) -> Result<Self, Failure> {
        // One backfill per chain at a time: a second one fences the first. Otherwise their records would be in different orders
        // in the two topics.
        let producer = TransactionalProducer::open(kafka, &format!("{NAME}-{}", chain.id))?;
        let group = format!("{NAME}-{}-{}-{}", chain.id, request.from, request.to);
        let done = kafka.committed(&group, Topic::Blocks, 0)?.and_then(|next| u64::try_from(next).ok());
        let next = done.unwrap_or(request.from);
        let window = match halt::read(kafka, chain.id)? {
            Some(stored) => restore(chain.id, &stored).map_err(Failure::halt)?.1,
            None => Window::default(),
        };
        let prefetcher = Prefetcher::new(rpc.clone(), FetchOptions::of(chain), sizes);
        Ok(Self {
            kafka,
            chain,
            rpc,
            producer,
            group: kafka.bare_group(&group)?,
            prefetcher,
            window,
            next,
            last: None,
            mismatches: 0,
        })
    }

    /// Forgets the progress of the range.
    fn start_over(&mut self, from: u64) -> Result<(), Failure> {
        let transaction = self.producer.begin()?;
        transaction.send_offsets(&[(Topic::Blocks, 0, offset(from)?)], &self.group)?;
        transaction.commit()?;
        self.next = from;
        Ok(())
    }

    fn run(
        mut self,
        handle: &Handle,
        request: &BackfillRequest,
        progress: &impl Fn(u64),
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        progress(self.next - request.from);
        let mut delays = backoff::delays(MAX_BACKOFF);
        while self.next <= request.to && !stop.is_cancelled() {
            let batch = handle.block_on(async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Ok(Vec::new()),
                    batch = self.take_blocks(request.to) => batch,
                }
            });
            match batch {
                Ok(changes) => {
                    delays = backoff::delays(MAX_BACKOFF);
                    self.publish(changes)?;
                    progress(self.next - request.from);
                }
                Err(error) if self.mismatches > MAX_MISMATCHES => return Err(Failure::Halt(error)),
                Err(error) => {
                    self.prefetcher.clear();
                    let delay = delays.next().unwrap_or(MAX_BACKOFF);
                    tracing::warn!(chain = self.chain.name, "retry in {delay:.1?}: {error:#}");
                    stage::pause(stop, delay);
                }
            }
        }
        Ok(())
    }

    /// Takes the next blocks: waits for the first, then takes those that are ready.
    async fn take_blocks(&mut self, to: u64) -> anyhow::Result<Vec<Change>> {
        if self.prefetcher.is_empty() {
            self.prefetcher.load((self.next..=to).map(BlockId::Number));
        }
        let (mut changes, mut bytes, mut last, mut skipped) = (Vec::new(), 0, self.last, 0);
        while self.prefetcher.has_room(changes.len(), bytes) {
            let block = match self.prefetcher.next().await {
                Some(Ok(Some(block))) => block,
                None => break,
                // The chain may skip the number. The next block shows it.
                Some(Ok(None)) if skipped < MAX_SKIPPED => {
                    skipped += 1;
                    continue;
                }
                // The blocks before it are good. A lasting error returns alone next time.
                Some(_) if !changes.is_empty() => {
                    self.prefetcher.clear();
                    break;
                }
                Some(Ok(None)) => bail!("no node has block {}", self.next),
                Some(Err(error)) => bail!("{}", error_chain(&error)),
            };
            let head = block.block.head();
            if std::mem::take(&mut skipped) > 0
                && let Err(missing) = self.check_hole(last, head).await
            {
                self.prefetcher.clear();
                if changes.is_empty() {
                    return Err(missing);
                }
                break;
            }
            if is_in_doubt(self.chain, &block) {
                self.prefetcher.clear();
                let number = head.number;
                ensure!(
                    !changes.is_empty(),
                    "the content of block {number} is proven by no root, and rests on the word of one endpoint; it is replayed once \
                     another one gives the same, or with witnesses: 1"
                );
                break;
            }
            if let Err(mismatch) = self.check_continuity(last, &block) {
                self.prefetcher.clear();
                // The blocks before it are good. A lasting mismatch returns alone next time.
                if !changes.is_empty() {
                    break;
                }
                self.mismatches += 1;
                self.blame(&block).await?;
                return Err(mismatch);
            }
            bytes += block.record_bytes();
            last = Some(head);
            changes.push(Change::Replayed(Box::new(block)));
        }
        if changes.is_empty() && skipped > 0 {
            self.skip_to_end(to).await?;
        }
        if let Some(head) = last.filter(|_| !changes.is_empty())
            && let Err(unwitnessed) = self.check_witnesses(head).await
        {
            self.prefetcher.clear();
            return Err(unwitnessed);
        }
        self.mismatches = 0;
        self.last = last;
        Ok(changes)
    }

    /// Checks that the chain skips the numbers from the next one to this block: its parent lies below them. That no node gives
    /// a block by its number proves nothing.
    async fn check_hole(&self, last: Option<Head>, above: Head) -> anyhow::Result<()> {
        let is_hole = match last {
            Some(last) => above.stands_on(&last),
            None => {
                let parent = self.fetch_place(BlockId::Hash(above.parent_hash)).await?;
                parent.is_some_and(|parent| above.stands_on(&parent) && parent.number < self.next)
            }
        };
        let next = last.map_or(self.next, |last| last.number + 1);
        ensure!(is_hole, "no node has block {next}, and block {} does not show that the chain skips it", above.number);
        Ok(())
    }

    /// Passes over the rest of the range, in which the chain has no block, once the block above it shows that.
    async fn skip_to_end(&mut self, to: u64) -> anyhow::Result<()> {
        for number in to + 1..=to.saturating_add(MAX_SKIPPED) {
            if let Some(above) = self.fetch_place(BlockId::Number(number)).await? {
                self.check_hole(self.last, above).await?;
                self.check_witnesses(above).await?;
                self.next = to + 1;
                return Ok(());
            }
        }
        bail!("no node has block {}, nor one of the {MAX_SKIPPED} numbers above {to}", self.next)
    }

    /// A block's place in the chain, unless it is proven by no root and rests on the word of one endpoint.
    async fn fetch_place(&self, id: BlockId) -> anyhow::Result<Option<Head>> {
        let options = FetchOptions { traces: false, ..FetchOptions::of(self.chain) };
        let block = fetch_block(self.rpc, options, id).await?;
        Ok(block.filter(|block| !is_in_doubt(self.chain, block)).map(|block| block.block.head()))
    }

    /// Checks that enough endpoints have this block. The blocks below it that it links to by their hashes are theirs too.
    async fn check_witnesses(&mut self, head: Head) -> anyhow::Result<()> {
        let (number, needed) = (head.number, self.chain.witnesses);
        let found = find_witnesses(self.rpc, number, head.hash).await;
        if found.confirm(needed) {
            return Ok(());
        }
        let hosts = |endpoints: &[Arc<Endpoint>]| endpoints.iter().map(|e| e.host().to_owned()).collect::<Vec<_>>().join(", ");
        if found.outvote() {
            self.mismatches += 1;
            // Others are asked first next time.
            for endpoint in &found.with {
                endpoint.record_contradiction();
                endpoint.count_contradiction();
            }
            bail!("contradiction: {} have another block {number} than {}", hosts(&found.against), hosts(&found.with));
        }
        bail!("block {number} has the witnesses {:?}, of {needed} that are asked for", hosts(&found.with));
    }

    /// Names the endpoints that are alone with a block which does not fit. Others are asked first next time.
    async fn blame(&mut self, block: &FetchedBlock) -> anyhow::Result<()> {
        if let Some(source) = &block.source {
            source.record_contradiction();
        }
        self.check_witnesses(block.block.head()).await
    }

    /// Checks that the block stands on the one before it, and agrees with ingest at a height that ingest has published.
    fn check_continuity(&self, last: Option<Head>, block: &FetchedBlock) -> anyhow::Result<()> {
        CannotFollow::check(self.chain.verify, block)?;
        let head = block.block.head();
        let number = head.number;
        if let Some(last) = last.filter(|last| !head.stands_on(last)) {
            bail!("block {number} ({}) has parent {}; expected {}, which was replayed", head.hash, head.parent_hash, last.hash);
        }
        if let Some(ours) = self.window.at(number).filter(|ours| ours.hash != head.hash) {
            bail!("the nodes have block {} at height {number}, and ingest has published {}", head.hash, ours.hash);
        }
        Ok(())
    }

    fn publish(&mut self, changes: Vec<Change>) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        let (mut next, mut logs) = (self.next, 0_usize);
        let count = changes.len();
        let mut outgoing = OutgoingRecords::default();
        for change in changes {
            let (block, of_block) = records(self.chain.id, 0, change, FinalityTags::default());
            next = block.number + 1;
            logs += of_block.logs.len();
            outgoing.push_block(self.kafka, self.chain, block, of_block);
        }
        let transaction = self.producer.begin()?;
        outgoing.send(&transaction, self.chain.id)?;
        transaction.send_offsets(&[(Topic::Blocks, 0, offset(next)?)], &self.group)?;
        transaction.commit()?;
        self.next = next;
        let labels = [("chain", self.chain.name.as_str())];
        metrics::CHAIN_BLOCKS.counter(&[labels[0], ("kind", "replayed")]).increment(count as u64);
        metrics::CHAIN_LOGS.counter(&labels).increment(logs as u64);
        Ok(())
    }
}

/// A block's number as the offset of a range's group.
fn offset(number: u64) -> Result<i64, Failure> {
    i64::try_from(number).map_err(|_| Failure::Halt(anyhow!("block number {number} does not fit a Kafka offset")))
}
