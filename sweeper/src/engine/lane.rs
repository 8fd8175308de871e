//! A lane: all that one sender sends on one chain, in the order of its nonces. Pure.
//!
//! No counter stands beside the chain. What the chain counts is asked once, at a block that was read; all that changes it
//! later is read in blocks. Each next nonce follows the highest that the lane ever gave out, which is a row that has signed
//! bytes. So a crash leaves no nonce without a transaction.

/// The most nonces that are filled. More are missing only if the count was wrong, and each filler costs gas.
const MAX_GAPS: u64 = 16;

/// So many nonces are missing: more than are filled without a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} nonces are missing below; they are not filled, since the count of the sender's transactions may be wrong")]
pub struct WideGap(pub u64);

fn after(nonce: Option<u64>) -> u64 {
    nonce.map_or(0, |nonce| nonce.saturating_add(1))
}

/// The nonce of the next transaction: what the chain `counted`, or what follows the highest that was given out, or that a
/// stranger used in a block.
pub fn next_nonce(counted: u64, given: Option<u64>, foreign: Option<u64>) -> u64 {
    counted.max(after(given)).max(after(foreign))
}

/// The nonces that hold the lane up and that no transaction has. The chain `counted` so many, and of each nonce that waits for
/// a block `waiting` has the next lower one that the lane gave out or that a stranger used. They are filled by transactions
/// that send nothing to the sender itself.
///
/// # Errors
/// If so many are missing that something is wrong.
pub fn gaps(counted: u64, waiting: &[(u64, Option<u64>)]) -> Result<Vec<u64>, WideGap> {
    let missing = waiting.iter().map(|(nonce, below)| counted.max(after(*below))..*nonce);
    let width = missing.clone().fold(0_u64, |sum, range| sum.saturating_add(range.end.saturating_sub(range.start)));
    if width > MAX_GAPS { Err(WideGap(width)) } else { Ok(missing.flatten().collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_follows_the_highest_that_is_known() {
        assert_eq!(next_nonce(5, None, None), 5);
        assert_eq!(next_nonce(5, Some(5), None), 6);
        assert_eq!(next_nonce(5, Some(2), None), 5, "a filler below the count");
        assert_eq!(next_nonce(5, Some(6), Some(9)), 10, "a stranger's in a block");
    }

    #[test]
    fn what_is_missing_below_a_waiting_nonce_is_filled_and_nothing_else() {
        assert_eq!(gaps(3, &[(5, None), (6, Some(5))]).unwrap(), [3, 4]);
        assert_eq!(gaps(3, &[(5, Some(4))]).unwrap(), [] as [u64; 0], "ours, mined in a block that left or not yet seen");
        assert_eq!(gaps(7, &[(6, Some(5))]).unwrap(), [] as [u64; 0], "used by somebody else");
        assert_eq!(gaps(0, &[(5, Some(3)), (8, Some(6))]).unwrap(), [4, 7]);
        assert_eq!(gaps(3, &[]).unwrap(), [] as [u64; 0], "nothing waits");
    }

    /// A count of 1,000,000 that was 5: a filler for each would be paid, and nothing would arrive.
    #[test]
    fn a_wide_gap_is_not_filled() {
        assert_eq!(gaps(0, &[(16, None)]).unwrap().len(), 16);
        assert_eq!(gaps(0, &[(17, None)]), Err(WideGap(17)));
        assert_eq!(gaps(5, &[(1_000_000, None)]), Err(WideGap(999_995)));
        assert_eq!(gaps(0, &[(u64::MAX, None), (u64::MAX - 1, None)]), Err(WideGap(u64::MAX)));
    }
}
