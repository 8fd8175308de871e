//! What the planner asks a chain's nodes: what a sweep takes, and what addresses have.

use super::settings::{DEFAULT_GAS, MAX_GAS, Refused};
use alloy::primitives::{Address, Bytes, U64, U256};
use chain::{Endpoint, Rpc, RpcError};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::Arc;

/// What a transfer of coin takes at least.
const MIN_GAS: u64 = 21_000;
/// Who has sent nothing yet: what a treasury notes of its senders is new for this one, as for most addresses.
const NEW_SENDER: Address = Address::repeat_byte(0xc7);
/// What that one sends where nobody is known who has coin, in wei.
const USUAL_AMOUNT: u64 = 1_000_000_000_000_000_000;

/// The gas that a sweep gets, of what it takes as a node says. A quarter more, since what a treasury does may depend on what it
/// has by then; and twice of what it takes beside a plain transfer: on some rollups that is the data on L1, whose price
/// changes.
fn gas_limit(treasury: Address, estimated: u64) -> Result<u64, Refused> {
    let gas = estimated.max(MIN_GAS);
    let limit = gas.saturating_add((gas / 4).max(gas - MIN_GAS));
    if limit > MAX_GAS { Err(Refused::TooMuchGas { treasury, gas: estimated }) } else { Ok(limit) }
}

/// The gas of a sweep of coin to the treasury, which may be a contract, with a margin; `None` where no node tells. `payer` is an
/// address that may have coin: what a contract does may depend on who sends how much, and with nothing it may do nothing.
///
/// # Errors
/// If a node says that it would fail, or takes more than any treasury needs.
pub async fn estimate_gas(rpc: &Rpc, treasury: Address, payer: Option<Address>) -> Result<Option<u64>, Refused> {
    match rpc.with_failover(|endpoint| async move { ask_gas(&endpoint, treasury, payer).await.map(Some) }).await {
        Ok(Some(Ok((gas, has_code)))) => {
            let limit = gas_limit(treasury, gas)?;
            Ok(Some(if has_code { limit.max(DEFAULT_GAS) } else { limit }))
        }
        Ok(Some(Err(source))) => Err(Refused::Reverts { treasury, source }),
        Ok(None) => Ok(None),
        Err(error) => {
            tracing::warn!("the gas of a sweep is not known: {error}");
            Ok(None)
        }
    }
}

/// What a transfer to the treasury takes, and whether that may have code; or how it fails, which is the treasury's word and no
/// fault of the node.
async fn ask_gas(
    endpoint: &Endpoint,
    treasury: Address,
    payer: Option<Address>,
) -> Result<Result<(u64, bool), RpcError>, RpcError> {
    let code: Option<Bytes> = known(endpoint.request("eth_getCode", json!([treasury, "latest"])).await)?;
    let has_code = code.is_none_or(|code| !code.is_empty());
    let paid: Option<U256> = match payer {
        Some(payer) => known(endpoint.request("eth_getBalance", json!([payer, "latest"])).await)?,
        None => None,
    };
    // The other half is for gas, which some nodes ask for.
    let half = paid.map(|balance| balance / U256::from(2)).filter(|half| !half.is_zero());
    let amount = half.unwrap_or(U256::from(USUAL_AMOUNT));
    let given = json!({ NEW_SENDER.to_string(): { "balance": amount.saturating_mul(U256::from(2)) } });
    let mut calls = vec![json!([{ "from": NEW_SENDER, "to": treasury, "value": amount }, "latest", given])];
    calls.extend(payer.filter(|_| half.is_some()).map(|payer| json!([{ "from": payer, "to": treasury, "value": amount }])));
    let mut refused = None;
    for call in calls {
        match estimated(endpoint, call).await? {
            Some(Ok(gas)) => return Ok(Ok((gas, has_code))),
            // The treasury may take it from those that it knows.
            Some(Err(error)) => refused = Some(error),
            // Not every node lends coin to a sender.
            None => {}
        }
    }
    if let Some(error) = refused {
        return Ok(Err(error));
    }
    let nothing = json!([{ "from": Address::ZERO, "to": treasury, "value": "0x0" }]);
    let gas = endpoint.request::<U64>("eth_estimateGas", nothing).await;
    match gas {
        Ok(gas) => Ok(Ok((gas.to(), has_code))),
        Err(error) if error.is_revert() => Ok(Err(error)),
        Err(error) => Err(error),
    }
}

/// What a call takes, or how it fails; `None` if the node refuses to say.
async fn estimated(endpoint: &Endpoint, call: Value) -> Result<Option<Result<u64, RpcError>>, RpcError> {
    match endpoint.request::<U64>("eth_estimateGas", call).await {
        Err(error) if error.is_revert() => Ok(Some(Err(error))),
        answer => Ok(known(answer)?.map(|gas| Ok(gas.to()))),
    }
}

/// What a node refuses to say, in whatever form, is not known; a node that does not answer is asked no further.
fn known<T>(answer: Result<T, RpcError>) -> Result<Option<T>, RpcError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_rate_limit() => Err(error),
        Err(RpcError::Refused { .. } | RpcError::Malformed { .. } | RpcError::Http { status: 400..500, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What addresses have of a chain's coin, in wei, by one node; nothing of any where no node tells.
pub async fn balances(rpc: &Rpc, addresses: &[Address]) -> HashMap<Address, U256> {
    let calls: Vec<(&'static str, Value)> =
        addresses.iter().map(|address| ("eth_getBalance", json!([address, "latest"]))).collect();
    let calls = &calls;
    let ask = |endpoint: Arc<Endpoint>| async move {
        let answers = endpoint.batch(calls).await?;
        answers.into_iter().map(|answer| endpoint.read("eth_getBalance", &answer?)).collect::<Result<_, _>>().map(Some)
    };
    let balances: Vec<U256> = match rpc.with_failover::<Vec<U256>, RpcError, _, _>(ask).await {
        Ok(balances) => balances.unwrap_or_default(),
        Err(error) => {
            tracing::warn!("what addresses have is not known, so nothing is swept: {error}");
            Vec::new()
        }
    };
    addresses.iter().copied().zip(balances).collect()
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
