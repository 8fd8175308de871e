//! Messages and deliveries of events, by the fan-out and from the backlog.

use crate::fronts::NewDeliveries;
use crate::retry_schedule::MAX_BLOCKING_FAILURES;
use crate::subscriptions::Event;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use uuid::Uuid;

/// Deliveries of a merchant that one transaction makes, so that its others need not wait for long. Each of the 20 endpoints
/// that a merchant may have gets its own of an event.
pub const MAX_DELIVERIES_PER_TURN: usize = 512;

/// Messages by the ids of their events and merchants.
#[derive(Default)]
pub struct Messages {
    ids: Vec<String>,
    merchants: Vec<Uuid>,
    bodies: Vec<String>,
}

impl Messages {
    pub fn push(&mut self, event: &Event, body: String) {
        self.ids.push(event.id.clone());
        self.merchants.push(event.merchant);
        self.bodies.push(body);
    }

    /// Writes those that are not there yet. One that is there is kept for as long again, and is not removed before this
    /// transaction ends.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn insert(&self, db: &impl GenericClient) -> Result<(), Failure> {
        let statement = db
            .prepare_cached(
                // A row that is not updated is locked all the same. In the order of ids, so that no two transactions deadlock.
                "INSERT INTO webhook_messages AS m (event_id, merchant_id, body)
                 SELECT DISTINCT ON (t.event_id, t.merchant_id) t.event_id, t.merchant_id, t.body
                 FROM unnest($1::text[], $2::uuid[], $3::text[]) WITH ORDINALITY AS t (event_id, merchant_id, body, place)
                 ORDER BY t.event_id, t.merchant_id, t.place
                 ON CONFLICT (event_id, merchant_id) DO UPDATE SET created_at = now() WHERE m.created_at < now() - interval '1 day'",
            )
            .await?;
        db.execute(&statement, &[&self.ids, &self.merchants, &self.bodies]).await?;
        Ok(())
    }
}

/// Deliveries that are to be made: arguments of the INSERT, a vector per column.
#[derive(Default)]
pub struct Deliveries {
    endpoints: Vec<Uuid>,
    ids: Vec<String>,
    kinds: Vec<String>,
    payments: Vec<Uuid>,
    sequences: Vec<i64>,
}

impl Deliveries {
    pub fn push(&mut self, event: &Event, endpoints: &[Uuid]) {
        for endpoint in endpoints {
            self.endpoints.push(*endpoint);
            self.ids.push(event.id.clone());
            self.kinds.push(event.kind.clone());
            self.payments.push(event.payment);
            self.sequences.push(event.sequence);
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Writes those that are not there yet; returns which endpoints got some.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn insert(&self, db: &impl GenericClient) -> Result<NewDeliveries, Failure> {
        if self.ids.is_empty() {
            return Ok(Vec::new());
        }
        let statement = db
            .prepare_cached(
                "WITH inserted AS (
                     INSERT INTO webhook_deliveries (endpoint_id, event_id, type, payment_id, sequence, state, next_attempt)
                     SELECT t.endpoint_id, t.event_id, t.type, t.payment_id, t.sequence,
                         -- For a disabled endpoint queue::disabled fails it.
                         'pending',
                         -- It waits for the earlier event of its payment, as in queue::payment_order.
                         greatest(now(), (SELECT b.next_attempt FROM webhook_deliveries b WHERE b.endpoint_id = t.endpoint_id
                             AND b.payment_id = t.payment_id AND b.sequence < t.sequence AND b.state = 'pending'
                             AND b.tries > 0 AND b.tries < $6 AND b.claimed_by IS NULL
                             ORDER BY b.sequence DESC LIMIT 1 FOR SHARE SKIP LOCKED))
                     FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::bigint[])
                         WITH ORDINALITY AS t (endpoint_id, event_id, type, payment_id, sequence, place)
                     ORDER BY t.place
                     ON CONFLICT (event_id, endpoint_id) DO NOTHING
                     RETURNING endpoint_id
                 )
                 SELECT endpoint_id, now() FROM inserted GROUP BY endpoint_id",
            )
            .await?;
        let Self { endpoints, ids, kinds, payments, sequences } = self;
        let rows = db.query(&statement, &[endpoints, ids, kinds, payments, sequences, &MAX_BLOCKING_FAILURES]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}
