use super::{check_name, connect, no_merchant, told};
use crate::keys::{KeyId, Scope, hash};
use crate::reply;
use anyhow::{Context as _, Result, ensure};
use deadpool_postgres::GenericClient;
use rand::TryRngCore as _;
use std::num::NonZeroU32;
use std::time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

const PREFIX: &str = "ctrip_";

/// What a new key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewKey {
    /// What it may do.
    pub scope: Scope,
    /// Requests a second; `None` is the API's default.
    pub rate_limit: Option<NonZeroU32>,
}

/// A key as a list shows it; the key itself is nowhere kept.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// Its public name: the first 16 hex digits of its SHA-256.
    pub id: String,
    /// The merchant's name.
    pub merchant: String,
    /// read or write.
    pub scope: String,
    /// Requests a second, if it has a limit of its own.
    pub rate_limit: Option<i32>,
    /// active, or since or until when it is not.
    pub state: String,
    /// When it was made.
    pub created_at: String,
    /// When it was used last, to some seconds.
    pub last_used_at: Option<String>,
}

/// Makes a key for the merchant of this name, who is made as well if there is none. The key is returned and nowhere kept.
///
/// # Errors
/// When the name is empty or too long, or the database refuses.
pub async fn create_key(database_url: &str, merchant: &str, new: NewKey) -> Result<String> {
    check_name(merchant)?;
    let client = connect(database_url).await?;
    // The update is for RETURNING, which leaves out what is only found.
    let row = client
        .query_one(
            "INSERT INTO merchants (id, name) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name RETURNING id",
            &[&Uuid::now_v7(), &merchant],
        )
        .await
        .map_err(told)?;
    insert(&client, row.get(0), new).await
}

async fn insert(db: &impl GenericClient, merchant: Uuid, NewKey { scope, rate_limit }: NewKey) -> Result<String> {
    let mut secret = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut secret).context("the system's random numbers")?;
    let key = format!("{PREFIX}{}", hex::encode(secret));
    let rate_limit = rate_limit.map(|rate| i32::try_from(rate.get())).transpose().context("the rate limit")?;
    db.execute(
        "INSERT INTO api_keys (hash, merchant_id, scope, rate_limit) VALUES ($1, $2, $3, $4)",
        &[&hash(&key).as_slice(), &merchant, &scope.as_str(), &rate_limit],
    )
    .await
    .map_err(told)?;
    Ok(key)
}

/// The keys of a merchant, or of all, the newest last.
///
/// # Errors
/// When there is no such merchant, or the database refuses.
pub async fn keys(database_url: &str, merchant: Option<&str>) -> Result<Vec<KeyRow>> {
    let client = connect(database_url).await?;
    if let Some(name) = merchant {
        let found = client.query_opt("SELECT FROM merchants WHERE name = $1", &[&name]).await.map_err(told)?;
        found.ok_or_else(|| no_merchant(name))?;
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
        .map_err(told)?;
    let row = |row: &tokio_postgres::Row| {
        let (revoked, expires): (Option<OffsetDateTime>, Option<OffsetDateTime>) = (row.get(6), row.get(7));
        let state = match (revoked, expires, row.get::<_, Option<bool>>(8)) {
            (Some(at), ..) => format!("revoked {}", reply::time(at)),
            (None, Some(at), Some(true)) => format!("ended {}", reply::time(at)),
            (None, Some(at), _) => format!("until {}", reply::time(at)),
            (None, None, _) => "active".to_owned(),
        };
        KeyRow {
            id: row.get(0),
            merchant: row.get(1),
            scope: row.get(2),
            rate_limit: row.get(3),
            state,
            created_at: reply::time(row.get(4)),
            last_used_at: row.get::<_, Option<_>>(5).map(reply::time),
        }
    };
    Ok(rows.iter().map(row).collect())
}

/// Ends a key at once, but for the seconds that instances of the API believe it.
///
/// # Errors
/// When there is no such key, or the database refuses.
pub async fn revoke_key(database_url: &str, key: &str) -> Result<()> {
    let client = connect(database_url).await?;
    let revoked = client
        .execute("UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1", &[&id(key)])
        .await
        .map_err(told)?;
    ensure!(revoked == 1, no_key());
    Ok(())
}

/// Makes a key that may do the same, and lets the old one live on for a time of grace, or shorter if it ends before.
///
/// # Errors
/// When there is no such key, or it works no more, or the database refuses.
pub async fn rotate_key(database_url: &str, key: &str, grace: Duration) -> Result<String> {
    let mut client = connect(database_url).await?;
    let transaction = client.transaction().await?;
    let row = transaction
        .query_opt(
            "UPDATE api_keys SET expires_at = least(expires_at, now() + make_interval(secs => $2))
             WHERE id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
             RETURNING merchant_id, scope, rate_limit",
            &[&id(key), &grace.as_secs_f64()],
        )
        .await
        .map_err(told)?;
    let row = row.with_context(no_key)?;
    let scope = if row.get::<_, &str>(1) == Scope::Read.as_str() { Scope::Read } else { Scope::Write };
    let rate_limit = row.get::<_, Option<i32>>(2).and_then(|rate| u32::try_from(rate).ok()).and_then(NonZeroU32::new);
    let new = insert(&transaction, row.get(0), NewKey { scope, rate_limit }).await?;
    transaction.commit().await?;
    Ok(new)
}

/// A key is named by its id, or by itself, for whoever has it at hand.
fn id(key: &str) -> String {
    if key.starts_with(PREFIX) { KeyId::of(&hash(key)).to_string() } else { key.to_lowercase() }
}

fn no_key() -> String {
    "there is no such key that works; `ctrip keys list` shows the ids of those there are".to_owned()
}
