//! The set of all issued addresses, in as little memory as possible.

use hashbrown::HashTable;
use topics::Address;

/// Every address ever issued. Each takes 20 bytes and one control byte, times at most 8/7, and twice that just after growth.
///
/// An address is the end of a Keccak hash, so its first bytes serve as its hash. An attacker who chooses the recipients to look
/// up can't make lookups slower, since the table contains only our addresses.
#[derive(Default)]
pub struct WatchSet {
    table: HashTable<[u8; 20]>,
}

fn hash(address: &[u8; 20]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *address;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

impl WatchSet {
    /// Adds an address. Returns whether it is new.
    pub fn insert(&mut self, address: Address) -> bool {
        let address = address.into_array();
        let entry = self.table.entry(hash(&address), |known| *known == address, hash);
        let new = matches!(entry, hashbrown::hash_table::Entry::Vacant(_));
        entry.or_insert(address);
        new
    }

    /// Whether the address was issued.
    #[inline]
    pub fn contains(&self, address: &[u8; 20]) -> bool {
        self.table.find(hash(address), |known| known == address).is_some()
    }

    /// The number of addresses.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The memory of the table, in bytes.
    pub fn allocated_bytes(&self) -> usize {
        self.table.allocation_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_million_addresses_take_at_most_forty_bytes_each() {
        // hashbrown holds up to 7/8 of a power of two.
        let mut set = WatchSet::default();
        for i in 0..40_000_u64 {
            assert!(set.insert(Address::from_word(alloy::primitives::keccak256(i.to_be_bytes()))));
        }
        // 10,000,000 of 2^24 slots is as full as 39,063 of 2^16.
        assert!(set.allocated_bytes() / set.len() <= 40, "{} bytes each", set.allocated_bytes() / set.len());
        assert!(!set.insert(Address::from_word(alloy::primitives::keccak256(7_u64.to_be_bytes()))));
        assert_eq!(set.len(), 40_000);
    }
}
