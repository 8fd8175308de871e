//! What was proven of a block, and why not more.

/// How well a part of a block is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartProof {
    /// It hashes to what the block's hash commits to.
    Root,
    /// The logs match the header's bloom. The text says why there is no better proof.
    Bloom(String),
    /// The node is trusted. The text says why.
    Unproven(String),
}

impl PartProof {
    /// Why there is no proof by root.
    pub(super) fn gap(&self) -> Option<&str> {
        match self {
            Self::Root => None,
            Self::Bloom(why) | Self::Unproven(why) => Some(why),
        }
    }
}

/// What of a block was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The header, which includes the roots.
    pub header: PartProof,
    pub transactions: PartProof,
    /// Statuses and logs.
    pub receipts: PartProof,
    /// Credits of the beacon chain. No payment depends on them.
    pub withdrawals: PartProof,
}

impl Proof {
    /// The parts that a payment depends on.
    pub(super) fn payments(&self) -> impl Iterator<Item = &PartProof> {
        [&self.header, &self.transactions, &self.receipts].into_iter()
    }

    /// Why parts were not proven by a root. Empty if all were.
    pub fn gaps(&self) -> impl Iterator<Item = &str> {
        self.payments().chain([&self.withdrawals]).filter_map(PartProof::gap)
    }
}
