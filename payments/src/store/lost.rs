//! Blocks that a chain loses when it begins anew (`ctrip chain restart`). Rare, so no index serves these statements: they
//! read all that their tables have of the chain, or more, and the fold waits meanwhile.

use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::HashMap;
use tokio_postgres::Row;
use topics::{B256, BlockRef, ChainId};

/// What the blocks above one have done.
#[derive(Debug, Default)]
pub struct LostBlocks {
    /// Numbers of the blocks that have brought transfers, by hash.
    pub numbers: HashMap<B256, u64>,
    /// Numbers of those that have confirmed or expired payments.
    pub(super) heights: Vec<i64>,
}

/// What the blocks above this number have done.
///
/// # Errors
/// When the database fails, or a row holds no valid hash.
pub async fn lost_blocks(db: &impl GenericClient, chain: ChainId, above: u64) -> Result<LostBlocks, Failure> {
    let arguments: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&bigint(chain.0), &bigint(above)];
    let sql = "SELECT block_hash, block_number FROM transfers WHERE chain_id = $1 AND block_number > $2 AND NOT removed
        UNION SELECT block_hash, block_number FROM orphan_transfers WHERE chain_id = $1 AND block_number > $2";
    let rows = db.query(sql, &arguments).await?;
    let numbers = rows.iter().map(|row| Ok((read_hash(row)?, unsigned(row.get(1))))).collect::<Result<_, Failure>>()?;
    let sql = "SELECT due FROM payment_parts WHERE chain_id = $1 AND due > $2 AND confirmed > 0 AND finality IS NULL
        UNION SELECT expired_by FROM payments WHERE chain_id = $1 AND expired_by > $2";
    let heights = db.query(sql, &arguments).await?.iter().map(|row| row.get(0)).collect();
    Ok(LostBlocks { numbers, heights })
}

/// The last blocks up to this number that have brought payments something, or orphans, newest first: at most `limit`.
///
/// # Errors
/// When the database fails, or a row holds no valid hash.
pub async fn paid_blocks(db: &impl GenericClient, chain: ChainId, up_to: u64, limit: i64) -> Result<Vec<BlockRef>, Failure> {
    let sql = "SELECT block_hash, block_number FROM payment_parts WHERE chain_id = $1 AND block_number <= $2
        UNION SELECT block_hash, block_number FROM orphan_transfers WHERE chain_id = $1 AND block_number <= $2
        ORDER BY block_number DESC LIMIT $3";
    let rows = db.query(sql, &[&bigint(chain.0), &bigint(up_to), &limit]).await?;
    rows.iter().map(|row| Ok(BlockRef { number: unsigned(row.get(1)), hash: read_hash(row)? })).collect()
}

fn read_hash(row: &Row) -> Result<B256, Failure> {
    topics::hash("block_hash", row.get(0)).map_err(Failure::halt)
}
