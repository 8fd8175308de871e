//! What a chain's history means to rows of outgoing transactions, in Postgres. Each record writes the chain's row first, so
//! that one is applied after the other.

use super::rows::LaneId;
use alloy::primitives::{Address, B256};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use tokio_postgres::Row;
use topics::{BlockRef, ChainId};
use uuid::Uuid;

/// A transaction of a block.
#[derive(Clone, Copy, Debug)]
pub struct SeenTransaction {
    pub hash: B256,
    pub from: Address,
    pub nonce: u64,
    /// `None` where the record says STATUS_UNKNOWN, as it does of what moves no coin on nodes without `eth_getBlockReceipts`.
    pub succeeded: Option<bool>,
    pub gas_used: Option<u64>,
    /// What each unit of gas cost, in wei.
    pub gas_price: Option<u128>,
}

/// A transaction of a block whose sender is one of ours.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub lane: LaneId,
    pub seen: SeenTransaction,
    /// Which row was given its nonce.
    pub outgoing: Option<Uuid>,
    /// Whether we signed it. If not, somebody else has the key.
    pub is_ours: bool,
    /// Whether Kafka says what became of the row, in a block that is not known to be final here: the database went back. What
    /// blocks say was so before, and changes nothing.
    pub is_told: bool,
}

fn lane_and_id(chain: ChainId, row: &Row) -> (LaneId, Uuid) {
    (LaneId { chain, sender: Address::from_slice(row.get(0)) }, row.get(1))
}

/// Notes the newest block that was read.
///
/// # Errors
/// When the database fails.
pub async fn note_added(tx: &impl GenericClient, chain: ChainId, block: &BlockRef) -> Result<(), Failure> {
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_chains AS c (chain_id, head_hash, blocks) VALUES ($1, $2, 1)
             ON CONFLICT (chain_id) DO UPDATE SET head_hash = excluded.head_hash, blocks = c.blocks + 1",
        )
        .await?;
    tx.execute(&statement, &[&bigint(chain.0), &block.hash.as_slice()]).await?;
    Ok(())
}

/// Notes that blocks have left the chain, after which the newest is not known until the next one is read.
///
/// # Errors
/// When the database fails.
pub async fn note_removal(tx: &impl GenericClient, chain: ChainId) -> Result<(), Failure> {
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_chains AS c (chain_id, removals) VALUES ($1, 1)
             ON CONFLICT (chain_id) DO UPDATE SET head_hash = NULL, removals = c.removals + 1",
        )
        .await?;
    tx.execute(&statement, &[&bigint(chain.0)]).await?;
    Ok(())
}

/// Which of these senders are ours, in the order in which lanes are locked.
///
/// # Errors
/// When the database fails.
pub async fn lanes_of(tx: &impl GenericClient, chain: ChainId, senders: &[Address]) -> Result<Vec<LaneId>, Failure> {
    if senders.is_empty() {
        return Ok(Vec::new());
    }
    let statement =
        tx.prepare_cached("SELECT sender FROM outgoing_lanes WHERE chain_id = $1 AND sender = ANY($2) ORDER BY sender").await?;
    let senders: Vec<&[u8]> = senders.iter().map(|sender| sender.as_slice()).collect();
    let rows = tx.query(&statement, &[&bigint(chain.0), &senders]).await?;
    Ok(rows.iter().map(|row| LaneId { chain, sender: Address::from_slice(row.get(0)) }).collect())
}

/// What transactions of a block mean, whose senders are ours and locked.
///
/// # Errors
/// When the database fails.
pub async fn of_block(tx: &impl GenericClient, chain: ChainId, all: &[SeenTransaction]) -> Result<Vec<Used>, Failure> {
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let statement = tx
        .prepare_cached(
            "SELECT a.outgoing,
                 (SELECT n.outgoing FROM outgoing_nonces n WHERE n.chain_id = $1 AND n.sender = t.sender AND n.nonce = t.nonce),
                 coalesce(o.announced = o.state AND o.block_number > coalesce(c.final_number, -1), false)
             FROM unnest($2::bytea[], $3::bigint[], $4::bytea[]) WITH ORDINALITY AS t (sender, nonce, hash, place)
             LEFT JOIN outgoing_attempts a ON a.hash = t.hash LEFT JOIN outgoing o ON o.id = a.outgoing
             LEFT JOIN outgoing_chains c ON c.chain_id = $1
             ORDER BY t.place",
        )
        .await?;
    let senders: Vec<&[u8]> = all.iter().map(|seen| seen.from.as_slice()).collect();
    let nonces: Vec<i64> = all.iter().map(|seen| bigint(seen.nonce)).collect();
    let hashes: Vec<&[u8]> = all.iter().map(|seen| seen.hash.as_slice()).collect();
    let rows = tx.query(&statement, &[&bigint(chain.0), &senders, &nonces, &hashes]).await?;
    let read = |(row, seen): (&Row, &SeenTransaction)| {
        let (ours, given): (Option<Uuid>, Option<Uuid>) = (row.get(0), row.get(1));
        let lane = LaneId { chain, sender: seen.from };
        Used { lane, seen: *seen, outgoing: ours.or(given), is_ours: ours.is_some(), is_told: row.get(2) }
    };
    Ok(rows.iter().zip(all).map(read).collect())
}

/// Notes that a stranger's transaction has used a nonce, whether it was given out or not.
///
/// # Errors
/// When the database fails.
pub async fn note_foreign(tx: &impl GenericClient, lane: &LaneId, nonce: u64, block: &BlockRef) -> Result<(), Failure> {
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_foreign (chain_id, sender, nonce, block_hash, block_number) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (chain_id, sender, nonce)
             DO UPDATE SET block_hash = excluded.block_hash, block_number = excluded.block_number",
        )
        .await?;
    let (chain, sender) = lane.parameters();
    tx.execute(&statement, &[&chain, &sender, &bigint(nonce), &block.hash.as_slice(), &bigint(block.number)]).await?;
    Ok(())
}

/// Which rows the removal of a block is about, but for those that are [`told`](Used::is_told). What strangers used in it, and
/// what was counted up to it, is forgotten.
///
/// # Errors
/// When the database fails.
pub async fn of_removed(tx: &impl GenericClient, chain: ChainId, block: &BlockRef) -> Result<Vec<(LaneId, Uuid)>, Failure> {
    let (id, hash) = (bigint(chain.0), block.hash.as_slice());
    let statement = tx.prepare_cached("DELETE FROM outgoing_foreign WHERE chain_id = $1 AND block_hash = $2").await?;
    tx.execute(&statement, &[&id, &hash]).await?;
    let statement = tx
        .prepare_cached("UPDATE outgoing_lanes SET counted = NULL, counted_in = NULL WHERE chain_id = $1 AND counted_in = $2")
        .await?;
    tx.execute(&statement, &[&id, &hash]).await?;
    let statement = tx
        .prepare_cached(
            "SELECT o.sender, o.id FROM outgoing o JOIN outgoing_chains c USING (chain_id)
             WHERE o.chain_id = $1 AND o.block_hash = $2
                 AND NOT (o.announced IS NOT NULL AND o.announced = o.state
                     AND o.block_number > coalesce(c.final_number, -1))
             UNION SELECT sender, id FROM outgoing WHERE chain_id = $1 AND state = 'replaced' AND replaced_in >= $3",
        )
        .await?;
    let rows = tx.query(&statement, &[&id, &hash, &bigint(block.number)]).await?;
    Ok(rows.iter().map(|row| lane_and_id(chain, row)).collect())
}

/// Which rows it is about that all above a number has left the chain, which is not below what is final: so what Kafka says of
/// the rest stands. All lanes are counted anew at the next block, which tells what was used in blocks that are missing.
///
/// # Errors
/// When the database fails.
pub async fn of_restarted(tx: &impl GenericClient, chain: ChainId, above: u64) -> Result<Vec<(LaneId, Uuid)>, Failure> {
    let (chain_id, above) = (bigint(chain.0), bigint(above));
    let statement = tx.prepare_cached("DELETE FROM outgoing_foreign WHERE chain_id = $1 AND block_number > $2").await?;
    tx.execute(&statement, &[&chain_id, &above]).await?;
    let statement = tx
        .prepare_cached(
            "UPDATE outgoing_lanes SET counted = NULL, counted_in = NULL WHERE chain_id = $1 AND counted IS NOT NULL",
        )
        .await?;
    tx.execute(&statement, &[&chain_id]).await?;
    let statement = tx
        .prepare_cached(
            "SELECT sender, id FROM outgoing
             WHERE chain_id = $1 AND block_number > $2 AND block_number IS NOT NULL AND announced IS DISTINCT FROM state
             UNION SELECT sender, id FROM outgoing WHERE chain_id = $1 AND state = 'replaced' AND replaced_in > $2",
        )
        .await?;
    let rows = tx.query(&statement, &[&chain_id, &above]).await?;
    Ok(rows.iter().map(|row| lane_and_id(chain, row)).collect())
}

/// Which rows become final with a block, which is noted. What strangers used up to it counts for ever; in a lane that is not
/// counted it stays noted, since its count may be asked at a block below.
///
/// # Errors
/// When the database fails.
pub async fn of_final(tx: &impl GenericClient, chain: ChainId, number: u64) -> Result<Vec<(LaneId, Uuid)>, Failure> {
    let (chain_id, number) = (bigint(chain.0), bigint(number));
    let statement = tx
        .prepare_cached(
            "INSERT INTO outgoing_chains AS c (chain_id, final_number) VALUES ($1, $2)
             ON CONFLICT (chain_id) DO UPDATE SET final_number = greatest(c.final_number, excluded.final_number)",
        )
        .await?;
    tx.execute(&statement, &[&chain_id, &number]).await?;
    let statement = tx
        .prepare_cached(
            "WITH used AS (
                 DELETE FROM outgoing_foreign f USING outgoing_lanes l
                 WHERE f.chain_id = $1 AND f.block_number <= $2
                     AND l.chain_id = $1 AND l.sender = f.sender AND l.counted IS NOT NULL
                 RETURNING f.sender, f.nonce)
             UPDATE outgoing_lanes l SET counted = greatest(l.counted, u.nonce + 1)
             FROM (SELECT sender, max(nonce) AS nonce FROM used GROUP BY sender) u
             WHERE l.chain_id = $1 AND l.sender = u.sender",
        )
        .await?;
    tx.execute(&statement, &[&chain_id, &number]).await?;
    let statement = tx
        .prepare_cached(
            "SELECT sender, id FROM outgoing WHERE chain_id = $1 AND state = 'mined' AND block_number <= $2
             UNION ALL SELECT sender, id FROM outgoing WHERE chain_id = $1 AND state = 'replaced' AND replaced_in <= $2",
        )
        .await?;
    let rows = tx.query(&statement, &[&chain_id, &number]).await?;
    Ok(rows.iter().map(|row| lane_and_id(chain, row)).collect())
}

/// What is final when nodes are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinalAt {
    /// Up to which block the chain is final, and its blocks were read.
    pub number: Option<u64>,
    /// How often blocks had left the chain by then.
    pub(super) removals: i64,
}

/// What is final before nodes are asked.
///
/// # Errors
/// When the database fails.
pub async fn final_at(db: &impl GenericClient, chain: ChainId) -> Result<FinalAt, Failure> {
    let statement = db.prepare_cached("SELECT final_number, removals FROM outgoing_chains WHERE chain_id = $1").await?;
    let row = db.query_opt(&statement, &[&bigint(chain.0)]).await?;
    let read = |row: Row| FinalAt { number: row.get::<_, Option<i64>>(0).map(unsigned), removals: row.get(1) };
    Ok(row.map_or(FinalAt { number: None, removals: 0 }, read))
}

/// Whether the newest block is known.
///
/// # Errors
/// When the database fails.
pub async fn has_head(db: &impl GenericClient, chain: ChainId) -> Result<bool, Failure> {
    let statement = db.prepare_cached("SELECT FROM outgoing_chains WHERE chain_id = $1 AND head_hash IS NOT NULL").await?;
    Ok(db.query_opt(&statement, &[&bigint(chain.0)]).await?.is_some())
}

/// Whether no block has left the chain since nodes were asked; none does until the transaction ends. Before a lane is locked,
/// as whoever reads blocks locks the two.
///
/// # Errors
/// When the database fails.
pub async fn stands(tx: &impl GenericClient, chain: ChainId, removals: i64) -> Result<bool, Failure> {
    let statement = tx.prepare_cached("SELECT removals FROM outgoing_chains WHERE chain_id = $1 FOR SHARE").await?;
    let now: i64 = tx.query_opt(&statement, &[&bigint(chain.0)]).await?.map_or(0, |row| row.get(0));
    Ok(now == removals)
}
