//! The role: one thread a chain, which publishes what its follower brings.

use crate::follow::{Batch, Follower};
use crate::halt::{self, Halted};
use crate::records::{Change, cursor, records, restore};
use crate::window::Window;
use anyhow::Context as _;
use chain::{Chain, Chains, Heads, Probe, Rpc};
use runtime::kafka::{Kafka, Transaction, TransactionalProducer};
use runtime::{Failure, Settings, metrics, stage};
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use topics::wire::{BlockRecord, LogsRecord};
use topics::{ChainId, Topic};

pub const STAGE: &str = "ingest";

/// The role: follows every chain of `chains.yaml` until `stop`.
///
/// A chain that halts says so in the log and in a metric, and the others go on.
///
/// # Errors
/// Before it starts: when the chains file is wrong, or a node is of another chain than the file says.
pub async fn run(settings: Settings, stop: CancellationToken) -> anyhow::Result<()> {
    let chains = Chains::load(&settings.chains_file)?.resolve().await?;
    let mut followed = Vec::new();
    for chain in chains {
        followed.push(reach(chain).await?);
    }
    let kafka = Kafka::connect(&settings).await?;

    let mut tasks = JoinSet::new();
    for (chain, rpc) in followed {
        tasks.spawn(tell_endpoints(chain.clone(), rpc.clone(), stop.clone()));
        let heads = Heads::of(&chain);
        tasks.spawn(follow(kafka.clone(), chain, rpc, heads, stop.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a chain's task panicked")?;
    }
    Ok(())
}

/// A chain with its nodes, none of which is of another chain.
///
/// # Errors
/// When one is.
pub async fn reach(chain: Chain) -> anyhow::Result<(Arc<Chain>, Arc<Rpc>)> {
    let rpc = Rpc::of(&chain);
    rpc.refuse_wrong_chain().await.with_context(|| format!("chain {}", chain.name))?;
    Ok((Arc::new(chain), Arc::new(rpc)))
}

/// Logs what each endpoint can do. Beside the chains, since a node that does not answer would hold all of them up.
async fn tell_endpoints(chain: Arc<Chain>, rpc: Arc<Rpc>, stop: CancellationToken) {
    let Some(probes) = stop.run_until_cancelled(rpc.probe()).await else { return };
    let newest = probes.iter().filter_map(|probe| probe.head).max();
    let rows: Vec<Vec<String>> = [Probe::columns()].into_iter().chain(probes.iter().map(|probe| probe.cells(newest))).collect();
    for line in chain::table(&rows).lines() {
        tracing::info!(chain = chain.name, "{line}");
    }
    for probe in probes {
        if let Some(error) = probe.error {
            tracing::warn!(chain = chain.name, endpoint = probe.endpoint, "not usable now: {error}");
        }
    }
}

async fn follow(kafka: Kafka, chain: Arc<Chain>, rpc: Arc<Rpc>, heads: Heads, stop: CancellationToken) {
    let halted = metrics::CHAIN_HALTED.gauge(&[("chain", &chain.name)]);
    let handle = Handle::current();
    // A stage's name lives as long as the process; there is one a chain.
    let name: &'static str = format!("{STAGE}-{}", chain.name).leak();
    while !stop.is_cancelled() {
        halted.set(0.0);
        let (handle, to, followed, rpc, heads) = (handle.clone(), kafka.clone(), chain.clone(), rpc.clone(), heads.clone());
        let outcome = stage::run(name, stop.clone(), move |stop| publish(&handle, &to, &followed, &rpc, &heads, stop)).await;
        let Err(error) = outcome else { return };
        halted.set(1.0);
        tracing::error!(chain = chain.name, "halted, a person must look at it: {error:#}");
        // It waits here, since ending would take the other chains down.
        if error.downcast_ref::<Halted>().is_none() {
            return stop.cancelled().await;
        }
        let (asked, id) = (kafka.clone(), chain.id);
        let waited = stage::run(name, stop.clone(), move |stop| halt::until_resumed(&asked, id, stop)).await;
        match waited {
            Ok(()) if !stop.is_cancelled() => tracing::warn!(chain = chain.name, "resumed"),
            Ok(()) => {}
            Err(error) => tracing::error!(chain = chain.name, "{error:#}"),
        }
    }
}

/// Publishes a chain from its cursor on. Data and cursor are in one transaction; after any error all of it starts again
/// from what was committed.
fn publish(
    handle: &Handle,
    kafka: &Kafka,
    chain: &Arc<Chain>,
    rpc: &Arc<Rpc>,
    heads: &Heads,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let producer = TransactionalProducer::open(kafka, &format!("{STAGE}-{}", chain.id))?;
    // Only now: whoever had the id before can't move the cursor any more.
    let cursor = halt::read(kafka, chain.id)?.unwrap_or_else(|| cursor(chain.id, 0, &Window::default()));
    if !cursor.halted.is_empty() {
        return Err(Failure::halt(Halted { chain: chain.name.clone(), cause: cursor.halted }));
    }
    let (mut sequence, window) = restore(chain.id, &cursor).map_err(Failure::halt)?;
    match window.tip() {
        Some(tip) => tracing::info!(chain = chain.name, sequence, "going on after block {}", tip.number),
        None => tracing::info!(
            chain = chain.name,
            "starting, at {}",
            chain.start_block.map_or("the head".into(), |n| n.to_string())
        ),
    }
    let mut follower = Follower::new(chain.clone(), rpc.clone(), heads.clone(), window);
    loop {
        let next = handle.block_on(async {
            tokio::select! {
                biased;
                () = stop.cancelled() => None,
                batch = follower.next() => Some(batch),
            }
        });
        let Some(batch) = next else { return Ok(()) };
        let batch = match batch {
            Ok(batch) => batch,
            Err(too_deep) => {
                let halted = Halted { chain: chain.name.clone(), cause: too_deep.to_string() };
                halt::write(&producer, kafka, chain.id, sequence, follower.window(), &halted.cause)?;
                return Err(Failure::halt(halted));
            }
        };
        sequence = send(&producer, kafka, chain, sequence, batch, follower.window())?;
    }
}

/// The records of a batch, as bytes. They are all made before the first is sent: so the producer has them at once and sends them
/// together. (While a request is under way, librdkafka's thread waits busily for its turn to send what came too late for it.)
#[derive(Default)]
pub struct Outgoing(Vec<(Topic, Vec<u8>)>);

impl Outgoing {
    /// Adds the two records of a block.
    pub fn block(&mut self, kafka: &Kafka, block: &BlockRecord, logs: &LogsRecord) {
        self.0.push((Topic::Blocks, kafka.encode(block)));
        self.0.push((Topic::Logs, kafka.encode(logs)));
    }

    /// Sends all, under the chain's key.
    pub fn send(&self, transaction: &Transaction<'_>, chain: ChainId) -> Result<(), Failure> {
        let key = chain.to_string();
        self.0.iter().try_for_each(|(topic, record)| transaction.send(*topic, &key, record))
    }
}

/// Sends a batch with its cursor in one transaction, and gives the sequence of its last record.
fn send(
    producer: &TransactionalProducer,
    kafka: &Kafka,
    chain: &Chain,
    mut sequence: u64,
    batch: Batch,
    window: &Window,
) -> Result<u64, Failure> {
    let started = Instant::now();
    let (mut added, mut removed, mut logs) = (0, 0, 0);
    let mut outgoing = Outgoing::default();
    for change in batch.changes {
        match &change {
            Change::Added(block) => {
                added += 1;
                logs += block.logs.len() as u64;
            }
            Change::Replayed(_) => {}
            Change::Removed(_) => removed += 1,
        }
        sequence += 1;
        let (block, of_block) = records(chain.id, sequence, change, batch.settled);
        outgoing.block(kafka, &block, &of_block);
    }
    outgoing.0.push((Topic::Cursors, kafka.encode(&cursor(chain.id, sequence, window))));
    let transaction = producer.begin()?;
    outgoing.send(&transaction, chain.id)?;
    transaction.commit()?;

    let labels = [("chain", chain.name.as_str())];
    metrics::STAGE_LATENCY.histogram(&[("stage", STAGE)]).record(started.elapsed().as_secs_f64());
    metrics::STAGE_RECORDS.counter(&[("stage", STAGE)]).increment(added + removed);
    metrics::CHAIN_BLOCKS.counter(&[labels[0], ("kind", "added")]).increment(added);
    metrics::CHAIN_BLOCKS.counter(&[labels[0], ("kind", "removed")]).increment(removed);
    metrics::CHAIN_LOGS.counter(&labels).increment(logs);
    if let Some(tip) = window.tip() {
        #[expect(clippy::cast_precision_loss, reason = "block numbers are far below 2^52")]
        metrics::CHAIN_HEAD_BLOCK.gauge(&labels).set(tip.number as f64);
    }
    Ok(sequence)
}
