//! The cache of API keys: the answer to a look-up, yes or no, is believed for `KEY_CACHE_TTL`.
//!
//! Anyone can invent keys. So those that were never seen are looked up with connections of their own, of which nobody else needs
//! one, and an address whose look-ups find nothing is refused before the next. Keys that do not work are remembered apart from those
//! that do ([`UnknownKeys`]).
//!
//! Each key is looked up in a task, for which requests only wait: one that leaves early can't keep the answer from those that
//! follow, and frees no connection whose statement runs still. The cache also collects when each key was last used, and writes
//! that in batches.

use crate::grant::{Grant, rate_limiter};
use crate::keys::{KeyHash, KeyId, Scope, hash_key};
use crate::merchant::{BasisPoints, DefaultTerms, Merchant};
use crate::unknown_keys::{FailedAttempts, UnknownKeys};
use base::locked;
use deadpool_postgres::{Client, Pool};
use runtime::{Failure, SharedTask, db};
use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;

/// How long an answer is believed: so long a revoked key may still work, and a merchant's old settings apply.
const KEY_CACHE_TTL: Duration = Duration::from_secs(5);
/// How long an answer is believed while the next one is on its way. After that all wait for it.
const MAX_BELIEF: Duration = Duration::from_secs(10);
/// Longer than any look-up takes that is well.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// Look-ups of new keys at a time: those that wait for a connection, and those that have one.
const MAX_UNDER_WAY: usize = 200;
/// Keys that are read at the start: 20 MB of memory at most.
const MAX_FILLED: usize = 50_000;
/// How often `api_keys.last_used_at` is written.
const LAST_USE_WRITE_INTERVAL: Duration = Duration::from_secs(10);

struct CachedGrant {
    hash: KeyHash,
    grant: Arc<Grant>,
    /// When the last look-up that was answered ended.
    answered: Instant,
    /// The last look-up that was begun since.
    refresh: Option<LookUp>,
    /// `None` once it is written.
    last_use: Option<OffsetDateTime>,
}

/// A look-up of a key.
type LookUp = SharedTask<Result<Option<Arc<Grant>>, Arc<Failure>>>;

/// What is known of a key.
enum Known {
    Believed(Arc<Grant>),
    /// Its answer has to be waited for.
    Asked(LookUp),
}

/// Why a key is refused.
#[derive(Debug)]
pub enum KeyRefused {
    /// There is no such key, or it was revoked or has expired.
    Unknown,
    /// Too many keys from this address are unknown; with the time to wait.
    TooManyUnknown(Duration),
    /// The database failed, or too many keys wait to be looked up.
    Failed(Failure),
}

impl From<Failure> for KeyRefused {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Grants by the public ids of their keys.
pub struct KeyCache {
    /// For keys that are known.
    pool: Pool,
    /// For those that are not.
    look_up_pool: Pool,
    grants: Mutex<HashMap<KeyId, CachedGrant>>,
    unknown: UnknownKeys,
    /// The new keys that are being looked up, each once.
    under_way: Mutex<HashMap<KeyHash, LookUp>>,
    attempts: FailedAttempts,
    /// Requests per second for a key without a limit of its own; `None` is no limit.
    default_rate_limit: Option<NonZeroU32>,
}

impl KeyCache {
    /// `look_up_pool` is for keys that were never seen, `default_rate_limit` for keys without a limit of their own, in requests per
    /// second; `None` is no limit.
    pub fn new(pool: Pool, look_up_pool: Pool, default_rate_limit: Option<NonZeroU32>) -> Self {
        let unknown = UnknownKeys::new(KEY_CACHE_TTL);
        let (grants, under_way, attempts) = (Mutex::default(), Mutex::default(), FailedAttempts::default());
        Self { pool, look_up_pool, grants, unknown, under_way, attempts, default_rate_limit }
    }

    fn grants(&self) -> MutexGuard<'_, HashMap<KeyId, CachedGrant>> {
        locked(&self.grants)
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<KeyHash, LookUp>> {
        locked(&self.under_way)
    }

    /// What the key allows. `from` is the address that sent it, if attempts of it are counted.
    ///
    /// # Errors
    /// When it allows nothing, or that can't be found out now.
    pub async fn grant(self: &Arc<Self>, key: &str, from: Option<IpAddr>) -> Result<Arc<Grant>, KeyRefused> {
        let hash = hash_key(key);
        let id = KeyId::of(&hash);
        let known = match self.known(id, |cached| bool::from(cached.hash.ct_eq(&hash)), Some(OffsetDateTime::now_utc())) {
            Some(known) => known,
            None if self.unknown.contains(&hash) => return Err(KeyRefused::Unknown),
            None => Known::Asked(self.look_up_new(id, hash, from)?),
        };
        known.grant().await?.ok_or(KeyRefused::Unknown)
    }

    /// What a key that was granted before allows now; `None` if it does not work any more.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn grant_again(self: &Arc<Self>, id: KeyId) -> Result<Option<Arc<Grant>>, Failure> {
        match self.known(id, |_| true, None) {
            Some(known) => known.grant().await,
            None => Ok(None),
        }
    }

    /// What is known of a key. What is old is looked up again: whoever is the first to see that waits for it. The others go on with the
    /// old answer for a while.
    fn known(
        self: &Arc<Self>,
        id: KeyId,
        is_meant: impl Fn(&CachedGrant) -> bool,
        used: Option<OffsetDateTime>,
    ) -> Option<Known> {
        let mut grants = self.grants();
        let cached = grants.get_mut(&id).filter(|cached| is_meant(cached))?;
        cached.last_use = used.or(cached.last_use);
        let age = cached.answered.elapsed();
        if age < KEY_CACHE_TTL {
            return Some(Known::Believed(Arc::clone(&cached.grant)));
        }
        let under_way = cached.refresh.clone().filter(SharedTask::is_under_way);
        if under_way.is_some() && age < MAX_BELIEF {
            return Some(Known::Believed(Arc::clone(&cached.grant)));
        }
        let refresh = under_way.unwrap_or_else(|| self.refresh(id, cached.hash));
        cached.refresh = Some(refresh.clone());
        Some(Known::Asked(refresh))
    }

    /// Reads the keys that were used of late, so that none of them has to queue among invented ones after a start.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fill(&self) -> Result<(), Failure> {
        let sql =
            format!("{SELECT_GRANTS} AND k.last_used_at > now() - interval '30 days' ORDER BY k.last_used_at DESC LIMIT $1");
        let most = i64::try_from(MAX_FILLED).map_err(Failure::halt)?;
        for row in self.pool.get().await?.query(&sql, &[&most]).await? {
            let hash = row.get::<_, &[u8]>(0).try_into().map_err(Failure::halt)?;
            let id = KeyId::of(&hash);
            // By whom it is asked for, if at all, is to be seen.
            self.keep(id, hash, Some(read_grant(&row, id)?), None);
        }
        Ok(())
    }

    /// Looks a key up again, whether or not anybody waits for it.
    fn refresh(self: &Arc<Self>, id: KeyId, hash: KeyHash) -> LookUp {
        let cache = Arc::clone(self);
        SharedTask::spawn(async move {
            let found = look_up(&cache.pool, id, &hash).await;
            found.map(|found| cache.keep(id, hash, found, Some(OffsetDateTime::now_utc()))).map_err(Arc::new)
        })
    }

    /// Looks up a key that was never seen, unless somebody does, whether or not anybody waits for it.
    fn look_up_new(self: &Arc<Self>, id: KeyId, hash: KeyHash, from: Option<IpAddr>) -> Result<LookUp, KeyRefused> {
        let mut under_way = self.under_way();
        // One that has panicked is begun again.
        under_way.retain(|_, look_up| look_up.is_under_way());
        if let Some(look_up) = under_way.get(&hash) {
            return Ok(look_up.clone());
        }
        if let Some(address) = from {
            self.attempts.begin(address, Instant::now()).map_err(KeyRefused::TooManyUnknown)?;
        }
        let forgive = move |cache: &Self| from.into_iter().for_each(|address| cache.attempts.forgive(address));
        if under_way.len() >= MAX_UNDER_WAY {
            forgive(self);
            return Err(Failure::Retry(anyhow::anyhow!("{MAX_UNDER_WAY} keys wait to be looked up")).into());
        }
        let cache = Arc::clone(self);
        let look_up = SharedTask::spawn(async move {
            let found = look_up(&cache.look_up_pool, id, &hash).await;
            if !matches!(found, Ok(None)) {
                forgive(&cache);
            }
            let answer = found.map(|found| cache.keep(id, hash, found, Some(OffsetDateTime::now_utc()))).map_err(Arc::new);
            // Those that come from now on find what was kept.
            cache.under_way().remove(&hash);
            answer
        });
        under_way.insert(hash, look_up.clone());
        Ok(look_up)
    }

    /// Believes what a look-up has found.
    fn keep(&self, id: KeyId, hash: KeyHash, found: Option<Grant>, last_use: Option<OffsetDateTime>) -> Option<Arc<Grant>> {
        let mut grants = self.grants();
        let before = grants.remove(&id).filter(|cached| bool::from(cached.hash.ct_eq(&hash)));
        let Some(mut grant) = found else {
            self.unknown.insert(hash);
            return None;
        };
        grant.limiter = match before {
            // If the limit did not change, its limiter goes on counting.
            Some(before) if before.grant.rate_limit == grant.rate_limit => before.grant.limiter.clone(),
            _ => grant.rate_limit.or(self.default_rate_limit).map(rate_limiter),
        };
        let grant = Arc::new(grant);
        grants.insert(id, CachedGrant { hash, grant: Arc::clone(&grant), answered: Instant::now(), refresh: None, last_use });
        Some(grant)
    }

    /// Writes the last uses of all keys in one statement every `LAST_USE_WRITE_INTERVAL`, and once more at `stop`.
    pub async fn write_last_uses(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LAST_USE_WRITE_INTERVAL) => {}
            }
            let uses: Vec<(KeyId, OffsetDateTime)> =
                self.grants().iter_mut().filter_map(|(id, cached)| Some((*id, cached.last_use.take()?))).collect();
            if let Err(failure) = save_last_uses(&self.pool, &uses).await {
                tracing::warn!("writing the last uses of {} keys failed: {failure}", uses.len());
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }
}

impl Known {
    async fn grant(self) -> Result<Option<Arc<Grant>>, Failure> {
        match self {
            Self::Believed(grant) => Ok(Some(grant)),
            Self::Asked(refresh) => match refresh.outcome().await {
                Some(answer) => answer.map_err(|failure| copy(&failure)),
                None => Err(Failure::Retry(anyhow::anyhow!("the look-up of the key ended without an answer"))),
            },
        }
    }
}

/// Each that waits gets the failure.
fn copy(failure: &Failure) -> Failure {
    let cause = anyhow::anyhow!("{failure}");
    match failure {
        Failure::Retry(_) | Failure::Reopen(_) => Failure::Retry(cause),
        Failure::Halt(_) => Failure::Halt(cause),
    }
}

async fn look_up(pool: &Pool, id: KeyId, hash: &KeyHash) -> Result<Option<Grant>, Failure> {
    db::in_time(pool.get().await?, LOOK_UP_TIMEOUT, async |client| find(client, id, hash).await).await
}

const SELECT_GRANTS: &str =
    "SELECT k.hash, k.scope, k.rate_limit, m.id, m.xpub, m.underpaid_tolerance_bps, m.overpaid_tolerance_bps, m.accept_late, r.account,
         (SELECT count(*) FROM webhook_endpoints e WHERE e.merchant_id = m.id AND e.deleted_at IS NULL)
     FROM api_keys k JOIN merchants m ON m.id = k.merchant_id LEFT JOIN restored_accounts r ON r.merchant_id = m.id
     WHERE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())";

async fn find(client: &Client, id: KeyId, hash: &KeyHash) -> Result<Option<Grant>, Failure> {
    let statement = client.prepare_cached(&format!("{SELECT_GRANTS} AND k.id = $1")).await?;
    let row = client.query_opt(&statement, &[&id.to_string()]).await?;
    let row = row.filter(|row| bool::from(row.get::<_, &[u8]>(0).ct_eq(hash)));
    row.map(|row| read_grant(&row, id)).transpose()
}

fn read_grant(row: &Row, id: KeyId) -> Result<Grant, Failure> {
    let merchant = Merchant {
        id: row.get(3),
        xpub: row.get(4),
        restored_account: row.get(8),
        terms: DefaultTerms {
            underpaid: BasisPoints::new(row.get(5))?,
            overpaid: BasisPoints::new(row.get(6))?,
            accept_late: row.get(7),
        },
    };
    let rate_limit = row.get::<_, Option<i32>>(2).and_then(|rate| u32::try_from(rate).ok()).and_then(NonZeroU32::new);
    let webhooks = u32::try_from(row.get::<_, i64>(9)).unwrap_or(u32::MAX);
    Ok(Grant { id, scope: Scope::parse(row.get(1))?, merchant, webhooks, rate_limit, limiter: None })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merchant::DefaultTerms;
    use futures::FutureExt as _;
    use tokio::net::TcpListener;
    use uuid::Uuid;

    /// A cache that knows `key`, in front of a server which accepts connections and says nothing.
    async fn cache() -> (TcpListener, Arc<KeyCache>) {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = db::pool(&format!("postgres://ctrip@{}/ctrip", silent.local_addr().unwrap()), 2).unwrap();
        let cache = Arc::new(KeyCache::new(pool.clone(), pool, None));
        let hash = hash_key("key");
        let merchant = Merchant { id: Uuid::nil(), xpub: None, restored_account: None, terms: DefaultTerms::default() };
        cache.keep(
            id(),
            hash,
            Some(Grant { id: id(), scope: Scope::Read, merchant, webhooks: 0, rate_limit: None, limiter: None }),
            None,
        );
        (silent, cache)
    }

    fn id() -> KeyId {
        KeyId::of(&hash_key("key"))
    }

    fn age(cache: &KeyCache, by: Duration) {
        cache.grants().get_mut(&id()).unwrap().answered -= by;
    }

    #[tokio::test]
    async fn requests_that_leave_before_the_answer_keep_no_key_alive() {
        let (_silent, cache) = cache().await;
        assert!(cache.grant("key", None).await.is_ok());
        age(&cache, KEY_CACHE_TTL);
        assert!(cache.grant("key", None).now_or_never().is_none(), "the first waits for the answer, and leaves");
        assert!(cache.grant("key", None).await.is_ok(), "the others go on meanwhile");
        age(&cache, MAX_BELIEF - KEY_CACHE_TTL);
        for _ in 0..3 {
            assert!(cache.grant("key", None).now_or_never().is_none(), "nobody has confirmed it for too long");
            assert!(cache.grant_again(id()).now_or_never().is_none());
        }
    }

    #[tokio::test]
    async fn a_key_that_is_looked_up_again_has_spent_what_it_had_spent() {
        let (_silent, cache) = cache().await;
        let found = |per_second: u32| {
            let merchant = Merchant { id: Uuid::nil(), xpub: None, restored_account: None, terms: DefaultTerms::default() };
            let rate_limit = NonZeroU32::new(per_second);
            let grant = Grant { id: id(), scope: Scope::Read, merchant, webhooks: 0, rate_limit, limiter: None };
            cache.keep(id(), hash_key("key"), Some(grant), None).unwrap()
        };
        assert_eq!(found(1).spend(), Ok(()));
        assert!(found(1).spend().is_err(), "a new burst with each look-up");
        assert_eq!(found(2).spend(), Ok(()), "another limit");
    }

    /// The id is the beginning of the hash.
    #[tokio::test]
    async fn a_key_whose_hash_only_begins_as_a_known_one_is_another_key() {
        let (_silent, cache) = cache().await;
        cache.grants().get_mut(&id()).unwrap().hash[8] ^= 1;
        assert!(cache.grant("key", None).now_or_never().is_none(), "it is looked up");
    }

    /// The server goes on with the statement of one that has left.
    #[tokio::test]
    async fn new_keys_of_clients_that_leave_are_looked_up_once_each_and_not_beyond_a_limit() {
        let (_silent, cache) = cache().await;
        for number in 0..MAX_UNDER_WAY {
            for _ in 0..2 {
                assert!(cache.grant(&format!("new {number}"), None).now_or_never().is_none(), "it waits, and leaves");
            }
        }
        assert_eq!(cache.under_way().len(), MAX_UNDER_WAY);
        let refused = cache.grant("another", None).now_or_never();
        assert!(matches!(refused, Some(Err(KeyRefused::Failed(_)))), "{refused:?}");
        assert!(cache.grant("new 0", None).now_or_never().is_none(), "it waits for the look-up that is under way");
        let own = cache.grant("key", None).now_or_never();
        assert!(own.is_some_and(|own| own.is_ok()));
    }

    #[tokio::test]
    async fn all_that_wait_get_one_answer_and_the_next_asks_again() {
        let (silent, cache) = cache().await;
        age(&cache, MAX_BELIEF);
        let waiting = futures::future::join_all((0..20).map(|_| cache.grant("key", None)));
        let hangs_up = async {
            drop(silent.accept().await.unwrap());
            drop(silent);
        };
        let (outcomes, ()) = tokio::join!(waiting, hangs_up);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(KeyRefused::Failed(_)))), "{outcomes:?}");
        assert!(matches!(cache.grant("key", None).await, Err(KeyRefused::Failed(_))));
        // A look-up that finds nothing ends it.
        cache.keep(id(), hash_key("key"), None, None);
        assert!(matches!(cache.grant("key", None).await, Err(KeyRefused::Unknown)));
        assert!(matches!(cache.grant_again(id()).await, Ok(None)));
    }
}
