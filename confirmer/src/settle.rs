//! Settles payments and deposits that are covered by what has left their addresses: whenever `sweeps` has read that something has, and
//! when one is confirmed whose address something has left already. Addresses wait in `to_settle` for both.
//!
//! A transaction holds the chain's head, as the fold does: so nothing of the chain is confirmed or taken back meanwhile, and no address is
//! taken out of `to_settle` for a payment whose confirmation is about to be committed. Each chain has transactions of its own. What has
//! moved above the head, or in a block that is not witnessed or not final, waits for that block.

use crate::working_set::step_told;
use deadpool_postgres::{GenericClient, Pool};
use payments::lifecycle::Input;
use payments::store::{self, CoveredPayment, KnownTransfer, OrphanTransfer, Reach};
use payments::swept::SweptAsset;
use payments::{Payment, Settlement, events::state_for_records};
use runtime::db::{self, lock};
use runtime::{Failure, stage};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::{Address, ChainId, Kind, Matches, TransferId};
use uuid::Uuid;

/// How often to look for addresses.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Addresses per transaction.
const MAX_ADDRESSES: usize = 200;
/// Payments per transaction, but for those of the addresses that have one payment: each has up to 16 kB of metadata and is in memory with
/// its event.
const MAX_SETTLED: usize = 500;
/// Addresses at which nothing can be settled that a turn passes over.
const MAX_FAULTS: usize = 10;
/// How long it waits for what others keep while it holds the chain's head: less than Postgres does before it ends one of those
/// that wait for each other (`deadlock_timeout`, 1 s).
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
/// How long a chain's payments are settled before others have their turn.
const TURN: Duration = Duration::from_secs(5);
/// How soon a chain is looked at again that has an address which can't be settled.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Settles until `stop`, and wakes the relay for the events.
///
/// # Errors
/// `Retry` when the database fails. The chains after the one that it failed for have had their turn.
pub fn run(pool: &Pool, handle: &Handle, wake: &Sender<()>, stop: &CancellationToken) -> Result<(), Failure> {
    let mut faulty: HashMap<ChainId, Instant> = HashMap::new();
    while !stop.is_cancelled() {
        let mut failed = None;
        let chains = handle.block_on(async { store::chains_to_settle(&pool.get().await?).await })?;
        faulty.retain(|_, at| at.elapsed() < RETRY_INTERVAL);
        for chain in chains {
            if faulty.contains_key(&chain) {
                continue;
            }
            match handle.block_on(settle_chain(pool, chain, wake, stop)) {
                Ok(0) => {}
                Ok(_) => {
                    faulty.insert(chain, Instant::now());
                }
                Err(failure) => {
                    failed.get_or_insert(failure.context(format!("settling payments of chain {chain}")));
                }
            }
        }
        if let Some(failure) = failed {
            return Err(failure);
        }
        stage::pause(stop, LOOK_INTERVAL);
    }
    Ok(())
}

/// Settles payments of a chain for a while; returns at how many addresses none can be, or are by now but those that somebody
/// keeps: they wait behind all others.
async fn settle_chain(pool: &Pool, chain: ChainId, wake: &Sender<()>, stop: &CancellationToken) -> Result<usize, Failure> {
    let (started, mut limit, mut faults, mut kept) = (Instant::now(), MAX_ADDRESSES, 0, BTreeSet::new());
    while !stop.is_cancelled() && started.elapsed() < TURN {
        match try_to_settle(pool, chain, limit).await {
            Ok(Settled { addresses: 0, .. }) => break,
            Ok(Settled { events: 0, .. }) => {}
            Ok(_) => {
                // The receiver is gone only when the role ends.
                let _ = wake.send(());
            }
            // One of them keeps none of the others waiting.
            Err(Failure::Halt(_)) if limit > 1 => limit = 1,
            Err(Failure::Retry(cause)) if db::is_lock_timeout(&cause) && limit > 1 => limit = 1,
            Err(Failure::Retry(cause)) if db::is_lock_timeout(&cause) => {
                let asset = postpone(pool, chain).await?;
                tracing::debug!("somebody keeps a payment of chain {chain} that is to be settled, {asset:?}: {cause:#}");
                // Nothing else is left, and who waits for the head of the chain is not to wait for this one again and again.
                if !kept.insert(asset) || kept.len() > MAX_FAULTS {
                    faults += 1;
                    break;
                }
            }
            Err(Failure::Halt(cause)) => {
                faults += 1;
                let asset = postpone(pool, chain).await?;
                tracing::error!("payments of chain {chain} that are swept are not settled, {asset:?}: {cause:#}");
                if faults > MAX_FAULTS {
                    break;
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(faults)
}

/// Puts the address that has waited longest behind all others that are due.
async fn postpone(pool: &Pool, chain: ChainId) -> Result<Vec<SweptAsset>, Failure> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    let Some(up_to) = store::lock_head(&tx, chain).await?.and_then(|head| head.known_to_stand()) else { return Ok(Vec::new()) };
    let first = store::take_to_settle(&tx, chain, up_to, 1).await?;
    store::put_to_settle(&tx, first.iter().map(|asset| (asset, up_to))).await?;
    tx.commit().await?;
    Ok(first)
}

/// What a transaction has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Those that were looked at.
    pub addresses: usize,
    pub events: usize,
}

/// Settles payments of a chain, at the addresses that have waited longest.
///
/// # Errors
/// `Retry` when the database fails; `Halt` when a row can't be read.
pub async fn settle_some(pool: &Pool, chain: ChainId) -> Result<Settled, Failure> {
    settle_up_to(pool, chain, MAX_ADDRESSES).await
}

/// Does nothing where others keep what it needs: they may wait for the head that it holds. A fold of several chains has a
/// payment of a chain, to which something has come on another, before it has that chain's head.
async fn settle_up_to(pool: &Pool, chain: ChainId, limit: usize) -> Result<Settled, Failure> {
    match try_to_settle(pool, chain, limit).await {
        Err(Failure::Retry(cause)) if db::is_lock_timeout(&cause) => Ok(Settled::default()),
        outcome => outcome,
    }
}

async fn try_to_settle(pool: &Pool, chain: ChainId, limit: usize) -> Result<Settled, Failure> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    // First, as in the fold. Nothing of a chain is confirmed that has no head yet.
    let Some(up_to) = store::lock_head(&tx, chain).await?.and_then(|head| head.known_to_stand()) else {
        return Ok(Settled::default());
    };
    lock::limit_waiting(&tx, LOCK_TIMEOUT).await?;
    let assets = store::take_to_settle(&tx, chain, up_to, limit).await?;
    let mut covered = store::covered_payments(&tx, chain, &assets, up_to).await?;
    let static_addresses = store::static_addresses(&tx, &assets).await?;
    // Behind all that are due, and those that had no turn before those that had one.
    let (mut again, mut have_more) = (Vec::new(), Vec::new());
    let mut reach = Reach::new(up_to, MAX_SETTLED.saturating_sub(covered.len()));
    for (asset, id) in assets.iter().filter_map(|asset| Some((asset, static_addresses.get(&asset.address)?))) {
        if reach.is_used_up() {
            again.push((asset, up_to));
            continue;
        }
        let found = store::covered_deposits(&tx, *id, asset, &mut reach).await?;
        covered.extend(found.covered);
        if found.are_more {
            have_more.push((asset, up_to));
        }
    }
    again.extend(have_more);
    let (events, waiting) = settle(&tx, &covered).await?;
    // They are behind what was looked through, and not settled.
    let waiting_at: Vec<_> = waiting.iter().map(|asset| asset.address).collect();
    store::forget_settled_at(&tx, chain, 0, &waiting_at).await?;
    again.extend(waiting.iter().map(|asset| (asset, up_to.saturating_add(1))));
    store::put_to_settle(&tx, again.into_iter()).await?;
    store::put_later(&tx, chain, &assets, up_to).await?;
    tx.commit().await?;
    Ok(Settled { addresses: assets.len(), events })
}

/// Settles payments; returns the number of events, and where it waits for what was told before the database went back.
async fn settle(db: &impl GenericClient, covered: &[CoveredPayment]) -> Result<(usize, BTreeSet<SweptAsset>), Failure> {
    let covered: HashMap<Uuid, &CoveredPayment> = covered.iter().map(|covered| (covered.id, covered)).collect();
    let ids: Vec<Uuid> = covered.keys().copied().collect();
    let payments = store::lock_payments(db, &ids).await?;
    let mut told = store::told_events(db, &ids).await?;
    let (mut settled, mut events, mut waiting): (Vec<Payment>, _, _) = (Vec::new(), Vec::new(), BTreeSet::new());
    for payment in payments {
        let Some(CoveredPayment { covered, settlement, .. }) = covered.get(&payment.id.0).copied() else { continue };
        // No event is before the one that comes before it.
        let settlement = Settlement { timestamp: settlement.timestamp.max(payment.updated_at), ..*settlement };
        let step = step_told(&mut told, &payment, &Input::Swept { covered: *covered, settlement })?;
        if told.get(&payment.id).is_some_and(|told| told.is_settled_later()) {
            waiting.insert(payment.swept_asset());
        }
        events.extend(step.events.into_iter().map(|event| (state_for_records(&step.next), event)));
        settled.push(step.next);
    }
    store::save_payments(db, &settled.iter().collect::<Vec<_>>()).await?;
    store::forget_told_events(db, told.iter()).await?;
    store::record_events(db, events.iter().map(|(payment, event)| (payment, event))).await?;
    Ok((events.len(), waiting))
}

/// Forgets how far addresses are settled: where blocks go, or transfers come beside the order of the chain, what has arrived up
/// to a later one is counted anew. What has left stays: it was final when it was told.
pub(crate) async fn forget_settled(
    db: &impl GenericClient,
    chain: ChainId,
    records: &[&Matches],
    beginnings: &[(u64, &Matches)],
    orphans: &[OrphanTransfer],
    known: &HashMap<TransferId, KnownTransfer>,
) -> Result<(), Failure> {
    let removed = records.iter().filter(|record| record.kind == Kind::Removed).map(|record| record.block.number);
    if let Some(lowest) = removed.chain(beginnings.iter().map(|(stands, _)| stands.saturating_add(1))).min() {
        store::forget_settled_from(db, chain, lowest).await?;
    }
    let replayed = records.iter().filter(|record| record.kind == Kind::Replayed);
    let replayed = replayed.flat_map(|record| record.transfers.iter().map(|transfer| (record.block.number, transfer)));
    // Of what is known nothing changes, but for a token that is listed by now.
    let found = replayed.filter(|(_, transfer)| known.get(&transfer.id).is_none_or(|known| !(known.on_chain && known.listed)));
    let found = found.chain(orphans.iter().map(|orphan| (orphan.block.number, &orphan.transfer)));
    let (numbers, addresses): (Vec<u64>, HashSet<Address>) = found.map(|(number, transfer)| (number, transfer.to)).unzip();
    let Some(lowest) = numbers.into_iter().min() else { return Ok(()) };
    store::forget_settled_at(db, chain, lowest, &addresses.into_iter().collect::<Vec<_>>()).await
}
