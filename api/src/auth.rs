//! API keys. Only their SHA-256 is stored: a key is 32 random bytes, so a hash can't be guessed back, and looking it up in an
//! index tells an attacker's clock nothing of use.

use crate::app::App;
use crate::problem::Problem;
use anyhow::{Context as _, bail};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use deadpool_postgres::Pool;
use rand::TryRngCore as _;
use runtime::{Failure, db};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

/// How long a revoked key may still work.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
const PREFIX: &str = "ctrip_";
const LONGEST_NAME: usize = 255;

type Hash = [u8; 32];

/// Who asks. As a handler's argument it makes the key obligatory.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// The key's merchant.
    pub merchant: Uuid,
}

/// Keys that were looked up lately. Only those that exist, so that guesses don't fill the memory.
#[derive(Default)]
pub struct Keys(Mutex<HashMap<Hash, (Uuid, Instant)>>);

impl Keys {
    async fn merchant(&self, pool: &Pool, key: &str) -> Result<Option<Uuid>, Failure> {
        let hash = hash(key);
        // Nobody panics while holding the lock, and a map of copies is whole at any time.
        if let Some((merchant, since)) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&hash) {
            if since.elapsed() < BELIEVED_FOR {
                return Ok(Some(*merchant));
            }
            // One asks again; the others of this moment go on believing, or they would take every connection at once.
            *since = Instant::now();
        }
        let client = pool.get().await.map_err(db::unavailable)?;
        let statement = client
            .prepare_cached("SELECT merchant_id FROM api_keys WHERE hash = $1 AND revoked_at IS NULL")
            .await
            .map_err(db::failure)?;
        let row = client.query_opt(&statement, &[&hash.as_slice()]).await.map_err(db::failure)?;
        let merchant = row.map(|row| row.get(0));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match merchant {
            Some(merchant) => known.insert(hash, (merchant, Instant::now())),
            None => known.remove(&hash),
        };
        Ok(merchant)
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let Some(key) = presented(&parts.headers) else {
            return Err(unauthorized("No API key; send it as X-Api-Key, or as Authorization: Bearer"));
        };
        match app.keys.merchant(&app.pool, key).await? {
            Some(merchant) => Ok(Self { merchant }),
            None => Err(unauthorized("The API key is not known, or was revoked")),
        }
    }
}

fn presented(headers: &HeaderMap) -> Option<&str> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok();
    }
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

/// A 401.
pub fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "An API key is needed", detail)
}

fn hash(key: &str) -> Hash {
    Sha256::digest(key.as_bytes()).into()
}

/// Makes a key for the merchant of this name, who is made as well if there is none. The key is returned and nowhere kept.
///
/// # Errors
/// When the name is empty or too long, or the database refuses.
pub async fn create_key(database_url: &str, merchant: &str) -> anyhow::Result<String> {
    if merchant.trim().is_empty() || merchant.chars().count() > LONGEST_NAME {
        bail!("the merchant's name has to have 1 to {LONGEST_NAME} characters");
    }
    let mut secret = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut secret).context("the system's random numbers")?;
    let key = format!("{PREFIX}{}", hex::encode(secret));
    let client = db::pool(database_url, 1)?.get().await.context("connecting to DATABASE_URL")?;
    let inserted = client
        .execute(
            "WITH merchant AS (
                 INSERT INTO merchants (id, name) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET name = EXCLUDED.name RETURNING id
             )
             INSERT INTO api_keys (hash, merchant_id) SELECT $3, id FROM merchant",
            &[&Uuid::now_v7(), &merchant, &hash(&key).as_slice()],
        )
        .await;
    match inserted {
        Ok(_) => Ok(key),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
            bail!("the database has no tables yet: run `ctrip migrate` first")
        }
        Err(error) => Err(error).context("writing the key"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_from_either_header() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            presented(&headers).map(str::to_owned)
        };
        assert_eq!(read("x-api-key", "k"), Some("k".into()));
        assert_eq!(read("authorization", "Bearer k"), Some("k".into()));
        assert_eq!(read("authorization", "bearer  k"), Some("k".into()));
        assert_eq!(read("authorization", "Basic k"), None);
        assert_eq!(read("authorization", "k"), None);
    }
}
