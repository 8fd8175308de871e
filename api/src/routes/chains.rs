//! `/api/v1/chains` and `/api/v1/tokens`: the chains and tokens of chains.yaml.

use crate::app::App;
use crate::auth::Caller;
use crate::http::extract::Parameters;
use crate::http::problem::Problem;
use crate::openapi::schemas;
use axum::Json;
use axum::extract::State;
use chain::Chain;
use payments::Policy;
use serde::Serialize;
use utoipa::ToSchema;

/// A whole list, without pages.
#[derive(Debug, Serialize, ToSchema)]
pub struct List<T> {
    data: Vec<T>,
}

/// A chain.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Chain)]
pub struct ChainReply {
    name: String,
    chain_id: u64,
    /// Blocks, the transfer's own and the head included; 0 where `finality` decides.
    confirmations_required: u32,
    /// The block tag that confirms a payment, `safe` or `finalized`.
    #[schema(required = true, value_type = Option<schemas::Finality>)]
    finality: Option<&'static str>,
    /// Base units of the coin: a transfer of less is kept and shown, and changes nothing. 0 if any counts.
    #[schema(value_type = schemas::Amount)]
    min_transfer: String,
    /// `traced`: coin that contracts send is seen. `logged`: only where a block logs all movements of the coin (EIP-7708, zkSync), or
    /// where it comes through the contract that is the chain's coin (Celo, Moonbeam, Polygon); else it is not, and has to come as a
    /// transaction's value.
    #[schema(value_type = schemas::CoinFromContracts)]
    coin_from_contracts: &'static str,
    /// Their symbols.
    tokens: Vec<String>,
}

/// A token of a chain.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Token)]
pub struct TokenReply {
    chain: String,
    chain_id: u64,
    token: String,
    #[schema(value_type = schemas::TokenId)]
    token_id: String,
    #[schema(value_type = schemas::Address)]
    token_contract_address: String,
    decimals: u8,
    /// Base units: a transfer of less is kept and shown, and changes nothing. 0 if any counts.
    #[schema(value_type = schemas::Amount)]
    min_transfer: String,
}

/// `GET /api/v1/chains`
#[utoipa::path(
    get, path = "/api/v1/chains", operation_id = "listChains", tag = "catalog", summary = "List the chains",
    responses((status = 200, description = "All chains.", body = List<ChainReply>)),
)]
pub async fn chains(State(app): State<App>, _: Caller) -> Json<List<ChainReply>> {
    Json(List { data: app.catalog().0.iter().map(chain_reply).collect() })
}

fn chain_reply(chain: &Chain) -> ChainReply {
    let policy = Policy::from(chain.policy);
    ChainReply {
        name: chain.name.clone(),
        chain_id: chain.id.0,
        confirmations_required: policy.confirmations(),
        finality: policy.finality(),
        min_transfer: chain.min_transfer.to_string(),
        coin_from_contracts: if chain.traces { "traced" } else { "logged" },
        tokens: chain.tokens_in_no_doubt().map(|token| token.symbol.clone()).collect(),
    }
}

/// `GET /api/v1/tokens`, of one chain with `?chain=NAME`.
#[utoipa::path(
    get, path = "/api/v1/tokens", operation_id = "listTokens", tag = "catalog", summary = "List the tokens",
    params(schemas::ListTokens),
    responses((status = 200, description = "All tokens, or the chain's.", body = List<TokenReply>)),
)]
pub async fn tokens(
    State(app): State<App>,
    _: Caller,
    Parameters(parameters): Parameters,
) -> Result<Json<List<TokenReply>>, Problem> {
    let catalog = app.catalog();
    let mut chains: Vec<&Chain> = catalog.0.iter().collect();
    for (name, value) in &parameters {
        match name.as_str() {
            "chain" => chains = vec![catalog.by_name(value).map_err(|message| Problem::field("chain", message))?],
            _ => return Err(Problem::field(name, "unknown parameter; expected chain")),
        }
    }
    Ok(Json(List { data: chains.into_iter().flat_map(token_replies).collect() }))
}

fn token_replies(chain: &Chain) -> impl Iterator<Item = TokenReply> {
    chain.tokens_in_no_doubt().map(|token| TokenReply {
        chain: chain.name.clone(),
        chain_id: chain.id.0,
        token: token.symbol.clone(),
        token_id: token.id(chain.id),
        token_contract_address: token.address.to_string(),
        decimals: token.decimals,
        min_transfer: token.min_transfer.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::catalog::tests::chains;

    #[test]
    fn a_chain_tells_how_coin_from_contracts_is_seen() {
        let [mut traced, logged] = <[Chain; 2]>::try_from(chains()).unwrap();
        traced.traces = true;
        assert_eq!([&traced, &logged].map(|chain| chain_reply(chain).coin_from_contracts), ["traced", "logged"]);
    }
}
