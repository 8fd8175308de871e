//! `/api/v1/chains` and `/api/v1/tokens`: what a payment can be asked for.

use crate::app::App;
use crate::auth::Caller;
use crate::catalog::policy;
use crate::extract::Parameters;
use crate::problem::Problem;
use axum::Json;
use axum::extract::State;
use chain::Chain;
use serde::Serialize;

/// A whole list; there is nothing to page through.
#[derive(Debug, Serialize)]
pub struct List<T> {
    data: Vec<T>,
}

/// A chain.
#[derive(Debug, Serialize)]
pub struct ChainReply {
    name: String,
    chain_id: u64,
    confirmations_required: u32,
    finality: Option<&'static str>,
    tokens: Vec<String>,
}

/// A token of a chain.
#[derive(Debug, Serialize)]
pub struct TokenReply {
    chain: String,
    chain_id: u64,
    token: String,
    token_id: String,
    token_contract_address: String,
    decimals: u8,
}

/// `GET /api/v1/chains`
pub async fn chains(State(app): State<App>, _: Caller) -> Json<List<ChainReply>> {
    let reply = |chain: &Chain| ChainReply {
        name: chain.name.clone(),
        chain_id: chain.id.0,
        confirmations_required: policy(chain).confirmations(),
        finality: policy(chain).finality(),
        tokens: chain.tokens.iter().map(|token| token.symbol.clone()).collect(),
    };
    Json(List { data: app.catalog.0.iter().map(reply).collect() })
}

/// `GET /api/v1/tokens`, of one chain with `?chain=NAME`.
pub async fn tokens(
    State(app): State<App>,
    _: Caller,
    Parameters(parameters): Parameters,
) -> Result<Json<List<TokenReply>>, Problem> {
    let mut chains: Vec<&Chain> = app.catalog.0.iter().collect();
    for (name, value) in &parameters {
        match name.as_str() {
            "chain" => chains = vec![app.catalog.by_name(value).map_err(|message| Problem::field("chain", message))?],
            _ => return Err(Problem::field(name, "unknown parameter; there is chain")),
        }
    }
    Ok(Json(List { data: chains.into_iter().flat_map(replies).collect() }))
}

fn replies(chain: &Chain) -> impl Iterator<Item = TokenReply> {
    chain.tokens.iter().map(|token| TokenReply {
        chain: chain.name.clone(),
        chain_id: chain.id.0,
        token: token.symbol.clone(),
        token_id: token.id(chain.id),
        token_contract_address: token.address.to_string(),
        decimals: token.decimals,
    })
}
