//! What to fetch with a block, and how well to prove it.

use crate::config::Chain;
use crate::proof::Verify;

/// What to fetch with a block, and how well to prove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchOptions {
    /// How much must be proven.
    pub verify: Verify,
    /// Whether to request call traces, unless the block's logs report coin transfers themselves (EIP-7708).
    pub traces: bool,
    /// How many providers must say the same of what no root proves.
    pub witnesses: usize,
}

impl FetchOptions {
    /// The options that the chain's entry sets.
    pub fn of(chain: &Chain) -> Self {
        Self { verify: chain.verify, traces: chain.traces, witnesses: chain.witnesses }
    }
}
