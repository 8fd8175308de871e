//! A lane: all that one sender sends on one chain, in the order of its nonces. Pure.
//!
//! No counter stands beside the chain. The first nonce of a lane is what the chain counted when the lane began; each next one
//! follows the highest that the lane ever gave out, which is a row that has signed bytes. So a crash leaves no nonce without a
//! transaction.

use std::collections::BTreeSet;

/// Nonces that are filled at a time: more are missing only if somebody else's transactions left the chain, and those come back.
pub const MAX_GAPS: usize = 16;

/// The nonce of the next transaction: `born` is what the chain counted when the lane began, `highest` the highest that was
/// given out.
pub fn next_nonce(born: u64, highest: Option<u64>) -> u64 {
    highest.map_or(born, |highest| born.max(highest.saturating_add(1)))
}

/// The nonces that hold the lane up and have no transaction of ours: the chain counts `count`, `given` are all that the lane
/// gave out, `waiting` those of its transactions that wait for a block. They are filled by transactions that send nothing to
/// the sender itself.
///
/// A lane that began too high has them: the count was one of blocks that left the chain. `count` may be too low, from a node
/// that is behind: a filler of a nonce that is used is refused, and pays nobody.
pub fn gaps(count: u64, given: &BTreeSet<u64>, waiting: &BTreeSet<u64>) -> Vec<u64> {
    let Some(last) = waiting.last() else { return Vec::new() };
    (count..*last).filter(|nonce| !given.contains(nonce)).take(MAX_GAPS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_follows_the_highest_and_the_chains_count_is_asked_once() {
        assert_eq!(next_nonce(5, None), 5);
        assert_eq!(next_nonce(5, Some(5)), 6);
        assert_eq!(next_nonce(5, Some(2)), 5, "a filler below where the lane began");
    }

    #[test]
    fn what_is_missing_below_a_waiting_nonce_is_filled_and_nothing_else() {
        let set = |nonces: &[u64]| nonces.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(gaps(3, &set(&[5, 6]), &set(&[5, 6])), [3, 4]);
        assert_eq!(gaps(3, &set(&[3, 4, 5]), &set(&[5])), [] as [u64; 0], "ours, mined in a block that left or not yet seen");
        assert_eq!(gaps(7, &set(&[5, 6]), &set(&[6])), [] as [u64; 0], "used by somebody else");
        assert_eq!(gaps(3, &set(&[5]), &set(&[])), [] as [u64; 0], "nothing waits");
        assert_eq!(gaps(0, &set(&[1_000]), &set(&[1_000])).len(), MAX_GAPS);
    }
}
