//! Asking a token's contract whether it is what `chains.yaml` says: with other decimals each amount would be wrong by a power of ten.

use crate::config::{Chain, Token};
use crate::rpc::{Endpoint, Rpc, RpcError};
use alloy::primitives::{Address, Bytes, U256};
use base::text::excerpt;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::json;

/// Selector of `decimals()`.
const DECIMALS: &str = "0x313ce567";
/// Selector of `symbol()`.
const SYMBOL: &str = "0x95d89b41";
const WORD: usize = 32;

/// Whether a token is what `chains.yaml` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenVerdict {
    /// Its contract has the decimals that the file says.
    Fits(String),
    /// Its contract says nothing of decimals, as far as endpoints answer, so the file is believed.
    Undeclared(String),
    /// It has another symbol, which does no harm.
    OtherSymbol(String),
    /// It has other decimals, or there is no contract. No payment may be asked for in it.
    Wrong(String),
    /// No endpoint has answered.
    Unknown(String),
}

/// What a contract says of itself; `None` for what it lacks: both functions are optional in ERC-20.
struct Told {
    has_code: bool,
    decimals: Option<U256>,
    symbol: Option<String>,
}

/// Asks all endpoints at once; the first that has the decimals of the file decides. So one that lags or lies takes no token away, and
/// one that knows nothing of it makes nobody believe the file while another one can tell. Where no other answers, a number that
/// contradicts counts, since each amount may be wrong, and a missing contract does not, since an endpoint may lag.
pub async fn check_token(rpc: &Rpc, token: &Token) -> TokenVerdict {
    let mut answers: FuturesUnordered<_> =
        rpc.endpoints().iter().map(|endpoint| async move { (endpoint.host(), ask(endpoint, token.address).await) }).collect();
    let (mut other_decimals, mut missing, mut failed, mut is_there) = (None, None, None, false);
    while let Some((host, answer)) = answers.next().await {
        match answer {
            Ok(told) if told.decimals == Some(U256::from(token.decimals)) => return told.verdict(token),
            Ok(Told { decimals: Some(decimals), .. }) => other_decimals = Some(contradiction(token, decimals, host)),
            Ok(told) if !told.has_code => missing = Some(no_contract(token, host)),
            Ok(_) => is_there = true,
            Err(error) => failed = Some(base::error_chain(&error)),
        }
    }
    match (other_decimals, failed, missing) {
        (Some(wrong), ..) => TokenVerdict::Wrong(wrong),
        (None, Some(why), _) if !is_there => TokenVerdict::Unknown(why),
        (None, None, Some(wrong)) if !is_there => TokenVerdict::Wrong(wrong),
        // Nobody else can say more.
        _ => TokenVerdict::Undeclared(format!("its contract does not say its decimals; {} are believed", token.decimals)),
    }
}

fn contradiction(token: &Token, decimals: U256, host: &str) -> String {
    let Token { address, decimals: listed, .. } = token;
    format!(
        "its contract {address} has {decimals} decimals and the chains file says {listed}, so each amount would be wrong by a power of \
         ten; write decimals: {decimals} (says {host})"
    )
}

fn no_contract(token: &Token, host: &str) -> String {
    let address = token.address;
    format!("there is no contract at {address}; write its address on this chain into the chains file (says {host})")
}

/// As [`check_token`], for all tokens of a chain.
pub async fn check_tokens(chain: &Chain) -> Vec<(&Token, TokenVerdict)> {
    let rpc = Rpc::of(chain);
    let mut verdicts = Vec::new();
    for token in &chain.tokens {
        verdicts.push((token, check_token(&rpc, token).await));
    }
    verdicts
}

async fn ask(endpoint: &Endpoint, contract: Address) -> Result<Told, RpcError> {
    endpoint.check_chain_id().await?;
    let (decimals, symbol) = tokio::join!(call(endpoint, contract, DECIMALS), call(endpoint, contract, SYMBOL));
    // Another symbol would do no harm.
    let (decimals, symbol) = (decimals?, symbol.unwrap_or_default());
    // A precompile may be a token and have no code.
    let has_code =
        !decimals.is_empty() || !endpoint.request::<Bytes>("eth_getCode", json!([contract, "latest"])).await?.is_empty();
    Ok(Told { has_code, decimals: word(&decimals), symbol: text(&symbol) })
}

/// What a function returns; nothing if the contract lacks it. Any other refusal is the endpoint's and says nothing of the contract.
async fn call(endpoint: &Endpoint, contract: Address, selector: &str) -> Result<Bytes, RpcError> {
    match endpoint.request("eth_call", json!([{ "to": contract, "data": selector }, "latest"])).await {
        Err(error) if error.is_revert() => Ok(Bytes::new()),
        answer => answer,
    }
}

fn word(returned: &[u8]) -> Option<U256> {
    (returned.len() == WORD).then(|| U256::from_be_slice(returned))
}

/// An ABI string, or the `bytes32` of older tokens such as MKR.
fn text(returned: &[u8]) -> Option<String> {
    let bytes = match returned.len() {
        WORD => returned.split(|byte| *byte == 0).next()?,
        _ => {
            let length = usize::try_from(word(returned.get(WORD..2 * WORD)?)?).ok()?;
            returned.get(2 * WORD..)?.get(..length)?
        }
    };
    std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty()).map(excerpt)
}

impl Told {
    fn verdict(self, token: &Token) -> TokenVerdict {
        let Token { symbol: listed, decimals, .. } = token;
        match self.symbol {
            Some(symbol) if !symbol.eq_ignore_ascii_case(listed) => {
                TokenVerdict::OtherSymbol(format!("its contract calls itself {symbol:?}"))
            }
            _ => TokenVerdict::Fits(format!("{decimals} decimals, as its contract says")),
        }
    }
}
