//! How large a request may be and how long it may take, with the problems that say so: 408, 413, 503.
//!
//! The rate limit of a key, with its 429, is in `auth::rate_limit`.

use crate::http::problem::Problem;
use axum::http::StatusCode;
use std::time::Duration;

/// A create request with the largest metadata needs 18 KiB.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// A batch of 1,000 orders with some metadata each.
pub const MAX_BATCH_BODY_BYTES: usize = 8 * 1024 * 1024;
/// How long a client may take to send a body.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the head of the response; a stream goes on after it. Longer than any single wait for Postgres or Kafka.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A 408.
pub fn body_timeout() -> Problem {
    let detail = format!("The body did not arrive within {BODY_TIMEOUT:?}");
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", "The body took too long", detail)
}

/// A 413.
pub fn body_too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too-large",
        "The body is too large",
        "The limit is 64 KiB per request, and 8 MiB for a batch",
    )
}

/// A 503: the handler did not respond within [`REQUEST_TIMEOUT`].
pub fn request_timeout() -> Problem {
    Problem::unavailable(5, "The request timed out")
}
