//! Defaults for well-known chains and tokens, used for what `chains.yaml` leaves out: confirmations, poll interval, maximum lag,
//! proof, the least transfer that counts, and what a sweep may cost.
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
//! Sources: the confirmation counts that exchanges and Circle publish, each chain's documentation of its finality, and the lists of
//! contracts that Circle, Tether and Maker publish.

use super::chain::Policy;
use super::tiers::base_units;
use crate::proof::Verify;
use alloy::primitives::address;
use topics::{Address, Amount, ChainId};

pub(super) struct Preset {
    pub policy: Policy,
    pub poll_interval_ms: u64,
    pub max_lag_s: Option<u64>,
    pub verify: Verify,
    /// Wei.
    pub max_fee: u128,
    pub l1_fee: Amount,
}

/// Optimism, Base, Unichain, and the test networks of the first two.
const fn is_op_stack(chain: u64) -> bool {
    matches!(chain, 10 | 8453 | 130 | 84_532 | 11_155_420)
}

/// The preset of a chain. An unknown chain gets a depth that errs on the safe side.
pub(super) fn preset(chain: ChainId) -> Preset {
    use Policy::{Confirmations, Finalized, Safe};
    let (policy, poll_interval_ms) = match chain.0 {
        // Ethereum, Sepolia, Hoodi, Holesky.
        1 | 11_155_111 | 560_048 | 17_000 => (Confirmations(12), 1000),
        // `safe` is derived from data on L1.
        id if is_op_stack(id) => (Safe, 500),
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
    Preset { policy, poll_interval_ms, max_lag_s, verify, max_fee: max_fee(chain), l1_fee: l1_fee(chain) }
}

/// The most that a unit of gas may cost, in wei: a few times of what it costs on a usual day. Sweeps can wait for one.
fn max_fee(chain: ChainId) -> u128 {
    const GWEI: u128 = 1_000_000_000;
    match chain.0 {
        1 => 20 * GWEI,
        // Rollups, where a thousandth of that is usual.
        id if is_op_stack(id) => GWEI,
        42_161 | 421_614 => GWEI,
        // BNB Smart Chain and its test network.
        56 | 97 => 5 * GWEI,
        // Polygon and Amoy: nodes take no tip below 25.
        137 | 80_002 => 500 * GWEI,
        // Cronos: 375 is the least.
        25 => 5000 * GWEI,
        _ => 100 * GWEI,
    }
}

/// What a plain transfer may cost beside its gas: the OP stack's fee for 100 bytes of L1 data, at 280 gwei for a unit of L1's blob
/// gas (scalars of Base and Optimism). Elsewhere gas is all.
fn l1_fee(chain: ChainId) -> Amount {
    if is_op_stack(chain.0) { Amount::from(30_000_000_000_000) } else { Amount::ZERO }
}

/// Tokens worth a dollar each. What is below a cent is dust: moving it on costs more. A token has one contract per chain, and none
/// of another token is at the same address elsewhere.
const DOLLARS: [Address; 16] = [
    // USDC on Ethereum, Polygon, BNB Smart Chain, Base, Arbitrum, Optimism, Avalanche.
    address!("A0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"),
    address!("3c499c542cEF5E3811e1192ce70d8cC03d5c3359"),
    address!("8AC76a51cc950d9822D68b83fE1Ad97B32Cd580d"),
    address!("833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"),
    address!("af88d065e77c8cC2239327C5EDb3A432268e5831"),
    address!("0b2C639c533813f4Aa9D7837CAf62653d097Ff85"),
    address!("B97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E"),
    // USDT on Ethereum, Polygon, BNB Smart Chain, Arbitrum, Optimism, Avalanche.
    address!("dAC17F958D2ee523a2206206994597C13D831ec7"),
    address!("c2132D05D31c914a87C6611C10748AEb04B58e8F"),
    address!("55d398326f99059fF775485246999027B3197955"),
    address!("Fd086bC7CD5C481DCC9C85ebE478A1C0b69FCbb9"),
    address!("94b008aA00579c1307B0EF2c499aD98a8ce58e58"),
    address!("9702230A8Ea53601f5cD2dc00fDBc13d4dF4A8c7"),
    // DAI on Ethereum, Polygon, and on Arbitrum and Optimism.
    address!("6B175474E89094C44Da98b954EedeAC495271d0F"),
    address!("8f3Cf7ad23Cd3CaDbD9735AFf958023239c6A063"),
    address!("DA10009cBd5D07dd0CeCc66161FC93D7c9000da1"),
];

/// The least transfer of a token that counts, in base units; 0 for an unknown token.
pub(super) fn min_transfer(token: Address, decimals: u8) -> Amount {
    let known = DOLLARS.contains(&token).then(|| base_units("0.01", decimals));
    known.flatten().unwrap_or_default()
}
