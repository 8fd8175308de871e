//! Problem documents (RFC 9457): every response that is not a success is one.
//!
//! Errors of the database become one through [`Failure`], so that handlers use `?`: what a retry may cure is a 503 with
//! `Retry-After`, anything else a 500. The cause goes to the log and never to the client.

use crate::http::request_id;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use runtime::Failure;
use serde::Serialize;
use std::fmt;
use tokio_postgres::error::SqlState;
use utoipa::ToSchema;

/// Why a request was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Problem {
    /// The kind of problem, for programs.
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    #[schema(value_type = u16)]
    status: StatusCode,
    /// Explains this problem to people.
    detail: String,
    /// Every field, header or parameter that is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// The `x-request-id` of the response, which its log lines have too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    request_id: Option<Box<str>>,
    #[serde(skip)]
    retry_after: Option<u32>,
}

/// The error of one field, header or parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    field: String,
    message: String,
}

impl FieldError {
    /// `message` says what was expected and what was there.
    pub fn new(field: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { field: field.into(), message: message.to_string() }
    }
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// `slug` names the kind of problem for programs, `detail` explains this one to people.
    pub fn new(status: StatusCode, slug: &str, title: &'static str, detail: impl fmt::Display) -> Self {
        let kind = format!("urn:ctrip:problem:{slug}");
        Self { kind, title, status, detail: detail.to_string(), errors: Vec::new(), request_id: None, retry_after: None }
    }

    /// A 422 that names every wrong field.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let details: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        let mut problem =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-request", "The request is not valid", details.join("; "));
        problem.errors = errors;
        problem
    }

    /// A 422 about one field.
    pub fn field(field: &str, message: impl fmt::Display) -> Self {
        Self::invalid(vec![FieldError::new(field, message)])
    }

    /// A 404: it does not exist, or belongs to another merchant. The caller can't tell the two apart.
    pub fn not_found(detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    /// A 503: a dependency is unavailable, and the same request may succeed after `seconds`.
    pub fn unavailable(seconds: u32, detail: impl fmt::Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Temporarily unavailable", detail).retry_after(seconds)
    }

    /// The HTTP status of the response.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// Adds the header `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// A 503: the intent is in Postgres, but Kafka has not acknowledged it, so the address must not be given out yet.
    pub fn unacknowledged() -> Self {
        Self::unavailable(
            5,
            "Kafka did not acknowledge the payment's intent. Try again: with the same Idempotency-Key you get the same payment",
        )
    }

    /// A 409: the account that addresses are derived from has none left.
    pub fn exhausted() -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "addresses-exhausted",
            "No address is left",
            "The account has given out all its 2147483648 addresses. Its operator gives the merchant another xpub",
        )
    }

    /// A 503: the account that addresses are derived from is cTrip's own no more.
    pub fn replaced() -> Self {
        Self::unavailable(
            60,
            "Another account has taken the place of the one that this server derives addresses from. Retry later",
        )
    }

    /// A 500. The cause belongs in the log, and the caller of this has logged it.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", "The request failed; the log has the cause")
    }
}

impl From<Failure> for Problem {
    /// The one place where a failed request is logged.
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Retry(cause) | Failure::Reopen(cause) => {
                tracing::warn!("a request failed and may be retried: {cause:#}");
                let of_database = cause.chain().find_map(|error| error.downcast_ref::<tokio_postgres::Error>());
                let took_too_long = of_database.and_then(tokio_postgres::Error::code) == Some(&SqlState::QUERY_CANCELED);
                Self::unavailable(
                    5,
                    if took_too_long {
                        "The database took too long for this request and ended it. Try again later; a list with narrower filters takes less"
                    } else {
                        "The database did not answer"
                    },
                )
            }
            Failure::Halt(cause) => {
                tracing::error!("a request failed: {cause:#}");
                Self::internal()
            }
        }
    }
}

impl From<tokio_postgres::Error> for Problem {
    fn from(error: tokio_postgres::Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<deadpool_postgres::PoolError> for Problem {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        Failure::from(error).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after);
        let problem = Self { request_id: request_id::current(), ..self };
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"ctrip\""));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_the_field_and_has_its_content_type() {
        let problem = Problem::field("chain", "expected one of anvil, got \"x\"");
        let body = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "type": "urn:ctrip:problem:invalid-request",
                "title": "The request is not valid",
                "status": 422,
                "detail": "chain: expected one of anvil, got \"x\"",
                "errors": [{ "field": "chain", "message": "expected one of anvil, got \"x\"" }],
            })
        );
        let response = problem.into_response();
        assert_eq!(response.status(), 422);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    }

    #[test]
    fn a_503_has_a_retry_after() {
        let response = Problem::unacknowledged().into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "5");
    }
}
