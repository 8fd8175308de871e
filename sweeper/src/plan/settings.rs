//! How a chain is swept, as chains.yaml says and as its node tells.

use super::rules::{self, Terms};
use crate::engine::outgoing::Pace;
use alloy::primitives::Address;
use chain::{Chain, RpcError, SweepAt};
use payments::Policy;
use topics::Amount;

/// Gas of a sweep of coin to a contract at least: enough for one that notes in its storage what it gets.
pub const DEFAULT_GAS: u64 = 60_000;
/// What a sweep may take at most: one endpoint alone says how much it is.
pub(super) const MAX_GAS: u64 = 1_000_000;

/// How the coin of a chain is swept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `None`: nothing is swept.
    pub treasury: Option<Address>,
    /// Only what is final leaves.
    pub is_final_only: bool,
    /// The chain's policies by the amounts from which they count, rising, the first from 0.
    pub policies: Vec<(Amount, Policy)>,
    pub terms: Terms,
    /// Whether a node has told what gas a sweep takes. If not, nothing is planned.
    pub knows_gas: bool,
    /// What a unit of gas costs now, in wei, tip and base fee; `None` where no node tells, and nothing is planned.
    pub price: Option<u128>,
    /// The most that it may cost, in wei: what the engine offers at most. While it costs more, nothing is planned.
    pub max_fee: u128,
    /// Why no sweep can be made ([`Refused`]), and nothing is planned.
    pub refused: Option<String>,
    /// Fingerprints of the accounts whose keys are held. What is on addresses of others, such as a merchant's own, is nobody's
    /// to sweep.
    pub accounts: Vec<String>,
}

/// Why no sweep can be made.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the treasury {treasury} takes no coin: a transfer to it would fail")]
    Reverts {
        treasury: Address,
        #[source]
        source: RpcError,
    },
    #[error("a node says that a transfer to the treasury {treasury} takes {gas} gas; expected {MAX_GAS} at most")]
    TooMuchGas { treasury: Address, gas: u64 },
    #[error(
        "the treasury {treasury} is the deposit address {index} of the account {account}, which cTrip gives out one day; \
         expected a wallet of yours"
    )]
    GivenOutLater { treasury: Address, account: String, index: u32 },
}

impl Settings {
    /// `gas_limit` is that of a sweep ([`estimate_gas`](super::estimate_gas)), and `price` what a unit of gas costs now, in wei,
    /// tip and base fee; `None` where no node tells, and then nothing is planned. A sweep whose gas is not known is one to a
    /// contract.
    pub fn of(chain: &Chain, gas_limit: Option<u64>, price: Option<u128>, accounts: Vec<String>) -> Self {
        let (sweeping, max_fee) = (&chain.sweeping, Pace::of(chain).max_payload_fee());
        let above = chain.tiers.iter().map(|tier| tier.from).filter(|from| *from != Amount::ZERO);
        let policies = std::iter::once(Amount::ZERO).chain(above);
        let policies = policies.map(|from| (from, Policy::from(chain.policy_for(None, from)))).collect();
        Self {
            treasury: sweeping.treasury,
            is_final_only: sweeping.at == SweepAt::Finalized,
            policies,
            terms: Terms {
                gas_limit: gas_limit.unwrap_or(DEFAULT_GAS),
                max_fee: rules::max_fee(price, max_fee),
                l1_fee: sweeping.l1_fee.units(),
                minimum: sweeping.minimum.map(Amount::units),
            },
            knows_gas: gas_limit.is_some(),
            price,
            max_fee,
            refused: None,
            accounts,
        }
    }
}
