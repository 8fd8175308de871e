//! `webhook.ping`, with which a merchant tries an endpoint.

use super::wake::wake;
use crate::service_event::ServiceEvent;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use uuid::Uuid;

/// Queues a `webhook.ping`, whatever the endpoint's filter is; returns the event's id. `None` if there is no such endpoint, or
/// it is disabled.
///
/// # Errors
/// When the database fails.
pub async fn ping(db: &impl GenericClient, merchant: Uuid, id: Uuid) -> Result<Option<String>, Failure> {
    if !wake(db, merchant, id).await? {
        return Ok(None);
    }
    let data = serde_json::json!({ "webhook_id": id });
    let ping = ServiceEvent::new("webhook.ping", &data)?;
    ping.queue_for(db, &[id]).await?;
    Ok(Some(ping.id))
}
