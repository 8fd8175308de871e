//! Rows of `applied_records`: the records of `chain.matches` that were applied last, as they are known when they are read again.

use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::HashSet;
use topics::{ChainId, Kind, Matches};
use uuid::{Uuid, uuid};

/// A random number that nothing else uses. Under another one no record is known again.
const RECORD_NAMESPACE: Uuid = uuid!("0d2f5a3c-8b1e-4b57-9c64-2f7c1f0a6e91");
/// Records of each chain that are remembered, and the rest of a batch: far more than a stage goes back.
const MAX_REMEMBERED: i64 = 50_000;

/// The records of a chain that were applied last.
#[derive(Clone, Debug, Default)]
pub struct AppliedRecords {
    known: HashSet<Uuid>,
    /// Number of the lowest block that they added.
    lowest: Option<u64>,
}

impl AppliedRecords {
    /// Whether this very record is one of them: the same block, content and tags under the same sequence.
    pub fn has(&self, record: &Matches) -> bool {
        self.known.contains(&RecordIds::of(record).whole)
    }

    /// Whether one of them says the same of the block, under whatever sequence and with whatever tags.
    pub fn has_content(&self, record: &Matches) -> bool {
        self.known.contains(&RecordIds::of(record).content)
    }

    /// Whether its block lies below all that they have added, so that it may have been applied before them.
    pub fn lie_above(&self, record: &Matches) -> bool {
        self.lowest.is_some_and(|lowest| record.block.number < lowest)
    }

    pub fn insert(&mut self, record: &Matches) {
        let RecordIds { whole, content } = RecordIds::of(record);
        self.known.extend([whole, content]);
        self.lowest = self.lowest.into_iter().chain(added_number(record)).min();
    }
}

/// The records of a chain that were applied last. They are read where some are read again, and at no other time.
///
/// # Errors
/// When the database fails.
pub async fn applied_records(db: &impl GenericClient, chain: ChainId) -> Result<AppliedRecords, Failure> {
    let statement = db.prepare_cached("SELECT lowest, records FROM applied_records WHERE chain_id = $1").await?;
    let mut applied = AppliedRecords::default();
    for row in db.query(&statement, &[&bigint(chain.0)]).await? {
        let lowest = row.get::<_, Option<i64>>(0).map(unsigned);
        applied.lowest = applied.lowest.into_iter().chain(lowest).min();
        applied.known.extend(row.get::<_, Vec<Uuid>>(1));
    }
    Ok(applied)
}

/// Remembers records that are applied, and forgets those of long ago. The chain's head is locked.
///
/// # Errors
/// When the database fails.
pub async fn remember_records(db: &impl GenericClient, chain: ChainId, records: &[&Matches]) -> Result<(), Failure> {
    if records.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "WITH kept AS (
                 INSERT INTO applied_records (chain_id, place, lowest, records)
                 SELECT $1, coalesce((SELECT max(place) FROM applied_records WHERE chain_id = $1), 0) + $2, $3, $4 RETURNING place
             )
             DELETE FROM applied_records WHERE chain_id = $1 AND place < (SELECT place FROM kept) - $5",
        )
        .await?;
    let count = i64::try_from(records.len()).unwrap_or(i64::MAX);
    let lowest = records.iter().filter_map(|record| added_number(record)).min().map(bigint);
    let ids = records.iter().map(|record| RecordIds::of(record));
    let ids: Vec<Uuid> = ids.flat_map(|RecordIds { whole, content }| [whole, content]).collect();
    db.execute(&statement, &[&bigint(chain.0), &count, &lowest, &ids, &MAX_REMEMBERED]).await?;
    Ok(())
}

fn added_number(record: &Matches) -> Option<u64> {
    (record.kind == Kind::Added).then_some(record.block.number)
}

/// By which a record is known again.
struct RecordIds {
    whole: Uuid,
    /// What it says of its block, transfers included.
    content: Uuid,
}

impl RecordIds {
    fn of(record: &Matches) -> Self {
        let Matches { chain, sequence, kind, block, parent, parent_number, timestamp, .. } = record;
        let Matches { safe, finalized, witnessed, transfers, part, parts, .. } = record;
        let said = format!("{chain}/{kind:?}/{block}/{parent}/{parent_number:?}/{timestamp}/{part}/{parts}");
        let content = transfers.iter().fold(Uuid::new_v5(&RECORD_NAMESPACE, said.as_bytes()), |id, transfer| {
            Uuid::new_v5(&id, format!("{transfer:?}").as_bytes())
        });
        let tags = format!("{sequence}/{safe:?}/{finalized:?}/{witnessed:?}");
        Self { whole: Uuid::new_v5(&content, tags.as_bytes()), content }
    }
}
