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
    /// Fingerprints of the accounts whose keys are held. What is on addresses of others, such as a merchant's own, is nobody's
    /// to sweep.
    pub accounts: Vec<String>,
}

/// The treasury takes no coin: all sweeps to it would fail.
#[derive(Debug, thiserror::Error)]
#[error("the treasury {treasury} takes no coin: a transfer to it would fail")]
pub struct Refused {
    treasury: Address,
    #[source]
    source: RpcError,
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
            accounts,
        }
    }
}

/// The gas of a transfer of coin to the treasury, which may be a contract, and a quarter more: what it does may depend on what
/// it has by then. A default where no node tells.
///
/// # Errors
/// If a node says that it would fail.
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
        Ok(Some(Ok(gas))) => Ok(gas.saturating_add(gas / 4)),
        Ok(Some(Err(source))) => Err(Refused { treasury, source }),
        Ok(None) => Ok(DEFAULT_GAS),
        Err(error) => {
            tracing::warn!("the gas of a sweep is not known, and taken for {DEFAULT_GAS}: {error}");
            Ok(DEFAULT_GAS)
        }
    }
}
