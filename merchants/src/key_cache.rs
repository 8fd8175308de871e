//! The cache of API keys: a key that was looked up is served from memory for `KEY_CACHE_TTL`.
//!
//! Only keys that exist are cached, so guesses can't fill the memory. A wrong key costs a query each time. The cache also collects
//! when each key was last used, and writes that in batches.

use crate::grant::{Grant, rate_limiter};
use crate::keys::{KeyHash, KeyId, Scope, hash_key};
use crate::merchant::{BasisPoints, DefaultTerms, Merchant};
use deadpool_postgres::Pool;
use runtime::Failure;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// How long a looked-up key is believed: so long a revoked key may still work, and a merchant's old settings apply.
const KEY_CACHE_TTL: Duration = Duration::from_secs(5);
/// How often `api_keys.last_used_at` is written.
const LAST_USE_WRITE_INTERVAL: Duration = Duration::from_secs(10);

struct CachedGrant {
    hash: KeyHash,
    grant: Arc<Grant>,
    /// When the last look-up ended, or the one under way began.
    refreshed: Instant,
    /// `None` once it is written.
    last_use: Option<OffsetDateTime>,
}

/// Grants by the public ids of their keys.
pub struct KeyCache {
    grants: Mutex<HashMap<KeyId, CachedGrant>>,
    /// Requests per second for a key without a limit of its own; `None` is no limit.
    default_rate_limit: Option<NonZeroU32>,
}

impl KeyCache {
    /// `default_rate_limit` is for keys without a limit of their own, in requests per second; `None` is no limit.
    pub fn new(default_rate_limit: Option<NonZeroU32>) -> Self {
        Self { grants: Mutex::default(), default_rate_limit }
    }

    /// Nothing panics while it holds the lock, and the map is consistent at any time, so a poisoned lock is safe to use.
    fn grants(&self) -> MutexGuard<'_, HashMap<KeyId, CachedGrant>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the key allows; `None` if there is no such key, or it was revoked or has expired.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn grant(&self, pool: &Pool, key: &str) -> Result<Option<Arc<Grant>>, Failure> {
        let hash = hash_key(key);
        let id = KeyId::of(&hash);
        if let Some(cached) = self.grants().get_mut(&id)
            && bool::from(cached.hash.ct_eq(&hash))
        {
            cached.last_use = Some(OffsetDateTime::now_utc());
            if cached.refreshed.elapsed() < KEY_CACHE_TTL {
                return Ok(Some(Arc::clone(&cached.grant)));
            }
            // This request refreshes the grant. Concurrent ones use the cached grant meanwhile, or they would take every connection.
            cached.refreshed = Instant::now();
        }
        let found = look_up(pool, id, &hash).await?;
        let mut grants = self.grants();
        let before = grants.remove(&id).filter(|cached| bool::from(cached.hash.ct_eq(&hash)));
        let Some(mut grant) = found else { return Ok(None) };
        grant.limiter = match before {
            // If the limit did not change, its limiter goes on counting.
            Some(before) if before.grant.rate_limit == grant.rate_limit => before.grant.limiter.clone(),
            _ => grant.rate_limit.or(self.default_rate_limit).map(rate_limiter),
        };
        let grant = Arc::new(grant);
        let last_use = Some(OffsetDateTime::now_utc());
        grants.insert(id, CachedGrant { hash, grant: Arc::clone(&grant), refreshed: Instant::now(), last_use });
        Ok(Some(grant))
    }

    /// Writes the last uses of all keys in one statement every `LAST_USE_WRITE_INTERVAL`, and once more at `stop`.
    pub async fn write_last_uses(self: Arc<Self>, pool: Pool, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LAST_USE_WRITE_INTERVAL) => {}
            }
            let uses: Vec<(KeyId, OffsetDateTime)> =
                self.grants().iter_mut().filter_map(|(id, cached)| Some((*id, cached.last_use.take()?))).collect();
            if let Err(failure) = save_last_uses(&pool, &uses).await {
                tracing::warn!("writing the last uses of {} keys failed: {failure}", uses.len());
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }
}

async fn look_up(pool: &Pool, id: KeyId, hash: &KeyHash) -> Result<Option<Grant>, Failure> {
    let client = pool.get().await?;
    let statement = client
        .prepare_cached(
            "SELECT k.hash, k.scope, k.rate_limit, m.id, m.xpub, m.underpaid_tolerance_bps, m.overpaid_tolerance_bps, m.accept_late
             FROM api_keys k JOIN merchants m ON m.id = k.merchant_id
             WHERE k.id = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())",
        )
        .await?;
    let row = client.query_opt(&statement, &[&id.to_string()]).await?;
    let Some(row) = row.filter(|row| bool::from(row.get::<_, &[u8]>(0).ct_eq(hash))) else { return Ok(None) };
    let merchant = Merchant {
        id: row.get(3),
        xpub: row.get(4),
        terms: DefaultTerms {
            underpaid: BasisPoints::new(row.get(5))?,
            overpaid: BasisPoints::new(row.get(6))?,
            accept_late: row.get(7),
        },
    };
    let rate_limit = row.get::<_, Option<i32>>(2).and_then(|rate| u32::try_from(rate).ok()).and_then(NonZeroU32::new);
    Ok(Some(Grant { id, scope: Scope::parse(row.get(1))?, merchant, rate_limit, limiter: None }))
}

async fn save_last_uses(pool: &Pool, uses: &[(KeyId, OffsetDateTime)]) -> Result<(), Failure> {
    if uses.is_empty() {
        return Ok(());
    }
    let client = pool.get().await?;
    // Locked in order, so that instances that write the same keys do not deadlock.
    let statement = client
        .prepare_cached(
            "WITH used AS MATERIALIZED (
                 SELECT k.id, t.at FROM api_keys k JOIN unnest($1::text[], $2::timestamptz[]) AS t (id, at) USING (id)
                 WHERE k.last_used_at IS NULL OR k.last_used_at < t.at ORDER BY k.id FOR UPDATE OF k
             )
             UPDATE api_keys k SET last_used_at = used.at FROM used WHERE k.id = used.id",
        )
        .await?;
    let (ids, at): (Vec<String>, Vec<OffsetDateTime>) = uses.iter().map(|(id, at)| (id.to_string(), *at)).unzip();
    client.execute(&statement, &[&ids, &at]).await?;
    Ok(())
}
