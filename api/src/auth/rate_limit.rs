//! The response to clients over their rate limit: 429 with `Retry-After`.
//!
//! The limit is one key's, in requests per second (`API_RATE_LIMIT`); each order of a batch counts as a request.

use crate::http::problem::Problem;
use axum::http::StatusCode;
use std::time::Duration;

/// A 429; `wait` is how long until the key has its requests again.
pub fn rate_limited(wait: Duration) -> Problem {
    // Rounded up, since a client that retries too early is refused again.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).max(1);
    let detail = format!("The key is over its rate limit; retry in {seconds} s");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "Too many requests", detail).retry_after(seconds)
}
