//! Addresses that are derived before they are asked for, while no others are: under load that is work which requests do not
//! wait for.
//!
//! No index is taken for them. Wallets look for money no further than twenty unused indices, so a sequence gives only what is
//! used; here is but a guess of what it gives next. An address is kept under the index that it was derived from, so that
//! whatever the sequence gives, the address is that index's.

use base::locked;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use topics::Address;
use wallet::AccountXpub;

/// 400 kB of an account. One that has given out fewer has as many as it has given out, and [`STEP`] at least.
const MAX_AHEAD: u32 = 8192;
/// Another request, or another process, may have taken an index that is not in use yet.
const KEPT_BEHIND: u32 = 1024;
/// Derived at a time, in a few milliseconds.
const STEP: u32 = 64;
/// How long no address has been taken where nothing is to be held up.
const IDLE: Duration = Duration::from_millis(100);
/// How often it is looked whether that is so.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Of one account.
#[derive(Default)]
pub struct Ahead(Mutex<Derived>);

#[derive(Default)]
struct Derived {
    by_index: BTreeMap<u32, Address>,
    /// The index after the one that was taken last. `None` before it is known.
    next: Option<u32>,
    taken_at: Option<Instant>,
    /// From there on all were derived.
    is_full_from: Option<u32>,
}

impl Ahead {
    /// Notes the position of the account's sequence.
    pub fn expect(&self, next: u32) {
        locked(&self.0).next = Some(next);
    }

    /// The address of an index that was taken, if it is derived.
    pub fn take(&self, index: u32) -> Option<Address> {
        let mut derived = locked(&self.0);
        (derived.next, derived.taken_at) = (index.checked_add(1), Some(Instant::now()));
        derived.by_index.remove(&index)
    }

    /// How many are derived.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        locked(&self.0).by_index.len()
    }

    /// When an address was taken last.
    pub fn taken_at(&self) -> Option<Instant> {
        locked(&self.0).taken_at
    }

    pub fn is_idle(&self) -> bool {
        self.taken_at().is_none_or(|at| at.elapsed() >= IDLE)
    }

    pub fn forget(&self) {
        let mut derived = locked(&self.0);
        (derived.is_full_from, derived.by_index) = (None, BTreeMap::new());
    }

    /// Derives some of those that are missing. Returns whether there may be more.
    pub fn derive_some(&self, xpub: &AccountXpub) -> bool {
        let new: Vec<_> = self.missing().into_iter().filter_map(|index| Some((index, xpub.address(index).ok()?))).collect();
        let is_some = !new.is_empty();
        locked(&self.0).by_index.extend(new);
        is_some
    }

    /// The next ones. What is far from them is forgotten: the sequence was moved.
    fn missing(&self) -> Vec<u32> {
        let mut derived = locked(&self.0);
        let Some(next) = derived.next.filter(|_| derived.is_full_from != derived.next) else { return Vec::new() };
        let (first, end) = (next.saturating_sub(KEPT_BEHIND), next.saturating_add(next.clamp(STEP, MAX_AHEAD)));
        derived.by_index.retain(|index, _| (first..end).contains(index));
        let is_missing = |index: &u32| !derived.by_index.contains_key(index);
        let missing: Vec<u32> = (next..end).filter(is_missing).take(usize::try_from(STEP).unwrap_or_default()).collect();
        derived.is_full_from = missing.is_empty().then_some(next);
        missing
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const XPUBS: [&str; 2] = [
        "xpub6DCoCpSuQZB2jawqnGMEPS63ePKWkwWPH4TU45Q7LPXWuNd8TMtVxRrgjtEshuqpK3mdhaWHPFsBngh5GFZaM6si3yZdUsT8ddYM3PwnATt",
        "xpub6Bh6Cg7bvjFdW6VEAaZmsyhZh86WdJ9Kr5aqqY5LN7UFLpxTrxsiys213UCu8MAYjcq5JhF7jzZXvruGfWfPbxqsByNNhwWaNQRuhP3JcC3",
    ];

    fn fill(ahead: &Ahead, xpub: &AccountXpub) -> usize {
        while ahead.derive_some(xpub) {}
        ahead.len()
    }

    #[test]
    fn an_address_derived_ahead_is_that_of_its_index_whatever_the_sequence_gives() {
        let most = usize::try_from(KEPT_BEHIND + MAX_AHEAD).unwrap();
        for xpub in XPUBS.map(|xpub| AccountXpub::parse(xpub).unwrap()) {
            let ahead = Ahead::default();
            assert!(!ahead.derive_some(&xpub), "where its sequence is is not known");
            ahead.expect(300);
            assert_eq!(fill(&ahead, &xpub), 300, "as many as it has given out");
            // In order, past some, beyond what is derived, and back, as after a restore, also to what was taken before.
            let taken =
                [(300, true), (301, true), (310, true), (305, true), (2000, false), (2001, true), (300, false), (302, true)];
            for (index, is_derived) in taken {
                let address = ahead.take(index);
                assert_eq!(address.is_some(), is_derived, "{index}");
                assert!(address.is_none_or(|address| address == xpub.address(index).unwrap()), "{index} has another's address");
                assert!(fill(&ahead, &xpub) <= most, "{index}");
            }
            let derived = locked(&ahead.0).by_index.clone();
            assert!(derived.into_iter().all(|(index, address)| address == xpub.address(index).unwrap()));
        }
    }

    #[test]
    fn addresses_are_derived_ahead_once_and_the_last_of_all_has_none_behind_it() {
        let (ahead, xpub) = (Ahead::default(), AccountXpub::parse(XPUBS[0]).unwrap());
        ahead.expect(0);
        assert_eq!(fill(&ahead, &xpub), usize::try_from(STEP).unwrap());
        assert!(!ahead.derive_some(&xpub) && ahead.is_idle());
        assert!(ahead.take(0).is_some() && !ahead.is_idle());
        assert!(ahead.derive_some(&xpub), "one more");
        ahead.forget();
        assert_eq!(ahead.len(), 0);
        ahead.expect((1 << 31) - 1);
        assert_eq!(fill(&ahead, &xpub), 1, "BIP-32 has no more");
        assert!(ahead.take((1 << 31) - 1).is_some() && !ahead.derive_some(&xpub));
        ahead.take(u32::MAX);
        assert!(!ahead.derive_some(&xpub));
    }
}
