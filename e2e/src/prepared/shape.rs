//! The chain's constants.

/// EIP-155 id of the chain.
pub const CHAIN_ID: u64 = 1;
/// Number of the first block. Its parent is missing, as on a node that keeps only recent blocks.
pub const FIRST: u64 = 20_971_520;
/// Logs per block.
pub const LOGS: u64 = 300;
