//! What is swept from deposit addresses to a chain's treasury, planned from `transfers` and queued into the engine.
//!
//! - `rules` says what leaves an address and what stays, and is pure. `ledger` has the statement that reads what addresses
//!   have, `store` the rows of sweeps, `moved` what a final one has moved, `settings` what chains.yaml and the treasury ask for,
//!   `admin` what an operator sees and decides.
//! - All that has arrived counts, stray money too: overpaid, late, unexpected, below `min_transfer`. A token that chains.yaml
//!   does not list is never swept: anyone can make one whose transfer burns the gas that it is given.
//! - Only addresses of accounts whose keys are held are swept; a merchant's own xpub is none of these.
//! - The first sweep to a treasury goes alone: no other is planned before it is final. After one that came to nothing its
//!   address waits for a person, and after several in a row the chain does.
//! - An address is looked at when something has come to it, and all of them once a day: a backfill brings money in blocks that
//!   were looked at before.
//!
//! Tokens wait: nobody funds their addresses yet. A static address is summed up over all that ever came to it.

pub mod admin;
pub mod ledger;
pub mod moved;
pub mod rules;
pub mod settings;
pub mod store;

use crate::engine::content::Content;
use crate::engine::outgoing::Kind;
use crate::engine::rows::LaneId;
use crate::engine::store::{NewOutgoing, Queued, limit_fee, queue};
use alloy::primitives::{Address, Bytes, U256, keccak256};
use anyhow::anyhow;
use deadpool_postgres::{Client, GenericClient};
use futures::{StreamExt as _, TryStreamExt as _};
use ledger::{Of, Ripe};
use rules::{Holding, Holds, MAX_VAIN, Verdict};
use runtime::Failure;
use std::collections::BTreeMap;
use store::{Looked, NewSweep, Past};
use tokio_postgres::IsolationLevel;
use topics::ChainId;
use uuid::Uuid;

pub use moved::{Moved, moved};
pub use settings::{Settings, estimate_gas};

/// Addresses that are looked at in a turn.
const MAX_BATCH: usize = 500;
/// Statements of a turn that are on their way at the same time.
const MAX_CONCURRENT: usize = 32;
/// When an address is looked at again that waits for depth, or for another transaction of its own; in seconds.
const LOOK_AGAIN_AFTER: u64 = 30;
/// When all addresses are looked at again; in seconds.
const LOOK_AT_ALL_AFTER: u64 = 86_400;

/// What a turn has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Sweeps that were queued.
    pub queued: usize,
    /// Outgoing transactions to drop ([`drop_outgoing`](crate::engine::fold::drop_outgoing)), named again until they are: a
    /// reorg has taken back what they were to move, or gas costs more than they leave for it. They are planned anew then.
    pub to_drop: Vec<Uuid>,
    /// Why nothing of the chain is planned.
    pub waits: Option<Waits>,
}

/// Why nothing of a chain is planned, until a person has looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
}

/// Looks at what is due on a chain, and queues what is to be swept. Two planners at once do no harm.
///
/// # Errors
/// When the database fails.
pub async fn queue_due(db: &mut Client, chain: ChainId, settings: &Settings, now: u64) -> Result<Turn, Failure> {
    let Some(treasury) = settings.treasury else { return Ok(Turn::default()) };
    store::begin(db, chain).await?;
    // All statements see one moment: what has arrived, how deep it is, and what has left.
    let tx = db.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await?;
    let Some(looked) = store::lock(&tx, chain).await? else { return Ok(Turn::default()) };
    let Some(ripe) = ledger::ripe(&tx, chain, settings).await? else { return Ok(Turn::default()) };
    let to_drop = replan(&tx, chain, settings, &ripe).await?;
    let waits = waits(&tx, chain, treasury).await?;
    let queued = match waits {
        Some(_) => 0,
        None => {
            add_candidates(&tx, chain, settings, &ripe, looked, now).await?;
            look_at_due(&tx, chain, settings, &ripe, treasury, now).await?
        }
    };
    tx.commit().await?;
    Ok(Turn { queued, to_drop, waits })
}

/// Why nothing of a chain is planned; `None` where nothing keeps it.
///
/// # Errors
/// When the database fails.
pub async fn waits(db: &impl GenericClient, chain: ChainId, treasury: Address) -> Result<Option<Waits>, Failure> {
    if store::is_given_out(db, treasury).await? {
        return Ok(Some(Waits::TreasuryGivenOut(treasury)));
    }
    Ok(store::past(db, chain, treasury).await?.is_vain.then_some(Waits::Vain))
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
    let holds = Holds::new(&store::holds(db).await?, chain, None);
    let holdings = ledger::holdings(db, chain, settings, &ripe, Of::AtLeast(U256::ZERO)).await?.into_iter();
    let judged = |holding: Holding| {
        let verdict = holding.verdict(&settings.terms, &holds);
        (holding, verdict)
    };
    Ok(Some(holdings.map(judged).collect()))
}

/// Finds the open sweeps that can't be paid for since a reorg has taken back what they were to move, and those that wait for gas
/// to be as cheap again as it was.
async fn replan(tx: &impl GenericClient, chain: ChainId, settings: &Settings, ripe: &Ripe) -> Result<Vec<Uuid>, Failure> {
    let dear = store::too_dear(tx, chain, settings.terms.max_fee, MAX_BATCH).await?;
    let unpaid: BTreeMap<Address, Uuid> = store::without_funds(tx, chain, MAX_BATCH).await?.into_iter().collect();
    if dear.is_empty() && unpaid.is_empty() {
        return Ok(Vec::new());
    }
    let addresses: Vec<Address> = unpaid.keys().copied().collect();
    let mut holdings = ledger::holdings(tx, chain, settings, ripe, Of::These(&addresses)).await?;
    // All that it ever had may be gone, and then no row says anything of it.
    let known: Vec<Address> = holdings.iter().map(|holding| holding.address).collect();
    holdings.retain(Holding::is_taken_back);
    let emptied = addresses.into_iter().filter(|address| !known.contains(address));
    let mut addresses: Vec<Address> = holdings.iter().map(|holding| holding.address).chain(emptied).collect();
    let mut outgoing: Vec<Uuid> = addresses.iter().filter_map(|address| unpaid.get(address)).copied().collect();
    addresses.extend(dear.iter().map(|(address, _)| *address));
    outgoing.extend(dear.iter().map(|(_, id)| *id));
    store::add_candidates(tx, chain, &addresses).await?;
    store::replan(tx, &outgoing).await?;
    Ok(outgoing)
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
        let holdings = ledger::holdings(tx, chain, settings, ripe, Of::AtLeast(settings.terms.least())).await?;
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

/// Looks at the candidates that are due; returns how many sweeps were queued.
async fn look_at_due(
    tx: &impl GenericClient,
    chain: ChainId,
    settings: &Settings,
    ripe: &Ripe,
    treasury: Address,
    now: u64,
) -> Result<usize, Failure> {
    let mut room = match store::past(tx, chain, treasury).await? {
        Past { is_proven: true, .. } => MAX_BATCH,
        Past { has_open: true, .. } => return Ok(0),
        _ => 1,
    };
    let due = store::due(tx, chain, now, MAX_BATCH).await?;
    if due.is_empty() {
        return Ok(0);
    }
    let holds = Holds::new(&store::holds(tx).await?, chain, None);
    let (mut sweeps, mut later) = (Vec::new(), Vec::new());
    for holding in ledger::holdings(tx, chain, settings, ripe, Of::These(&due)).await? {
        match holding.verdict(&settings.terms, &holds) {
            Verdict::Sweep(amount) if room > 0 => {
                room -= 1;
                if holding.seen > holding.arrived {
                    later.push(holding.address);
                }
                sweeps.push(new_sweep(chain, &holding, amount, treasury));
            }
            Verdict::Sweep(_) | Verdict::Unripe => later.push(holding.address),
            Verdict::UnderWay => later.push(holding.address),
            // Another arrival, the end of a hold or of what set it aside makes it a candidate again.
            Verdict::TooLittle | Verdict::Held | Verdict::SetAside => {}
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
    let over: Vec<Address> = due.into_iter().filter(|address| !later.contains(address)).collect();
    store::forget(tx, chain, &over).await?;
    store::put_off(tx, chain, &later, now.saturating_add(LOOK_AGAIN_AFTER)).await?;
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
