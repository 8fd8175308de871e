//! The role: `sweep.events` is read back, then `chain.blocks` is read on, and what is to be done on each chain is done about
//! once a second: to plan, to send and to tell.
//!
//! It is the one process with keys. It may be killed anywhere, and two may run: all that they do follows from rows.

use crate::allowed::Allowed;
use crate::catch_up::{CatchUp, Looks};
use crate::deposit_keys::{self, DepositKeys, Unfit};
use crate::engine::fold::drop_outgoing;
use crate::engine::history;
use crate::engine::node::Nodes;
use crate::engine::outgoing::Pace;
use crate::engine::work::Engine;
use crate::keys::Seeds;
use crate::plan::{balances, check_treasury, estimate_gas, payers};
use crate::reading::{self, READING};
use crate::records::SweepEvents;
use crate::restore::STAGE as RESTORING;
use crate::{outcomes, plan, topic_lost};
use alloy::primitives::{Address, B256};
use base::metrics;
use chain::{Chain, Chains, Listing, Rpc};
use deadpool_postgres::Pool;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use runtime::db::{self, CommitMode, Gate, OwnConnection};
use runtime::kafka::Publisher;
use runtime::stage::Notice;
use runtime::{Failure, Kafka, Settings, compared, stage};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use topics::{ChainId, Topic};

const TURNS: &str = "sweeper-turns";
/// From one turn of a chain to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// Of the engines of all chains, the stage that reads and the one that notes the topic's growth.
const POOL_SIZE: usize = 10;
const KEY_POOL_SIZE: usize = 2;
/// How long what was found of a treasury is believed, and how long it is not asked again where no node tells.
const TREASURY_TTL: Duration = Duration::from_secs(600);
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);

fn pace_of(chains: &Chains, chain: ChainId) -> Pace {
    chains.by_id(chain).map_or(Pace::USUAL, Pace::of)
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
/// When the configuration is wrong, or a stage halts. With mnemonics of another account it waits.
pub async fn run(
    settings: Settings,
    kafka: Kafka,
    listing: Listing,
    mnemonic_file: &Path,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let seeds = Arc::new(Seeds::read(mnemonic_file)?);
    let catch_up = CatchUp::new(kafka.clone(), &settings, listing.clone(), seeds.clone())?;
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
        () = await_account(catch_up.pool(), &seeds) => {}
    }

    let mut stages = JoinSet::new();
    let (lease, stopped) = (catch_up.clone(), stop.clone());
    stages.spawn(async move {
        tokio::select! {
            never = lease.keep_lease() => match never {},
            () = stopped.cancelled() => Ok(()),
        }
    });
    let (restoring, handle, mut looks) = (catch_up.clone(), Handle::current(), Looks::default());
    stages.spawn(stage::run(RESTORING, stop.clone(), move |stop| restoring.follow(&handle, &mut looks, stop)));
    // Nothing is read on, signed or sent before Postgres has what the topic has.
    tokio::select! {
        () = catch_up.gate().opened() => {}
        () = stop.cancelled() => return stage::all_ended(stages, "sweeper", &stop).await,
        Some(ended) = stages.join_next() => return ended?,
    }
    let (read_kafka, read_pool, listed, handle) = (kafka.clone(), pool.clone(), listing.clone(), Handle::current());
    stages.spawn(stage::run(READING.stage, stop.clone(), move |stop| {
        // As they are listed by now: a signal may list them anew.
        reading::run(&read_kafka, &read_pool, &handle, |chain| pace_of(&listed.chains(), chain), stop)
    }));
    let (grown_kafka, grown_pool, gate, handle) = (kafka.clone(), pool.clone(), catch_up.gate().clone(), Handle::current());
    stages.spawn(stage::run(topic_lost::STAGE, stop.clone(), move |stop| {
        topic_lost::follow(&grown_kafka, &grown_pool, &gate, &handle, stop)
    }));
    let publisher = catch_up.publisher().clone();
    let keys = Arc::new(DepositKeys { seeds, pool: key_pool });
    let (gate, last_place) = (catch_up.gate().clone(), catch_up.last_place().clone());
    let turns = Turns { kafka, pool, gate, listing, keys, publisher, last_place };
    let handle = Handle::current();
    stages.spawn(stage::run(TURNS, stop.clone(), move |stop| handle.block_on(turns.run(stop))));
    stage::all_ended(stages, "sweeper", &stop).await
}

/// Waits until it has the keys that are expected, and signs nothing before: the roles of `ctrip up` go on meanwhile.
async fn await_account(pool: &Pool, seeds: &Seeds) {
    let mut notice = Notice::of("sweeper: account".to_owned());
    let mut turns = tokio::time::interval(INTERVAL);
    // Roles that start together wait for each other.
    let mut patience = 10_u32;
    loop {
        turns.tick().await;
        let checked = async { deposit_keys::check(&*OwnConnection::open(pool).await?.db()?, seeds).await };
        let cause = match checked.await {
            Ok(Ok(())) => return,
            Ok(Err(unfit)) => {
                if matches!(unfit, Unfit::OtherAccount(_)) {
                    patience = 0;
                }
                unfit.to_string()
            }
            Err(failure) => failure.to_string(),
        };
        match patience {
            0 => notice.show(Some(cause)),
            _ => patience -= 1,
        }
    }
}

/// What is done on a chain, each with a turn of its own: nodes that hang keep nothing from being told, and a slow plan nothing
/// from being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Part {
    Planning,
    Sending,
    Telling,
}

impl Part {
    const ALL: [Self; 3] = [Self::Planning, Self::Sending, Self::Telling];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Sending => "sending",
            Self::Telling => "telling",
        }
    }
}

/// The engines of all chains: one that is slow holds up no other.
struct Turns {
    kafka: Kafka,
    pool: Pool,
    gate: Gate,
    listing: Listing,
    keys: Arc<DepositKeys>,
    publisher: Publisher,
    last_place: Arc<AtomicI64>,
}

/// Whether a chain that is listed anew is swept as it was: of all that may change, tokens and doubts of them change most.
fn is_swept_alike(one: &Chain, other: &Chain) -> bool {
    let parts = |chain: &Chain| (chain.name.clone(), chain.rpc_urls.clone(), chain.witnesses, chain.sweeping.clone());
    let depths = |chain: &Chain| (chain.policy, chain.tiers.clone());
    parts(one) == parts(other) && depths(one) == depths(other)
}

/// What was found of a treasury.
#[derive(Clone)]
struct Treasury {
    ask_at: Instant,
    /// The last that a node told.
    gas_limit: Option<u64>,
    /// Why no sweep can be made.
    refused: Option<String>,
}

/// The engine of a chain as it is listed.
struct OfChain {
    chain: Chain,
    engine: Engine,
    keys: Arc<DepositKeys>,
    events: Arc<SweepEvents>,
    gate: Gate,
    rpc: Rpc,
    treasury: Mutex<Option<Treasury>>,
    /// Of its turns, where the chain is listed otherwise by now: one that is cut off loses nothing.
    cut: CancellationToken,
    notices: HashMap<Part, Mutex<Notice>>,
}

impl OfChain {
    /// A turn of a part. It is tried again at the next one, and told of until it succeeds.
    async fn turn(&self, part: Part) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ended = match part {
            Part::Planning => self.plan(now).await,
            Part::Sending => self.send(now).await,
            Part::Telling => self.tell(now).await,
        };
        // Of a database that is away another stage tells.
        let failure = ended.err().filter(|_| self.gate.is_open());
        if let Some(notice) = self.notices.get(&part) {
            notice.lock().await.show(failure.map(|failure| failure.to_string()));
        }
    }

    async fn plan(&self, now: u64) -> Result<(), Failure> {
        if !plan::store::has_work(&self.engine.pool.get().await?, self.chain.id, now).await? {
            return Ok(());
        }
        let accounts = self.keys.accounts().await?;
        let settings = match self.chain.sweeping.treasury {
            Some(treasury) => {
                let price = self.engine.nodes.market().await.map(|market| market.price());
                if let Some(price) = price {
                    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
                    metrics::GAS_PRICE.gauge(&[("chain", &self.chain.name)]).set(price as f64);
                }
                let Treasury { gas_limit, refused, .. } = self.ask_treasury(treasury, &accounts, price, now).await?;
                plan::Settings { refused, ..plan::Settings::of(&self.chain, gas_limit, price, accounts) }
            }
            // What is under way to the one of before is dropped.
            None => plan::Settings::of(&self.chain, None, None, accounts),
        };
        let chain = self.chain.id;
        let ask = async |addresses: &[Address], block: B256| balances(&self.rpc, addresses, block).await;
        let planned = plan::queue_due(&mut self.engine.pool.get().await?, chain, &settings, ask, now).await;
        // Whatever came of it.
        let unwanted = plan::to_drop(&self.engine.pool.get().await?, chain).await?;
        for id in unwanted {
            drop_outgoing(&self.engine.pool, id, &self.engine.pace).await?;
        }
        match planned?.waits {
            Some(waits) if waits.ends_what_is_unsigned() => Err(Failure::Retry(anyhow::Error::new(waits))),
            _ => Ok(()),
        }
    }

    /// What a sweep to the treasury takes, and whether it can be one. It is asked now and then: a contract may be made anew.
    async fn ask_treasury(
        &self,
        treasury: Address,
        accounts: &[String],
        price: Option<u128>,
        now: u64,
    ) -> Result<Treasury, Failure> {
        let mut known = self.treasury.lock().await;
        if let Some(known) = known.as_ref().filter(|known| Instant::now() < known.ask_at) {
            return Ok(known.clone());
        }
        let (later, payers) = {
            let db = self.engine.pool.get().await?;
            let later = check_treasury(&db, treasury, accounts).await?;
            (later, payers(&db, self.chain.id, now).await?)
        };
        let last = known.as_ref().and_then(|known| known.gas_limit);
        let asked = match (later, last) {
            (Some(later), _) => Err(later),
            // Without anybody who could send it, a node says less than is known.
            (None, Some(_)) if payers.is_empty() => Ok(None),
            (None, _) => {
                let terms = plan::Settings::of(&self.chain, last, price, Vec::new()).terms;
                estimate_gas(&self.rpc, treasury, &payers, &terms).await
            }
        };
        let is_known = !payers.is_empty() && matches!(asked, Ok(Some(_))) || asked.is_err();
        let ask_at = Instant::now() + if is_known { TREASURY_TTL } else { ASK_AGAIN_AFTER };
        let (told, refused) = match asked {
            Ok(told) => (told, None),
            Err(refused) => (None, Some(base::error_chain(&refused))),
        };
        let gas_limit = told.or(last);
        Ok(known.insert(Treasury { ask_at, gas_limit, refused }).clone())
    }

    async fn tell(&self, now: u64) -> Result<(), Failure> {
        let waiting = plan::store::waiting(&self.engine.pool.get().await?, self.chain.id).await?;
        let chain = [("chain", &*self.chain.name)];
        metrics::SWEEP_OLDEST.gauge(&chain).set(waiting.oldest.as_secs_f64());
        metrics::SWEEPS_SET_ASIDE.gauge(&chain).set(f64::from(waiting.set_aside));
        outcomes::tell(&self.engine.pool, &self.events, self.chain.id, now).await?;
        outcomes::refuse_late(&self.engine.pool, self.chain.id, now).await
    }

    async fn send(&self, now: u64) -> Result<(), Failure> {
        {
            let db = self.engine.pool.get().await?;
            // Before a block is read, no sender is counted, and each would be tried in vain.
            if !history::has_head(&db, self.chain.id).await? {
                return Ok(());
            }
            // What goes to the treasury of before is withheld, whatever planning waits for.
            plan::store::replan_to_others(&db, self.chain.id, self.chain.sweeping.treasury).await?;
        }
        self.engine.turn(now).await
    }
}

impl Turns {
    fn of_chain(&self, chain: &Chain) -> OfChain {
        let chain_name = chain.name.clone();
        let events = Arc::new(SweepEvents { kafka: self.kafka.clone(), publisher: self.publisher.clone(), chain_name });
        if let Some(treasury) = chain.sweeping.treasury {
            tracing::info!(chain = chain.name, %treasury, "what arrives is swept to this treasury");
        }
        let rpc = Rpc::of(chain);
        let nodes = Nodes::new(rpc.clone(), chain.witnesses);
        let (keys, records) = (self.keys.clone(), events.clone());
        let rule = Arc::new(Allowed { listing: self.listing.clone(), chain: chain.id });
        let engine = Engine::new(chain.id, self.pool.clone(), nodes, keys.clone(), rule, records, Pace::of(chain));
        let engine = Engine { last_place: self.last_place.clone(), ..engine };
        let notice = |part: Part| Notice::of(format!("sweeper: {} on {}", part.as_str(), chain.name));
        let notices = Part::ALL.into_iter().map(|part| (part, Mutex::new(notice(part)))).collect();
        OfChain {
            chain: chain.clone(),
            engine,
            keys,
            events,
            gate: self.gate.clone(),
            rpc,
            treasury: Mutex::new(None),
            cut: CancellationToken::new(),
            notices,
        }
    }

    async fn run(&self, stop: &CancellationToken) -> Result<(), Failure> {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listed = self.listing.chains();
        let mut changes = self.listing.changes();
        let mut engines: HashMap<ChainId, Arc<OfChain>> = HashMap::new();
        let (mut running, mut turns) = (HashSet::new(), FuturesUnordered::new());
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(ended) = turns.next() => {
                    running.remove(&ended);
                    continue;
                }
                // At once: what was planned by other settings is not to be signed.
                Ok(()) = changes.changed() => {}
                _ = ticks.tick() => {}
            }
            // Another database has taken the place of the one before: a stage tells that it is read into first.
            if !self.gate.is_open() {
                continue;
            }
            let chains = self.listing.chains();
            if !Arc::ptr_eq(&chains, &listed) {
                engines.retain(|id, of_chain| {
                    let is_same = chains.by_id(*id).is_some_and(|chain| is_swept_alike(chain, &of_chain.chain));
                    if !is_same {
                        of_chain.cut.cancel();
                    }
                    is_same
                });
                listed = chains;
            }
            for (chain, part) in listed.iter().flat_map(|chain| Part::ALL.map(|part| (chain, part))) {
                if !running.insert((chain.id, part)) {
                    continue;
                }
                let of_chain = engines.entry(chain.id).or_insert_with(|| Arc::new(self.of_chain(chain))).clone();
                turns.push(async move {
                    let _ = of_chain.cut.run_until_cancelled(of_chain.turn(part)).await;
                    (of_chain.chain.id, part)
                });
            }
        }
        Ok(())
    }
}
