//! The envelope of events about webhooks themselves, without a payment: `webhook.ping` and `webhook.disabled`; their data is made where
//! they arise. They are rows of `webhook_deliveries` alone; Kafka has none of them.

use crate::body;
use runtime::Failure;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// A new event with its message body.
pub struct ServiceEvent {
    /// The header `webhook-id`.
    pub id: String,
    pub body: String,
}

impl ServiceEvent {
    /// An event of now.
    ///
    /// # Errors
    /// `Halt` when the clock is out of range.
    pub fn new(kind: &str, data: &serde_json::Value) -> Result<Self, Failure> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let body = body::service_body(kind, now, data).map_err(Failure::halt)?;
        Ok(Self { id: format!("evt_{}_0", Uuid::now_v7().simple()), body })
    }
}
