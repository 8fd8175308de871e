//! axum's extractors, with problem documents for what they refuse.

use crate::problem::Problem;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use std::time::Duration;
use topics::PaymentId;

/// How long a client may take to send a body.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// A body, read whole.
pub struct Body(pub Bytes);

/// The query's parameters in order, decoded.
pub struct Parameters(pub Vec<(String, String)>);

/// The `{id}` of a path.
pub struct Id(pub PaymentId);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = tokio::time::timeout(READ_WITHIN, Bytes::from_request(request, state)).await.map_err(|_| body_timeout())?;
        let body = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
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

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // What is no UUID names no payment.
        let Ok(Path(text)) = Path::<String>::from_request_parts(parts, state).await else {
            return Err(no_payment("with this id"));
        };
        text.parse().map(Self).map_err(|_| no_payment(crate::fields::shown(&text)))
    }
}

/// A 408.
pub fn body_timeout() -> Problem {
    let detail = format!("The body did not arrive within {READ_WITHIN:?}");
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", "The body took too long", detail)
}

/// A 413.
pub fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too-large",
        "The body is too large",
        "A request has at most 64 KiB, and a batch 8 MiB",
    )
}

/// There is none, or it is another merchant's.
pub fn no_payment(id: impl std::fmt::Display) -> Problem {
    Problem::not_found(format_args!("There is no payment {id}"))
}
