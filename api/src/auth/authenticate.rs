//! The middleware in front of `/api/v1`: API key, rate limit, scope, in this order.

use crate::app::App;
use crate::auth::caller::Caller;
use crate::auth::rate_limit::too_many_unknown_keys;
use crate::http::problem::Problem;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
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
    let key = api_key(request.headers()).map_err(unauthorized)?;
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

/// The key, or why there is none. Of two of a kind a proxy may check one, and the other would count.
fn api_key(headers: &HeaderMap) -> Result<&str, &'static str> {
    let of = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        let first = values.next();
        if values.next().is_some() { Err("Two headers with an API key; send one") } else { Ok(first) }
    };
    let (key, authorization) = (of(&HeaderName::from_static("x-api-key"))?, of(&header::AUTHORIZATION)?);
    let bearer = || {
        let (scheme, key) = authorization?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    };
    let found = key.map_or_else(bearer, |key| key.to_str().ok());
    found.ok_or("No API key; send it as X-Api-Key, or as Authorization: Bearer")
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
            api_key(&headers).ok().map(str::to_owned)
        };
        assert_eq!(read("x-api-key", "k"), Some("k".into()));
        assert_eq!(read("authorization", "Bearer k"), Some("k".into()));
        assert_eq!(read("authorization", "bearer  k"), Some("k".into()));
        assert_eq!(read("authorization", "Basic k"), None);
        assert_eq!(read("authorization", "k"), None);
    }

    #[test]
    fn of_two_keys_none_counts() {
        for name in ["x-api-key", "authorization"] {
            let mut headers = HeaderMap::new();
            headers.append(name, "Bearer one".parse().unwrap());
            assert!(api_key(&headers).is_ok());
            headers.append(name, "Bearer two".parse().unwrap());
            assert!(api_key(&headers).unwrap_err().contains("send one"), "{name}");
        }
    }
}
