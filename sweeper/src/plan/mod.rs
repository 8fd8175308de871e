//! What is swept from deposit addresses to a chain's treasury, planned from `transfers` and queued into the engine.
//!
//! - `rules` says what leaves an address and what stays, and is pure. `ledger` has the statement that reads what addresses
//!   have, `store` the rows of sweeps, `moved` what a final one has moved, `settings` what chains.yaml and the treasury ask
//!   for, `asked` asks nodes, `treasury` says whether that can be one, `admin` what an operator sees and decides.
//! - All that has arrived counts, stray money too: overpaid, late, unexpected, below `min_transfer`. A token that chains.yaml
//!   does not list is never swept: anyone can make one whose transfer burns the gas that it is given.
//! - Only addresses of accounts whose keys are held are swept; a merchant's own xpub is none of these.
//! - Where the chain has less than a sweep of what the ledger says takes, nothing is swept: the address could pay neither for it
//!   nor for what cancels it. Nodes are asked at the ledger's head, so one that is behind does not decide.
//! - The first sweep to a treasury goes alone, as does each after one that came to nothing: no other is planned before it is
//!   final, or can't be paid for. After one that came to nothing its address waits for a person, and after several in a row the
//!   chain does.
//! - What is planned and not over is dropped and planned anew if the treasury becomes another, or a person says so; and while
//!   it is not signed, also if a hold covers it, or the chain waits for a person. It is withheld from the engine meanwhile.
//! - An address is looked at when something has come to it, and all of them once a day: a backfill brings money in blocks that
//!   were looked at before.
//!
//! Tokens wait: nobody funds their addresses yet. A static address is summed up over all that ever came to it.

pub mod admin;
pub mod asked;
pub mod ledger;
pub mod moved;
pub mod rules;
pub mod settings;
pub mod store;
pub mod treasury;

use crate::engine::content::Content;
use crate::engine::outgoing::Kind;
use crate::engine::rows::LaneId;
use crate::engine::store::{NewOutgoing, Queued, limit_fee, queue};
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use anyhow::anyhow;
use deadpool_postgres::{Client, GenericClient, Transaction};
use futures::{StreamExt as _, TryStreamExt as _};
use ledger::{Of, Ripe};
use rules::{Holding, Holds, MAX_VAIN, Terms, Verdict};
use runtime::Failure;
use std::collections::{BTreeMap, HashMap, HashSet};
use store::{Looked, NewSweep, Past};
use tokio_postgres::IsolationLevel;
use tokio_postgres::error::SqlState;
use topics::ChainId;
use uuid::Uuid;

pub use asked::{balances, estimate_gas};
pub use moved::{Moved, moved};
pub use settings::Settings;
pub use treasury::{MAX_PAYERS, check_treasury, payers};

/// Addresses that are looked at in a turn.
const MAX_BATCH: usize = 500;
/// Statements of a turn that are on their way at the same time.
const MAX_CONCURRENT: usize = 32;
/// When an address is looked at again that waits for depth, or for others of the turn; in seconds.
const LOOK_AGAIN_AFTER: u64 = 30;
/// When all addresses are looked at again; in seconds.
const LOOK_AT_ALL_AFTER: u64 = 86_400;
/// When an address is looked at again that would be worth a sweep if gas were cheaper; in seconds.
const TOO_DEAR_FOR: u64 = 3600;
/// When an address is looked at again that has less than it should, and had the time before; in seconds.
const MISSING_FOR: u64 = 3600;
/// Within so many seconds those are looked at again that could not be planned together: one of them may be why.
const SCATTER: u64 = 600;

/// What a turn has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Sweeps that were queued.
    pub queued: usize,
    /// Why nothing of the chain is planned.
    pub waits: Option<Waits>,
}

/// Why nothing of a chain is planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Waits {
    #[error(
        "the treasury {0} is an address that cTrip gave out, and what arrives there is a payment; expected a wallet of yours"
    )]
    TreasuryGivenOut(Address),
    #[error(
        "the last {MAX_VAIN} sweeps have come to nothing, and the treasury may refuse them all; look at `ctrip sweep status`, \
         then `ctrip sweep retry`"
    )]
    Vain,
    #[error("no node says what gas costs")]
    PriceUnknown,
    #[error("no node says how much gas a sweep to the treasury takes")]
    GasUnknown,
    #[error(
        "a unit of gas costs {price} wei; what pays may offer {max_fee}, as much below max_fee as what cancels it may need"
    )]
    TooDear { price: u128, max_fee: u128 },
    #[error(
        "the first sweep to this treasury, or the first after one that came to nothing, is not final yet and goes alone: {0}; if \
         it gets nowhere, `ctrip sweep status` says why, and `ctrip sweep drop` drops it"
    )]
    FirstUnderWay(Uuid),
    /// As [`settings::Refused`] says.
    #[error("{0}")]
    Refused(String),
}

impl Waits {
    /// Whether what is not signed yet is not to be signed either, before a person has looked.
    pub(crate) const fn ends_what_is_unsigned(&self) -> bool {
        matches!(self, Self::TreasuryGivenOut(_) | Self::Vain | Self::Refused(_))
    }
}

/// Looks at what is due on a chain, and queues what is to be swept. `balances` asks the chain what addresses have after a block;
/// those of which it tells nothing are not swept. Two planners at once do no harm. What is not wanted any more is noted first, and stands
/// whatever comes of the rest: [`to_drop`] names it.
///
/// # Errors
/// When the database fails.
pub async fn queue_due(
    db: &mut Client,
    chain: ChainId,
    settings: &Settings,
    balances: impl AsyncFn(&[Address], B256) -> HashMap<Address, U256>,
    now: u64,
) -> Result<Turn, Failure> {
    store::begin(db, chain).await?;
    let Some(waits) = withdraw(db, chain, settings).await? else { return Ok(Turn::default()) };
    withdraw_taken_back(db, chain, settings).await?;
    // Those that come to be due are who can be asked for, where nobody tells what gas a sweep of nobody takes.
    if waits.as_ref().is_some_and(|waits| *waits != Waits::GasUnknown) || settings.treasury.is_none() {
        return Ok(Turn { queued: 0, waits });
    }
    let mut due = Vec::new();
    let planned = plan_due(db, chain, settings, balances, now, &mut due).await;
    if planned.as_ref().is_err_and(is_of_the_data) && !due.is_empty() {
        // Those that are not at fault are planned without the one that is.
        store::scatter(db, chain, &due, now.saturating_add(LOOK_AGAIN_AFTER), SCATTER).await?;
    }
    Ok(Turn { queued: planned?, waits })
}

/// Outgoing transactions that are to be dropped ([`drop_outgoing`](crate::engine::fold::drop_outgoing)), named again until they
/// are. What is at their addresses is planned anew then.
///
/// # Errors
/// When the database fails.
pub async fn to_drop(db: &impl GenericClient, chain: ChainId) -> Result<Vec<Uuid>, Failure> {
    store::to_drop(db, chain, MAX_BATCH).await
}

/// Whether what was read may be why, or how much it was.
fn is_of_the_data(failure: &Failure) -> bool {
    match failure {
        Failure::Halt(_) => true,
        Failure::Retry(cause) => {
            let error = cause.downcast_ref::<tokio_postgres::Error>();
            error.and_then(tokio_postgres::Error::code) == Some(&SqlState::QUERY_CANCELED)
        }
        Failure::Reopen(_) => false,
    }
}

/// Begins a transaction that keeps other planners of the chain out; `None` if one is at work. All statements of one that plans
/// see one moment (`RepeatableRead`): what has arrived, how deep it is, and what has left. One that withdraws writes rows that
/// the engine writes all the time, waits for that, and goes by what is there then (`ReadCommitted`): else it would fail again.
async fn begin(db: &mut Client, chain: ChainId, sees: IsolationLevel) -> Result<Option<(Transaction<'_>, Looked)>, Failure> {
    let tx = db.build_transaction().isolation_level(sees).start().await?;
    let looked = store::lock(&tx, chain).await?;
    Ok(looked.map(|looked| (tx, looked)))
}

/// Notes what is not wanted any more, and why nothing is planned: whatever comes of planning, that stands. `None` if another one
/// is at work.
async fn withdraw(db: &mut Client, chain: ChainId, settings: &Settings) -> Result<Option<Option<Waits>>, Failure> {
    let Some((tx, _)) = begin(db, chain, IsolationLevel::ReadCommitted).await? else { return Ok(None) };
    let holds = Holds::new(&store::holds(&tx).await?, chain, None);
    let waits = waits(&tx, chain, settings).await?;
    store::set_waits(&tx, chain, waits.as_ref().map(ToString::to_string).as_deref()).await?;
    replan(&tx, chain, settings, &holds, waits.as_ref()).await?;
    tx.commit().await?;
    Ok(Some(waits))
}

/// Notes the same of those that can't be paid for since a reorg has taken back what they were to move.
async fn withdraw_taken_back(db: &mut Client, chain: ChainId, settings: &Settings) -> Result<(), Failure> {
    let unpaid: BTreeMap<Address, Uuid> = store::without_funds(db, chain, MAX_BATCH).await?.into_iter().collect();
    if unpaid.is_empty() {
        return Ok(());
    }
    let Some((tx, _)) = begin(db, chain, IsolationLevel::ReadCommitted).await? else { return Ok(()) };
    let Some(ripe) = ledger::ripe(&tx, chain, settings).await? else { return Ok(()) };
    let addresses: Vec<Address> = unpaid.keys().copied().collect();
    let holdings = ledger::holdings(&tx, chain, settings, &ripe, Of::These(&addresses)).await?;
    let is_there = |address: &Address| {
        // All that it ever had may be gone, and then no row says anything of it.
        holdings.iter().any(|holding| holding.address == *address && !holding.is_taken_back())
    };
    let taken_back: Vec<Uuid> = unpaid.into_iter().filter(|(address, _)| !is_there(address)).map(|(_, id)| id).collect();
    store::replan_without_funds(&tx, &taken_back).await?;
    Ok(tx.commit().await?)
}

/// Queues what is due; returns how many. No lock is held while the chain is asked, so all is looked at once more then.
async fn plan_due(
    db: &mut Client,
    chain: ChainId,
    settings: &Settings,
    balances: impl AsyncFn(&[Address], B256) -> HashMap<Address, U256>,
    now: u64,
    due: &mut Vec<Address>,
) -> Result<usize, Failure> {
    let Some((tx, looked)) = begin(db, chain, IsolationLevel::RepeatableRead).await? else { return Ok(0) };
    let Some(ripe) = ledger::ripe(&tx, chain, settings).await? else { return Ok(0) };
    add_candidates(&tx, chain, settings, &ripe, looked, now).await?;
    *due = store::due(&tx, chain, now, MAX_BATCH).await?;
    let worth = look_at(&tx, chain, settings, &ripe, due, now).await?;
    tx.commit().await?;
    if worth.is_empty() || !settings.knows_gas {
        return Ok(0);
    }
    *due = worth.iter().map(|(holding, _)| holding.address).collect();
    let balances = balances(due, ripe.head).await;
    let Some((tx, _)) = begin(db, chain, IsolationLevel::RepeatableRead).await? else { return Ok(0) };
    let Some(ripe) = ledger::ripe(&tx, chain, settings).await? else { return Ok(0) };
    if waits(&tx, chain, settings).await?.is_some() {
        return Ok(0);
    }
    let worth = look_at(&tx, chain, settings, &ripe, due, now).await?;
    let queued = queue_worth(&tx, chain, settings, worth, &balances, now).await?;
    tx.commit().await?;
    Ok(queued)
}

/// Why nothing of a chain is planned; `None` where nothing keeps it, or nothing is swept.
///
/// # Errors
/// When the database fails.
pub async fn waits(db: &impl GenericClient, chain: ChainId, settings: &Settings) -> Result<Option<Waits>, Failure> {
    let Some(treasury) = settings.treasury else { return Ok(None) };
    if store::is_given_out(db, treasury).await? {
        return Ok(Some(Waits::TreasuryGivenOut(treasury)));
    }
    if let Some(refused) = &settings.refused {
        return Ok(Some(Waits::Refused(refused.clone())));
    }
    let past = store::past(db, chain, treasury).await?;
    Ok(match (settings.price, past) {
        (_, Past { is_vain: true, .. }) => Some(Waits::Vain),
        (None, _) => Some(Waits::PriceUnknown),
        (Some(price), _) if price > settings.max_fee => Some(Waits::TooDear { price, max_fee: settings.max_fee }),
        (Some(_), _) if !settings.knows_gas => Some(Waits::GasUnknown),
        (Some(_), Past { is_proven: false, open: Some(first), .. }) => Some(Waits::FirstUnderWay(first)),
        (Some(_), _) => None,
    })
}

/// What would be swept of each address of a chain, and what waits for what. `None` while the chain has no block.
///
/// # Errors
/// When the database fails.
pub async fn look(
    db: &impl GenericClient,
    chain: ChainId,
    settings: &Settings,
) -> Result<Option<Vec<(Holding, Verdict)>>, Failure> {
    let Some(ripe) = ledger::ripe(db, chain, settings).await? else { return Ok(None) };
    let holdings = ledger::holdings(db, chain, settings, &ripe, Of::AtLeast(U256::ZERO)).await?;
    judged(db, chain, &settings.terms, holdings).await.map(Some)
}

/// What is to be done with holdings of a chain.
///
/// # Errors
/// When the database fails.
pub async fn judged(
    db: &impl GenericClient,
    chain: ChainId,
    terms: &Terms,
    holdings: Vec<Holding>,
) -> Result<Vec<(Holding, Verdict)>, Failure> {
    let holds = Holds::new(&store::holds(db).await?, chain, None);
    let missing = store::missing(db, chain).await?;
    let judged = |holding: Holding| {
        let verdict = match holding.verdict(terms, &holds) {
            Verdict::Sweep(_) if missing.contains(&holding.address) => Verdict::Missing,
            verdict => verdict,
        };
        (holding, verdict)
    };
    Ok(holdings.into_iter().map(judged).collect())
}

/// Notes which open sweeps are to be dropped and planned anew.
async fn replan(
    tx: &impl GenericClient,
    chain: ChainId,
    settings: &Settings,
    holds: &Holds,
    waits: Option<&Waits>,
) -> Result<(), Failure> {
    store::replan_to_others(tx, chain, settings.treasury).await?;
    let ends_all = waits.is_some_and(Waits::ends_what_is_unsigned);
    if ends_all || !holds.is_empty() {
        let unsigned = store::unsigned_sweeps(tx, chain).await?.into_iter();
        let unwanted = unsigned.filter(|sweep| ends_all || holds.cover(sweep.address, sweep.merchant));
        store::replan_unsigned(tx, &unwanted.map(|sweep| sweep.outgoing).collect::<Vec<_>>()).await?;
    }
    // What gas costs may be unknown, or may be too much anyway.
    if settings.price.is_some_and(|price| price <= settings.max_fee) {
        store::replan_too_dear(tx, chain, settings.terms.max_fee).await?;
    }
    Ok(())
}

async fn add_candidates(
    tx: &impl GenericClient,
    chain: ChainId,
    settings: &Settings,
    ripe: &Ripe,
    looked: Looked,
    now: u64,
) -> Result<(), Failure> {
    let until = ripe.until();
    if looked.all_at <= now {
        let holdings = ledger::holdings(tx, chain, settings, ripe, Of::AtLeast(settings.terms.least_ever())).await?;
        let addresses: Vec<Address> = holdings.iter().map(|holding| holding.address).collect();
        store::add_candidates(tx, chain, &addresses).await?;
        let all_at = now.saturating_add(LOOK_AT_ALL_AFTER);
        return store::set_looked(tx, chain, &Looked { number: until, all_at }).await;
    }
    if until < 0 || until == looked.number {
        return Ok(());
    }
    // Where the chain has fallen, what comes in the place of blocks that were read is read too.
    let above = looked.number.min(until);
    if above < until {
        store::add_arrivals(tx, chain, above, until).await?;
    }
    store::set_looked(tx, chain, &Looked { number: until, ..looked }).await
}

/// Looks at candidates that are due; returns those that are worth a sweep, and how much of each. The others are forgotten, or
/// looked at again later.
async fn look_at(
    tx: &impl GenericClient,
    chain: ChainId,
    settings: &Settings,
    ripe: &Ripe,
    due: &[Address],
    now: u64,
) -> Result<Vec<(Holding, U256)>, Failure> {
    let holds = Holds::new(&store::holds(tx).await?, chain, None);
    let (mut worth, mut unripe, mut too_dear) = (Vec::new(), Vec::new(), Vec::new());
    for holding in ledger::holdings(tx, chain, settings, ripe, Of::These(due)).await? {
        match holding.verdict(&settings.terms, &holds) {
            Verdict::Sweep(amount) => worth.push((holding, amount)),
            Verdict::Unripe => unripe.push(holding.address),
            Verdict::TooDear => too_dear.push(holding.address),
            // Another arrival, or the end of the transaction, of a hold or of what set it aside makes it a candidate again.
            Verdict::TooLittle | Verdict::UnderWay | Verdict::Held | Verdict::SetAside | Verdict::Missing => {}
        }
    }
    let waiting = unripe.iter().chain(&too_dear).chain(worth.iter().map(|(holding, _)| &holding.address));
    let waiting: HashSet<&Address> = waiting.collect();
    let over: Vec<Address> = due.iter().filter(|address| !waiting.contains(address)).copied().collect();
    store::forget(tx, chain, &over).await?;
    store::put_off(tx, chain, &unripe, now.saturating_add(LOOK_AGAIN_AFTER), false).await?;
    store::put_off(tx, chain, &too_dear, now.saturating_add(TOO_DEAR_FOR), false).await?;
    Ok(worth)
}

/// Queues what is worth it and there, as far as there is room; returns how many. What the chain has too little for could be neither
/// sent nor cancelled.
async fn queue_worth(
    tx: &impl GenericClient,
    chain: ChainId,
    settings: &Settings,
    worth: Vec<(Holding, U256)>,
    balances: &HashMap<Address, U256>,
    now: u64,
) -> Result<usize, Failure> {
    let Some(treasury) = settings.treasury else { return Ok(0) };
    // The first one goes alone.
    let mut room = if store::past(tx, chain, treasury).await?.is_proven { MAX_BATCH } else { 1 };
    let offer = settings.terms.first_offer(settings.price.unwrap_or(settings.max_fee));
    let (mut sweeps, mut later, mut unknown, mut missing) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (holding, amount) in &worth {
        match balances.get(&holding.address) {
            None => unknown.push(holding.address),
            Some(balance) if *balance < amount.saturating_add(offer) => missing.push(holding.address),
            Some(_) if room > 0 => {
                room -= 1;
                sweeps.push(new_sweep(chain, holding, *amount, treasury));
            }
            Some(_) => later.push(holding.address),
        }
    }
    let queued: Vec<Queued> = futures::stream::iter(&sweeps)
        .map(|sweep| async move { queue(tx, &outgoing(sweep, settings)).await })
        .buffered(MAX_CONCURRENT)
        .try_collect()
        .await?;
    if let Some(other) = queued.iter().find(|queued| !matches!(queued, Queued::New(_))) {
        return Err(Failure::Halt(anyhow!("a sweep was queued before it was planned: {other:?}")));
    }
    limit_fee(tx, &sweeps.iter().map(|sweep| sweep.outgoing).collect::<Vec<_>>(), settings.terms.max_fee).await?;
    store::insert(tx, &sweeps).await?;
    store::forget(tx, chain, &sweeps.iter().map(|sweep| sweep.address).collect::<Vec<_>>()).await?;
    let soon = now.saturating_add(LOOK_AGAIN_AFTER);
    store::put_off(tx, chain, &later, soon, false).await?;
    store::put_off(tx, chain, &unknown, soon, true).await?;
    store::put_off_missing(tx, chain, &missing, soon, now.saturating_add(MISSING_FOR)).await?;
    Ok(sweeps.len())
}

fn new_sweep(chain: ChainId, holding: &Holding, amount: U256, treasury: Address) -> NewSweep {
    let Holding { address, merchant, arrived, .. } = *holding;
    NewSweep { id: Uuid::now_v7(), chain, address, merchant, amount, treasury, arrived, outgoing: Uuid::now_v7() }
}

/// The address pays itself.
fn outgoing(sweep: &NewSweep, settings: &Settings) -> NewOutgoing {
    let idempotency_key = format!("sweep:{}", sweep.id);
    let asked = format!("{idempotency_key}/{}/{}/{}/{}", sweep.chain, sweep.address, sweep.treasury, sweep.amount);
    NewOutgoing {
        id: sweep.outgoing,
        kind: Kind::Sweep,
        lane: LaneId { chain: sweep.chain, sender: sweep.address },
        content: Content {
            to: Some(sweep.treasury),
            value: sweep.amount,
            data: Bytes::new(),
            gas_limit: settings.terms.gas_limit,
            authorizations: Vec::new(),
        },
        request_hash: keccak256(&asked),
        idempotency_key,
    }
}
