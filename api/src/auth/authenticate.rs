//! The middleware in front of `/api/v1`: API key, rate limit, scope, in this order.

use crate::app::App;
use crate::auth::caller::Caller;
use crate::auth::rate_limit::too_many_unknown_keys;
use crate::http::problem::Problem;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use merchants::{KeyRefused, Scope};
use runtime::http::ClientAddress;
use std::fmt::Display;

/// Passes a request on with its [`Caller`].
///
/// # Errors
/// A 401 without a valid key; a 429 over the rate limit, after too many unknown keys, or beside too many requests or replies that nobody
/// takes; a 403 when the key's scope does not cover the method.
pub async fn authenticate(State(app): State<App>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let Some(key) = api_key(request.headers()) else {
        return Err(unauthorized("No API key; send it as X-Api-Key, or as Authorization: Bearer"));
    };
    let from = request.extensions().get().and_then(|ClientAddress(address)| *address);
    let grant = app.keys.grant(key, from).await.map_err(|refused| match refused {
        KeyRefused::Unknown => unauthorized("The API key is unknown or revoked"),
        KeyRefused::TooManyUnknown(wait) => too_many_unknown_keys(wait),
        KeyRefused::Failed(failure) => failure.into(),
    })?;
    let caller = Caller::new(grant);
    caller.spend()?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) && caller.scope < Scope::Write {
        return Err(insufficient_scope(caller.id, caller.scope));
    }
    let (merchant, method) = (caller.merchant, request.method().clone());
    request.extensions_mut().insert(caller);
    let response = app.shares.work(merchant, next.run(request)).await?;
    app.body_budget.hold(merchant, &method, response).await
}

fn api_key(headers: &HeaderMap) -> Option<&str> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok();
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

/// A 401.
pub fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "An API key is required", detail)
}

/// A 403: the key may only read.
pub fn insufficient_scope(key: impl Display, scope: Scope) -> Problem {
    let detail = format!("The key {key} has the scope {}; expected {}", scope.as_str(), Scope::Write.as_str());
    Problem::new(StatusCode::FORBIDDEN, "insufficient-scope", "The key's scope does not allow this", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_from_either_header() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            api_key(&headers).map(str::to_owned)
        };
        assert_eq!(read("x-api-key", "k"), Some("k".into()));
        assert_eq!(read("authorization", "Bearer k"), Some("k".into()));
        assert_eq!(read("authorization", "bearer  k"), Some("k".into()));
        assert_eq!(read("authorization", "Basic k"), None);
        assert_eq!(read("authorization", "k"), None);
    }
}
