//! What the planner asks a chain's nodes: what a sweep takes, and what addresses have.

use super::rules::Terms;
use super::settings::{DEFAULT_GAS, MAX_GAS, Refused};
use crate::engine::answers::Answer;
use alloy::primitives::{Address, B256, Bytes, U64, U256};
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

/// What a node says of a sweep to a treasury.
enum Told {
    /// What it takes, and whether the treasury may have code.
    Gas(u64, bool),
    /// It would fail.
    Fails(RpcError),
}

/// The gas of a sweep of coin to the treasury, which may be a contract, with a margin; `None` where no node tells. `payers` are
/// addresses that may have coin: what a contract does may depend on who sends how much, and of one to which nobody has coin to
/// send nothing is known.
///
/// # Errors
/// If a node says that each sweep of one of these would fail, or that one takes more than any treasury needs. That the treasury
/// does not take what nobody would send there, nothing or one coin, is no reason.
pub async fn estimate_gas(rpc: &Rpc, treasury: Address, payers: &[Address], terms: &Terms) -> Result<Option<u64>, Refused> {
    match rpc.with_failover(|endpoint| async move { ask_gas(&endpoint, treasury, payers, terms).await }).await {
        Ok(Some(Told::Gas(gas, has_code))) => {
            let limit = gas_limit(treasury, gas)?;
            Ok(Some(if has_code { limit.max(DEFAULT_GAS) } else { limit }))
        }
        Ok(Some(Told::Fails(source))) => Err(Refused::Reverts { treasury, source }),
        Ok(None) => Ok(None),
        Err(error) => {
            tracing::warn!("the gas of a sweep is not known: {error}");
            Ok(None)
        }
    }
}

/// What one node says. How a call fails is the treasury's word and no fault of the node, unless its words are of coin that the
/// sender lacks.
async fn ask_gas(endpoint: &Endpoint, treasury: Address, payers: &[Address], terms: &Terms) -> Result<Option<Told>, RpcError> {
    let code: Option<Bytes> = known(endpoint.request("eth_getCode", json!([treasury, "latest"])).await)?;
    let has_code = code.is_none_or(|code| !code.is_empty());
    // What an address would send that is worth a sweep. What has less, such as dust, would send nothing.
    let mut sent: Vec<(Address, U256)> = Vec::new();
    for payer in payers {
        let balance: Option<U256> = known(endpoint.request("eth_getBalance", json!([payer, "latest"])).await)?;
        let amount = balance.filter(|balance| *balance >= terms.least()).map(|balance| balance - terms.reserve());
        sent.extend(amount.map(|amount| (*payer, amount)));
    }
    let usual = sent.first().map_or(U256::from(USUAL_AMOUNT), |(_, amount)| *amount);
    let given = json!({ NEW_SENDER.to_string(): { "balance": usual.saturating_mul(U256::from(2)) } });
    let mut calls = vec![json!([{ "from": NEW_SENDER, "to": treasury, "value": usual }, "latest", given])];
    calls.extend(sent.iter().map(|(payer, amount)| json!([{ "from": payer, "to": treasury, "value": amount }])));
    let mut failure = None;
    for call in calls {
        match estimated(endpoint, call).await? {
            Some(Ok(gas)) => return Ok(Some(Told::Gas(gas, has_code))),
            // The treasury may take it from another one, or take less.
            Some(Err(error)) => failure = Some(error),
            // Not every node lends coin to a sender.
            None => {}
        }
    }
    if let Some(error) = failure.filter(|_| !sent.is_empty()) {
        return Ok(Some(Told::Fails(error)));
    }
    if has_code {
        // What a contract does with coin, nothing says.
        return Ok(None);
    }
    let nothing = json!([{ "from": Address::ZERO, "to": treasury, "value": "0x0" }]);
    let taken = estimated(endpoint, nothing).await?.and_then(Result::ok);
    Ok(taken.map(|gas| Told::Gas(gas, has_code)))
}

/// What a call takes, or how it fails; `None` if the node refuses to say. Some say of a sender that lacks the coin what they say of
/// a contract that reverts, and tell it by words alone.
async fn estimated(endpoint: &Endpoint, call: Value) -> Result<Option<Result<u64, RpcError>>, RpcError> {
    let is_lack = |message: &str| matches!(Answer::read(message), Answer::InsufficientFunds { .. });
    match endpoint.request::<U64>("eth_estimateGas", call).await {
        Err(RpcError::Refused { message, .. }) if is_lack(&message) => Ok(None),
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

/// What addresses have of a chain's coin after the block with this hash (EIP-1898), in wei, by one node that has it; nothing of
/// any where none tells. One that is behind, or on another branch, would take what came in that block for missing.
pub async fn balances(rpc: &Rpc, addresses: &[Address], block: B256) -> HashMap<Address, U256> {
    let call = |address| ("eth_getBalance", json!([address, { "blockHash": block }]));
    let calls: Vec<(&'static str, Value)> = addresses.iter().map(call).collect();
    let calls = &calls;
    let ask = |endpoint: Arc<Endpoint>| async move {
        let answers = endpoint.batch(calls).await?;
        let read =
            |answer: Result<chain::Answer, RpcError>| known(answer.and_then(|answer| endpoint.read("eth_getBalance", &answer)));
        answers.into_iter().map(read).collect::<Result<Option<_>, _>>()
    };
    let balances: Vec<U256> = match rpc.with_failover::<Vec<U256>, RpcError, _, _>(ask).await {
        Ok(Some(balances)) => balances,
        Ok(None) => {
            tracing::warn!(%block, "no node tells what addresses have after this block, so nothing is swept");
            Vec::new()
        }
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
