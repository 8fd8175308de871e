//! The role: `sweep.events` is read back, then `chain.blocks` is read on, and each chain's engine turns about once a second.
//!
//! It is the one process with keys. It may be killed anywhere, and two may run: all that they do follows from rows.

use crate::catch_up::{CatchUp, RECORD_TIMEOUT};
use crate::deposit_keys::{self, DepositKeys};
use crate::engine::fold::drop_outgoing;
use crate::engine::history;
use crate::engine::node::Nodes;
use crate::engine::outgoing::Pace;
use crate::engine::work::Engine;
use crate::keys::Seeds;
use crate::reading::{self, READING};
use crate::records::SweepEvents;
use crate::restore::STAGE as RESTORING;
use crate::{outcomes, plan};
use anyhow::Context as _;
use chain::{Chain, Chains, Listing, Rpc};
use deadpool_postgres::Pool;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use runtime::db::{self, CommitMode, Gate};
use runtime::kafka::Publisher;
use runtime::stage::Notice;
use runtime::{Failure, Kafka, Settings, compared, stage};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use topics::{ChainId, Topic};

const TURNS: &str = "sweeper-turns";
/// From one turn of a chain to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// Of the engines of all chains and the stage that reads; one more for keys.
const POOL_SIZE: usize = 10;
const KEY_POOL_SIZE: usize = 2;
/// Times in seconds, prices in wei.
const PACE: Pace = Pace { max_fee: 500_000_000_000, raise: 125, resend_after: 30, stuck_after: 60, raise_after: 5 };

/// What of a chain's settings the engine goes by.
fn pace(_chain: &Chain) -> Pace {
    PACE
}

fn pace_of(chains: &Chains, chain: ChainId) -> Pace {
    chains.by_id(chain).map_or(PACE, pace)
}

/// Checks the file of mnemonics, which no retry mends.
///
/// # Errors
/// If others can read it, or it holds no mnemonic.
pub fn check(mnemonic_file: &Path) -> anyhow::Result<()> {
    Seeds::read(mnemonic_file)?;
    Ok(())
}

/// Runs until `stop`.
///
/// # Errors
/// When the configuration is wrong, the mnemonics are another account's, or a stage halts.
pub async fn run(
    settings: Settings,
    kafka: Kafka,
    listing: Listing,
    mnemonic_file: &Path,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let seeds = Seeds::read(mnemonic_file)?;
    let catch_up = CatchUp::new(kafka.clone(), &settings, PACE)?;
    let pool = db::generic_plan_pool(&settings.database_url, POOL_SIZE, CommitMode::Synchronous, Some(catch_up.gate()))?;
    let key_pool =
        db::generic_plan_pool(&settings.database_url, KEY_POOL_SIZE, CommitMode::Synchronous, Some(catch_up.gate()))?;
    // Of another installation's topics, or with another's database, it would send what is not ours.
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        () = compared::await_comparison("sweeper", &kafka, catch_up.pool(), Topic::Sweeps) => {}
    }
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        checked = await_account(catch_up.pool(), &seeds) => checked?,
    }

    let mut stages = JoinSet::new();
    let (lease, stopped) = (catch_up.clone(), stop.clone());
    stages.spawn(async move {
        tokio::select! {
            never = lease.keep_lease() => match never {},
            () = stopped.cancelled() => Ok(()),
        }
    });
    let (restoring, handle) = (catch_up.clone(), Handle::current());
    stages.spawn(stage::run(RESTORING, stop.clone(), move |stop| restoring.follow(&handle, stop)));
    // Nothing is read on, signed or sent before Postgres has what the topic has.
    tokio::select! {
        () = catch_up.gate().opened() => {}
        () = stop.cancelled() => return wind_down(stages, &stop).await,
        Some(ended) = stages.join_next() => return ended?,
    }
    let (read_kafka, read_pool, listed, handle) = (kafka.clone(), pool.clone(), listing.clone(), Handle::current());
    stages.spawn(stage::run(READING.stage, stop.clone(), move |stop| {
        let chains = listed.chains();
        reading::run(&read_kafka, &read_pool, &handle, |chain| pace_of(&chains, chain), stop)
    }));
    let publisher = Publisher::open(&kafka, RECORD_TIMEOUT)?;
    let keys = Arc::new(DepositKeys { seeds, pool: key_pool });
    let turns = Turns { kafka, pool, gate: catch_up.gate().clone(), listing, keys, publisher };
    let handle = Handle::current();
    stages.spawn(stage::run(TURNS, stop.clone(), move |stop| handle.block_on(turns.run(stop))));
    wind_down(stages, &stop).await
}

async fn wind_down(mut stages: JoinSet<anyhow::Result<()>>, stop: &CancellationToken) -> anyhow::Result<()> {
    while let Some(ended) = stages.join_next().await {
        ended??;
        if !stop.is_cancelled() {
            anyhow::bail!("a stage of the sweeper ended by itself");
        }
    }
    Ok(())
}

/// Waits until it is known whose keys are expected.
async fn await_account(pool: &Pool, seeds: &Seeds) -> anyhow::Result<()> {
    let mut notice = Notice::of("sweeper: account".to_owned());
    let mut turns = tokio::time::interval(INTERVAL);
    for turn in 0_u32.. {
        turns.tick().await;
        let checked = async { deposit_keys::check(&pool.get().await?, seeds).await };
        let cause = match checked.await {
            Ok(Some(expected)) => return expected.context("CTRIP_MNEMONIC_FILE"),
            Ok(None) => "no API has noted its account (CTRIP_XPUB) in Postgres yet".to_owned(),
            Err(failure) => failure.to_string(),
        };
        // Roles that start together wait for each other.
        if turn > 10 {
            notice.show(Some(cause));
        }
    }
    Ok(())
}

/// The engines of all chains, each with a turn of its own: one that is slow holds up no other.
struct Turns {
    kafka: Kafka,
    pool: Pool,
    gate: Gate,
    listing: Listing,
    keys: Arc<DepositKeys>,
    publisher: Publisher,
}

/// The engine of a chain as it is listed.
struct OfChain {
    chain: Chain,
    engine: Engine,
    keys: Arc<DepositKeys>,
    events: Arc<SweepEvents>,
}

impl OfChain {
    async fn turn(&self) -> Result<(), Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let accounts = self.keys.accounts().await?;
        let settings = plan::Settings::of(&self.chain, accounts);
        let planned = plan::queue_due(&mut self.engine.pool.get().await?, self.chain.id, &settings, now).await?;
        for id in planned.to_drop {
            drop_outgoing(&self.engine.pool, id, &self.engine.pace).await?;
        }
        // Before a block is read, no sender is counted, and each would be tried in vain.
        if history::has_head(&self.engine.pool.get().await?, self.chain.id).await? {
            self.engine.turn(now).await?;
        }
        outcomes::tell(&self.engine.pool, &self.events, self.chain.id).await
    }
}

impl Turns {
    fn of_chain(&self, chain: &Chain) -> OfChain {
        let chain_name = chain.name.clone();
        let events = Arc::new(SweepEvents { kafka: self.kafka.clone(), publisher: self.publisher.clone(), chain_name });
        let nodes = Nodes::new(Rpc::new(&chain.name, &chain.rpc_urls, Some(chain.id)), chain.witnesses);
        let (keys, records) = (self.keys.clone(), events.clone());
        let engine = Engine::new(chain.id, self.pool.clone(), nodes, keys.clone(), records, pace(chain));
        OfChain { chain: chain.clone(), engine, keys, events }
    }

    async fn run(&self, stop: &CancellationToken) -> Result<(), Failure> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listed = self.listing.chains();
        let mut engines: HashMap<ChainId, Arc<OfChain>> = HashMap::new();
        let (mut running, mut turns) = (HashSet::new(), FuturesUnordered::new());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = turns.next() => {
                    running.remove(&ended);
                    continue;
                }
                _ = ticks.tick() => {}
            }
            // Another database has taken the place of the one before: a stage tells that it is read into first.
            if self.gate.opened().now_or_never().is_none() {
                continue;
            }
            let chains = self.listing.chains();
            if !Arc::ptr_eq(&chains, &listed) {
                engines.clear();
                listed = chains;
            }
            for chain in listed.iter().filter(|chain| running.insert(chain.id)) {
                let of_chain = engines.entry(chain.id).or_insert_with(|| Arc::new(self.of_chain(chain))).clone();
                turns.push(async move {
                    // It is tried again at the next turn. Of a database that is away another stage tells.
                    if let Err(failure) = of_chain.turn().await {
                        tracing::warn!(chain = of_chain.chain.name, "it waits: {failure}");
                    }
                    of_chain.chain.id
                });
            }
        }
        // A turn that is cut off loses nothing.
        Ok(())
    }
}
