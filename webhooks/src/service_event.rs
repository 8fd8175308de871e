//! Events about webhooks themselves, without a payment: `webhook.ping` and `webhook.disabled`; their data is made where they
//! arise. They are rows of the webhooks' tables alone; Kafka has none of them.

use crate::body;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// A new event with its message.
pub struct ServiceEvent {
    /// The header `webhook-id`.
    pub id: String,
    kind: &'static str,
    body: String,
}

impl ServiceEvent {
    /// An event of now.
    ///
    /// # Errors
    /// `Halt` when the clock is out of range.
    pub fn new(kind: &'static str, data: &serde_json::Value) -> Result<Self, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let body = body::service_body(kind, now, data).map_err(Failure::halt)?;
        Ok(Self { id: format!("evt_{}_0", Uuid::now_v7().simple()), kind, body })
    }

    /// Queues it for these endpoints.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn queue_for(&self, db: &impl GenericClient, endpoints: &[Uuid]) -> Result<(), Failure> {
        let statement = db
            .prepare_cached(
                "WITH message AS (
                     INSERT INTO webhook_messages (event_id, merchant_id, body)
                     SELECT DISTINCT $1::text, merchant_id, $2::text FROM webhook_endpoints WHERE id = ANY($4::uuid[])
                 )
                 INSERT INTO webhook_deliveries (endpoint_id, event_id, type, state)
                 SELECT id, $1::text, $3::text, 'pending' FROM unnest($4::uuid[]) AS id",
            )
            .await?;
        db.execute(&statement, &[&self.id, &self.body, &self.kind, &endpoints]).await?;
        Ok(())
    }
}
