//! What `chains.yaml` may leave out for well-known chains: depth, polling, lag, proof. Their source is FIELD.md's list of counts
//! in use (exchanges' and Circle's pages) and each chain's documentation of its finality.

use super::{Policy, Verify};
use topics::ChainId;

pub(super) struct Preset {
    pub policy: Policy,
    pub poll_interval_ms: u64,
    /// Seconds.
    pub max_lag_s: Option<u64>,
    pub verify: Verify,
}

/// The preset of a chain; for one we do not know, a depth that errs on the safe side.
pub(super) fn of(chain: ChainId) -> Preset {
    use Policy::{Confirmations, Finalized, Safe};
    let (policy, poll_interval_ms) = match chain.0 {
        // Ethereum, Sepolia, Hoodi, Holesky.
        1 | 11_155_111 | 560_048 | 17_000 => (Confirmations(12), 1000),
        // Optimism, Base, Unichain and the test networks of the first two: `safe` is derived from data on L1.
        10 | 8453 | 130 | 84_532 | 11_155_420 => (Safe, 500),
        // Cronos.
        25 => (Confirmations(12), 1000),
        // BNB Smart Chain and its test network: fast finality at n+2 has a probabilistic fallback.
        56 | 97 => (Confirmations(15), 400),
        // Gnosis.
        100 => (Confirmations(20), 1000),
        // Polygon and Amoy: `finalized` is the milestone, a few seconds behind. Before it, 127 blocks were in use.
        137 | 80_002 => (Finalized, 500),
        // Arbitrum One and its test network.
        42_161 | 421_614 => (Confirmations(40), 250),
        // Avalanche C-Chain and Fuji: an accepted block is final.
        43_114 | 43_113 => (Confirmations(3), 500),
        // anvil, hardhat; geth --dev. Local, so looking often costs nothing.
        31_337 | 1337 => (Confirmations(3), 20),
        _ => (Confirmations(32), 1000),
    };
    // Cronos' hashes are Tendermint's.
    let verify = if chain.0 == 25 { Verify::Bloom } else { Verify::Auto };
    // Generous: it is to catch a pipeline that stands still, not a slow minute. A local chain mines when it is asked to, so its
    // head may be of any age.
    let max_lag_s = match chain.0 {
        31_337 | 1337 => None,
        _ => Some(1800),
    };
    Preset { policy, poll_interval_ms, max_lag_s, verify }
}
