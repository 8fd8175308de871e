//! Timestamps as text: RFC 3339, UTC, whole seconds.

use crate::text::excerpt;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Unix seconds as RFC 3339 in UTC. Falls back to the epoch after year 9999, which RFC 3339 can't express.
pub fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    truncated(time.unwrap_or(OffsetDateTime::UNIX_EPOCH))
}

/// A time of the database as RFC 3339, truncated to the second.
pub fn truncated(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}

/// The reverse, with fractions of a second and any offset.
///
/// # Errors
/// What was expected, for the client that sent the text.
pub fn parse(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| format!("expected a time like 2026-11-25T12:00:00Z, got {:?}", excerpt(text)))
}
