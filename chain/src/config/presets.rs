//! Defaults for well-known chains, used for what `chains.yaml` leaves out: confirmations, poll interval, maximum lag, proof.
//!
//! Which source tells a chain's coin is no setting, since a payment would count twice if it changed: it follows from the chain's
//! id and from what its blocks hold. `topics::COIN_CONTRACTS` has the chains with a contract that is the coin:
//!
//! - Any chain: the transactions' values, and the call frames with `traces: true`. Where a block logs every movement of the coin
//!   (EIP-7708; zkSync and its sisters), those logs alone.
//! - Celo, Moonbeam and their test networks: beside values and frames the logs of the coin's contract, which moves it by a
//!   precompile.
//! - Polygon and Amoy: beside values and frames the logs of 0x…1010, each in place of the frame that passes the money on.
//!
//! Sources: the confirmation counts that exchanges and Circle publish, and each chain's documentation of its finality.

use super::chain::Policy;
use crate::proof::Verify;
use topics::ChainId;

pub(super) struct Preset {
    pub policy: Policy,
    pub poll_interval_ms: u64,
    pub max_lag_s: Option<u64>,
    pub verify: Verify,
}

/// The preset of a chain. An unknown chain gets a depth that errs on the safe side.
pub(super) fn preset(chain: ChainId) -> Preset {
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
        // Polygon and Amoy: `finalized` is the milestone, a few seconds behind. Before milestones, 127 blocks were usual.
        137 | 80_002 => (Finalized, 500),
        // Arbitrum One and its test network.
        42_161 | 421_614 => (Confirmations(40), 250),
        // Avalanche C-Chain and Fuji: an accepted block is final.
        43_114 | 43_113 => (Confirmations(3), 500),
        // anvil, hardhat, geth --dev: local, so polling often costs nothing.
        31_337 | 1337 => (Confirmations(3), 20),
        _ => (Confirmations(32), 1000),
    };
    // Cronos' block hashes are Tendermint's.
    let verify = if chain.0 == 25 { Verify::Bloom } else { Verify::Auto };
    // Generous: it is to detect a pipeline that stands still, not a slow minute. A local chain mines on demand, so its head may
    // have any age.
    let max_lag_s = match chain.0 {
        31_337 | 1337 => None,
        _ => Some(1800),
    };
    Preset { policy, poll_interval_ms, max_lag_s, verify }
}
