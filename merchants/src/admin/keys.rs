//! `ctrip keys`: creates, lists, revokes and rotates API keys (`ctrip_…`). A key's text is returned once, when it is created, and stored nowhere.

use super::database::{check_name, connect, explain, merchant_not_found, refuse_second_merchant};
use crate::keys::{KeyId, Scope, hash_key};
use anyhow::{Context as _, Result};
use base::timestamp;
use deadpool_postgres::GenericClient;
use rand::TryRngCore as _;
use std::num::NonZeroU32;
use std::time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

const KEY_PREFIX: &str = "ctrip_";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewKey {
    pub scope: Scope,
    /// Requests per second; `None` is the API's default.
    pub rate_limit: Option<NonZeroU32>,
}

/// A key as `ctrip keys list` shows it.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// The first 16 hex digits of its SHA-256.
    pub id: String,
    /// The merchant's name.
    pub merchant: String,
    pub scope: String,
    /// Requests per second; `None` is the API's default.
    pub rate_limit: Option<i32>,
    /// `active`, `until` its expiry, or since when it was `ended` or `revoked`.
    pub state: String,
    pub created_at: String,
    /// Some seconds late, since the API writes it in batches.
    pub last_used_at: Option<String>,
}

/// Creates a key for the merchant of this name, and the merchant if there is none. Returns the key, and whether it did.
///
/// # Errors
/// When the name is empty or too long, a restore may have left the merchant without it (unless `is_new`), or the database fails.
pub async fn create_key(database_url: &str, merchant: &str, is_new: bool, new: NewKey) -> Result<(String, bool)> {
    check_name(merchant)?;
    let mut client = connect(database_url).await?;
    let transaction = client.transaction().await?;
    let (insert, select) = (
        "INSERT INTO merchants (id, name) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        "SELECT id FROM merchants WHERE name = $1",
    );
    let created = transaction.execute(insert, &[&Uuid::now_v7(), &merchant]).await.map_err(explain)? == 1;
    if created && !is_new {
        refuse_second_merchant(&transaction, merchant).await?;
    }
    let id = transaction.query_one(select, &[&merchant]).await.map_err(explain)?.get(0);
    let key = insert_key(&transaction, id, new).await?;
    transaction.commit().await?;
    Ok((key, created))
}

async fn insert_key(db: &impl GenericClient, merchant: Uuid, NewKey { scope, rate_limit }: NewKey) -> Result<String> {
    let mut secret = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut secret).context("reading the system's random numbers")?;
    let key = format!("{KEY_PREFIX}{}", hex::encode(secret));
    let rate_limit = rate_limit.map(|rate| i32::try_from(rate.get())).transpose().context("the rate limit")?;
    db.execute(
        "INSERT INTO api_keys (hash, merchant_id, scope, rate_limit) VALUES ($1, $2, $3, $4)",
        &[&hash_key(&key).as_slice(), &merchant, &scope.as_str(), &rate_limit],
    )
    .await
    .map_err(explain)?;
    Ok(key)
}

/// The keys of a merchant, or of all merchants, the newest last.
///
/// # Errors
/// When there is no such merchant, or the database fails.
pub async fn list_keys(database_url: &str, merchant: Option<&str>) -> Result<Vec<KeyRow>> {
    let client = connect(database_url).await?;
    if let Some(name) = merchant {
        let found = client.query_opt("SELECT FROM merchants WHERE name = $1", &[&name]).await.map_err(explain)?;
        found.ok_or_else(|| merchant_not_found(name))?;
    }
    let rows = client
        .query(
            "SELECT k.id, m.name, k.scope, k.rate_limit, k.created_at, k.last_used_at, k.revoked_at, k.expires_at,
                 k.expires_at <= now()
             FROM api_keys k JOIN merchants m ON m.id = k.merchant_id
             WHERE $1::text IS NULL OR m.name = $1 ORDER BY m.name, k.created_at, k.id",
            &[&merchant],
        )
        .await
        .map_err(explain)?;
    let row = |row: &tokio_postgres::Row| {
        let (revoked, expires): (Option<OffsetDateTime>, Option<OffsetDateTime>) = (row.get(6), row.get(7));
        let state = match (revoked, expires, row.get::<_, Option<bool>>(8)) {
            (Some(at), ..) => format!("revoked {}", timestamp::truncated(at)),
            (None, Some(at), Some(true)) => format!("ended {}", timestamp::truncated(at)),
            (None, Some(at), _) => format!("until {}", timestamp::truncated(at)),
            (None, None, _) => "active".to_owned(),
        };
        KeyRow {
            id: row.get(0),
            merchant: row.get(1),
            scope: row.get(2),
            rate_limit: row.get(3),
            state,
            created_at: timestamp::truncated(row.get(4)),
            last_used_at: row.get::<_, Option<_>>(5).map(timestamp::truncated),
        }
    };
    Ok(rows.iter().map(row).collect())
}

/// Revokes a key. Running instances of the API refuse it once their cached grant is older than `KEY_CACHE_TTL`. Returns the time if it
/// was revoked before.
///
/// # Errors
/// When there is no such key, or the database fails.
pub async fn revoke_key(database_url: &str, key: &str) -> Result<Option<String>> {
    let client = connect(database_url).await?;
    let row = client
        .query_opt(
            "UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1
             RETURNING CASE WHEN revoked_at < now() THEN revoked_at END",
            &[&key_id(key)],
        )
        .await
        .map_err(explain)?;
    let row = row.with_context(key_not_found)?;
    Ok(row.get::<_, Option<OffsetDateTime>>(0).map(timestamp::truncated))
}

/// Creates a key with the scope and rate limit of an old one. The old one works on for `grace`, or until its own expiry if that is
/// earlier.
///
/// # Errors
/// When there is no such key, it was revoked or has expired, or the database fails.
pub async fn rotate_key(database_url: &str, key: &str, grace: Duration) -> Result<String> {
    let mut client = connect(database_url).await?;
    let transaction = client.transaction().await?;
    let row = transaction
        .query_opt(
            "UPDATE api_keys SET expires_at = least(expires_at, now() + make_interval(secs => $2))
             WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
             RETURNING merchant_id, scope, rate_limit",
            &[&key_id(key), &grace.as_secs_f64()],
        )
        .await
        .map_err(explain)?;
    let row = row.with_context(key_not_found)?;
    let scope = if row.get::<_, &str>(1) == Scope::Read.as_str() { Scope::Read } else { Scope::Write };
    let rate_limit = row.get::<_, Option<i32>>(2).and_then(|rate| u32::try_from(rate).ok()).and_then(NonZeroU32::new);
    let new = insert_key(&transaction, row.get(0), NewKey { scope, rate_limit }).await?;
    transaction.commit().await?;
    Ok(new)
}

/// The id of a key that the operator gives by its id or by its text.
fn key_id(key: &str) -> String {
    if key.starts_with(KEY_PREFIX) { KeyId::of(&hash_key(key)).to_string() } else { key.to_lowercase() }
}

fn key_not_found() -> String {
    "there is no such key, or it no longer works; `ctrip keys list` shows the ids and states of all".to_owned()
}
