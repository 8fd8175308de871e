//! Orphans whose payment is there again, or whose token is in doubt no more: they are credited beside the fold, which does not look at
//! those that wait.

use crate::fold::{MAX_PAYMENTS_IN_MEMORY, fold_chain};
use chain::Chains;
use deadpool_postgres::Pool;
use payments::store;
use runtime::Failure;
use std::time::{Duration, Instant};
use topics::{Address, ChainId};

/// How often to look for them, at most.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Looking takes at most one part in so many of the time, however many orphans there are.
const LOOK_SHARE: u32 = 100;
/// How soon a chain is tried again whose orphans could not be credited.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// Addresses per look.
const MAX_ADDRESSES: i64 = 1_000;
/// Orphans per transaction, but for the rest of their last block.
const MAX_TAKEN: i64 = 1_000;
/// How long a chain's orphans are credited before others have their turn.
const TURN: Duration = Duration::from_secs(10);

/// Looks for orphans that have an owner by now.
#[derive(Default)]
pub struct OrphanLook {
    next: Option<Instant>,
}

impl OrphanLook {
    /// Credits the orphans whose payment or static address is there, and whose token has the decimals of the file, if it is
    /// time to look.
    ///
    /// # Errors
    /// `Retry` when the database fails.
    pub async fn credit_owned(&mut self, pool: &Pool, chains: &Chains) -> Result<(), Failure> {
        if self.next.is_some_and(|next| Instant::now() < next) {
            return Ok(());
        }
        let started = Instant::now();
        let listed: Vec<ChainId> = chains.iter().map(|chain| chain.id).collect();
        let fitting: Vec<(ChainId, Address)> =
            chains.iter().flat_map(|chain| chain.tokens_in_no_doubt().map(|token| (chain.id, token.address))).collect();
        let owned = store::owned_orphans(&pool.get().await?, &listed, &fitting, MAX_ADDRESSES).await?;
        let mut pause = LOOK_INTERVAL.max(started.elapsed().saturating_mul(LOOK_SHARE));
        if !owned.is_empty() {
            // There may be more than one look finds.
            pause = LOOK_INTERVAL;
        }
        for (chain, addresses) in owned {
            match credit(pool, chains, chain, &addresses).await {
                Err(Failure::Halt(cause)) => {
                    tracing::error!("orphans of chain {chain} wait, though nothing keeps them: {cause:#}");
                    pause = RETRY_INTERVAL;
                }
                // They keep none of another chain waiting.
                Err(failure) => tracing::warn!("orphans of chain {chain} wait for the next look: {failure}"),
                Ok(()) => {}
            }
        }
        self.next = Some(Instant::now() + pause);
        Ok(())
    }
}

/// Credits a chain's orphans to these addresses, some blocks at a time. The next look goes on where the time is up.
async fn credit(pool: &Pool, chains: &Chains, chain: ChainId, addresses: &[Address]) -> Result<(), Failure> {
    let started = Instant::now();
    let fitting: Vec<Address> =
        chains.by_id(chain).into_iter().flat_map(|chain| chain.tokens_in_no_doubt().map(|token| token.address)).collect();
    while started.elapsed() < TURN {
        let mut client = pool.get().await?;
        let tx = client.transaction().await?;
        // First, as in the fold.
        store::lock_head(&tx, chain).await?;
        let orphans = store::take_orphans(&tx, chain, addresses, &fitting, MAX_TAKEN).await?;
        if orphans.is_empty() {
            return Ok(());
        }
        fold_chain(&tx, chains, chain, &[], None, &orphans, MAX_PAYMENTS_IN_MEMORY).await?;
        tx.commit().await?;
        tracing::warn!("{} orphans of chain {chain} are credited: what they waited for is there", orphans.len());
    }
    Ok(())
}
