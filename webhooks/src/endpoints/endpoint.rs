//! An endpoint as the API shows it.

use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

/// What [`Endpoint::read`] reads, in its order.
pub const COLUMNS: &str = "id, url, description, events, enabled, disabled_reason, disabled_at, failing_since,
    nullif(greatest(paused_until, resting_until, now()), now()), secret_since,
    CASE WHEN old_secret_until > now() THEN old_secret_until END, created_at";

/// A row of `webhook_endpoints`, without its secrets.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub id: Uuid,
    pub url: String,
    pub description: Option<String>,
    /// Event types and wildcards; empty means all.
    pub events: Vec<String>,
    pub enabled: bool,
    /// `gone`, `failing` or `asked`.
    pub disabled_reason: Option<String>,
    pub disabled_at: Option<OffsetDateTime>,
    /// The first failure since the last success.
    pub failing_since: Option<OffsetDateTime>,
    /// Nothing is sent until then: the endpoint asked for a pause, or is backed off since it fails.
    pub paused_until: Option<OffsetDateTime>,
    pub secret_since: OffsetDateTime,
    /// Until then the previous secret signs as well.
    pub old_secret_until: Option<OffsetDateTime>,
    pub created_at: OffsetDateTime,
}

impl Endpoint {
    pub(super) fn read(row: &Row) -> Self {
        Self {
            id: row.get(0),
            url: row.get(1),
            description: row.get(2),
            events: row.get(3),
            enabled: row.get(4),
            disabled_reason: row.get(5),
            disabled_at: row.get(6),
            failing_since: row.get(7),
            paused_until: row.get(8),
            secret_since: row.get(9),
            old_secret_until: row.get(10),
            created_at: row.get(11),
        }
    }
}
