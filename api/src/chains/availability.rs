//! Whether a chain takes new payments, by how far the confirmer has processed it, and in which of its tokens.
//!
//! No address is given out on a chain where payments would not be seen in time: one that has halted or that a stage has set
//! aside, one that lags beyond its `max_lag`, or one that has not begun. A chain without a `start_block` begins at the last final
//! block that ingest finds when it first runs; payments in blocks before that one are never seen.
//!
//! The heads of all chains are polled together every [`POLL_INTERVAL`], so that requests cost no query.

use crate::chains::halts::Halts;
use crate::http::problem::Problem;
use chain::Chain;
use deadpool_postgres::Pool;
use payments::store;
use runtime::{Failure, set_aside};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use topics::ChainId;

const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// `Retry-After` in seconds. A chain begins soon.
const RETRY_AFTER_BEGINNING: u32 = 2;
/// Catching up takes a while, and so may asking a token's contract.
const RETRY_AFTER_LAG: u32 = 30;
/// A halted chain waits for an operator.
const RETRY_AFTER_HALT: u32 = 300;

/// The polled heads and the halts. Cheap to clone.
#[derive(Clone)]
pub struct Availability {
    /// Timestamps of the last blocks that the confirmer has processed, Unix seconds.
    timestamps: Arc<RwLock<HashMap<ChainId, u64>>>,
    /// Why the confirmer has set chains aside.
    aside: Arc<RwLock<HashMap<ChainId, String>>>,
    halts: Halts,
    topic_prefix: String,
}

impl Availability {
    /// Knows no head before the first [`poll`](Self::poll).
    pub fn new(halts: Halts, topic_prefix: &str) -> Self {
        let topic_prefix = topic_prefix.to_owned();
        Self { timestamps: Arc::default(), aside: Arc::default(), halts, topic_prefix }
    }

    /// Reads the heads, and which chains are set aside, once.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn poll(&self, pool: &Pool) -> Result<(), Failure> {
        let client = pool.get().await?;
        let found = store::head_timestamps(&client).await?;
        let aside = set_aside::chains(&client, &self.topic_prefix).await?.into_iter();
        let aside = aside.filter_map(|item| Some((ChainId(item.item.parse().ok()?), item.cause))).collect();
        *self.aside.write().unwrap_or_else(PoisonError::into_inner) = aside;
        *self.timestamps.write().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    /// Polls until `stop`. While polling fails, the last known heads age, and chains with a `max_lag` count as lagging.
    pub async fn run(self, pool: Pool, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
            if let Err(failure) = self.poll(&pool).await {
                tracing::warn!("polling the chains' heads failed: {failure}");
            }
        }
    }

    /// Why a chain stands still, in whatever role, or `None` for one that goes on.
    pub fn halted(&self, chain: ChainId) -> Option<String> {
        let aside = || self.aside.read().unwrap_or_else(PoisonError::into_inner).get(&chain).cloned();
        self.halts.of(chain).or_else(aside)
    }

    /// Checks that the chain takes new payments in an asset, of which `None` is the coin; `now` is Unix seconds.
    ///
    /// # Errors
    /// A 503 that names the chain or token and the reason.
    pub fn check(&self, chain: &Chain, token: Option<&payments::Token>, now: u64) -> Result<(), Problem> {
        if let Some((token, why)) = token.and_then(|token| Some((token, chain.doubts.get(&token.address)?))) {
            let detail = format!("Token {} of chain {} takes no new payments: {why}", token.symbol, chain.name);
            return Err(Problem::unavailable(RETRY_AFTER_LAG, detail));
        }
        let timestamp = self.timestamps.read().unwrap_or_else(PoisonError::into_inner).get(&chain.id).copied();
        check(chain, timestamp, self.halted(chain.id).as_deref(), now)
    }
}

fn check(chain: &Chain, timestamp: Option<u64>, halted: Option<&str>, now: u64) -> Result<(), Problem> {
    let name = format_args!("Chain {} ({})", chain.name, chain.id).to_string();
    if let Some(why) = halted {
        let detail = format!("{name} takes no new payments: it has halted ({why})");
        return Err(Problem::unavailable(RETRY_AFTER_HALT, detail));
    }
    let Some(timestamp) = timestamp else {
        // With a fixed start block every payment will be seen, however late.
        return match chain.start_block {
            Some(_) => Ok(()),
            None => Err(Problem::unavailable(
                RETRY_AFTER_BEGINNING,
                format!("{name} takes no new payments yet: its first block is still being processed. Retry"),
            )),
        };
    };
    let lag = now.saturating_sub(timestamp);
    match chain.max_lag.filter(|limit| lag > limit.as_secs()) {
        Some(limit) => Err(Problem::unavailable(
            RETRY_AFTER_LAG,
            format!("{name} takes no new payments: it is {lag} s behind, and the limit is {} s", limit.as_secs()),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::catalog::tests::chains;

    const NOW: u64 = 1_700_000_000;

    fn chain(start_block: Option<u64>, max_lag: Option<u64>) -> Chain {
        let mut chain = chains().swap_remove(0);
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
        assert_eq!(check(&limited, Some(NOW - 60), None, NOW), Ok(()));
        let refused = detail(check(&limited, Some(NOW - 61), None, NOW));
        assert!(refused.contains("anvil (31337)") && refused.contains("61 s behind"), "{refused}");
        assert_eq!(check(&limited, Some(NOW + 10), None, NOW), Ok(()), "a block from the future");
        assert_eq!(check(&chain(None, None), Some(0), None, NOW), Ok(()), "no limit");
    }

    #[test]
    fn a_chain_that_has_halted_takes_no_payments_and_says_why() {
        let refused = detail(check(&chain(Some(0), None), Some(NOW), Some("too deep"), NOW));
        assert!(refused.contains("anvil (31337)") && refused.contains("too deep"), "{refused}");
    }

    #[test]
    fn a_chain_that_begins_anywhere_must_have_begun() {
        assert!(detail(check(&chain(None, None), None, None, NOW)).contains("31337"));
        assert_eq!(check(&chain(Some(0), Some(60)), None, None, NOW), Ok(()));
    }
}
