//! The role: one stage per chain that is listed, which publishes what its follower brings. A chain that halts leaves the others running.

use crate::cursor::{StoredCursor, restore};
use crate::follow::Follower;
use crate::halt::{self, Halted};
use crate::prefetch::BatchSizes;
use crate::publish::{STAGE, publish_batch};
use base::metrics;
use chain::{Chain, Heads, Listing, Probe, Rpc};
use runtime::kafka::{Kafka, TransactionalProducer};
use runtime::{Failure, Settings, stage};
use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use topics::ChainId;

/// How soon a chain is tried again that halted without its cursor saying so, such as one whose cursor can't be read.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// Follows every chain that is listed until `stop`. A chain that halts is logged and shown in a metric; the others go on.
///
/// # Errors
/// When a dependency can't be reached at the start.
pub async fn run(settings: Settings, kafka: Kafka, listing: Listing, stop: CancellationToken) -> anyhow::Result<()> {
    let sizes = BatchSizes::of(&settings);

    let (mut tasks, mut followed, mut changes) = (JoinSet::new(), HashSet::new(), listing.changes());
    while !stop.is_cancelled() {
        for chain in listing.chains().iter().filter(|chain| followed.insert(chain.id)) {
            tasks.spawn(follow_as_listed(kafka.clone(), listing.clone(), chain.id, sizes, stop.clone()));
        }
        tokio::select! {
            () = stop.cancelled() => {}
            Ok(()) = changes.changed() => {}
            Some(ended) = tasks.join_next() => match ended {
                Ok(chain) => {
                    followed.remove(&chain);
                }
                // The others go on. A stage outlives panics; this is a task beside it.
                Err(error) => {
                    tracing::error!("a task of a chain ended: {error}");
                    stage::waits(STAGE, &format!("a task of a chain ended: {error}"));
                }
            },
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Follows a chain as it is listed until it is listed no more, which it returns then, or until `stop`.
async fn follow_as_listed(kafka: Kafka, listing: Listing, id: ChainId, sizes: BatchSizes, stop: CancellationToken) -> ChainId {
    let mut changes = listing.changes();
    while !stop.is_cancelled() {
        let Some(chain) = changes.borrow_and_update().by_id(id).cloned() else { return id };
        if let Some(why) = chain.unwitnessed() {
            tracing::warn!(chain = chain.name, "{why}");
        }
        let (rpc, chain, until) = (Arc::new(Rpc::of(&chain)), Arc::new(chain), stop.child_token());
        let heads = Heads::of(&chain);
        let changed = changes.wait_for(|chains| !chains.by_id(id).is_some_and(|listed| listed.is_followed_as(&chain)));
        let following = async {
            let logging = log_endpoints(chain.clone(), rpc.clone(), until.clone());
            tokio::join!(follow(kafka.clone(), chain.clone(), rpc.clone(), heads, sizes, until.clone()), logging);
        };
        let end = async {
            let _ = until.run_until_cancelled(changed).await;
            until.cancel();
        };
        tokio::join!(following, end);
    }
    id
}

/// Logs the capabilities of each endpoint. It runs beside the chains, which a node without an answer would otherwise delay.
async fn log_endpoints(chain: Arc<Chain>, rpc: Arc<Rpc>, stop: CancellationToken) {
    let Some(probes) = stop.run_until_cancelled(rpc.probe()).await else { return };
    let newest = probes.iter().filter_map(|probe| probe.head).max();
    let rows: Vec<Vec<String>> = [Probe::columns()].into_iter().chain(probes.iter().map(|probe| probe.cells(newest))).collect();
    for line in base::text::table(&rows).lines() {
        tracing::info!(chain = chain.name, "{line}");
    }
    for probe in probes {
        if let Some(error) = probe.error {
            tracing::warn!(chain = chain.name, endpoint = probe.endpoint, "endpoint not usable now: {error}");
        }
    }
}

impl BatchSizes {
    /// Those of the operator.
    pub fn of(settings: &Settings) -> Self {
        Self {
            parallel_fetches: usize::from(settings.ingest_parallel_fetches),
            batch_blocks: usize::from(settings.ingest_batch_blocks),
        }
    }
}

async fn follow(kafka: Kafka, chain: Arc<Chain>, rpc: Arc<Rpc>, heads: Heads, sizes: BatchSizes, stop: CancellationToken) {
    let halted = metrics::CHAIN_HALTED.gauge(&[("chain", &chain.name)]);
    let handle = Handle::current();
    // A stage's name lives as long as the process; there is one each time that the chain is listed in another way.
    let name: &'static str = format!("{STAGE}-{}", chain.name).leak();
    let waiting_name: &'static str = format!("{name}-halted").leak();
    while !stop.is_cancelled() {
        halted.set(0.0);
        stage::resumed(name);
        let (handle, to, followed, rpc, heads) = (handle.clone(), kafka.clone(), chain.clone(), rpc.clone(), heads.clone());
        let outcome =
            stage::run(name, stop.clone(), move |stop| publish(&handle, &to, &followed, &rpc, &heads, sizes, stop)).await;
        let Err(error) = outcome else { break };
        halted.set(1.0);
        // It waits here: returning an error would stop the other chains too.
        stage::waits(name, &format!("{error:#}"));
        if error.downcast_ref::<Halted>().is_none() {
            // Nothing of it is written down, and a person who mends it need not tell.
            tracing::error!(chain = chain.name, "halted, trying again in {RETRY_INTERVAL:?}: {error:#}");
            stop.run_until_cancelled(tokio::time::sleep(RETRY_INTERVAL)).await;
            continue;
        }
        tracing::error!(chain = chain.name, "halted until a person resumes it: {error:#}");
        let (asked, id) = (kafka.clone(), chain.id);
        let waited = stage::run(waiting_name, stop.clone(), move |stop| halt::wait_until_resumed(&asked, id, stop)).await;
        match waited {
            Ok(()) if !stop.is_cancelled() => tracing::warn!(chain = chain.name, "resumed"),
            Ok(()) => {}
            Err(error) => tracing::error!(chain = chain.name, "{error:#}"),
        }
    }
    halted.set(0.0);
    stage::resumed(name);
}

/// Publishes a chain from its cursor on. Data and cursor are in one transaction; after any error it starts over from what was
/// committed.
fn publish(
    handle: &Handle,
    kafka: &Kafka,
    chain: &Arc<Chain>,
    rpc: &Arc<Rpc>,
    heads: &Heads,
    sizes: BatchSizes,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let is_of_chain = handle.block_on(stop.run_until_cancelled(rpc.refuse_wrong_chain()));
    is_of_chain.unwrap_or(Ok(())).map_err(Failure::halt)?;
    let producer = TransactionalProducer::open(kafka, &format!("{STAGE}-{}", chain.id))?;
    // Read after the fencing: a predecessor with the same transactional id can't move the cursor any more.
    let stored = halt::read(kafka, chain.id)?.unwrap_or_else(|| StoredCursor::of_new_chain(chain.id));
    if !stored.cursor.halted.is_empty() {
        return Err(Failure::halt(Halted { chain: chain.name.clone(), cause: stored.cursor.halted }));
    }
    let (mut sequence, window, mut written) = restore(chain.id, &stored).map_err(Failure::halt)?;
    let (reaches, expected) = (window.bottom().map(|bottom| bottom.number), stored.cursor.bottom_number);
    if expected.is_some() && reaches != expected {
        let chain = &chain.name;
        tracing::warn!(
            chain,
            "chain.cursors lacks parts of the window: it reaches down to {reaches:?} instead of {expected:?}"
        );
    }
    match window.tip() {
        Some(tip) => tracing::info!(chain = chain.name, sequence, "continuing after block {}", tip.number),
        None => {
            let start = chain.start_block.map_or("the head".into(), |number| number.to_string());
            tracing::info!(chain = chain.name, "starting at {start}, or at the last final block if that is below");
        }
    }
    let mut follower = Follower::new(chain.clone(), rpc.clone(), heads.clone(), window, sizes);
    let (name, mut lasting_wait) = (format!("{STAGE}-{}", chain.name), follower.lasting_wait());
    loop {
        let next = handle.block_on(async {
            let mut next = pin!(follower.next());
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return None,
                    Ok(()) = lasting_wait.changed() => match lasting_wait.borrow_and_update().as_deref() {
                        Some(cause) => stage::waits(&name, cause),
                        None => stage::resumed(&name),
                    },
                    batch = &mut next => return Some(batch),
                }
            }
        });
        let Some(batch) = next else { return Ok(()) };
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                let halted = Halted { chain: chain.name.clone(), cause: error.to_string() };
                halt::write(&producer, kafka, chain.id, sequence, follower.window(), &halted.cause, &mut written)?;
                return Err(Failure::halt(halted));
            }
        };
        sequence = publish_batch(&producer, kafka, chain, sequence, batch, follower.window(), &mut written)?;
    }
}
