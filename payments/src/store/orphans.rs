//! Rows of `orphan_transfers`: transfers to an address that has an intent in Kafka and no payment in Postgres, as after a restore
//! that could not bring the payment back, and those in a token whose decimals are in doubt. They wait; the chain goes on.

use super::amount::read_amount;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::{BTreeMap, HashMap};
use tokio_postgres::Row;
use topics::{Address, B256, BlockRef, ChainId, Source, Transfer, TransferId};

/// The columns that [`read_orphan`] reads, of a row `o`.
const COLUMNS: &str =
    "o.chain_id, o.block_hash, o.transaction_hash, o.source, o.index, o.address, o.block_number, o.block_timestamp,
    o.transaction_index, o.token_address, o.sender, o.amount::text, o.part";

/// A transfer without an owner, or in a token in doubt, in a block that is on the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanTransfer {
    pub block: BlockRef,
    /// The block's, Unix seconds.
    pub timestamp: u64,
    /// The part of the block that brought it, as in `chain.matches`.
    pub part: u32,
    pub transfer: Transfer,
    /// It waits for its token, and not for its owner.
    pub in_doubt: bool,
}

impl OrphanTransfer {
    /// Those of one block, or of one part of it, together: they are credited as they would have been when it came.
    pub fn by_part(orphans: &[Self]) -> impl Iterator<Item = &[Self]> {
        orphans.chunk_by(|one, next| (one.block, one.part) == (next.block, next.part))
    }
}

/// Inserts orphans. Those that are there already stay as they are.
///
/// # Errors
/// When the database fails.
pub async fn save_orphans(db: &impl GenericClient, orphans: &[&OrphanTransfer]) -> Result<(), Failure> {
    if orphans.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "INSERT INTO orphan_transfers (chain_id, block_hash, transaction_hash, source, index, address, block_number,
                 block_timestamp, transaction_index, token_address, sender, amount, part, in_doubt)
             SELECT chain_id, block_hash, transaction_hash, source, index, address, block_number, block_timestamp,
                 transaction_index, token_address, sender, amount::numeric, part, in_doubt
             FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::text[], $5::bigint[], $6::bytea[], $7::bigint[], $8::bigint[],
                 $9::bigint[], $10::bytea[], $11::bytea[], $12::text[], $13::bigint[], $14::boolean[])
               AS t (chain_id, block_hash, transaction_hash, source, index, address, block_number, block_timestamp,
                 transaction_index, token_address, sender, amount, part, in_doubt)
             ON CONFLICT DO NOTHING",
        )
        .await?;
    let transfers = || orphans.iter().map(|orphan| &orphan.transfer);
    db.execute(
        &statement,
        &[
            &transfers().map(|t| bigint(t.id.chain.0)).collect::<Vec<_>>(),
            &transfers().map(|t| t.id.block.as_slice()).collect::<Vec<_>>(),
            &transfers().map(|t| t.id.transaction.as_slice()).collect::<Vec<_>>(),
            &transfers().map(|t| t.id.source.as_str()).collect::<Vec<_>>(),
            &transfers().map(|t| i64::from(t.id.index)).collect::<Vec<_>>(),
            &transfers().map(|t| t.to.as_slice()).collect::<Vec<_>>(),
            &orphans.iter().map(|o| bigint(o.block.number)).collect::<Vec<_>>(),
            &orphans.iter().map(|o| bigint(o.timestamp)).collect::<Vec<_>>(),
            &transfers().map(|t| i64::from(t.transaction_index)).collect::<Vec<_>>(),
            &transfers().map(|t| t.token.as_ref().map(|a| a.as_slice())).collect::<Vec<_>>(),
            &transfers().map(|t| t.from.as_slice()).collect::<Vec<_>>(),
            &transfers().map(|t| t.amount.to_string()).collect::<Vec<_>>(),
            &orphans.iter().map(|o| i64::from(o.part)).collect::<Vec<_>>(),
            &orphans.iter().map(|o| o.in_doubt).collect::<Vec<_>>(),
        ],
    )
    .await?;
    Ok(())
}

/// The orphans in blocks with these hashes.
///
/// # Errors
/// When the database fails, or a row holds no valid transfer.
pub async fn orphans_in(db: &impl GenericClient, chain: ChainId, blocks: &[&[u8]]) -> Result<Vec<OrphanTransfer>, Failure> {
    if blocks.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT {COLUMNS} FROM orphan_transfers o WHERE o.chain_id = $1 AND o.block_hash = ANY($2)");
    let rows = db.query(&db.prepare_cached(&sql).await?, &[&bigint(chain.0), &blocks]).await?;
    rows.iter().map(read_orphan).collect()
}

/// Deletes the orphans in removed blocks, with the sequences of the records that removed them, and notes those blocks that had some, or
/// are among `replayed`: what that brings may never have been written. They are forgotten with the next `remembered` records.
///
/// # Errors
/// When the database fails.
pub async fn remove_orphans(
    db: &impl GenericClient,
    chain: ChainId,
    removed: &HashMap<B256, u64>,
    replayed: &[&B256],
    remembered: usize,
) -> Result<(), Failure> {
    if removed.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "WITH gone AS (
                 DELETE FROM orphan_transfers WHERE chain_id = $1 AND block_hash = ANY($2) RETURNING block_hash
             )
             INSERT INTO left_blocks (chain_id, block_hash, removed_by, place)
             SELECT $1, hash, sequence, coalesce((SELECT max(place) FROM applied_records WHERE chain_id = $1), 0) + $5
             FROM unnest($2::bytea[], $3::bigint[]) AS removed (hash, sequence)
             WHERE hash = ANY($4) OR hash IN (SELECT block_hash FROM gone)
             ON CONFLICT (chain_id, block_hash) DO UPDATE SET removed_by = EXCLUDED.removed_by, place = EXCLUDED.place",
        )
        .await?;
    let hashes: Vec<&[u8]> = removed.keys().map(|hash| hash.as_slice()).collect();
    let sequences: Vec<i64> = removed.values().map(|sequence| bigint(*sequence)).collect();
    let replayed: Vec<&[u8]> = replayed.iter().map(|hash| hash.as_slice()).collect();
    let remembered = i64::try_from(remembered).unwrap_or(i64::MAX);
    db.execute(&statement, &[&bigint(chain.0), &hashes, &sequences, &replayed, &remembered]).await?;
    Ok(())
}

/// Addresses of these chains' orphans whose payment or static address is there now: at most `limit`. Of those that wait for
/// their token only those of one that is `fitting`. It looks each address up, so it takes as long as there are orphans.
///
/// # Errors
/// When the database fails, or a row holds no valid address.
pub async fn owned_orphans(
    db: &impl GenericClient,
    chains: &[ChainId],
    fitting: &[(ChainId, Address)],
    limit: i64,
) -> Result<BTreeMap<ChainId, Vec<Address>>, Failure> {
    let statement = db
        .prepare_cached(
            // The limits keep the planner from reading all payments.
            "SELECT o.chain_id, o.address FROM (
                 SELECT DISTINCT chain_id, address FROM orphan_transfers t WHERE chain_id = ANY($1) AND (NOT in_doubt OR EXISTS (
                     SELECT FROM unnest($3::bigint[], $4::bytea[]) AS fitting (chain_id, token)
                     WHERE fitting.chain_id = t.chain_id AND fitting.token = t.token_address))) AS o
             CROSS JOIN LATERAL (
                 (SELECT FROM payments p WHERE p.address = o.address AND p.deposit_address IS NULL LIMIT 1)
                 UNION ALL (SELECT FROM deposit_addresses d WHERE d.address = o.address LIMIT 1)
                 LIMIT 1) AS owner
             LIMIT $2",
        )
        .await?;
    let chains: Vec<i64> = chains.iter().map(|chain| bigint(chain.0)).collect();
    let mut owned: BTreeMap<ChainId, Vec<Address>> = BTreeMap::new();
    let fitting_chains: Vec<i64> = fitting.iter().map(|(chain, _)| bigint(chain.0)).collect();
    let fitting_tokens: Vec<&[u8]> = fitting.iter().map(|(_, token)| token.as_slice()).collect();
    for row in db.query(&statement, &[&chains, &limit, &fitting_chains, &fitting_tokens]).await? {
        let address = topics::address("address", row.get(1)).map_err(Failure::halt)?;
        owned.entry(ChainId(unsigned(row.get(0)))).or_default().push(address);
    }
    Ok(owned)
}

/// Deletes a chain's first orphans to these addresses, of those that wait for their token only those of one that is `fitting`, and returns
/// them in the chain's order, block by block, to be credited: about `limit`, of whole blocks.
///
/// # Errors
/// When the database fails, or a row holds no valid transfer.
pub async fn take_orphans(
    db: &impl GenericClient,
    chain: ChainId,
    addresses: &[Address],
    fitting: &[Address],
    limit: i64,
) -> Result<Vec<OrphanTransfer>, Failure> {
    let sql = format!(
        "DELETE FROM orphan_transfers o USING (
             SELECT DISTINCT block_hash FROM (
                 SELECT block_hash FROM orphan_transfers
                 WHERE chain_id = $1 AND address = ANY($2) AND (NOT in_doubt OR token_address = ANY($4))
                 ORDER BY block_number, block_hash LIMIT $3) AS first) AS block
         WHERE o.chain_id = $1 AND o.address = ANY($2) AND o.block_hash = block.block_hash
             AND (NOT o.in_doubt OR o.token_address = ANY($4))
         RETURNING {COLUMNS}"
    );
    let statement = db.prepare_cached(&sql).await?;
    let bytes = |addresses: &[Address]| addresses.iter().map(|address| address.to_vec()).collect::<Vec<_>>();
    let rows = db.query(&statement, &[&bigint(chain.0), &bytes(addresses), &limit, &bytes(fitting)]).await?;
    let mut orphans = rows.iter().map(read_orphan).collect::<Result<Vec<_>, _>>()?;
    let place = |t: &Transfer| (t.transaction_index, t.id.source, t.id.index);
    orphans.sort_by_key(|orphan| (orphan.block.number, orphan.block.hash, orphan.part, place(&orphan.transfer)));
    Ok(orphans)
}

/// The number of orphans that wait for their owner, and of those that wait for their token.
///
/// # Errors
/// When the database fails.
pub async fn count_orphans(db: &impl GenericClient) -> Result<(i64, i64), Failure> {
    let sql = "SELECT count(*) FILTER (WHERE NOT in_doubt), count(*) FILTER (WHERE in_doubt) FROM orphan_transfers";
    let row = db.query_one(&db.prepare_cached(sql).await?, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

/// How many orphans there are of a token, or of a chain's coin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingOrphans {
    pub chain: ChainId,
    pub token: Option<Address>,
    /// They wait for their token, and not for their owner.
    pub in_doubt: bool,
    pub count: i64,
}

/// The orphans by chain and token.
///
/// # Errors
/// When the database fails, or a row holds no valid address.
pub async fn orphans_by_token(db: &impl GenericClient) -> Result<Vec<WaitingOrphans>, Failure> {
    let sql = "SELECT chain_id, token_address, in_doubt, count(*) FROM orphan_transfers GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";
    let read = |row: &Row| {
        let token = row.get::<_, Option<&[u8]>>(1).map(|bytes| topics::address("token_address", bytes)).transpose();
        let (chain, token) = (ChainId(unsigned(row.get(0))), token.map_err(Failure::halt)?);
        Ok(WaitingOrphans { chain, token, in_doubt: row.get(2), count: row.get(3) })
    };
    db.query(sql, &[]).await?.iter().map(read).collect()
}

/// Lets what waits for a token wait no more: a confirmer that does not list the token keeps it as unlisted. Returns how many there are.
///
/// # Errors
/// When the database fails.
pub async fn give_token_up(db: &impl GenericClient, chain: ChainId, token: Address) -> Result<u64, Failure> {
    let sql = "UPDATE orphan_transfers SET in_doubt = false WHERE chain_id = $1 AND token_address = $2 AND in_doubt";
    Ok(db.execute(sql, &[&bigint(chain.0), &token.as_slice()]).await?)
}

fn read_orphan(row: &Row) -> Result<OrphanTransfer, Failure> {
    let hash = |field, bytes: &[u8]| topics::hash(field, bytes).map_err(Failure::halt);
    let address = |field, bytes: &[u8]| topics::address(field, bytes).map_err(Failure::halt);
    let block = hash("block_hash", row.get(1))?;
    let source: &str = row.get(3);
    Ok(OrphanTransfer {
        block: BlockRef { number: unsigned(row.get(6)), hash: block },
        timestamp: unsigned(row.get(7)),
        part: u32::try_from(row.get::<_, i64>(12)).unwrap_or_default(),
        transfer: Transfer {
            id: TransferId {
                chain: ChainId(unsigned(row.get(0))),
                block,
                transaction: hash("transaction_hash", row.get(2))?,
                source: source.parse::<Source>().map_err(|e| Failure::Halt(anyhow::anyhow!("orphan_transfers.source: {e}")))?,
                index: u32::try_from(row.get::<_, i64>(4)).unwrap_or_default(),
            },
            token: row.get::<_, Option<&[u8]>>(9).map(|bytes| address("token_address", bytes)).transpose()?,
            from: address("sender", row.get(10))?,
            to: address("address", row.get(5))?,
            amount: read_amount(row, 11)?,
            transaction_index: u32::try_from(row.get::<_, i64>(8)).unwrap_or_default(),
        },
        in_doubt: false,
    })
}
