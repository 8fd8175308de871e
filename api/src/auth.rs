//! Who asks. Every path below `/api/v1` goes through [`authenticate`] as a whole, so that no handler can forget it: it wants a
//! key, counts the request against the key's rate limit, and for every method but GET and HEAD wants the scope `write`.

use crate::app::App;
use crate::keys::{Grant, Scope};
use crate::merchant::Merchant;
use crate::problem::Problem;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Who asks, as a handler's argument: whoever shows data filters by its merchant.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The key's merchant.
    pub merchant: Uuid,
    grant: Arc<Grant>,
}

impl Deref for Caller {
    type Target = Grant;

    fn deref(&self) -> &Grant {
        &self.grant
    }
}

impl Caller {
    /// What its payments are made with.
    pub fn settings(&self) -> &Merchant {
        &self.grant.merchant
    }

    /// Counts so many requests against the key's rate limit.
    ///
    /// # Errors
    /// A 429 that says when to come back.
    pub fn spend(&self, requests: u32) -> Result<(), Problem> {
        let Some(requests) = NonZeroU32::new(requests) else { return Ok(()) };
        self.grant.spend(requests).map_err(too_many)
    }
}

/// Lets a request through with its [`Caller`].
///
/// # Errors
/// A 401 without a key that works, a 403 where its scope does not reach, a 429 when it has had its share.
pub async fn authenticate(State(app): State<App>, mut request: Request, next: Next) -> Result<Response, Problem> {
    let Some(key) = presented(request.headers()) else {
        return Err(unauthorized("No API key; send it as X-Api-Key, or as Authorization: Bearer"));
    };
    let Some(grant) = app.keys.grant(&app.pool, key).await? else {
        return Err(unauthorized("The API key is not known, or was revoked"));
    };
    let caller = Caller { merchant: grant.merchant.id, grant };
    caller.spend(1)?;
    if !matches!(*request.method(), Method::GET | Method::HEAD) && caller.scope < Scope::Write {
        return Err(insufficient(caller.id, caller.scope));
    }
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            tracing::error!("{} wants a caller and is not behind the authentication", parts.uri.path());
            Problem::internal()
        })
    }
}

fn presented(headers: &HeaderMap) -> Option<&str> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok();
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

/// A 401.
pub fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "An API key is needed", detail)
}

/// A 403.
pub fn insufficient(key: impl std::fmt::Display, scope: Scope) -> Problem {
    let detail = format!("The key {key} has the scope {}; expected {}", scope.as_str(), Scope::Write.as_str());
    Problem::new(StatusCode::FORBIDDEN, "insufficient-scope", "The key may not do this", detail)
}

/// A 429.
pub fn too_many(wait: Duration) -> Problem {
    // Rounded up, as coming back too early would be refused again.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).max(1);
    let detail = format!("The key has had its requests of this second; try again in {seconds} s");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests", detail).retry_after(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_from_either_header() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            presented(&headers).map(str::to_owned)
        };
        assert_eq!(read("x-api-key", "k"), Some("k".into()));
        assert_eq!(read("authorization", "Bearer k"), Some("k".into()));
        assert_eq!(read("authorization", "bearer  k"), Some("k".into()));
        assert_eq!(read("authorization", "Basic k"), None);
        assert_eq!(read("authorization", "k"), None);
    }
}
