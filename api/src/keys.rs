//! API keys: what one allows, looked up and kept for moments.
//!
//! A key is 32 random bytes, so its SHA-256 can't be guessed back, and only that is stored. Looking a hash up in an index
//! takes a time that depends on how much of it agrees with a stored one. An attacker can choose inputs whose hashes begin as
//! he likes, so such a lookup could tell him a stored hash bit by bit; it would not tell him the key, which he would still have
//! to find among 2^256. We do not rest on that alone: the index has only the first 8 bytes of a hash, which are the key's public
//! id, and the whole is compared in constant time.

use crate::merchant::{DefaultTerms, Merchant, Share};
use deadpool_postgres::Pool;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use runtime::{Failure, db};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

/// How long a revoked key may still work, and a merchant's old settings count.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// How often last uses are written.
const WRITTEN_EVERY: Duration = Duration::from_secs(10);

/// SHA-256 of a key.
pub type Hash = [u8; 32];

/// The hash of a key's text.
pub fn hash(key: &str) -> Hash {
    Sha256::digest(key.as_bytes()).into()
}

/// A key's public name: the first 8 bytes of its hash. Whoever has the key can compute it; it gives nothing away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// Of a hash.
    pub fn of(hash: &Hash) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&hash[..8]);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// See the merchant's payments.
    Read,
    /// That, and make and change them.
    Write,
}

impl Scope {
    /// As the database and people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    fn parse(text: &str) -> Result<Self, Failure> {
        [Self::Read, Self::Write]
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| Failure::Halt(anyhow::anyhow!("api_keys.scope: expected read or write, got {text:?}")))
    }
}

/// What a key that exists allows.
#[derive(Debug)]
pub struct Grant {
    /// The key.
    pub id: KeyId,
    /// What it may do.
    pub scope: Scope,
    /// Whose it is.
    pub merchant: Merchant,
    /// Requests a second; `None` is the API's default.
    rate: Option<NonZeroU32>,
    limiter: Option<Arc<DefaultDirectRateLimiter>>,
}

impl Grant {
    /// Counts so many requests.
    ///
    /// # Errors
    /// How long to wait, when the key has had its share. More at once than a second's share are taken as the rest of one, since
    /// the request that brings them was counted before; otherwise no patience would ever get them through.
    pub fn spend(&self, requests: NonZeroU32) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        let wait = |until: &governor::NotUntil<_>| until.wait_time_from(DefaultClock::default().now());
        match limiter.check_n(requests) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => Err(wait(&until)),
            Err(governor::InsufficientCapacity(most)) => {
                let rest = NonZeroU32::new(most.saturating_sub(1));
                match rest.map(|rest| limiter.check_n(rest)) {
                    Some(Ok(Err(until))) => Err(wait(&until)),
                    _ => Ok(()),
                }
            }
        }
    }
}

struct Known {
    hash: Hash,
    grant: Arc<Grant>,
    since: Instant,
    used: Option<OffsetDateTime>,
}

/// Keys that were looked up lately. Only those that exist, so that guesses don't fill the memory.
pub struct Keys {
    known: Mutex<HashMap<KeyId, Known>>,
    /// Requests a second for a key that has no limit of its own; `None` is no limit.
    rate: Option<NonZeroU32>,
}

impl Keys {
    /// `rate` is for keys without a limit of their own, in requests a second.
    pub fn new(rate: Option<NonZeroU32>) -> Self {
        Self { known: Mutex::default(), rate }
    }

    /// Nobody panics while holding the lock, and a map of copies is whole at any time.
    fn known(&self) -> MutexGuard<'_, HashMap<KeyId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the key allows; `None` if there is no such key, or it was revoked, or has ended.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn grant(&self, pool: &Pool, key: &str) -> Result<Option<Arc<Grant>>, Failure> {
        let hash = hash(key);
        let id = KeyId::of(&hash);
        if let Some(known) = self.known().get_mut(&id)
            && bool::from(known.hash.ct_eq(&hash))
        {
            known.used = Some(OffsetDateTime::now_utc());
            if known.since.elapsed() < BELIEVED_FOR {
                return Ok(Some(Arc::clone(&known.grant)));
            }
            // One asks again; the others of this moment go on believing, or they would take every connection at once.
            known.since = Instant::now();
        }
        let found = look_up(pool, id, &hash).await?;
        let mut known = self.known();
        let before = known.remove(&id).filter(|known| bool::from(known.hash.ct_eq(&hash)));
        let Some(mut grant) = found else { return Ok(None) };
        grant.limiter = match before {
            // A limit that did not change goes on counting.
            Some(before) if before.grant.rate == grant.rate => before.grant.limiter.clone(),
            _ => grant.rate.or(self.rate).map(|rate| Arc::new(RateLimiter::direct(Quota::per_second(rate)))),
        };
        let grant = Arc::new(grant);
        let used = Some(OffsetDateTime::now_utc());
        known.insert(id, Known { hash, grant: Arc::clone(&grant), since: Instant::now(), used });
        Ok(Some(grant))
    }

    /// Writes last uses, many in one statement, until `stop`, and then once more.
    pub async fn write_uses(self: Arc<Self>, pool: Pool, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(WRITTEN_EVERY) => {}
            }
            let uses: Vec<(KeyId, OffsetDateTime)> =
                self.known().iter_mut().filter_map(|(id, known)| Some((*id, known.used.take()?))).collect();
            if let Err(failure) = write(&pool, &uses).await {
                tracing::warn!("the last uses of {} keys were not written: {failure}", uses.len());
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }
}

async fn look_up(pool: &Pool, id: KeyId, hash: &Hash) -> Result<Option<Grant>, Failure> {
    let client = pool.get().await.map_err(db::unavailable)?;
    let statement = client
        .prepare_cached(
            "SELECT k.hash, k.scope, k.rate_limit, m.id, m.xpub, m.underpaid_tolerance_bps, m.overpaid_tolerance_bps, m.accept_late
             FROM api_keys k JOIN merchants m ON m.id = k.merchant_id
             WHERE k.id = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())",
        )
        .await
        .map_err(db::failure)?;
    let row = client.query_opt(&statement, &[&id.to_string()]).await.map_err(db::failure)?;
    let Some(row) = row.filter(|row| bool::from(row.get::<_, &[u8]>(0).ct_eq(hash))) else { return Ok(None) };
    let merchant = Merchant {
        id: row.get(3),
        xpub: row.get(4),
        terms: DefaultTerms { underpaid: Share::new(row.get(5))?, overpaid: Share::new(row.get(6))?, accept_late: row.get(7) },
    };
    let rate = row.get::<_, Option<i32>>(2).and_then(|rate| u32::try_from(rate).ok()).and_then(NonZeroU32::new);
    Ok(Some(Grant { id, scope: Scope::parse(row.get(1))?, merchant, rate, limiter: None }))
}

async fn write(pool: &Pool, uses: &[(KeyId, OffsetDateTime)]) -> Result<(), Failure> {
    if uses.is_empty() {
        return Ok(());
    }
    let client = pool.get().await.map_err(db::unavailable)?;
    // Ordered, so that instances that write the same keys do not wait for each other in a circle.
    let statement = client
        .prepare_cached(
            "WITH used AS MATERIALIZED (
                 SELECT k.id, t.at FROM api_keys k JOIN unnest($1::text[], $2::timestamptz[]) AS t (id, at) USING (id)
                 WHERE k.last_used_at IS NULL OR k.last_used_at < t.at ORDER BY k.id FOR UPDATE OF k
             )
             UPDATE api_keys k SET last_used_at = used.at FROM used WHERE k.id = used.id",
        )
        .await
        .map_err(db::failure)?;
    let (ids, at): (Vec<String>, Vec<OffsetDateTime>) = uses.iter().map(|(id, at)| (id.to_string(), *at)).unzip();
    client.execute(&statement, &[&ids, &at]).await.map_err(db::failure)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn grant(rate: Option<u32>) -> Grant {
        let rate = rate.and_then(NonZeroU32::new);
        let limiter = rate.map(|rate| Arc::new(RateLimiter::direct(Quota::per_second(rate))));
        let merchant = Merchant { id: Uuid::nil(), xpub: None, terms: DefaultTerms::default() };
        Grant { id: KeyId::of(&hash("k")), scope: Scope::Read, merchant, rate, limiter }
    }

    fn n(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    #[test]
    fn a_key_that_had_its_share_is_told_how_long_to_wait() {
        let limited = grant(Some(2));
        assert_eq!(limited.spend(n(1)), Ok(()));
        assert_eq!(limited.spend(n(1)), Ok(()));
        let wait = limited.spend(n(1)).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(500), "{wait:?}");
        let unlimited = grant(None);
        assert!((0..10_000).all(|_| unlimited.spend(n(1)).is_ok()));
    }

    #[test]
    fn a_batch_above_a_seconds_share_empties_it_and_is_not_refused_for_ever() {
        let limited = grant(Some(10));
        assert_eq!(limited.spend(n(1)), Ok(()));
        assert_eq!(limited.spend(n(999)), Ok(()));
        assert!(limited.spend(n(1)).is_err());
        let slow = grant(Some(1));
        assert_eq!((slow.spend(n(1)), slow.spend(n(9))), (Ok(()), Ok(())));
    }

    #[test]
    fn an_id_is_the_beginning_of_the_hash() {
        let hash = hash("ctrip_00");
        assert_eq!(KeyId::of(&hash).to_string(), hex::encode(&hash[..8]));
        assert!(Scope::Write > Scope::Read);
    }
}
