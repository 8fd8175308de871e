//! Chains and tokens: the query of the list of tokens.

use utoipa::IntoParams;

/// The query of the list of tokens.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "`routes::chains` reads the parameters one by one")]
pub struct ListTokens {
    /// Of this chain, by name.
    chain: Option<String>,
}
