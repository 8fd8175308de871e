//! Which endpoints get which event.

use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::collections::HashMap;
use std::time::Duration;
use uuid::Uuid;

/// An endpoint gets events written after it was created. The relay's clock says when an event was written, Postgres's when an
/// endpoint was created; they may differ by this.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// An event that can be told, without its message.
#[derive(Debug, Clone)]
pub struct Event {
    /// The header `webhook-id`.
    pub id: String,
    /// As the record names it, such as `payment.created`.
    pub kind: String,
    pub merchant: Uuid,
    pub payment: Uuid,
    pub sequence: i64,
    /// When it was written to the topic, in milliseconds of Unix time.
    pub written_ms: i64,
}

struct Subscription {
    endpoint: Uuid,
    /// When the endpoint was created, in milliseconds of Unix time.
    created_ms: i64,
    /// Event types and wildcards; empty means all.
    events: Vec<String>,
}

impl Subscription {
    fn wants(&self, event: &Event) -> bool {
        let skew = i64::try_from(MAX_CLOCK_SKEW.as_millis()).unwrap_or(i64::MAX);
        let group = event.kind.split('.').next().unwrap_or_default();
        let names = |filter: &String| *filter == event.kind || filter.strip_suffix(".*") == Some(group);
        self.created_ms <= event.written_ms.saturating_add(skew) && (self.events.is_empty() || self.events.iter().any(names))
    }
}

/// The endpoints of merchants. Disabled ones are among them, so that their merchant can redeliver what they miss.
pub struct Subscriptions(HashMap<Uuid, Vec<Subscription>>);

impl Subscriptions {
    /// Those of these merchants. Most merchants have none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn of(db: &impl GenericClient, merchants: &[Uuid]) -> Result<Self, Failure> {
        let statement = db
            .prepare_cached(
                "SELECT merchant_id, id, (extract(epoch FROM created_at) * 1000)::bigint, events FROM webhook_endpoints
                 WHERE merchant_id = ANY($1) AND deleted_at IS NULL ORDER BY merchant_id, created_at, id",
            )
            .await?;
        let mut of: HashMap<Uuid, Vec<Subscription>> = HashMap::new();
        for row in db.query(&statement, &[&merchants]).await? {
            let subscription = Subscription { endpoint: row.get(1), created_ms: row.get(2), events: row.get(3) };
            of.entry(row.get(0)).or_default().push(subscription);
        }
        Ok(Self(of))
    }

    /// How many endpoints a merchant has, whatever they want.
    pub fn count(&self, merchant: Uuid) -> usize {
        self.0.get(&merchant).map_or(0, Vec::len)
    }

    /// The endpoints that want an event.
    pub fn wanting(&self, event: &Event) -> Vec<Uuid> {
        let all = self.0.get(&event.merchant).into_iter().flatten();
        all.filter(|subscription| subscription.wants(event)).map(|subscription| subscription.endpoint).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_wants_what_it_names_and_nothing_from_before_it_was_there() {
        let event = |kind: &str, written_ms| {
            let (merchant, payment) = (Uuid::nil(), Uuid::nil());
            Event { id: "evt_1".to_owned(), kind: kind.to_owned(), merchant, payment, sequence: 1, written_ms }
        };
        let wants = |events: &[&str], kind: &str, written_ms| {
            let events = events.iter().map(|name| (*name).to_owned()).collect();
            Subscription { endpoint: Uuid::nil(), created_ms: 100_000, events }.wants(&event(kind, written_ms))
        };
        assert!(wants(&[], "payment.created", 100_000) && wants(&["payment.created"], "payment.created", i64::MAX));
        assert!(wants(&["deposit.*", "payment.*"], "payment.created", 100_000));
        assert!(!wants(&["payment.confirmed", "deposit.*"], "payment.created", 100_000));
        assert!(!wants(&["payments.*", "pay.*"], "payment.created", 100_000));
        // Two clocks, and a record without a time.
        assert!(wants(&[], "payment.created", 40_000) && !wants(&[], "payment.created", 39_999));
        assert!(!wants(&[], "payment.created", i64::MIN));
    }
}
