//! The set of all issued addresses, in as little memory as possible.

use crate::address_filter::{AddressFilter, may_contain};
use hashbrown::HashTable;
use topics::Address;

/// Addresses per allocation. What is full is never moved, so growing doubles nothing. They fill a size that allocators have: of one
/// between two of them up to a sixth is lost.
const CHUNK: usize = (1 << 18) / size_of::<[u8; 20]>();
/// Addresses looked up together: more than a core can have memory accesses on their way.
const LOOKUPS: usize = 64;

/// Every address ever issued: 20 bytes each, their index in a hash table (4 and one control byte, times at most 16/7), and a
/// filter of 1 to 2 bytes.
///
/// An address is the end of a Keccak hash, so its bytes serve as its hash. An attacker who chooses the recipients to look up
/// can't make a lookup take longer than a hit, since the table contains only our addresses.
#[derive(Default)]
pub struct WatchSet {
    addresses: Vec<Vec<[u8; 20]>>,
    table: HashTable<u32>,
    filter: AddressFilter,
}

fn hash(address: &[u8; 20]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *address;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn at(addresses: &[Vec<[u8; 20]>], index: u32) -> &[u8; 20] {
    let index = index as usize;
    match addresses.get(index / CHUNK).and_then(|chunk| chunk.get(index % CHUNK)) {
        Some(address) => address,
        None => unreachable!("the table has indices of addresses alone"),
    }
}

impl WatchSet {
    /// Makes room for so many addresses: growing step by step would insert each twice more, and leave what it outgrew to the allocator.
    pub fn reserve(&mut self, count: usize) {
        let Self { addresses, table, filter } = self;
        table.reserve(count.saturating_sub(table.len()), |known| hash(at(addresses, *known)));
        if table.is_empty() && filter.is_full(count) {
            *filter = AddressFilter::with_capacity(count);
        }
    }

    /// Gives back room that far fewer addresses have come for.
    pub fn shrink(&mut self) {
        let Self { addresses, table, filter } = self;
        if table.capacity() / 4 > table.len() {
            table.shrink_to(0, |known| hash(at(addresses, *known)));
            *filter = AddressFilter::with_capacity(table.len());
            addresses.iter().flatten().for_each(|address| filter.insert(address));
        }
    }

    /// Adds an address. Returns whether it is new.
    pub fn insert(&mut self, address: Address) -> bool {
        let address = address.into_array();
        let Self { addresses, table, .. } = self;
        let Ok(next) = u32::try_from(table.len()) else { unreachable!("2^32 addresses take 128 GB") };
        let entry = table.entry(hash(&address), |known| *at(addresses, *known) == address, |known| hash(at(addresses, *known)));
        let hashbrown::hash_table::Entry::Vacant(entry) = entry else { return false };
        entry.insert(next);
        match addresses.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(address),
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(address);
                addresses.push(chunk);
            }
            None => addresses.push(vec![address]),
        }
        self.add_to_filter(&address);
        true
    }

    fn add_to_filter(&mut self, address: &[u8; 20]) {
        if self.filter.is_full(self.len()) {
            self.filter = AddressFilter::for_twice(self.len());
            self.addresses.iter().flatten().for_each(|address| self.filter.insert(address));
        }
        self.filter.insert(address);
    }

    /// Whether the address was issued.
    pub fn contains(&self, address: &[u8; 20]) -> bool {
        self.table.find(hash(address), |known| at(&self.addresses, *known) == address).is_some()
    }

    /// Adds the places of those recipients that were issued.
    pub fn find(&self, recipients: &[[u8; 20]], found: &mut Vec<usize>) {
        let mut words = [0; LOOKUPS];
        let mut first = 0;
        for together in recipients.chunks(LOOKUPS) {
            // In a loop of its own: nothing here depends on what memory answers, so the accesses overlap.
            for (word, recipient) in words.iter_mut().zip(together) {
                *word = self.filter.word(recipient);
            }
            for (place, (word, recipient)) in words.iter().zip(together).enumerate() {
                if may_contain(*word, recipient) && self.contains(recipient) {
                    found.push(first + place);
                }
            }
            first += together.len();
        }
    }

    /// The number of addresses.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The memory of the set, in bytes.
    pub fn allocated_bytes(&self) -> usize {
        let chunks: usize = self.addresses.iter().map(|chunk| chunk.capacity() * size_of::<[u8; 20]>()).sum();
        chunks + self.table.allocation_size() + self.filter.allocated_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(i: u64) -> Address {
        Address::from_word(alloy::primitives::keccak256(i.to_be_bytes()))
    }

    #[test]
    fn ten_million_addresses_take_at_most_thirty_two_bytes_each() {
        // 10,000,000 of 2^24 slots is as full as 78,125 of 2^17.
        let mut set = WatchSet::default();
        for i in 0..78_125 {
            assert!(set.insert(address(i)));
        }
        assert!(set.allocated_bytes() <= 32 * set.len(), "{} bytes for {}", set.allocated_bytes(), set.len());
        assert!(!set.insert(address(7)));
        assert_eq!(set.len(), 78_125);
    }

    #[test]
    fn room_that_was_made_is_as_large_as_it_has_to_be_and_stays() {
        let (mut set, mut grown) = (WatchSet::default(), WatchSet::default());
        set.reserve(78_125);
        let before = set.table.allocation_size() + set.filter.allocated_bytes();
        for i in 0..78_125 {
            assert!(set.insert(address(i)) && grown.insert(address(i)));
        }
        assert_eq!(set.table.allocation_size() + set.filter.allocated_bytes(), before);
        assert!(set.allocated_bytes() <= grown.allocated_bytes());
        let made = set.allocated_bytes();
        set.reserve(1);
        set.shrink();
        assert_eq!(set.allocated_bytes(), made);
        // A topic that holds each address ten times.
        let mut set = WatchSet::default();
        set.reserve(1_000_000);
        for i in 0..78_125 {
            set.insert(address(i));
        }
        assert!(set.allocated_bytes() > made);
        set.shrink();
        assert_eq!(set.allocated_bytes(), made);
        assert!((0..78_125).all(|i| set.contains(&address(i).into_array())));
    }

    #[test]
    fn it_finds_those_that_were_issued_and_no_others() {
        let mut set = WatchSet::default();
        // Past several growths of the filter and of the table.
        let issued = 100_000;
        for i in 0..issued {
            set.insert(address(i));
        }
        // Every tenth, strangers between them, and one that differs from an issued address in what no hash looks at.
        let mut recipients: Vec<[u8; 20]> = (0..issued * 10).map(|i| address(i * 10).into_array()).collect();
        let mut near = address(3).into_array();
        *near.last_mut().unwrap() ^= 1;
        recipients.push(near);
        let mut found = Vec::new();
        set.find(&recipients, &mut found);
        assert_eq!(found, (0..10_000).collect::<Vec<usize>>());
    }

    #[test]
    fn the_filter_lets_few_strangers_through() {
        let mut filter = AddressFilter::with_capacity(100_000);
        for i in 0..100_000 {
            filter.insert(&address(i).into_array());
        }
        assert!(!filter.is_full(100_000));
        let strangers = (200_000..300_000_u64).map(|i| address(i).into_array());
        let through = strangers.filter(|stranger| may_contain(filter.word(stranger), stranger)).count();
        assert!(through < 8_000, "{through} of 100,000");
    }
}
