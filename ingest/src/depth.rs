//! How deep a reorg may go: down to the last block that enough endpoints call final or, where they call none so, as deep as the
//! window at least remembers.

use crate::window::MIN_WINDOW_BLOCKS;
use crate::witnesses::nth_highest;
use chain::{Head, Standing};
use std::collections::BTreeMap;

/// The last block that no reorg takes back, as far as `needed` providers say. `None` if fewer of them answer.
pub fn last_final_block(standings: &[Standing], needed: usize) -> Option<u64> {
    let finalized = highest(standings, |standing| standing.tags.finalized);
    if let Some(number) = nth_highest(needed, finalized.iter().copied()) {
        return Some(number);
    }
    let head = reached_head(standings, needed)?;
    let deep = head.saturating_sub(u64::try_from(MIN_WINDOW_BLOCKS).unwrap_or(u64::MAX));
    // A tag that too few report is no proof that a block is final, but it may show that the chain is slow to finalise.
    Some(finalized.into_iter().fold(deep, u64::min))
}

/// The highest head that `needed` providers have reached. `None` if fewer of them answer.
pub fn reached_head(standings: &[Standing], needed: usize) -> Option<u64> {
    nth_highest(needed, highest(standings, |standing| standing.head))
}

/// The highest block of each provider.
fn highest(standings: &[Standing], of: impl Fn(&Standing) -> Option<Head>) -> Vec<u64> {
    let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
    for (standing, head) in standings.iter().filter_map(|standing| of(standing).map(|head| (standing, head))) {
        let known = highest.entry(&standing.provider).or_default();
        *known = (*known).max(head.number);
    }
    highest.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chain::Tags;
    use topics::B256;

    fn standing(provider: &str, head: u64, finalized: Option<u64>) -> Standing {
        let block = |number| Head { number, hash: B256::ZERO, parent_hash: B256::ZERO, timestamp: 0 };
        let tags = Tags { safe: None, finalized: finalized.map(block) };
        Standing { provider: provider.to_owned(), head: Some(block(head)), tags }
    }

    #[test]
    fn a_block_is_final_if_enough_providers_say_so() {
        let [a, b, c] = [("a", 900), ("b", 990), ("c", 995)].map(|(name, last)| standing(name, 1000, Some(last)));
        assert_eq!(last_final_block(&[a.clone(), b.clone(), c.clone()], 2), Some(990));
        assert_eq!(last_final_block(&[a.clone(), c.clone()], 2), Some(900));
        assert_eq!(last_final_block(&[c.clone(), standing("c", 1000, Some(999)), a], 2), Some(900), "one provider, one voice");
        assert_eq!(last_final_block(&[c], 2), None, "one alone says nothing");
    }

    #[test]
    fn without_tags_it_is_deep_below_a_head_that_enough_providers_have() {
        let without = |name, head| standing(name, head, None);
        assert_eq!(last_final_block(&[without("a", 1000), without("b", 99_999)], 2), Some(744));
        assert_eq!(last_final_block(&[without("a", 100)], 1), Some(0));
        let slow = standing("a", 1000, Some(300));
        assert_eq!(last_final_block(&[slow, without("b", 1000)], 2), Some(300), "the only tag shows how far it is behind");
        let eager = standing("a", 1000, Some(1000));
        assert_eq!(last_final_block(&[eager, without("b", 1000)], 2), Some(744), "and proves nothing");
    }
}
