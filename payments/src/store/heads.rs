//! Rows of `chain_heads`: the canonical head of each chain as far as the confirmer has applied `chain.matches`.

use crate::policy::Policy;
use deadpool_postgres::GenericClient;
use runtime::db::{bigint, lock, unsigned};
use runtime::{Failure, OnReturn};
use std::collections::HashMap;
use std::time::Duration;
use tokio_postgres::Row;
use topics::{B256, BlockRef, ChainId, Matches};

/// The head of a chain at the last applied record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainHead {
    /// Of the last applied record of `chain.matches`.
    pub sequence: u64,
    /// Number of the first block that was ever added.
    pub first: u64,
    pub number: u64,
    /// `None` once a reorg removed that first block, so that no block is left, and where the chain begins anew by a command.
    pub hash: Option<B256>,
    /// Whether a reorg did that: the branch that takes its place may begin lower. Where the chain begins anew by a command, what comes
    /// next may go through blocks once more that stand.
    pub makes_way: bool,
    /// Unix seconds.
    pub timestamp: u64,
    pub safe: Option<u64>,
    pub finalized: Option<u64>,
    /// Number of the highest block that enough endpoints have given; at most `number`.
    pub witnessed: Option<u64>,
    /// The last of the replayed blocks that lead on from this head, by their parents: they close a gap of records.
    pub bridge: Option<BlockRef>,
    /// The block after it, if parts of that were applied and its last one was not.
    pub open: Option<OpenBlock>,
    /// How far its records were read.
    pub reading: Reading,
}

impl ChainHead {
    /// Number of the highest block that its hash alone tells from any other. Those above, up to the head, may come again with
    /// another content: too few endpoints have given them.
    pub fn known_by_hash(&self) -> u64 {
        let witnessed = || self.witnessed.unwrap_or(self.first.saturating_sub(1)).min(self.number);
        self.hash.map_or(self.number, |_| witnessed())
    }

    /// Number of the highest block that is there, witnessed and, where nodes call blocks so, final; none where nothing is known
    /// of witnesses, or no block is left.
    pub fn known_to_stand(&self) -> Option<u64> {
        let witnessed = self.hash.and(self.witnessed)?.min(self.number);
        Some(self.finalized.map_or(witnessed, |finalized| finalized.min(witnessed)))
    }

    /// Whether a replayed block is one of those that may come again with another content.
    pub fn has_in_doubt(&self, replayed: &Matches) -> bool {
        let number = replayed.block.number;
        replayed.sequence == 0 && self.known_by_hash() < number && number <= self.number
    }
}

/// For where the records of chains are read from an earlier place on.
pub const ON_RETURN: OnReturn = OnReturn {
    keys: "SELECT chain_id::text FROM chain_heads",
    note: "UPDATE chain_heads SET reads_again = NULL WHERE chain_id::text = ANY($1)",
};

/// How far the records of a chain were read, whether they were applied or passed over for what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Of the last one.
    pub sequence: u64,
    /// Of the first one after the last gap.
    pub from: u64,
    /// Of the last one that had not been read before. None is missing since `from`.
    pub to: u64,
    /// Whether the last one had been read before, as had others that come after it; none if the stage has gone back since, to nobody
    /// knows where.
    pub again: Option<bool>,
    /// The last of the replayed blocks that lead, by their parents, from a block that is known by its hash on, and have the
    /// content that was applied.
    pub said: Option<BlockRef>,
}

impl Reading {
    /// Before the first record, which has this sequence.
    pub fn before(first: u64) -> Self {
        let sequence = first.saturating_sub(1);
        Self { sequence, from: first, to: sequence, again: Some(false), said: None }
    }

    /// Whether a record with this sequence was written after one of those between which none is missing.
    pub fn follows(&self, sequence: u64) -> bool {
        self.from < sequence && sequence <= self.to.saturating_add(1)
    }

    /// Whether what comes next may come before the record with this sequence, which was read before.
    pub fn may_precede(&self, sequence: u64) -> bool {
        self.again.is_none_or(|again| again && self.sequence < sequence)
    }
}

impl Default for Reading {
    fn default() -> Self {
        Self::before(0)
    }
}

/// A block of which some parts were applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenBlock {
    pub hash: B256,
    /// The last of them.
    pub part: u32,
}

/// The head of a chain, its row locked until the transaction ends; `None` for a chain without a block yet. Until then told events are
/// not compared either.
///
/// # Errors
/// When the database fails, or the row holds no valid head.
pub async fn lock_head(db: &impl GenericClient, chain: ChainId) -> Result<Option<ChainHead>, Failure> {
    lock::hold_off_comparison(db).await?;
    let statement = db
        .prepare_cached(
            "SELECT sequence, first_number, number, hash, block_timestamp, safe_number, finalized_number, witnessed_number,
                 bridge_number, bridge_hash, open_part, open_hash, read_sequence, read_from, read_to, reads_again, said_number,
                 said_hash, makes_way
             FROM chain_heads WHERE chain_id = $1 FOR UPDATE",
        )
        .await?;
    let Some(row) = db.query_opt(&statement, &[&bigint(chain.0)]).await? else {
        return Ok(None);
    };
    let number = |column: usize| row.get::<_, Option<i64>>(column).and_then(|n| u64::try_from(n).ok());
    let hash = |column: usize| {
        row.get::<_, Option<&[u8]>>(column).map(|hash| topics::hash("hash", hash)).transpose().map_err(Failure::halt)
    };
    let block = |number: Option<u64>, hash| number.zip(hash).map(|(number, hash)| BlockRef { number, hash });
    Ok(Some(ChainHead {
        sequence: number(0).unwrap_or_default(),
        first: number(1).unwrap_or_default(),
        number: number(2).unwrap_or_default(),
        hash: hash(3)?,
        makes_way: row.get(18),
        timestamp: number(4).unwrap_or_default(),
        safe: number(5),
        finalized: number(6),
        witnessed: number(7),
        bridge: block(number(8), hash(9)?),
        open: number(10).zip(hash(11)?).map(|(part, hash)| OpenBlock { hash, part: u32::try_from(part).unwrap_or_default() }),
        reading: Reading {
            sequence: number(12).unwrap_or_default(),
            from: number(13).unwrap_or_default(),
            to: number(14).unwrap_or_default(),
            again: row.get(15),
            said: block(number(16), hash(17)?),
        },
    }))
}

/// Inserts or updates the head of a chain.
///
/// # Errors
/// When the database fails.
pub async fn save_head(db: &impl GenericClient, chain: ChainId, head: &ChainHead) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "INSERT INTO chain_heads
                 (chain_id, sequence, first_number, number, hash, block_timestamp, safe_number, finalized_number, witnessed_number,
                  unwitnessed_since, bridge_number, bridge_hash, open_part, open_hash, read_sequence, read_from, read_to, reads_again,
                  said_number, said_hash, makes_way)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::bigint, CASE WHEN $9 >= $4::bigint THEN NULL ELSE now() END, $10, $11, $12,
                 $13, $14, $15, $16, $17, $18, $19, $20)
             ON CONFLICT (chain_id) DO UPDATE SET sequence = EXCLUDED.sequence, first_number = EXCLUDED.first_number,
                 number = EXCLUDED.number, hash = EXCLUDED.hash,
                 block_timestamp = EXCLUDED.block_timestamp, safe_number = EXCLUDED.safe_number,
                 finalized_number = EXCLUDED.finalized_number, witnessed_number = EXCLUDED.witnessed_number,
                 unwitnessed_since = CASE
                     WHEN EXCLUDED.unwitnessed_since IS NULL THEN NULL
                     WHEN EXCLUDED.witnessed_number IS DISTINCT FROM chain_heads.witnessed_number THEN now()
                     ELSE COALESCE(chain_heads.unwitnessed_since, now()) END,
                 bridge_number = EXCLUDED.bridge_number, bridge_hash = EXCLUDED.bridge_hash,
                 open_part = EXCLUDED.open_part, open_hash = EXCLUDED.open_hash, read_sequence = EXCLUDED.read_sequence,
                 read_from = EXCLUDED.read_from, read_to = EXCLUDED.read_to, reads_again = EXCLUDED.reads_again,
                 said_number = EXCLUDED.said_number, said_hash = EXCLUDED.said_hash, makes_way = EXCLUDED.makes_way,
                 updated_at = now()",
        )
        .await?;
    db.execute(
        &statement,
        &[
            &bigint(chain.0),
            &bigint(head.sequence),
            &bigint(head.first),
            &bigint(head.number),
            &head.hash.as_ref().map(|hash| hash.as_slice()),
            &bigint(head.timestamp),
            &head.safe.map(bigint),
            &head.finalized.map(bigint),
            &head.witnessed.map(bigint),
            &head.bridge.map(|bridge| bigint(bridge.number)),
            &head.bridge.as_ref().map(|bridge| bridge.hash.as_slice()),
            &head.open.map(|open| i64::from(open.part)),
            &head.open.as_ref().map(|open| open.hash.as_slice()),
            &bigint(head.reading.sequence),
            &bigint(head.reading.from),
            &bigint(head.reading.to),
            &head.reading.again,
            &head.reading.said.map(|said| bigint(said.number)),
            &head.reading.said.as_ref().map(|said| said.hash.as_slice()),
            &head.makes_way,
        ],
    )
    .await?;
    Ok(())
}

/// Block numbers of the heads of some chains; those without a block yet are left out.
///
/// # Errors
/// When the database fails.
pub async fn head_numbers(db: &impl GenericClient, chains: &[ChainId]) -> Result<HashMap<ChainId, u64>, Failure> {
    let statement = db.prepare_cached("SELECT chain_id, number FROM chain_heads WHERE chain_id = ANY($1)").await?;
    let ids = chains.iter().map(|chain| i64::try_from(chain.0)).collect::<Result<Vec<_>, _>>().map_err(Failure::halt)?;
    db.query(&statement, &[&ids]).await?.iter().map(read_number).collect()
}

/// Block timestamps of the heads of all chains, in Unix seconds.
///
/// # Errors
/// When the database fails.
pub async fn head_timestamps(db: &impl GenericClient) -> Result<HashMap<ChainId, u64>, Failure> {
    let statement = db.prepare_cached("SELECT chain_id, block_timestamp FROM chain_heads").await?;
    db.query(&statement, &[]).await?.iter().map(read_number).collect()
}

/// How far a chain has come.
#[derive(Clone, Copy, Debug)]
pub struct ChainDepth {
    number: u64,
    witnessed: Option<u64>,
    safe: Option<u64>,
    finalized: Option<u64>,
}

impl ChainDepth {
    /// Number of the highest block that counts as a confirmation: what is above nobody witnesses, and it may be a liar's branch.
    pub fn witnessed_head(&self) -> Option<u64> {
        self.witnessed.map(|witnessed| witnessed.min(self.number))
    }

    /// Whether a transfer in block `number` is deep enough.
    pub fn confirms(&self, number: u64, policy: Policy) -> bool {
        let reached = policy.reached(self.number, self.safe, self.finalized, self.witnessed);
        reached.is_some_and(|reached| reached >= policy.due(number))
    }
}

/// How far some chains have come; those without a block are left out.
///
/// # Errors
/// When the database fails.
pub async fn chain_depths(db: &impl GenericClient, chains: &[ChainId]) -> Result<HashMap<ChainId, ChainDepth>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT chain_id, number, witnessed_number, safe_number, finalized_number FROM chain_heads WHERE chain_id = ANY($1)",
        )
        .await?;
    let ids: Vec<i64> = chains.iter().map(|chain| bigint(chain.0)).collect();
    let read = |row: &Row| {
        let (chain, number) = read_number(row)?;
        let tag = |column: usize| row.get::<_, Option<i64>>(column).map(unsigned);
        Ok((chain, ChainDepth { number, witnessed: tag(2), safe: tag(3), finalized: tag(4) }))
    };
    db.query(&statement, &[&ids]).await?.iter().map(read).collect()
}

/// How far a chain is witnessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Witnessed {
    /// Number of the highest block that enough endpoints have given.
    pub number: Option<u64>,
    /// How long the head has been above it without it moving.
    pub behind: Option<Duration>,
}

/// How far each chain is witnessed.
///
/// # Errors
/// When the database fails.
pub async fn witnessed(db: &impl GenericClient) -> Result<HashMap<ChainId, Witnessed>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT chain_id, witnessed_number, EXTRACT(EPOCH FROM clock_timestamp() - unwitnessed_since)::bigint FROM chain_heads",
        )
        .await?;
    let mut chains = HashMap::new();
    for row in db.query(&statement, &[]).await? {
        let chain = u64::try_from(row.get::<_, i64>(0)).map_err(Failure::halt)?;
        let number = |column: usize| row.get::<_, Option<i64>>(column).and_then(|n| u64::try_from(n).ok());
        chains.insert(ChainId(chain), Witnessed { number: number(1), behind: number(2).map(Duration::from_secs) });
    }
    Ok(chains)
}

fn read_number(row: &Row) -> Result<(ChainId, u64), Failure> {
    let (chain, number) = (u64::try_from(row.get::<_, i64>(0)), u64::try_from(row.get::<_, i64>(1)));
    Ok((ChainId(chain.map_err(Failure::halt)?), number.map_err(Failure::halt)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_too_few_endpoints_have_given_is_not_known_by_its_hash() {
        let head = ChainHead { first: 10, number: 20, hash: Some(B256::ZERO), ..ChainHead::default() };
        let at = |witnessed| ChainHead { witnessed, ..head }.known_by_hash();
        assert_eq!([at(Some(20)), at(Some(17)), at(Some(30)), at(None)], [20, 17, 20, 9]);
        assert_eq!(ChainHead { hash: None, ..head }.known_by_hash(), 20, "no block is left, or the chain has begun anew");
    }
}
