//! How far payments follow each chain, and whether one can be asked for on it.
//!
//! An address is not given out on a chain whose payments would not be seen in time: one that has halted, one that lags behind,
//! or one that has not begun. A chain without a `start_block` begins at the head that ingest finds when it first runs; what is
//! paid in blocks before that one is never seen.
//!
//! The heads are read twice a second for all chains together, so that no request asks for them.

use crate::halts::Halts;
use crate::problem::Problem;
use chain::Chain;
use deadpool_postgres::Pool;
use runtime::{Failure, db};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use topics::ChainId;

const READ_EVERY: Duration = Duration::from_millis(500);
/// Seconds until a client asks again: a chain that begins does so soon, one that lags takes a while, one that has halted a person.
const BEGINS_IN: u32 = 2;
const CATCHES_UP_IN: u32 = 30;
const GOES_ON_IN: u32 = 300;

/// The heads as they were moments ago.
#[derive(Clone)]
pub struct Heads {
    /// Timestamps of the last blocks that went through the confirmer, Unix seconds.
    timestamps: Arc<RwLock<HashMap<ChainId, u64>>>,
    halts: Halts,
}

impl Heads {
    /// None known yet.
    pub fn new(halts: Halts) -> Self {
        Self { timestamps: Arc::default(), halts }
    }

    /// Reads them now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn read(&self, pool: &Pool) -> Result<(), Failure> {
        let client = pool.get().await.map_err(db::unavailable)?;
        let statement =
            client.prepare_cached("SELECT chain_id, block_timestamp FROM chain_heads").await.map_err(db::failure)?;
        let rows = client.query(&statement, &[]).await.map_err(db::failure)?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in rows {
            let (chain, timestamp) = (u64::try_from(row.get::<_, i64>(0)), u64::try_from(row.get::<_, i64>(1)));
            found.insert(ChainId(chain.map_err(Failure::halt)?), timestamp.map_err(Failure::halt)?);
        }
        *self.timestamps.write().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    /// Reads them again and again until `stop`. While they can't be read the old ones age, and the chains count as lagging.
    pub async fn follow(self, pool: Pool, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(READ_EVERY) => {}
            }
            if let Err(failure) = self.read(&pool).await {
                tracing::warn!("reading the chains' heads: {failure}");
            }
        }
    }

    /// Whether a payment can be asked for; `now` is Unix seconds.
    ///
    /// # Errors
    /// A 503 that names the chain and says why not.
    pub fn open(&self, chain: &Chain, now: u64) -> Result<(), Problem> {
        let timestamp = self.timestamps.read().unwrap_or_else(PoisonError::into_inner).get(&chain.id).copied();
        open(chain, timestamp, self.halts.of(chain.id).as_deref(), now)
    }
}

fn open(chain: &Chain, timestamp: Option<u64>, halted: Option<&str>, now: u64) -> Result<(), Problem> {
    let name = format_args!("Chain {} ({})", chain.name, chain.id).to_string();
    if let Some(why) = halted {
        let detail = format!("{name} takes no new payments: it has halted ({why})");
        return Err(Problem::unavailable(GOES_ON_IN, detail));
    }
    let Some(timestamp) = timestamp else {
        // From a fixed block on everything will be seen, however late.
        return match chain.start_block {
            Some(_) => Ok(()),
            None => Err(Problem::unavailable(
                BEGINS_IN,
                format!("{name} is not followed yet: its first block is on its way. Try again"),
            )),
        };
    };
    let lag = now.saturating_sub(timestamp);
    match chain.max_lag.filter(|limit| lag > limit.as_secs()) {
        Some(limit) => Err(Problem::unavailable(
            CATCHES_UP_IN,
            format!("{name} takes no new payments: it is {lag} s behind, and {} s are allowed", limit.as_secs()),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::catalog;

    const NOW: u64 = 1_700_000_000;

    fn chain(start_block: Option<u64>, max_lag: Option<u64>) -> Chain {
        let mut chain = catalog().0.swap_remove(0);
        chain.start_block = start_block;
        chain.max_lag = max_lag.map(Duration::from_secs);
        chain
    }

    fn detail(outcome: Result<(), Problem>) -> String {
        serde_json::to_value(outcome.unwrap_err()).unwrap()["detail"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_chain_that_lags_beyond_its_limit_takes_no_payments_and_is_named() {
        let limited = chain(None, Some(60));
        assert_eq!(open(&limited, Some(NOW - 60), None, NOW), Ok(()));
        let refused = detail(open(&limited, Some(NOW - 61), None, NOW));
        assert!(refused.contains("anvil (31337)") && refused.contains("61 s behind"), "{refused}");
        assert_eq!(open(&limited, Some(NOW + 10), None, NOW), Ok(()), "a block from the future");
        assert_eq!(open(&chain(None, None), Some(0), None, NOW), Ok(()), "no limit");
    }

    #[test]
    fn a_chain_that_has_halted_takes_no_payments_and_says_why() {
        let refused = detail(open(&chain(Some(0), None), Some(NOW), Some("too deep"), NOW));
        assert!(refused.contains("anvil (31337)") && refused.contains("too deep"), "{refused}");
    }

    #[test]
    fn a_chain_that_begins_anywhere_must_have_begun() {
        assert!(detail(open(&chain(None, None), None, None, NOW)).contains("31337"));
        assert_eq!(open(&chain(Some(0), Some(60)), None, None, NOW), Ok(()));
    }
}
