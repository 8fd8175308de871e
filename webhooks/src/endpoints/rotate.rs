//! Secret rotation without a gap: for a while both secrets sign.

use super::endpoint::{COLUMNS, Endpoint};
use crate::signature::Secret;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use std::time::Duration;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// After a rotation the previous secret signs as well for this long.
pub const OLD_SECRET_TTL: Duration = Duration::from_secs(24 * 3600);

/// Replaces the secret, for the API key with the id `asked_by`. The previous one signs as well for [`OLD_SECRET_TTL`]; an older
/// one no longer does.
///
/// # Errors
/// When the database or the random number generator fails.
pub async fn rotate(
    db: &impl GenericClient,
    merchant: Uuid,
    id: Uuid,
    asked_by: &str,
) -> Result<Option<(Endpoint, Secret)>, Failure> {
    let secret = Secret::generate().map_err(Failure::retry)?;
    let sql = format!(
        "UPDATE webhook_endpoints SET old_secret = secret, old_secret_until = now() + make_interval(secs => $4), secret = $3,
             secret_since = now(), asked_by = $5
         WHERE merchant_id = $1 AND id = $2 AND deleted_at IS NULL RETURNING {COLUMNS}"
    );
    let statement = db.prepare_cached(&sql).await?;
    let values: [&(dyn ToSql + Sync); 5] = [&merchant, &id, &secret.reveal(), &OLD_SECRET_TTL.as_secs_f64(), &asked_by];
    let row = db.query_opt(&statement, &values).await?;
    Ok(row.map(|row| (Endpoint::read(&row), secret)))
}
