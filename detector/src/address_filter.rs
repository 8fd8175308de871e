//! A Bloom filter before the set of addresses: most recipients belong to nobody here, and it says so for one memory access.
//!
//! Register-blocked (Putze, Sanders, Singler 2007): the four bits of an address are in one 64-bit word. With 8 to 16 bits per
//! address it lets 5 to 1 % of strangers through. Made for 10,000,000 addresses it takes 12.5 MB, so that it stays in the cache of
//! a server's CPU, where the set itself does not.

/// Bits of the filter per address, at least.
const MIN_BITS_PER_ADDRESS: usize = 8;
/// Bits per address of a filter that is made for a known number: a quarter more may come before it is full.
const BITS_PER_ADDRESS: usize = 10;
const MIN_WORDS: usize = 1024;

/// What may be in a set of addresses.
pub struct AddressFilter {
    words: Vec<u64>,
}

impl Default for AddressFilter {
    fn default() -> Self {
        Self { words: vec![0; MIN_WORDS] }
    }
}

impl AddressFilter {
    /// An empty filter for this number of addresses, and some more.
    pub fn with_capacity(addresses: usize) -> Self {
        Self::with_bits(addresses * BITS_PER_ADDRESS)
    }

    /// An empty filter, large enough for twice this number of addresses.
    pub fn for_twice(addresses: usize) -> Self {
        Self::with_bits(addresses * 2 * MIN_BITS_PER_ADDRESS)
    }

    fn with_bits(bits: usize) -> Self {
        Self { words: vec![0; (bits / 64).max(MIN_WORDS)] }
    }

    /// Whether a filter for more addresses than this is due.
    pub fn is_full(&self, addresses: usize) -> bool {
        addresses > self.words.len() * 64 / MIN_BITS_PER_ADDRESS
    }

    pub fn insert(&mut self, address: &[u8; 20]) {
        let place = self.place(address);
        if let Some(word) = self.words.get_mut(place) {
            *word |= bits(address);
        }
    }

    /// The word that has the address's bits, for [`may_contain`]. Apart from the comparison, so that the accesses for many
    /// addresses overlap.
    #[inline]
    pub fn word(&self, address: &[u8; 20]) -> u64 {
        self.words.get(self.place(address)).copied().unwrap_or_default()
    }

    #[inline]
    fn place(&self, address: &[u8; 20]) -> usize {
        let [.., a, b, c, d, e, f, g, h] = *address;
        // The high half of the product: below the length, whatever the length is, and without a division.
        let product = u128::from(u64::from_le_bytes([a, b, c, d, e, f, g, h])) * self.words.len() as u128;
        usize::try_from(product >> 64).unwrap_or_default()
    }

    /// The memory of the filter, in bytes.
    pub fn allocated_bytes(&self) -> usize {
        size_of_val(self.words.as_slice())
    }
}

/// Whether the address may be in the set, if this is its word. If not, it is not in the set.
#[inline]
pub fn may_contain(word: u64, address: &[u8; 20]) -> bool {
    let bits = bits(address);
    word & bits == bits
}

/// Four bits, chosen by four bytes that neither the place in the filter nor that in the set depends on.
#[inline]
fn bits(address: &[u8; 20]) -> u64 {
    let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = *address;
    [a, b, c, d].iter().fold(0, |bits, byte| bits | 1 << (byte % 64))
}
