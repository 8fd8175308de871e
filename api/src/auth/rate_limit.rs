//! The responses to clients that ask too often: 429 with `Retry-After`.
//!
//! The rate limit is one key's, in requests per second (`API_RATE_LIMIT`); each order of a batch counts as a request. Keys that
//! nobody has are counted by the address that sends them.

use crate::http::problem::Problem;
use axum::http::StatusCode;
use std::time::Duration;

/// A 429; `wait` is how long until the key has its requests again.
pub fn rate_limited(wait: Duration) -> Problem {
    too_many("rate-limited", "The key is over its rate limit", wait)
}

/// A 429: so many keys of this address are unknown that no other is looked up; `wait` is how long.
pub fn too_many_unknown_keys(wait: Duration) -> Problem {
    too_many("too-many-unknown-keys", "Too many unknown API keys came from this address", wait)
}

fn too_many(slug: &str, cause: &str, wait: Duration) -> Problem {
    // Rounded up, since a client that retries too early is refused again.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).max(1);
    let detail = format!("{cause}; retry in {seconds} s");
    Problem::new(StatusCode::TOO_MANY_REQUESTS, slug, "Too many requests", detail).retry_after(seconds)
}
