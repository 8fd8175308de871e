//! Rows of `transfers`: every transfer to one of our addresses, also those that count for nothing and those that a reorg removed.
//! The part of its block says whether one is confirmed.

use super::amount::read_amount;
use super::touched::{BatchScope, parts_of_blocks};
use crate::lifecycle::Cause;
use crate::payment::{MAX_TRANSFERS_OF_BLOCK, Payment};
use crate::transfer::{ReceivedTransfer, TransferLabel, TransferPlace};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use topics::{Address, B256, BlockRef, ChainId, PaymentId, Source, Transfer, TransferId};
use uuid::Uuid;

/// Rows per statement. Their values are in memory several times over.
const MAX_ROWS_PER_STATEMENT: usize = 10_000;

/// The payment or static address that a transfer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferOwner {
    /// The payment may be a deposit.
    Payment(Uuid),
    /// Of an unlisted token, or below the minimum, so it created no deposit.
    DepositAddress(Uuid),
}

impl TransferOwner {
    /// The payment's id, if it is one.
    const fn payment(self) -> Option<Uuid> {
        match self {
            Self::Payment(id) => Some(id),
            Self::DepositAddress(_) => None,
        }
    }

    const fn deposit_address(self) -> Option<Uuid> {
        match self {
            Self::Payment(_) => None,
            Self::DepositAddress(id) => Some(id),
        }
    }
}

/// A transfer to write.
#[derive(Debug)]
pub struct TransferRow {
    pub owner: TransferOwner,
    pub transfer: Arc<ReceivedTransfer>,
}

/// A transfer as it was seen, and the decisions about it. A replay does not change them, but for a token that is listed by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTransfer {
    pub transfer: Transfer,
    /// The block's height.
    pub number: u64,
    /// The block's, Unix seconds.
    pub timestamp: u64,
    pub listed: bool,
    pub below_minimum: bool,
    /// Its block is on the canonical chain.
    pub on_chain: bool,
}

impl KnownTransfer {
    /// Whether it counts, or has made a deposit.
    pub const fn counts(&self) -> bool {
        self.listed && !self.below_minimum
    }

    /// Whether it is this transfer of this block: where no root proves a block's content, its hash may come again with another.
    pub fn is(&self, block: &Cause, transfer: &Transfer) -> bool {
        (self.number, self.timestamp) == (block.block.number, block.timestamp) && self.transfer == *transfer
    }
}

/// The columns that [`read_known`] reads, of a row `t`, and the tables that say whose it is.
const KNOWN_COLUMNS: &str =
    "t.chain_id, t.block_hash, t.transaction_hash, t.source, t.index, t.block_number, t.block_timestamp, t.transaction_index,
    t.token_address, t.sender, t.amount::text, t.listed, t.below_minimum, NOT t.removed, coalesce(p.address, d.address)";
const OWNERS: &str = "LEFT JOIN payments p ON p.id = t.payment_id LEFT JOIN deposit_addresses d ON d.id = t.deposit_address";

/// The transfers that are known of the transactions that a batch adds or replays, and those that stand of the blocks in doubt
/// that it replays: usually none.
///
/// # Errors
/// When the database fails, or a row holds no valid transfer.
pub async fn known_transfers(
    db: &impl GenericClient,
    scope: &BatchScope<'_>,
) -> Result<HashMap<TransferId, KnownTransfer>, Failure> {
    let mut rows = Vec::new();
    let asked = &scope.transactions;
    if !asked.is_empty() {
        // A transaction may have hundreds of thousands, which come in parts of the block. Without OFFSET the planner may join
        // what it has read of the whole chain.
        let sql = format!(
            "SELECT {KNOWN_COLUMNS}
             FROM unnest($2::bytea[], $3::bytea[], $4::text[], $5::bigint[], $6::bigint[])
               AS asked (block, transaction, asked_source, lowest, highest)
             CROSS JOIN LATERAL (
               SELECT * FROM transfers WHERE chain_id = $1 AND block_hash = block AND transaction_hash = transaction
                 AND source = asked_source AND index BETWEEN lowest AND highest OFFSET 0) AS t
             {OWNERS}"
        );
        let arguments: &[&(dyn ToSql + Sync)] = &[
            &scope.chain,
            &asked.keys().map(|(block, ..)| block.as_slice()).collect::<Vec<_>>(),
            &asked.keys().map(|(_, transaction, _)| transaction.as_slice()).collect::<Vec<_>>(),
            &asked.keys().map(|(.., source)| source.as_str()).collect::<Vec<_>>(),
            &asked.values().map(|(lowest, _)| i64::from(*lowest)).collect::<Vec<_>>(),
            &asked.values().map(|(_, highest)| i64::from(*highest)).collect::<Vec<_>>(),
        ];
        rows.extend(db.query(&db.prepare_cached(&sql).await?, arguments).await?);
    }
    if !scope.replayed_in_doubt.is_empty() {
        let stands = "t.chain_id = $1 AND t.block_hash = ANY($2) AND NOT t.removed";
        let sql = format!("SELECT {KNOWN_COLUMNS} FROM transfers t {OWNERS} WHERE {stands}");
        rows.extend(db.query(&db.prepare_cached(&sql).await?, &[&scope.chain, &scope.replayed_in_doubt]).await?);
    }
    rows.iter().map(|row| read_known(row).map(|known| (known.transfer.id, known))).collect()
}

fn read_known(row: &Row) -> Result<KnownTransfer, Failure> {
    let transfer = Transfer {
        id: read_id(row)?,
        token: read_token(row)?,
        from: topics::address("sender", row.get(9)).map_err(Failure::halt)?,
        to: topics::address("address", row.get(14)).map_err(Failure::halt)?,
        amount: read_amount(row, 10)?,
        transaction_index: u32::try_from(row.get::<_, i64>(7)).unwrap_or_default(),
    };
    Ok(KnownTransfer {
        transfer,
        number: unsigned(row.get(5)),
        timestamp: unsigned(row.get(6)),
        listed: row.get(11),
        below_minimum: row.get(12),
        on_chain: row.get(13),
    })
}

/// Marks the transfers of removed blocks, with the sequence of the record that removed each.
///
/// # Errors
/// When the database fails.
pub async fn remove_transfers(db: &impl GenericClient, chain: ChainId, blocks: &HashMap<B256, u64>) -> Result<(), Failure> {
    if blocks.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "UPDATE transfers SET removed = true, removed_by = (
                 SELECT sequence FROM unnest($2::bytea[], $3::bigint[]) AS gone (hash, sequence)
                 WHERE hash = block_hash LIMIT 1)
             WHERE chain_id = $1 AND block_hash = ANY($2) AND NOT removed",
        )
        .await?;
    let hashes: Vec<&[u8]> = blocks.keys().map(|hash| hash.as_slice()).collect();
    let sequences: Vec<i64> = blocks.values().map(|sequence| bigint(*sequence)).collect();
    db.execute(&statement, &[&bigint(chain.0), &hashes, &sequences]).await?;
    Ok(())
}

/// Those of these blocks that have left the chain, with the sequence of the record that removed each.
///
/// # Errors
/// When the database fails, or a row holds no valid hash.
pub async fn left_blocks(db: &impl GenericClient, chain: ChainId, blocks: &[&B256]) -> Result<HashMap<B256, u64>, Failure> {
    if blocks.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = "SELECT block_hash, max(removed_by) FROM (
                   SELECT block_hash, removed, removed_by FROM transfers WHERE chain_id = $1 AND block_hash = ANY($2)
                   UNION ALL SELECT block_hash, false, NULL FROM orphan_transfers WHERE chain_id = $1 AND block_hash = ANY($2)
                   UNION ALL SELECT block_hash, true, removed_by FROM left_blocks WHERE chain_id = $1 AND block_hash = ANY($2)
               ) AS brought GROUP BY block_hash HAVING bool_and(removed)";
    let blocks: Vec<&[u8]> = blocks.iter().map(|hash| hash.as_slice()).collect();
    let rows = db.query(&db.prepare_cached(sql).await?, &[&bigint(chain.0), &blocks]).await?;
    let read = |row: &Row| Ok((read_hash("block_hash", row.get(0))?, row.get::<_, Option<i64>>(1).map_or(0, unsigned)));
    rows.iter().map(read).collect()
}

/// Inserts transfers. One that is known is on the chain again, maybe with other content, or of a token that chains.yaml lists by
/// now: then it gets its owner.
///
/// # Errors
/// When the database fails.
pub async fn save_transfers(db: &impl GenericClient, rows: &[TransferRow]) -> Result<(), Failure> {
    for rows in rows.chunks(MAX_ROWS_PER_STATEMENT) {
        save_rows(db, rows).await?;
    }
    Ok(())
}

async fn save_rows(db: &impl GenericClient, rows: &[TransferRow]) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, deposit_address, block_number,
                 block_timestamp, transaction_index, token_address, sender, amount, credited, listed, below_minimum, chain, token,
                 decimals)
             SELECT chain_id, block_hash, transaction_hash, source, index, payment_id, deposit_address, block_number, block_timestamp,
                 transaction_index, token_address, sender, amount::numeric, credited, listed, below_minimum, chain, token, decimals
             FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::text[], $5::bigint[], $6::uuid[], $7::bigint[],
                 $8::bigint[], $9::bigint[], $10::bytea[], $11::bytea[], $12::text[], $13::boolean[], $14::boolean[],
                 $15::boolean[], $16::text[], $17::text[], $18::smallint[], $19::uuid[])
               AS t (chain_id, block_hash, transaction_hash, source, index, payment_id, block_number, block_timestamp,
                 transaction_index, token_address, sender, amount, credited, listed, below_minimum, chain, token, decimals,
                 deposit_address)
             ON CONFLICT (chain_id, block_hash, transaction_hash, source, index)
               DO UPDATE SET removed = false, payment_id = EXCLUDED.payment_id, deposit_address = EXCLUDED.deposit_address,
                 block_number = EXCLUDED.block_number, block_timestamp = EXCLUDED.block_timestamp,
                 transaction_index = EXCLUDED.transaction_index, token_address = EXCLUDED.token_address, sender = EXCLUDED.sender,
                 amount = EXCLUDED.amount, credited = EXCLUDED.credited, listed = EXCLUDED.listed,
                 below_minimum = EXCLUDED.below_minimum, chain = EXCLUDED.chain,
                 token = CASE WHEN EXCLUDED.token_address = transfers.token_address
                     THEN coalesce(EXCLUDED.token, transfers.token) ELSE EXCLUDED.token END,
                 decimals = CASE WHEN EXCLUDED.token_address = transfers.token_address
                     THEN coalesce(EXCLUDED.decimals, transfers.decimals) ELSE EXCLUDED.decimals END",
        )
        .await?;
    db.execute(
        &statement,
        &[
            &rows.iter().map(|r| bigint(r.transfer.id.chain.0)).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.id.block.as_slice()).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.id.transaction.as_slice()).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.id.source.as_str()).collect::<Vec<_>>(),
            &rows.iter().map(|r| i64::from(r.transfer.id.index)).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.owner.payment()).collect::<Vec<_>>(),
            &rows.iter().map(|r| bigint(r.transfer.block.number)).collect::<Vec<_>>(),
            &rows.iter().map(|r| bigint(r.transfer.timestamp)).collect::<Vec<_>>(),
            &rows.iter().map(|r| i64::from(r.transfer.transaction_index)).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.token.as_ref().map(|t| t.as_slice())).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.from.as_slice()).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.amount.to_string()).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.credited).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.listed).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.below_minimum).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.label.chain.as_deref()).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.label.token.as_deref()).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.label.decimals.map(i16::from)).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.owner.deposit_address()).collect::<Vec<_>>(),
        ],
    )
    .await?;
    Ok(())
}

/// The columns that [`read_transfer`] reads, of a row `t`.
const COLUMNS: &str =
    "t.chain_id, t.block_hash, t.transaction_hash, t.source, t.index, t.block_number, t.block_timestamp, t.transaction_index,
    t.token_address, t.sender, t.amount::text, t.credited, t.listed, t.below_minimum,
    t.credited AND coalesce((SELECT p.confirmed = p.credited FROM payment_parts p
        WHERE p.chain_id = t.chain_id AND p.block_hash = t.block_hash AND p.payment_id = t.payment_id), false),
    t.chain, t.token, t.decimals, t.payment_id";
const ORDER: &str = "block_timestamp, chain_id, block_number, transaction_index, source, index";
const REVERSE_ORDER: &str =
    "block_timestamp DESC, chain_id DESC, block_number DESC, transaction_index DESC, source DESC, index DESC";
/// Those that count, and those beside a payment. Each has its index, so that a flood of the one does not hide the other.
const COUNTS: &str = "listed AND NOT below_minimum";

/// The transfers of payments that a record or a reply shows, each with its payment's id, in the chain's order: the last of those that
/// count, at most `limit` of each payment. `beside` adds as many that do not.
///
/// # Errors
/// When the database fails, or a row holds no valid transfer.
pub(super) async fn last_transfers(
    db: &impl GenericClient,
    payments: &[Uuid],
    beside: bool,
    limit: usize,
) -> Result<Vec<(Uuid, ReceivedTransfer)>, Failure> {
    if payments.is_empty() {
        return Ok(Vec::new());
    }
    let last = |condition: &str| {
        format!(
            "SELECT last.* FROM unnest($1::uuid[]) AS o (id) CROSS JOIN LATERAL (
                 SELECT * FROM transfers WHERE payment_id = o.id AND {condition} AND NOT removed
                 ORDER BY {REVERSE_ORDER} LIMIT {limit}) AS last"
        )
    };
    let mut rows = last(COUNTS);
    if beside {
        rows = format!("{rows} UNION ALL {}", last(&format!("NOT ({COUNTS})")));
    }
    let sql = format!("SELECT {COLUMNS} FROM ({rows}) AS t ORDER BY {ORDER}");
    let statement = db.prepare_cached(&sql).await?;
    db.query(&statement, &[&payments]).await?.iter().map(|row| Ok((row.get(18), read_transfer(row)?))).collect()
}

/// [`last_transfers`] for a batch that removes blocks: the last hundred of each of those, and of all others. Whatever the batch
/// removes, the last hundred of the rest are there.
///
/// # Errors
/// When the database fails, or a row holds no valid transfer.
pub(super) async fn last_transfers_in(
    db: &impl GenericClient,
    payments: &[Uuid],
    scope: &BatchScope<'_>,
) -> Result<Vec<(Uuid, ReceivedTransfer)>, Failure> {
    if scope.removed_blocks.is_empty() || payments.is_empty() {
        return last_transfers(db, payments, false, MAX_TRANSFERS_OF_BLOCK).await;
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM (
             SELECT last.* FROM unnest($1::uuid[]) AS o (id) CROSS JOIN LATERAL (
                 SELECT * FROM transfers WHERE payment_id = o.id AND {COUNTS} AND NOT removed
                     AND NOT (chain_id = $2 AND block_hash = ANY($3))
                 ORDER BY {REVERSE_ORDER} LIMIT {MAX_TRANSFERS_OF_BLOCK}) AS last
             UNION ALL
             SELECT last.* FROM {of_blocks} CROSS JOIN LATERAL (
                 SELECT * FROM transfers WHERE payment_id = part.payment_id AND {COUNTS} AND NOT removed
                     AND block_timestamp = part.block_timestamp AND chain_id = part.chain_id AND block_number = part.block_number
                     AND block_hash = part.block_hash
                 ORDER BY {REVERSE_ORDER} LIMIT {MAX_TRANSFERS_OF_BLOCK}) AS last
             WHERE part.payment_id = ANY($1)
         ) AS t ORDER BY {ORDER}",
        of_blocks = parts_of_blocks(2, 3)
    );
    let statement = db.prepare_cached(&sql).await?;
    let rows = db.query(&statement, &[&payments, &scope.chain, &scope.removed_blocks]).await?;
    rows.iter().map(|row| Ok((row.get(18), read_transfer(row)?))).collect()
}

/// At most `limit` transfers of a payment, or of those that made no deposit at a static address, after a place, in the chain's
/// order. Also those that count for nothing; none that a reorg removed.
///
/// # Errors
/// When the database fails, or a row holds no valid transfer.
pub async fn list_transfers(
    db: &impl GenericClient,
    owner: TransferOwner,
    after: Option<&TransferPlace>,
    limit: i64,
) -> Result<Vec<ReceivedTransfer>, Failure> {
    let page = |condition: &str| {
        format!(
            "(SELECT * FROM transfers WHERE {condition} AND NOT removed
                 AND (block_timestamp, chain_id, block_number, transaction_index, source, index) > ($2, $3, $4, $5, $6, $7)
             ORDER BY {ORDER} LIMIT $8)"
        )
    };
    let (id, rows) = match owner {
        TransferOwner::Payment(id) => {
            let both = [COUNTS.to_owned(), format!("NOT ({COUNTS})")];
            (id, both.map(|which| page(&format!("payment_id = $1 AND {which}"))).join(" UNION ALL "))
        }
        TransferOwner::DepositAddress(id) => (id, page("deposit_address = $1 AND payment_id IS NULL")),
    };
    let sql = format!("SELECT {COLUMNS} FROM ({rows}) AS t ORDER BY {ORDER} LIMIT $8");
    let statement = db.prepare_cached(&sql).await?;
    let place = after.map_or((-1, -1, -1, -1, "", -1), |place| {
        let TransferPlace { timestamp, chain, number, transaction_index, source, index } = *place;
        (bigint(timestamp), bigint(chain.0), bigint(number), i64::from(transaction_index), source, i64::from(index))
    });
    let (timestamp, chain, number, transaction_index, source, index) = place;
    let rows = db.query(&statement, &[&id, &timestamp, &chain, &number, &transaction_index, &source, &index, &limit]).await?;
    rows.iter().map(read_transfer).collect()
}

/// Anyone can send a payment any number.
const MAX_COUNTED: u32 = 1_000;

/// How many transfers on the canonical chain each payment has had in another listed asset, or on another chain, among the last thousand
/// that count; payments without any are left out.
/// `payments` are as they are [loaded](super::load_payments).
///
/// # Errors
/// When the database fails.
pub async fn unexpected_transfers(db: &impl GenericClient, payments: &[Payment]) -> Result<HashMap<PaymentId, u64>, Failure> {
    let unexpected = |transfer: &&Arc<ReceivedTransfer>| transfer.counts() && !transfer.credited;
    let has_more = |payment: &&Payment| payment.transfers.iter().filter(|t| t.counts()).count() >= MAX_TRANSFERS_OF_BLOCK;
    let mut counts: HashMap<PaymentId, u64> = HashMap::new();
    for payment in payments {
        let count = payment.transfers.iter().filter(unexpected).count();
        counts.insert(payment.id, u64::try_from(count).unwrap_or(u64::MAX));
    }
    // Those that were loaded are the last hundred.
    let flooded: Vec<Uuid> = payments.iter().filter(has_more).map(|payment| payment.id.0).collect();
    if !flooded.is_empty() {
        let sql = format!(
            "SELECT o.id, count(*) FROM unnest($1::uuid[]) AS o (id) CROSS JOIN LATERAL (
                 SELECT credited FROM transfers WHERE payment_id = o.id AND {COUNTS} AND NOT removed
                 ORDER BY {REVERSE_ORDER} LIMIT {MAX_COUNTED}) AS last
             WHERE NOT last.credited GROUP BY o.id"
        );
        let statement = db.prepare_cached(&sql).await?;
        let rows = db.query(&statement, &[&flooded]).await?;
        counts.extend(rows.iter().map(|row| (PaymentId(row.get(0)), unsigned(row.get(1)))));
    }
    counts.retain(|_, count| *count > 0);
    Ok(counts)
}

fn read_hash(field: &'static str, bytes: &[u8]) -> Result<B256, Failure> {
    topics::hash(field, bytes).map_err(Failure::halt)
}

/// The id in a row's first five columns.
fn read_id(row: &Row) -> Result<TransferId, Failure> {
    Ok(TransferId {
        chain: ChainId(unsigned(row.get(0))),
        block: read_hash("block_hash", row.get(1))?,
        transaction: read_hash("transaction_hash", row.get(2))?,
        source: row.get::<_, &str>(3).parse::<Source>().map_err(|e| Failure::Halt(anyhow::anyhow!("transfers.source: {e}")))?,
        index: u32::try_from(row.get::<_, i64>(4)).unwrap_or_default(),
    })
}

/// The token in a row's ninth column.
fn read_token(row: &Row) -> Result<Option<Address>, Failure> {
    row.get::<_, Option<&[u8]>>(8).map(|a| topics::address("token_address", a)).transpose().map_err(Failure::halt)
}

fn read_transfer(row: &Row) -> Result<ReceivedTransfer, Failure> {
    let id = read_id(row)?;
    Ok(ReceivedTransfer {
        id,
        block: BlockRef { number: unsigned(row.get(5)), hash: id.block },
        timestamp: unsigned(row.get(6)),
        transaction_index: u32::try_from(row.get::<_, i64>(7)).unwrap_or_default(),
        token: read_token(row)?,
        from: topics::address("sender", row.get(9)).map_err(Failure::halt)?,
        amount: read_amount(row, 10)?,
        credited: row.get(11),
        listed: row.get(12),
        below_minimum: row.get(13),
        confirmed: row.get(14),
        label: TransferLabel {
            chain: row.get(15),
            token: row.get(16),
            decimals: row.get::<_, Option<i16>>(17).and_then(|digits| u8::try_from(digits).ok()),
        },
    })
}
