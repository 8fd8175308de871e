//! Ending a pause: a merchant that pings or redelivers wants it sent now.

use deadpool_postgres::GenericClient;
use runtime::Failure;
use uuid::Uuid;

/// Ends the pause and the back-off of an endpoint; returns whether there is such an endpoint and it is enabled.
pub async fn wake(db: &impl GenericClient, merchant: Uuid, endpoint: Uuid) -> Result<bool, Failure> {
    let statement = db
        .prepare_cached(
            "UPDATE webhook_endpoints SET paused_until = NULL, resting_until = NULL
             WHERE merchant_id = $1 AND id = $2 AND enabled",
        )
        .await?;
    Ok(db.execute(&statement, &[&merchant, &endpoint]).await? > 0)
}
