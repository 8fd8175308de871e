//! How a chain is swept, as chains.yaml says and as its node tells.

use super::rules::{self, Terms};
use alloy::primitives::{Address, U64};
use chain::{Chain, Endpoint, Rpc, RpcError, SweepAt};
use payments::Policy;
use serde_json::json;
use std::sync::Arc;
use topics::Amount;

/// Gas of a sweep of coin where no node estimates it: enough for a treasury that notes in its storage what it gets.
pub const DEFAULT_GAS: u64 = 60_000;
/// What a transfer of coin takes at least.
const MIN_GAS: u64 = 21_000;
/// What a sweep may take at most: one endpoint alone says how much it is.
const MAX_GAS: u64 = 1_000_000;

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
    /// What a unit of gas costs now, in wei, tip and base fee; `None` where no node tells, and nothing is planned.
    pub price: Option<u128>,
    /// The most that it may cost, as chains.yaml says, in wei. While it costs more, nothing is planned.
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
    /// `gas_limit` is that of a sweep ([`estimate_gas`]), and `price` what a unit of gas costs now, in wei, tip and base fee;
    /// `None` where no node tells.
    pub fn of(chain: &Chain, gas_limit: u64, price: Option<u128>, accounts: Vec<String>) -> Self {
        let sweeping = &chain.sweeping;
        let base = (Amount::ZERO, Policy::from(chain.policy));
        let tiers = chain.tiers.iter().map(|tier| (tier.from, Policy::from(tier.policy)));
        let mut policies: Vec<_> = std::iter::once(base).chain(tiers).collect();
        // A tier from 0 takes the place of the chain's policy.
        policies.reverse();
        policies.dedup_by_key(|(from, _)| *from);
        policies.reverse();
        Self {
            treasury: sweeping.treasury,
            is_final_only: sweeping.at == SweepAt::Finalized,
            policies,
            terms: Terms {
                gas_limit,
                max_fee: rules::max_fee(price, sweeping.max_fee),
                l1_fee: sweeping.l1_fee.units(),
                minimum: sweeping.minimum.map(Amount::units),
            },
            price,
            max_fee: sweeping.max_fee,
            refused: None,
            accounts,
        }
    }
}

/// The gas that a sweep gets, of what it takes as a node says. A quarter more, since what a treasury does may depend on what it
/// has by then; and twice of what it takes beside a plain transfer: on some rollups that is the data on L1, whose price
/// changes.
fn gas_limit(treasury: Address, estimated: u64) -> Result<u64, Refused> {
    let gas = estimated.max(MIN_GAS);
    let limit = gas.saturating_add((gas / 4).max(gas - MIN_GAS));
    if limit > MAX_GAS { Err(Refused::TooMuchGas { treasury, gas: estimated }) } else { Ok(limit) }
}

/// The gas of a sweep of coin to the treasury, which may be a contract, with a margin. A default where no node tells.
///
/// # Errors
/// If a node says that it would fail, or takes more than any treasury needs.
pub async fn estimate_gas(rpc: &Rpc, treasury: Address) -> Result<u64, Refused> {
    // Of 0: nobody knows here who has coin.
    let call = json!([{ "from": Address::ZERO, "to": treasury, "value": "0x0" }]);
    let call = &call;
    let ask = |endpoint: Arc<Endpoint>| async move {
        match endpoint.request::<U64>("eth_estimateGas", call.clone()).await {
            Ok(gas) => Ok(Some(Ok(gas.to::<u64>()))),
            // It is the treasury's word, and no fault of the node.
            Err(error) if error.is_revert() => Ok(Some(Err(error))),
            Err(error) => Err(error),
        }
    };
    match rpc.with_failover::<_, RpcError, _, _>(ask).await {
        Ok(Some(Ok(gas))) => gas_limit(treasury, gas),
        Ok(Some(Err(source))) => Err(Refused::Reverts { treasury, source }),
        Ok(None) => Ok(DEFAULT_GAS),
        Err(error) => {
            tracing::warn!("the gas of a sweep is not known, and taken for {DEFAULT_GAS}: {error}");
            Ok(DEFAULT_GAS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_alone_makes_a_sweep_that_can_t_be_mined_or_costs_what_nobody_pays() {
        let limit = |estimated| gas_limit(Address::ZERO, estimated).ok();
        assert_eq!(limit(21_000), Some(26_250));
        assert_eq!([limit(0), limit(1)], [Some(26_250); 2], "a plain transfer takes no less");
        assert_eq!(limit(31_000), Some(41_000), "a contract's own, or data on L1, may double");
        assert_eq!(limit(500_000), Some(979_000));
        assert_eq!([limit(600_000), limit(u64::MAX)], [None; 2]);
    }
}
