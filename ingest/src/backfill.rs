//! A past range of a chain, brought into the topics as replayed records.
//!
//! Replayed records are history and never the head: their kind says so, and their sequence is 0. So only blocks are replayed that
//! nobody can take back any more. How far a range has come is an offset of a group of its own, committed in the Kafka
//! transaction of the blocks: after a kill it goes on behind the last block published, and brings none twice.

use crate::halt;
use crate::pipeline::Pipeline;
use crate::records::{Change, Settled, records, restore};
use crate::role::{Outgoing, reach};
use crate::window::{DEPTH, Window};
use anyhow::{Context as _, anyhow, bail, ensure};
use chain::{BlockId, Chain, Chains, Head, Rpc, Tag, fetch_head, fetch_tag};
use runtime::kafka::{GroupMetadata, Kafka, TransactionalProducer};
use runtime::{Failure, Settings, chain_of, metrics, stage};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;

const NAME: &str = "backfill";
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// Times that a block may stand on none that was replayed before it, until it is no passing disagreement of nodes.
const MISFITS: usize = 20;

/// What to bring.
#[derive(Clone, Debug)]
pub struct Request {
    /// The chain's name in `chains.yaml`.
    pub chain: String,
    /// Number of the first block.
    pub from: u64,
    /// Number of the last block.
    pub to: u64,
    /// From the beginning, even if some or all of it was brought before.
    pub again: bool,
}

/// Brings the range, and calls `progress` with the number of blocks that are there. Returns when all are, or at `stop`.
///
/// # Errors
/// When the range can't be brought: it is empty, or not final yet; or when the parts are not to be had.
pub async fn backfill(
    settings: &Settings,
    request: Request,
    stop: CancellationToken,
    progress: impl Fn(u64) + Send + 'static,
) -> anyhow::Result<()> {
    ensure!(request.from <= request.to, "--from {} is above --to {}", request.from, request.to);
    let chains = Chains::load(&settings.chains_file)?.resolve().await?;
    let (chain, rpc) = reach(chains.named(&request.chain)?.clone()).await?;
    let limit = limit(&rpc).await?;
    ensure!(
        request.to <= limit,
        "block {} can still be taken back by a reorganisation; expected --to {limit} at most, the last one that can't",
        request.to
    );
    let kafka = Kafka::connect(settings).await?;
    let handle = Handle::current();
    stage::run(NAME, stop, move |stop| Backfill::open(&kafka, &chain, &rpc, &request)?.run(&handle, &request, &progress, stop))
        .await
}

/// The last block that no reorganisation takes back: the chain's finalized one, or where it has none, one so deep that ingest
/// would halt.
async fn limit(rpc: &Rpc) -> anyhow::Result<u64> {
    if let Some(finalized) = fetch_tag(rpc, Tag::Finalized).await {
        return Ok(finalized.number);
    }
    let head = fetch_head(rpc, None).await?.context("the nodes have no head")?;
    Ok(head.number.saturating_sub(u64::try_from(DEPTH)?))
}

struct Backfill<'a> {
    kafka: &'a Kafka,
    chain: &'a Chain,
    producer: TransactionalProducer,
    group: GroupMetadata,
    pipeline: Pipeline,
    window: Window,
    /// The block to bring next.
    next: u64,
    /// The last one brought, in this run.
    last: Option<Head>,
    misfits: usize,
}

impl<'a> Backfill<'a> {
    fn open(kafka: &'a Kafka, chain: &'a Arc<Chain>, rpc: &Arc<Rpc>, request: &Request) -> Result<Self, Failure> {
        // One a chain at a time: of two, the second fences the first. Their records would not lie alike in the two topics.
        let producer = TransactionalProducer::open(kafka, &format!("{NAME}-{}", chain.id))?;
        let group = format!("{NAME}-{}-{}-{}", chain.id, request.from, request.to);
        let done = kafka.committed(&group, Topic::Blocks, 0)?.and_then(|next| u64::try_from(next).ok());
        let next = done.filter(|_| !request.again).unwrap_or(request.from);
        let window = match halt::read(kafka, chain.id)? {
            Some(cursor) => restore(chain.id, &cursor).map_err(Failure::halt)?.1,
            None => Window::default(),
        };
        let pipeline = Pipeline::new(rpc.clone(), chain.reading());
        Ok(Self { kafka, chain, producer, group: kafka.bare_group(&group)?, pipeline, window, next, last: None, misfits: 0 })
    }

    fn run(
        mut self,
        handle: &Handle,
        request: &Request,
        progress: &impl Fn(u64),
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        progress(self.next - request.from);
        let mut delays = stage::delays(LONGEST_DELAY);
        while self.next <= request.to && !stop.is_cancelled() {
            let batch = handle.block_on(async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Ok(Vec::new()),
                    batch = self.take(request.to) => batch,
                }
            });
            match batch {
                Ok(changes) => {
                    delays = stage::delays(LONGEST_DELAY);
                    self.publish(changes)?;
                    progress(self.next - request.from);
                }
                Err(error) if self.misfits > MISFITS => return Err(Failure::Halt(error)),
                Err(error) => {
                    self.pipeline.clear();
                    let delay = delays.next().unwrap_or(LONGEST_DELAY);
                    tracing::warn!(chain = self.chain.name, "asking again in {delay:.1?}: {error:#}");
                    stage::pause(stop, delay);
                }
            }
        }
        Ok(())
    }

    /// The next blocks: the first as soon as it is there, and those that are there with it.
    async fn take(&mut self, to: u64) -> anyhow::Result<Vec<Change>> {
        if self.pipeline.is_empty() {
            self.pipeline.load((self.next..=to).map(BlockId::Number));
        }
        let (mut changes, mut bytes, mut last) = (Vec::new(), 0, self.last);
        while self.pipeline.goes_on(changes.len(), bytes) {
            let block = match self.pipeline.next().await {
                Some(Ok(Some(block))) => block,
                None => break,
                // What came before it is good; the error shows again, alone, if it stays.
                Some(_) if !changes.is_empty() => {
                    self.pipeline.clear();
                    break;
                }
                Some(Ok(None)) => bail!("no node has block {}", self.next),
                Some(Err(error)) => bail!("{}", chain_of(&error)),
            };
            let head = block.block.head();
            if let Err(misfit) = self.fits(last, head) {
                self.misfits += 1;
                return Err(misfit);
            }
            bytes += block.weight();
            last = Some(head);
            changes.push(Change::Replayed(Box::new(block)));
        }
        self.misfits = 0;
        self.last = last;
        Ok(changes)
    }

    /// It stands on the one before it, and where ingest has published that height, it is the same block.
    fn fits(&self, last: Option<Head>, head: Head) -> anyhow::Result<()> {
        let number = head.number;
        if let Some(last) = last.filter(|last| last.hash != head.parent_hash || last.number.checked_add(1) != Some(number)) {
            bail!("block {number} ({}) stands on {}; expected {}, which was replayed", head.hash, head.parent_hash, last.hash);
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
        let mut outgoing = Outgoing::default();
        for change in changes {
            let (block, of_block) = records(self.chain.id, 0, change, Settled::default());
            next = block.number + 1;
            logs += of_block.logs.len();
            outgoing.block(self.kafka, &block, &of_block);
        }
        let offset = i64::try_from(next).map_err(|_| Failure::Halt(anyhow!("block number {next} is no offset")))?;
        let transaction = self.producer.begin()?;
        outgoing.send(&transaction, self.chain.id)?;
        transaction.send_offsets(&[(Topic::Blocks, 0, offset)], &self.group)?;
        transaction.commit()?;
        self.next = next;
        let labels = [("chain", self.chain.name.as_str())];
        metrics::CHAIN_BLOCKS.counter(&[labels[0], ("kind", "replayed")]).increment(count as u64);
        metrics::CHAIN_LOGS.counter(&labels).increment(logs as u64);
        Ok(())
    }
}
