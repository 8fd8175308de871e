//! The confirmation policy of a payment: how deep a transfer has to be. chains.yaml has it per chain, token and amount; a
//! payment keeps the one that it was created with.

/// When a transfer is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Once this many witnessed blocks are on the chain from its own on, itself counted; 0 means 1.
    Confirmations(u32),
    /// Once the `safe` block is at or above its own.
    Safe,
    /// Once the `finalized` block is at or above its own.
    Finalized,
}

impl From<chain::Policy> for Policy {
    fn from(policy: chain::Policy) -> Self {
        match policy {
            chain::Policy::Confirmations(count) => Self::Confirmations(count),
            chain::Policy::Safe => Self::Safe,
            chain::Policy::Finalized => Self::Finalized,
        }
    }
}

impl Policy {
    /// The block number that the head or the tag has to reach to confirm a transfer in block `number`.
    pub const fn due(self, number: u64) -> u64 {
        match self {
            Self::Confirmations(count) => number.saturating_add((count as u64).saturating_sub(1)),
            Self::Safe | Self::Finalized => number,
        }
    }

    /// The block number that counts: what the head or the tag has reached and witnesses have seen.
    pub fn reached(self, head: u64, safe: Option<u64>, finalized: Option<u64>, witnessed: Option<u64>) -> Option<u64> {
        let reached = match self {
            Self::Confirmations(_) => Some(head),
            Self::Safe => safe,
            Self::Finalized => finalized,
        };
        reached.zip(witnessed).map(|(reached, witnessed)| reached.min(witnessed))
    }

    /// The tag's public name, if the policy is one.
    pub const fn finality(self) -> Option<&'static str> {
        match self {
            Self::Confirmations(_) => None,
            Self::Safe => Some("safe"),
            Self::Finalized => Some("finalized"),
        }
    }

    /// The number of blocks; 0 under a tag.
    pub const fn confirmations(self) -> u32 {
        match self {
            Self::Confirmations(count) => count,
            Self::Safe | Self::Finalized => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_tells_a_policy_by_its_tag_or_its_number_of_blocks() {
        let told = |policy: Policy| (policy.finality(), policy.confirmations());
        assert_eq!(told(Policy::Confirmations(12)), (None, 12));
        assert_eq!(told(Policy::Safe), (Some("safe"), 0));
        assert_eq!(told(Policy::Finalized), (Some("finalized"), 0));
    }
}
