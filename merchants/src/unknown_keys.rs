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
/// So many times as much a site of IPv6 has.
const SITE_TIMES: NonZeroU32 = NonZeroU32::new(10).expect("more than zero");
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

/// Look-ups that found no key, by the address that asked for them; of IPv6 also by its network of 48 bits, which anyone can have with
/// all its 65,536 networks of 64 bits. Households share one, so it has more attempts.
#[derive(Default)]
pub(crate) struct FailedAttempts(Mutex<HashMap<Place, RateLimiter>>);

/// Where attempts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Address(IpAddr),
    /// The first 48 bits.
    Site(u64),
}

impl Place {
    fn all_of(address: IpAddr) -> impl Iterator<Item = Self> {
        let site = match address {
            IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> 80).ok().map(Self::Site),
            IpAddr::V4(_) => None,
        };
        [Self::Address(address)].into_iter().chain(site)
    }

    fn limiter(self, now: Instant) -> RateLimiter {
        let times = match self {
            Self::Address(_) => NonZeroU32::MIN,
            Self::Site(_) => SITE_TIMES,
        };
        RateLimiter::new(ATTEMPTS_PER_SECOND.saturating_mul(times), ATTEMPTS_AT_ONCE.saturating_mul(times), now)
    }
}

impl FailedAttempts {
    /// Counts an attempt before its outcome is known, so that many at once are counted as well.
    ///
    /// # Errors
    /// How long to wait, when too many have failed.
    pub fn begin(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut places = locked(&self.0);
        let mut begun: Vec<Place> = Vec::new();
        for place in Place::all_of(address) {
            if places.len() >= MAX_REMEMBERED && !places.contains_key(&place) {
                places.retain(|_, attempts| !attempts.is_idle(now));
                // So that this is not done for each one.
                if places.len() > MAX_REMEMBERED / 2 {
                    places.clear();
                }
            }
            let attempts = places.entry(place).or_insert_with(|| place.limiter(now));
            if let Err(wait) = attempts.spend(now) {
                // It is no attempt, of nobody.
                begun.iter().filter_map(|place| places.get(place)).for_each(|place| place.refund(1));
                return Err(wait);
            }
            begun.push(place);
        }
        Ok(())
    }

    /// The attempt found a key, or nothing could be found out.
    pub fn forgive(&self, address: IpAddr) {
        let places = locked(&self.0);
        Place::all_of(address).filter_map(|place| places.get(&place)).for_each(|place| place.refund(1));
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
    fn all_networks_of_a_site_together_have_ten_times_the_attempts_of_one() {
        let (attempts, now) = (FailedAttempts::default(), Instant::now());
        let network = |site: u16, network: u16| IpAddr::from([0x2001, 0xdb8, site, network, 0, 0, 0, 0]);
        let begun = (0..5000).filter(|n| attempts.begin(network(1, *n), now).is_ok()).count();
        assert_eq!(begun, 1000);
        assert_eq!(attempts.begin(network(2, 1), now), Ok(()));
        // A key that is found costs the site nothing, and neither does an attempt that its network does not have.
        for _ in 0..5000 {
            if attempts.begin(network(3, 1), now).is_ok() {
                attempts.forgive(network(3, 1));
            }
        }
        assert_eq!((0..5000).filter(|_| attempts.begin(network(3, 1), now).is_ok()).count(), 100);
        assert_eq!((2..5000).filter(|n| attempts.begin(network(3, *n), now).is_ok()).count(), 900);
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
