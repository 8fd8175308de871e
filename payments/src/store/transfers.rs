//! Rows of `transfers`: every transfer to one of our addresses, also those of unlisted tokens and those that a reorg removed.

use super::amount::read_amount;
use crate::payment::Payment;
use crate::transfer::{ReceivedTransfer, TransferLabel};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use tokio_postgres::Row;
use topics::{Address, B256, BlockRef, ChainId, Source, TransferId};
use uuid::Uuid;

/// The payment or static address that a transfer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferOwner {
    /// The payment may be a deposit.
    Payment(Uuid),
    /// Of an unlisted token, so it created no deposit.
    DepositAddress(Uuid),
}

impl TransferOwner {
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
pub struct TransferRow<'a> {
    owner: TransferOwner,
    transfer: &'a ReceivedTransfer,
    /// The block number that confirms it; `None` if it is not credited.
    due: Option<u64>,
    finality: Option<&'static str>,
    removed: bool,
}

impl<'a> TransferRow<'a> {
    /// A transfer that is part of a payment; `removed` if a reorg took it off the chain.
    pub fn of_payment(payment: &Payment, transfer: &'a ReceivedTransfer, removed: bool) -> Self {
        let due = transfer.credited.then(|| payment.policy.due(transfer.block.number));
        Self { owner: TransferOwner::Payment(payment.id.0), transfer, due, finality: payment.policy.finality(), removed }
    }

    /// A transfer of an unlisted token.
    pub const fn unlisted(owner: TransferOwner, transfer: &'a ReceivedTransfer, removed: bool) -> Self {
        Self { owner, transfer, due: None, finality: None, removed }
    }
}

/// Loads the transfers of payments that are on the canonical chain, each with its payment's id, in the chain's order. `unlisted`
/// is the limit of transfers of unlisted tokens per payment.
///
/// # Errors
/// When the database fails, or a row holds no valid transfer.
pub(super) async fn load_transfers(
    db: &impl GenericClient,
    payments: &[Uuid],
    unlisted: i64,
) -> Result<Vec<(Uuid, ReceivedTransfer)>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT t.payment_id, t.chain_id, block_hash, transaction_hash, source, index, block_number, block_timestamp,
                 transaction_index, token_address, sender, amount::text, credited, listed, confirmed, chain, token, decimals
             FROM (
                 SELECT * FROM transfers WHERE payment_id = ANY($1::uuid[]) AND listed AND NOT removed
                 UNION ALL
                 SELECT kept.* FROM unnest(CASE WHEN $2::bigint > 0 THEN $1::uuid[] END) AS p (id)
                     CROSS JOIN LATERAL
                     (SELECT * FROM transfers WHERE payment_id = p.id AND NOT listed AND NOT removed LIMIT $2::bigint) AS kept
             ) AS t
             ORDER BY block_timestamp, t.chain_id, block_number, transaction_index, source, index",
        )
        .await?;
    let rows = db.query(&statement, &[&payments, &unlisted]).await?;
    rows.iter().map(|row| Ok((row.get(0), read_transfer(row)?))).collect()
}

/// Marks the transfers of unlisted tokens in removed blocks as removed. Those of listed tokens are saved with their payments.
///
/// # Errors
/// When the database fails.
pub async fn remove_unlisted(db: &impl GenericClient, chain: ChainId, blocks: &[B256]) -> Result<(), Failure> {
    if blocks.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "UPDATE transfers SET removed = true WHERE chain_id = $1 AND block_hash = ANY($2) AND NOT listed AND NOT removed",
        )
        .await?;
    let blocks: Vec<&[u8]> = blocks.iter().map(|hash| hash.as_slice()).collect();
    db.execute(&statement, &[&bigint(chain.0), &blocks]).await?;
    Ok(())
}

/// Inserts new transfers and updates known ones. A removed transfer is on the chain again if its very block is. One of a token that
/// chains.yaml lists by now gets its owner, so that the next replay finds it.
///
/// # Errors
/// When the database fails.
pub async fn save_transfers(db: &impl GenericClient, rows: &[TransferRow<'_>]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "INSERT INTO transfers (chain_id, block_hash, transaction_hash, source, index, payment_id, deposit_address, block_number,
                 block_timestamp, transaction_index, token_address, sender, amount, credited, listed, due, finality, confirmed,
                 removed, chain, token, decimals)
             SELECT chain_id, block_hash, transaction_hash, source, index, payment_id, deposit_address, block_number, block_timestamp,
                 transaction_index, token_address, sender, amount::numeric, credited, listed, due, finality, confirmed, removed,
                 chain, token, decimals
             FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::text[], $5::bigint[], $6::uuid[], $7::bigint[],
                 $8::bigint[], $9::bigint[], $10::bytea[], $11::bytea[], $12::text[], $13::boolean[], $14::boolean[],
                 $15::bigint[], $16::text[], $17::boolean[], $18::boolean[], $19::text[], $20::text[], $21::smallint[], $22::uuid[])
               AS t (chain_id, block_hash, transaction_hash, source, index, payment_id, block_number, block_timestamp,
                 transaction_index, token_address, sender, amount, credited, listed, due, finality, confirmed, removed, chain,
                 token, decimals, deposit_address)
             ON CONFLICT (chain_id, block_hash, transaction_hash, source, index)
               DO UPDATE SET confirmed = EXCLUDED.confirmed, removed = EXCLUDED.removed, credited = EXCLUDED.credited,
                 due = EXCLUDED.due, finality = EXCLUDED.finality, listed = transfers.listed OR EXCLUDED.listed,
                 payment_id = coalesce(EXCLUDED.payment_id, transfers.payment_id), chain = EXCLUDED.chain,
                 token = EXCLUDED.token, decimals = EXCLUDED.decimals",
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
            &rows.iter().map(|r| r.due.map(bigint)).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.finality).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.confirmed).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.removed).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.label.chain.as_deref()).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.label.token.as_deref()).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.transfer.label.decimals.map(i16::from)).collect::<Vec<_>>(),
            &rows.iter().map(|r| r.owner.deposit_address()).collect::<Vec<_>>(),
        ],
    )
    .await?;
    Ok(())
}

fn read_transfer(row: &Row) -> Result<ReceivedTransfer, Failure> {
    let hash = |field, bytes: &[u8]| -> Result<B256, Failure> { topics::hash(field, bytes).map_err(Failure::halt) };
    let token: Option<Address> =
        row.get::<_, Option<&[u8]>>(9).map(|a| topics::address("token_address", a)).transpose().map_err(Failure::halt)?;
    let block = hash("block_hash", row.get(2))?;
    Ok(ReceivedTransfer {
        id: TransferId {
            chain: ChainId(unsigned(row.get(1))),
            block,
            transaction: hash("transaction_hash", row.get(3))?,
            source: row
                .get::<_, &str>(4)
                .parse::<Source>()
                .map_err(|e| Failure::Halt(anyhow::anyhow!("transfers.source: {e}")))?,
            index: u32::try_from(row.get::<_, i64>(5)).unwrap_or_default(),
        },
        block: BlockRef { number: unsigned(row.get(6)), hash: block },
        timestamp: unsigned(row.get(7)),
        transaction_index: u32::try_from(row.get::<_, i64>(8)).unwrap_or_default(),
        token,
        from: topics::address("sender", row.get(10)).map_err(Failure::halt)?,
        amount: read_amount(row, 11)?,
        credited: row.get(12),
        listed: row.get(13),
        confirmed: row.get(14),
        label: TransferLabel {
            chain: row.get(15),
            token: row.get(16),
            decimals: row.get::<_, Option<i16>>(17).and_then(|digits| u8::try_from(digits).ok()),
        },
    })
}
