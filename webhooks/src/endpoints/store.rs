//! Creating, reading, changing and deleting endpoints.

use super::endpoint::{COLUMNS, Endpoint};
use crate::signature::Secret;
use deadpool_postgres::{Client, GenericClient};
use reqwest::Url;
use runtime::Failure;
use runtime::db::lock;
use uuid::Uuid;

/// Each event is stored once per endpoint.
pub const MAX_ENDPOINTS_PER_MERCHANT: i64 = 20;
/// With those that were deleted within about an hour, of which messages may be on their way.
pub const MAX_ENDPOINTS_IN_AN_HOUR: i64 = 100;

/// Fields to set; `None` leaves a field as it is, or out of a new endpoint.
#[derive(Debug, Clone, Default)]
pub struct EndpointChanges {
    /// The caller has checked it with the [`Guard`](crate::ssrf::Guard).
    pub url: Option<String>,
    /// An empty text removes it.
    pub description: Option<String>,
    /// Event types and wildcards; empty means all.
    pub events: Option<Vec<String>>,
    /// Enabling makes the endpoint healthy. Disabling fails what is pending, within a few seconds.
    pub enabled: Option<bool>,
}

/// Why an endpoint is not created, or not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The merchant has [`MAX_ENDPOINTS_PER_MERCHANT`], or has had [`MAX_ENDPOINTS_IN_AN_HOUR`].
    TooMany,
    /// This one has the URL: each event would reach it twice.
    SameUrl(Uuid),
    /// The merchant has no such endpoint.
    Absent,
}

/// Creates an endpoint, for the API key with the id `asked_by`. The caller has checked `url`.
///
/// # Errors
/// When the database or the random number generator fails.
pub async fn create(
    db: &mut Client,
    merchant: Uuid,
    url: &str,
    new: EndpointChanges,
    asked_by: &str,
) -> Result<Result<(Endpoint, Secret), Refusal>, Failure> {
    let secret = Secret::generate().map_err(Failure::retry)?;
    let tx = db.transaction().await?;
    take_turn(&tx, merchant).await?;
    if let Some(twin) = twin(&tx, merchant, url, None).await? {
        return Ok(Err(Refusal::SameUrl(twin)));
    }
    let sql = format!(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, description, events, secret, asked_by)
         SELECT $1::uuid, $2::uuid, $3::text, nullif($4::text, ''), $5::text[], $6::text, $9::text
         FROM (SELECT count(*) AS made, count(*) FILTER (WHERE deleted_at IS NULL) AS kept
               FROM webhook_endpoints WHERE merchant_id = $2) AS has
         WHERE has.kept < $7 AND has.made < $8
         RETURNING {COLUMNS}"
    );
    let statement = tx.prepare_cached(&sql).await?;
    let events = new.events.unwrap_or_default();
    let row = tx
        .query_opt(
            &statement,
            &[
                &Uuid::now_v7(),
                &merchant,
                &url,
                &new.description,
                &events,
                &secret.reveal(),
                &MAX_ENDPOINTS_PER_MERCHANT,
                &MAX_ENDPOINTS_IN_AN_HOUR,
                &asked_by,
            ],
        )
        .await?;
    tx.commit().await?;
    Ok(row.map(|row| (Endpoint::read(&row), secret)).ok_or(Refusal::TooMany))
}

/// Concurrent requests of a merchant take turns until the transaction ends, so that no two of them create the last endpoint that is
/// allowed, or give two endpoints one URL.
async fn take_turn(db: &impl GenericClient, merchant: Uuid) -> Result<(), Failure> {
    lock::take_turn(db, lock::WEBHOOKS, &merchant.to_string()).await
}

/// Another endpoint of the merchant with this URL, however it is written. None for an endpoint `own` that has it already.
async fn twin(db: &impl GenericClient, merchant: Uuid, url: &str, own: Option<Uuid>) -> Result<Option<Uuid>, Failure> {
    let parsed = |text: &str| {
        let mut url = Url::parse(text).ok()?;
        // Nothing of it is sent.
        url.set_fragment(None);
        Some(url)
    };
    let url = parsed(url);
    let twins: Vec<Uuid> =
        list(db, merchant).await?.into_iter().filter(|known| parsed(&known.url) == url).map(|known| known.id).collect();
    Ok(if own.is_some_and(|own| twins.contains(&own)) { None } else { twins.first().copied() })
}

/// The merchant's endpoints, oldest first.
///
/// # Errors
/// When the database fails.
pub async fn list(db: &impl GenericClient, merchant: Uuid) -> Result<Vec<Endpoint>, Failure> {
    let sql = format!(
        "SELECT {COLUMNS} FROM webhook_endpoints WHERE merchant_id = $1 AND deleted_at IS NULL ORDER BY created_at, id"
    );
    let statement = db.prepare_cached(&sql).await?;
    let rows = db.query(&statement, &[&merchant]).await?;
    Ok(rows.iter().map(Endpoint::read).collect())
}

/// The endpoint, if the merchant has it.
///
/// # Errors
/// When the database fails.
pub async fn get(db: &impl GenericClient, merchant: Uuid, id: Uuid) -> Result<Option<Endpoint>, Failure> {
    let sql = format!("SELECT {COLUMNS} FROM webhook_endpoints WHERE merchant_id = $1 AND id = $2 AND deleted_at IS NULL");
    let statement = db.prepare_cached(&sql).await?;
    Ok(db.query_opt(&statement, &[&merchant, &id]).await?.as_ref().map(Endpoint::read))
}

/// Changes an endpoint, for the API key with the id `asked_by`. A new URL or enabling makes it healthy.
///
/// # Errors
/// When the database fails.
pub async fn update(
    db: &mut Client,
    merchant: Uuid,
    id: Uuid,
    changes: EndpointChanges,
    asked_by: &str,
) -> Result<Result<Endpoint, Refusal>, Failure> {
    let tx = db.transaction().await?;
    if let Some(url) = &changes.url {
        take_turn(&tx, merchant).await?;
        if let Some(twin) = twin(&tx, merchant, url, Some(id)).await? {
            return Ok(Err(Refusal::SameUrl(twin)));
        }
    }
    let sql = format!(
        "UPDATE webhook_endpoints SET url = coalesce($3, url), events = coalesce($5, events), enabled = coalesce($6, enabled),
             asked_by = $7,
             description = CASE WHEN $4::text IS NULL THEN description ELSE nullif($4, '') END,
             disabled_reason = CASE WHEN coalesce($6, enabled) THEN NULL ELSE coalesce(disabled_reason, 'asked') END,
             disabled_at = CASE WHEN coalesce($6, enabled) THEN NULL ELSE coalesce(disabled_at, now()) END,
             failing_since = CASE WHEN $6 AND NOT enabled OR $3 <> url THEN NULL ELSE failing_since END,
             paused_until = CASE WHEN $6 AND NOT enabled OR $3 <> url THEN NULL ELSE paused_until END,
             resting_until = CASE WHEN $6 AND NOT enabled OR $3 <> url THEN NULL ELSE resting_until END
         WHERE merchant_id = $1 AND id = $2 AND deleted_at IS NULL RETURNING {COLUMNS}"
    );
    let statement = tx.prepare_cached(&sql).await?;
    let EndpointChanges { url, description, events, enabled } = changes;
    let row = tx.query_opt(&statement, &[&merchant, &id, &url, &description, &events, &enabled, &asked_by]).await?;
    tx.commit().await?;
    Ok(row.as_ref().map(Endpoint::read).ok_or(Refusal::Absent))
}

/// Marks an endpoint as deleted, for the API key with the id `asked_by`; returns whether there was one. Housekeeping removes
/// its deliveries, and then the row.
///
/// # Errors
/// When the database fails.
pub async fn delete(db: &impl GenericClient, merchant: Uuid, id: Uuid, asked_by: &str) -> Result<bool, Failure> {
    let sql = "UPDATE webhook_endpoints SET deleted_at = now(), enabled = false, disabled_at = coalesce(disabled_at, now()),
                   disabled_reason = coalesce(disabled_reason, 'asked'), asked_by = $3
               WHERE merchant_id = $1 AND id = $2 AND deleted_at IS NULL";
    Ok(db.execute(sql, &[&merchant, &id, &asked_by]).await? > 0)
}
