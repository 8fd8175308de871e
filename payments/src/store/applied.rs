//! Rows of `applied_records`: the records of `chain.matches` that were applied last, as they are known when they are read again.

use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::{HashMap, HashSet};
use topics::{ChainId, Kind, Matches};
use uuid::{Uuid, uuid};

/// A random number that nothing else uses. Under another one no record is known again.
const RECORD_NAMESPACE: Uuid = uuid!("0d2f5a3c-8b1e-4b57-9c64-2f7c1f0a6e91");
/// Records of each chain that are remembered, and the rest of a batch: far more than a stage goes back.
const MAX_REMEMBERED: i64 = 50_000;
/// A block that comes whole is its first part.
const FIRST_PART: u32 = 1;

/// The records of a chain that were applied last. Replayed blocks are not among them: they stand in no order.
#[derive(Clone, Debug, Default)]
pub struct AppliedRecords {
    whole: HashSet<Uuid>,
    /// The last one of all.
    last: Option<Uuid>,
    /// What was told last of each block.
    contents: HashMap<Uuid, Uuid>,
    /// Number of the highest block of which something else was told before.
    flipped: Option<u64>,
    /// Number of the lowest block that they added.
    lowest: Option<u64>,
}

impl AppliedRecords {
    /// Whether this very record is one of them: the same block, content and tags under the same sequence.
    pub fn has(&self, record: &Matches) -> bool {
        self.whole.contains(&RecordIds::of(record).whole)
    }

    /// Whether it is the last one of all.
    pub fn ends_with(&self, record: &Matches) -> bool {
        self.last == Some(RecordIds::of(record).whole)
    }

    /// Whether what was told of some block above this one has changed, or may have, before all that is remembered: then a record may
    /// be among them though what it says does not stand any more.
    pub fn may_have_flipped_above(&self, number: u64) -> bool {
        let is_forgotten = self.lowest.is_none_or(|lowest| lowest > number.saturating_add(1));
        is_forgotten || self.flipped.is_some_and(|flipped| flipped > number)
    }

    /// Whether the last of them that added this replayed block, or this part of it, has said the same.
    pub fn has_said(&self, replayed: &Matches) -> bool {
        self.has_ids(&RecordIds::as_kind(replayed, Kind::Added))
    }

    /// Whether the last of them that added this block, or this part of it, or removed it, has said the same, under whatever sequence
    /// and with whatever tags.
    pub fn has_content(&self, record: &Matches) -> bool {
        self.has_ids(&RecordIds::of(record))
    }

    fn has_ids(&self, RecordIds { block, content, .. }: &RecordIds) -> bool {
        self.contents.get(block) == Some(content)
    }

    /// Whether one of them has added this block, or this part of it, or removed it, whatever it has said.
    pub fn has_block(&self, record: &Matches) -> bool {
        self.contents.contains_key(&block_id(record, record.kind, record.part))
    }

    /// Whether one of them has added the block of this one, or a part of it.
    pub fn has_added(&self, record: &Matches) -> bool {
        self.contents.contains_key(&block_id(record, Kind::Added, FIRST_PART))
    }

    /// Whether its block lies below all that they have added, so that it may have been applied before them.
    pub fn lie_above(&self, record: &Matches) -> bool {
        self.lowest.is_some_and(|lowest| record.block.number < lowest)
    }

    pub fn insert(&mut self, record: &Matches) {
        if is_remembered(record) {
            self.insert_ids(RecordIds::of(record), record.block.number);
            self.lowest = self.lowest.into_iter().chain(added_number(record)).min();
        }
    }

    fn insert_ids(&mut self, RecordIds { whole, block, content }: RecordIds, number: u64) {
        self.whole.insert(whole);
        self.last = Some(whole);
        if self.contents.insert(block, content).is_some_and(|before| before != content) {
            self.flipped = self.flipped.max(Some(number));
        }
    }
}

/// The records of a chain that were applied last. They are read where some are read again, and at no other time.
///
/// # Errors
/// When the database fails.
pub async fn applied_records(db: &impl GenericClient, chain: ChainId) -> Result<AppliedRecords, Failure> {
    let sql = "SELECT lowest, records, numbers FROM applied_records WHERE chain_id = $1 ORDER BY place";
    let statement = db.prepare_cached(sql).await?;
    let mut applied = AppliedRecords::default();
    for row in db.query(&statement, &[&bigint(chain.0)]).await? {
        let lowest = row.get::<_, Option<i64>>(0).map(unsigned);
        applied.lowest = applied.lowest.into_iter().chain(lowest).min();
        for (ids, number) in row.get::<_, Vec<Uuid>>(1).as_chunks().0.iter().zip(row.get::<_, Vec<i64>>(2)) {
            let [whole, block, content] = *ids;
            applied.insert_ids(RecordIds { whole, block, content }, unsigned(number));
        }
    }
    Ok(applied)
}

/// Remembers records that are applied, or passed over for what they say, and forgets those of long ago, with the blocks that they took off
/// the chain. Its head is locked.
///
/// # Errors
/// When the database fails.
pub async fn remember_records(db: &impl GenericClient, chain: ChainId, records: &[&Matches]) -> Result<(), Failure> {
    let records: Vec<&Matches> = records.iter().copied().filter(|record| is_remembered(record)).collect();
    if records.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "WITH kept AS (
                 INSERT INTO applied_records (chain_id, place, lowest, records, numbers)
                 SELECT $1, coalesce((SELECT max(place) FROM applied_records WHERE chain_id = $1), 0) + $2, $3, $4, $5
                 RETURNING place
             ), forgotten AS (
                 DELETE FROM left_blocks WHERE chain_id = $1 AND place < (SELECT place FROM kept) - $6
             )
             DELETE FROM applied_records WHERE chain_id = $1 AND place < (SELECT place FROM kept) - $6",
        )
        .await?;
    let count = i64::try_from(records.len()).unwrap_or(i64::MAX);
    let lowest = records.iter().filter_map(|record| added_number(record)).min().map(bigint);
    let ids = records.iter().map(|record| RecordIds::of(record));
    let ids: Vec<Uuid> = ids.flat_map(|RecordIds { whole, block, content }| [whole, block, content]).collect();
    let numbers: Vec<i64> = records.iter().map(|record| bigint(record.block.number)).collect();
    db.execute(&statement, &[&bigint(chain.0), &count, &lowest, &ids, &numbers, &MAX_REMEMBERED]).await?;
    Ok(())
}

fn is_remembered(record: &Matches) -> bool {
    record.sequence != 0
}

fn added_number(record: &Matches) -> Option<u64> {
    (record.kind == Kind::Added).then_some(record.block.number)
}

/// By which a record is known again.
struct RecordIds {
    whole: Uuid,
    /// Its [`block_id`].
    block: Uuid,
    /// What it says of that, transfers included.
    content: Uuid,
}

/// Of a block, or part of one, that is added or removed. It may come whole, and in parts when it comes again.
fn block_id(Matches { chain, block, .. }: &Matches, kind: Kind, part: u32) -> Uuid {
    let part = part.max(FIRST_PART);
    Uuid::new_v5(&RECORD_NAMESPACE, format!("{chain}/{kind:?}/{}/{part}", block.hash).as_bytes())
}

impl RecordIds {
    fn of(record: &Matches) -> Self {
        Self::as_kind(record, record.kind)
    }

    fn as_kind(record: &Matches, kind: Kind) -> Self {
        let Matches { sequence, block, parent, parent_number, timestamp, .. } = record;
        let Matches { safe, finalized, witnessed, transfers, part, parts, .. } = record;
        let of_block = block_id(record, kind, *part);
        let said = format!("{}/{parent}/{parent_number:?}/{timestamp}/{parts}", block.number);
        let content = transfers.iter().fold(Uuid::new_v5(&of_block, said.as_bytes()), |id, transfer| {
            Uuid::new_v5(&id, format!("{transfer:?}").as_bytes())
        });
        let tags = format!("{sequence}/{safe:?}/{finalized:?}/{witnessed:?}");
        Self { whole: Uuid::new_v5(&content, tags.as_bytes()), block: of_block, content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use topics::{Address, Amount, B256, BlockRef, Source, Transfer, TransferId};

    #[test]
    fn what_lies_below_all_that_is_remembered_may_have_been_told_with_other_content() {
        let mut applied = AppliedRecords::default();
        assert!(applied.may_have_flipped_above(5));
        applied.lowest = Some(7);
        assert!([4, 5, 6, 7].map(|number| applied.may_have_flipped_above(number)) == [true, true, false, false]);
        applied.flipped = Some(8);
        assert!([7, 8].map(|number| applied.may_have_flipped_above(number)) == [true, false]);
    }

    /// Under other ids nothing that was applied before an update is known after it.
    #[test]
    fn the_ids_of_a_record_stay_the_same() {
        let (chain, hash) = (ChainId(1), B256::repeat_byte(1));
        let id = TransferId { chain, block: hash, transaction: hash, source: Source::Log, index: 3 };
        let (token, from, to) = (Some(Address::repeat_byte(2)), Address::ZERO, Address::ZERO);
        let record = Matches {
            chain,
            sequence: 7,
            kind: Kind::Added,
            block: BlockRef { number: 5, hash },
            parent: B256::ZERO,
            parent_number: None,
            timestamp: 1_000,
            safe: None,
            finalized: Some(4),
            witnessed: Some(5),
            transfers: vec![Transfer { id, token, from, to, amount: Amount::from(9_u64), transaction_index: 2 }],
            part: 1,
            parts: 2,
        };
        let RecordIds { whole, block, content } = RecordIds::of(&record);
        let ids = [whole, block, content].map(|id| id.to_string());
        let expected = [
            "410c840e-838d-5480-99ab-c087800d1d9f",
            "4401ef8a-6a53-59ca-b8ce-d86a0b722475",
            "a457fbff-b314-55d1-9673-75a05d74d405",
        ];
        assert_eq!(ids, expected);
    }
}
