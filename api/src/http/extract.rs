//! axum's extractors, each with a problem document for what it refuses.

use crate::http::limits::{BODY_TIMEOUT, body_timeout, body_too_large};
use crate::http::problem::Problem;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use base::text::excerpt;
use std::fmt::Display;
use std::str::FromStr;

/// A body, read whole.
pub struct Body(pub Bytes);

/// The query's parameters in order, decoded.
pub struct Parameters(pub Vec<(String, String)>);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await.map_err(|_| body_timeout())?;
        let body = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => body_too_large(),
            status => Problem::new(status, "malformed-body", "The body could not be read", rejection),
        });
        body.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::from_request_parts(parts, state).await;
        let Query(parameters) = query.map_err(|rejection| {
            Problem::new(rejection.status(), "malformed-query", "The query could not be read", rejection)
        })?;
        Ok(Self(parameters))
    }
}

/// Reads the `{id}` of a path. Text that is no id names nothing that exists, so it is a 404 as well.
///
/// # Errors
/// The problem that `not_found` returns for the text.
pub async fn path_id<I: FromStr, S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
    not_found: impl Fn(&dyn Display) -> Problem,
) -> Result<I, Problem> {
    match Path::<String>::from_request_parts(parts, state).await {
        Ok(Path(text)) => text.parse().map_err(|_| not_found(&excerpt(&text))),
        Err(_) => Err(not_found(&"with this id")),
    }
}
