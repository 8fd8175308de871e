//! Keeps records of `chain.matches` small: the transfers of a block are split over several records. Pure.
//!
//! Anyone can make a block whose transfers to one of our addresses fit no record. The confirmer applies a record at a time, so
//! their size also bounds its memory and its transactions.

use prost::{DecodeError, Message as _};
use topics::in_parts;
use topics::lazy::Fields;
use topics::wire::MatchesRecord;

/// The most that the transfers of a record take: some 30,000 of them.
const MAX_TRANSFERS_BYTES: usize = 4 * 1024 * 1024;

/// The records of a block's matches: one, or as many parts as it takes.
pub fn split_matches(mut record: MatchesRecord) -> Vec<MatchesRecord> {
    if record.encoded_len() <= MAX_TRANSFERS_BYTES {
        return vec![record];
    }
    let parts = in_parts(std::mem::take(&mut record.transfers), MAX_TRANSFERS_BYTES);
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let part = |(transfers, part)| MatchesRecord { transfers, part, parts: count, ..record.clone() };
    parts.into_iter().zip(1..).map(part).collect()
}

/// Whether a record of `chain.matches`, without its frame, is the last of its block.
///
/// # Errors
/// If it is truncated or malformed.
pub fn ends_block(message: &[u8]) -> Result<bool, DecodeError> {
    let (mut part, mut parts) = (0, 0);
    for field in Fields::new(message) {
        match field? {
            (12, value) => part = value.varint(),
            (13, value) => parts = value.varint(),
            _ => {}
        }
    }
    Ok(part >= parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use topics::wire::matches_record::{Kind, Source, Transfer};
    use topics::{MAX_MESSAGE_BYTES, Matches};

    fn record(count: u32) -> MatchesRecord {
        let transfer = |index| Transfer {
            transaction_hash: vec![1; 32].into(),
            source: Source::Log.into(),
            index,
            token: vec![2; 20].into(),
            from: vec![3; 20].into(),
            to: vec![4; 20].into(),
            amount: vec![5; 32].into(),
            transaction_index: index,
        };
        MatchesRecord {
            chain_id: 1,
            sequence: 2,
            kind: Kind::Added.into(),
            number: 3,
            hash: vec![9; 32].into(),
            parent_hash: vec![8; 32].into(),
            transfers: (0..count).map(transfer).collect(),
            witnessed_number: Some(3),
            ..MatchesRecord::default()
        }
    }

    #[test]
    fn the_matches_of_a_block_are_one_record_as_long_as_they_fit() {
        let whole = record(1_000);
        assert_eq!(split_matches(whole.clone()), std::slice::from_ref(&whole));
        assert!(ends_block(&whole.encode_to_vec()).unwrap());
    }

    /// 350 million gas buy 200,000 logs to one address, whose record did not fit its topic.
    #[test]
    fn matches_that_fit_no_record_are_split_in_order_and_none_is_lost() {
        let whole = record(300_000);
        assert!(whole.encoded_len() > MAX_MESSAGE_BYTES as usize);
        let parts = split_matches(whole.clone());
        let checked: Vec<Matches> = parts.iter().map(|part| part.try_into().unwrap()).collect();
        assert!(checked.iter().zip(&checked[1..]).all(|(before, part)| part.can_follow(before)));
        assert!(!checked[1].can_follow(&checked[1]) && !checked[2].can_follow(&checked[0]));
        let ends = |of: &Matches| (of.begins_block(), of.ends_block());
        assert_eq!((ends(&checked[0]), ends(&checked[1])), ((true, false), (false, false)));
        for (part, place) in parts.iter().zip(1..) {
            assert!(part.encoded_len() <= MAX_TRANSFERS_BYTES + 200, "{}", part.encoded_len());
            assert_eq!(ends_block(&part.encode_to_vec()).unwrap(), place == parts.len());
            assert_eq!(MatchesRecord { transfers: Vec::new(), part: 0, parts: 0, ..part.clone() }, record(0));
        }
        let transfers: Vec<Transfer> = parts.into_iter().flat_map(|part| part.transfers).collect();
        assert!(transfers == whole.transfers, "transfers are lost or in another order");
    }
}
