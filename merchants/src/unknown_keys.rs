//! Keys that do not work, and who tries them: an invented key must cost neither a query each time nor anybody else's.

use crate::keys::KeyHash;
use crate::rate_limit::RateLimiter;
use base::locked;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Look-ups of an address that find no key, in a second, and at once.
const ATTEMPTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(10).expect("more than zero");
const ATTEMPTS_AT_ONCE: NonZeroU32 = NonZeroU32::new(100).expect("more than zero");
/// Of keys and of addresses. What is beyond is not remembered, or forgets the others, and costs queries.
const MAX_REMEMBERED: usize = 10_000;

/// Keys that were looked up and not found, believed for a while.
pub(crate) struct UnknownKeys {
    /// Half of the time for which a key is believed to be unknown, at most.
    generation: Duration,
    generations: Mutex<Generations>,
}

struct Generations {
    since: Instant,
    young: HashSet<KeyHash>,
    old: HashSet<KeyHash>,
}

impl UnknownKeys {
    /// A key is believed to be unknown for `ttl` at most, and for half of it at least.
    pub fn new(ttl: Duration) -> Self {
        let generations = Generations { since: Instant::now(), young: HashSet::new(), old: HashSet::new() };
        Self { generation: ttl / 2, generations: Mutex::new(generations) }
    }

    pub fn contains(&self, hash: &KeyHash) -> bool {
        let generations = self.current();
        generations.young.contains(hash) || generations.old.contains(hash)
    }

    pub fn insert(&self, hash: KeyHash) {
        let mut generations = self.current();
        if generations.young.len() < MAX_REMEMBERED {
            generations.young.insert(hash);
        }
    }

    fn current(&self) -> MutexGuard<'_, Generations> {
        let mut generations = locked(&self.generations);
        let age = generations.since.elapsed();
        if age >= self.generation {
            let young = std::mem::take(&mut generations.young);
            generations.old = if age < self.generation * 2 { young } else { HashSet::new() };
            generations.since = Instant::now();
        }
        generations
    }
}

/// Look-ups that found no key, by the address that asked for them.
#[derive(Default)]
pub(crate) struct FailedAttempts(Mutex<HashMap<IpAddr, RateLimiter>>);

impl FailedAttempts {
    /// Counts an attempt before its outcome is known, so that many at once are counted as well.
    ///
    /// # Errors
    /// How long to wait, when too many have failed.
    pub fn begin(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut addresses = locked(&self.0);
        if addresses.len() >= MAX_REMEMBERED && !addresses.contains_key(&address) {
            addresses.retain(|_, attempts| !attempts.is_idle(now));
            // So that this is not done for each one.
            if addresses.len() > MAX_REMEMBERED / 2 {
                addresses.clear();
            }
        }
        let attempts = addresses.entry(address).or_insert_with(|| RateLimiter::new(ATTEMPTS_PER_SECOND, ATTEMPTS_AT_ONCE, now));
        attempts.spend(now)
    }

    /// The attempt found a key, or nothing could be found out.
    pub fn forgive(&self, address: IpAddr) {
        if let Some(attempts) = locked(&self.0).get(&address) {
            attempts.refund();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::hash_key;

    #[test]
    fn a_key_is_unknown_for_a_while_and_a_flood_of_others_takes_bounded_memory() {
        let unknown = UnknownKeys::new(Duration::from_secs(60));
        let key = |n: usize| hash_key(&n.to_string());
        unknown.insert(key(0));
        (1..=2 * MAX_REMEMBERED).for_each(|n| unknown.insert(key(n)));
        assert!(unknown.contains(&key(0)) && !unknown.contains(&key(2 * MAX_REMEMBERED)));
        assert_eq!(locked(&unknown.generations).young.len(), MAX_REMEMBERED);

        let age = |by: u64| locked(&unknown.generations).since -= Duration::from_secs(by);
        age(31);
        assert!(unknown.contains(&key(0)));
        age(31);
        assert!(!unknown.contains(&key(0)));
        unknown.insert(key(0));
        age(61);
        assert!(!unknown.contains(&key(0)), "nobody asked meanwhile");
    }

    #[test]
    fn an_address_has_its_attempts_and_a_key_that_is_found_costs_none() {
        let (attempts, now) = (FailedAttempts::default(), Instant::now());
        let [one, other] = [1, 2].map(|last| IpAddr::from([127, 0, 0, last]));
        for _ in 0..1000 {
            assert_eq!(attempts.begin(one, now), Ok(()));
            attempts.forgive(one);
        }
        let begun = (0..1000).filter(|_| attempts.begin(one, now).is_ok()).count();
        assert_eq!(begun, 100);
        let wait = attempts.begin(one, now).unwrap_err();
        assert!(wait <= Duration::from_millis(100) && attempts.begin(one, now + wait).is_ok());
        assert_eq!(attempts.begin(other, now), Ok(()));
    }

    #[test]
    fn many_addresses_take_bounded_memory() {
        let (attempts, now) = (FailedAttempts::default(), Instant::now());
        for n in 0..3 * u32::try_from(MAX_REMEMBERED).unwrap() {
            assert_eq!(attempts.begin(IpAddr::from(n.to_be_bytes()), now), Ok(()));
        }
        assert!(locked(&attempts.0).len() <= MAX_REMEMBERED);
    }
}
