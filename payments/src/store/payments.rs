//! Rows of `payments`: inserts, loads, locks and saves them. A payment is loaded with a bounded number of its transfers.

use super::amount::read_amount;
use super::intents::insert_intents;
use super::outbox::record_requested_events;
use super::page::Page;
use super::touched::BatchScope;
use super::transfers::{last_transfers, last_transfers_in};
use crate::intents::{Origin, intent_record};
use crate::lifecycle::Event;
use crate::payment::{Asset, MAX_TRANSFERS_OF_BLOCK, Part, Payment, Sums, Terms, Token};
use crate::policy::Policy;
use crate::swept::Settlement;
use crate::total::Total;
use crate::transfer::ReceivedTransfer;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, lock, unsigned};
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::Row;
use topics::{BlockRef, ChainId, PaymentId};
use uuid::Uuid;

/// Deposits per statement, each of which may have 16 kB of metadata.
const MAX_DEPOSITS_PER_STATEMENT: usize = 256;

/// Of a small payment. Most have one or two.
const MAX_FEW_TRANSFERS: usize = 10;

/// Inserts new payments, each with its first event, and their intents as not yet acknowledged.
///
/// # Errors
/// When the database fails, or has such a payment already.
pub async fn insert_payments(db: &impl GenericClient, new: &[(Payment, Event)]) -> Result<(), Failure> {
    insert_requested_payments(db, new, &vec![Origin::default(); new.len()]).await
}

/// [`insert_payments`] with the requests that asked for them, in the same order.
///
/// # Errors
/// As for [`insert_payments`].
pub async fn insert_requested_payments(
    db: &impl GenericClient,
    new: &[(Payment, Event)],
    origins: &[Origin],
) -> Result<(), Failure> {
    insert_rows(db, &new.iter().map(|(payment, _)| payment).collect::<Vec<_>>(), "").await?;
    let requested = || new.iter().zip(origins);
    let intents: Vec<_> = requested().map(|((p, _), origin)| (p.id.0, intent_record(p, origin))).collect();
    insert_intents(db, &intents).await?;
    record_requested_events(db, requested().map(|((payment, event), origin)| (payment, event, origin.asked_by()))).await
}

/// Inserts payments that the database had lost. Returns the ids of those inserted: one that contradicts a row stays out.
///
/// # Errors
/// When the database fails.
pub async fn restore_payments(db: &impl GenericClient, lost: &[&Payment]) -> Result<Vec<Uuid>, Failure> {
    if lost.is_empty() { Ok(Vec::new()) } else { insert_rows(db, lost, "ON CONFLICT DO NOTHING").await }
}

/// Inserts the rows of new deposits. Their transfers and events are written as any payment's are.
///
/// # Errors
/// When the database fails, or has such a deposit already.
pub async fn insert_deposits(db: &impl GenericClient, new: &[&Payment]) -> Result<(), Failure> {
    for new in new.chunks(MAX_DEPOSITS_PER_STATEMENT) {
        insert_rows(db, new, "").await?;
    }
    Ok(())
}

/// Rows of payments as they are created, with nothing paid.
async fn insert_rows(db: &impl GenericClient, new: &[&Payment], conflict: &str) -> Result<Vec<Uuid>, Failure> {
    let payments = || new.iter();
    let sql = format!(
            "INSERT INTO payments (id, merchant_id, external_id, metadata, chain_id, chain, token, token_address, decimals, address,
                 xpub, address_index, amount, underpaid_tolerance, overpaid_tolerance, accept_late, status, exception,
                 confirmations_required, finality, sequence, created_at, expires_at, updated_at, deposit_address)
             SELECT id, merchant_id, external_id, metadata::json, chain_id, chain, token, token_address, decimals, address,
                 xpub, address_index, amount::numeric, underpaid_tolerance::numeric, overpaid_tolerance::numeric, accept_late,
                 'pending', NULL, confirmations_required, finality, sequence, created_at, expires_at, created_at, deposit_address
             FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::bytea[],
                 $9::smallint[], $10::bytea[], $11::text[], $12::bigint[], $13::text[], $14::integer[], $15::text[],
                 $16::bigint[], $17::bigint[], $18::bigint[], $19::text[], $20::text[], $21::boolean[], $22::uuid[])
               AS t (id, merchant_id, external_id, metadata, chain_id, chain, token, token_address, decimals, address, xpub,
                 address_index, amount, confirmations_required, finality, sequence, created_at, expires_at,
                 underpaid_tolerance, overpaid_tolerance, accept_late, deposit_address)
             {conflict} RETURNING id"
    );
    let statement = db.prepare_cached(&sql).await?;
    let rows = db
        .query(
            &statement,
            &[
                &payments().map(|p| p.id.0).collect::<Vec<_>>(),
                &payments().map(|p| p.merchant).collect::<Vec<_>>(),
                &payments().map(|p| p.external_id.as_deref()).collect::<Vec<_>>(),
                &payments().map(|p| p.metadata.as_deref()).collect::<Vec<_>>(),
                &payments().map(|p| bigint(p.chain.0)).collect::<Vec<_>>(),
                &payments().map(|p| p.chain_name.as_str()).collect::<Vec<_>>(),
                &payments().map(|p| p.asset.token.as_ref().map(|t| t.symbol.as_str())).collect::<Vec<_>>(),
                &payments().map(|p| p.asset.token.as_ref().map(|t| t.address.as_slice())).collect::<Vec<_>>(),
                &payments().map(|p| i16::from(p.asset.decimals)).collect::<Vec<_>>(),
                &payments().map(|p| p.address.as_slice()).collect::<Vec<_>>(),
                &payments().map(|p| p.xpub.as_str()).collect::<Vec<_>>(),
                &payments().map(|p| i64::from(p.address_index)).collect::<Vec<_>>(),
                &payments().map(|p| p.amount.to_string()).collect::<Vec<_>>(),
                &payments().map(|p| i32::try_from(p.policy.confirmations()).unwrap_or(i32::MAX)).collect::<Vec<_>>(),
                &payments().map(|p| p.policy.finality()).collect::<Vec<_>>(),
                &payments().map(|p| bigint(p.sequence)).collect::<Vec<_>>(),
                &payments().map(|p| bigint(p.created_at)).collect::<Vec<_>>(),
                &payments().map(|p| bigint(p.expires_at)).collect::<Vec<_>>(),
                &payments().map(|p| p.terms.underpaid_tolerance.to_string()).collect::<Vec<_>>(),
                &payments().map(|p| p.terms.overpaid_tolerance.to_string()).collect::<Vec<_>>(),
                &payments().map(|p| p.terms.accept_late).collect::<Vec<_>>(),
                &payments().map(|p| p.deposit_address).collect::<Vec<_>>(),
            ],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

const COLUMNS: &str =
    "id, merchant_id, external_id, metadata::text, chain_id, chain, token, token_address, decimals, address, xpub,
    address_index, amount::text, confirmations_required, finality, sequence, created_at, expires_at, updated_at, cancelled,
    expired_by, underpaid_tolerance::text, overpaid_tolerance::text, accept_late, deposit_address, received::text, in_time::text,
    confirmed::text, confirmed_in_time::text, settled_by, settled_block, settled_number, settled_at, settled_fee::text";

/// Loads payments to be shown, ordered by id, each with its last hundred transfers and the last hundred that do not count, without
/// its parts. Unknown ids are left out.
///
/// # Errors
/// When the database fails, or a row holds no valid payment.
pub async fn load_payments(db: &impl GenericClient, ids: &[Uuid]) -> Result<Vec<Payment>, Failure> {
    load_with(db, ids, MAX_TRANSFERS_OF_BLOCK).await
}

/// [`load_payments`] without those that have more transfers to be shown than most have: so many payments at once are some rows
/// each, whoever has sent dust to one.
///
/// # Errors
/// When the database fails, or a row holds no valid payment.
pub async fn load_small_payments(db: &impl GenericClient, ids: &[Uuid]) -> Result<Vec<Payment>, Failure> {
    // Of either kind one more is read than a small payment has of both.
    let mut payments = load_with(db, ids, MAX_FEW_TRANSFERS + 1).await?;
    payments.retain(|payment| payment.transfers.len() <= MAX_FEW_TRANSFERS);
    Ok(payments)
}

/// Each with its last transfers of either kind.
async fn load_with(db: &impl GenericClient, ids: &[Uuid], transfers: usize) -> Result<Vec<Payment>, Failure> {
    // Pipelined, so one round trip.
    let (mut payments, transfers) = tokio::try_join!(select(db, ids, ""), last_transfers(db, ids, true, transfers))?;
    attach_transfers(&mut payments, transfers);
    Ok(payments)
}

/// Payments as they were created: [`load_payments`] without their transfers, which may be many.
///
/// # Errors
/// When the database fails, or a row holds no valid payment.
pub async fn load_created(db: &impl GenericClient, ids: &[Uuid]) -> Result<Vec<Payment>, Failure> {
    select(db, ids, "").await
}

/// Whether this merchant has a payment of this id.
///
/// # Errors
/// When the database fails.
pub async fn belongs_to_merchant(db: &impl GenericClient, merchant: Uuid, id: PaymentId) -> Result<bool, Failure> {
    let statement = db.prepare_cached("SELECT FROM payments WHERE id = $1 AND merchant_id = $2").await?;
    Ok(db.query_opt(&statement, &[&id.0, &merchant]).await?.is_some())
}

/// When a merchant's payment was created, in Unix seconds. 0 for a deposit: its `created_at` is its block's timestamp, which does
/// not tell when its row was written. `None` if this merchant has no such payment.
///
/// # Errors
/// When the database fails.
pub async fn payment_created_at(db: &impl GenericClient, merchant: Uuid, id: PaymentId) -> Result<Option<i64>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT CASE WHEN deposit_address IS NULL THEN created_at ELSE 0 END FROM payments WHERE id = $1 AND merchant_id = $2",
        )
        .await?;
    Ok(db.query_opt(&statement, &[&id.0, &merchant]).await?.map(|row| row.get(0)))
}

/// Loads payments for a request, ordered by id, each with its last hundred transfers and without its parts: no request changes what
/// blocks have brought. Locks their rows until the transaction ends; until then told events are not compared either.
///
/// # Errors
/// When the database fails, or a row holds no valid payment.
pub async fn lock_payments(db: &impl GenericClient, ids: &[Uuid]) -> Result<Vec<Payment>, Failure> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    lock::hold_off_comparison(db).await?;
    let mut payments = select(db, ids, "FOR UPDATE").await?;
    attach_transfers(&mut payments, last_transfers(db, ids, false, MAX_TRANSFERS_OF_BLOCK).await?);
    Ok(payments)
}

/// At most `limit` payments with ids below `below`, by falling id, without parts, transfers and deposits.
pub(super) async fn all_payments(db: &impl GenericClient, below: Uuid, limit: i64) -> Result<Page<Payment>, Failure> {
    let query = format!("SELECT {COLUMNS} FROM payments WHERE id < $1 AND deposit_address IS NULL ORDER BY id DESC LIMIT $2");
    let statement = db.prepare_cached(&query).await?;
    let rows = db.query(&statement, &[&below, &limit]).await?;
    Ok(Page::of(rows.iter().map(|row| (row.get(0), read_payment(row)))))
}

/// Loads payments for [`step`](crate::lifecycle::step), ordered by id, with their parts out of `parts`, which are
/// [`touched_parts`](super::touched_parts), and the transfers that records can show. Locks their rows until the transaction ends.
///
/// # Errors
/// When the database fails, or a row holds no valid payment.
pub async fn lock_touched_payments(
    db: &impl GenericClient,
    ids: &[Uuid],
    scope: &BatchScope<'_>,
    parts: &mut HashMap<Uuid, Vec<Part>>,
) -> Result<Vec<Payment>, Failure> {
    let mut payments = select(db, ids, "FOR UPDATE").await?;
    for payment in &mut payments {
        payment.parts = parts.remove(&payment.id.0).unwrap_or_default();
    }
    attach_transfers(&mut payments, last_transfers_in(db, ids, scope).await?);
    Ok(payments)
}

async fn select(db: &impl GenericClient, ids: &[Uuid], lock: &str) -> Result<Vec<Payment>, Failure> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let query = format!("SELECT {COLUMNS} FROM payments WHERE id = ANY($1) ORDER BY id {lock}");
    let statement = db.prepare_cached(&query).await?;
    db.query(&statement, &[&ids]).await?.iter().map(read_payment).collect()
}

fn attach_transfers(payments: &mut [Payment], transfers: Vec<(Uuid, ReceivedTransfer)>) {
    let positions: HashMap<Uuid, usize> =
        payments.iter().enumerate().map(|(position, payment)| (payment.id.0, position)).collect();
    for (id, transfer) in transfers {
        if let Some(payment) = positions.get(&id).and_then(|position| payments.get_mut(*position)) {
            payment.transfers.push(Arc::new(transfer));
        }
    }
}

/// Updates the rows of payments to their present state. Parts and transfers are written apart, by
/// [`save_parts`](super::save_parts) and [`save_transfers`](super::save_transfers).
///
/// # Errors
/// When the database fails.
pub async fn save_payments(db: &impl GenericClient, payments: &[&Payment]) -> Result<(), Failure> {
    if payments.is_empty() {
        return Ok(());
    }
    let sums = |of: fn(&Sums) -> Total| payments.iter().map(|p| of(&p.sums).to_string()).collect::<Vec<_>>();
    let settlements = || payments.iter().map(|payment| payment.settlement.as_ref());
    let statement = db
        .prepare_cached(
            "UPDATE payments p SET status = t.status, exception = t.exception, amount_received = t.amount_received::numeric,
                 cancelled = t.cancelled, expired_by = t.expired_by, sequence = t.sequence, updated_at = t.updated_at,
                 received = t.received::numeric, in_time = t.in_time::numeric, confirmed = t.confirmed::numeric,
                 confirmed_in_time = t.confirmed_in_time::numeric, settled_by = t.settled_by, settled_block = t.settled_block,
                 settled_number = t.settled_number, settled_at = t.settled_at, settled_fee = t.settled_fee::numeric
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::boolean[], $6::bigint[], $7::bigint[], $8::bigint[],
                     $9::text[], $10::text[], $11::text[], $12::text[], $13::bytea[], $14::bytea[], $15::bigint[], $16::bigint[],
                     $17::text[])
                 AS t (id, status, exception, amount_received, cancelled, expired_by, sequence, updated_at, received, in_time,
                     confirmed, confirmed_in_time, settled_by, settled_block, settled_number, settled_at, settled_fee)
             WHERE p.id = t.id",
        )
        .await?;
    db.execute(
        &statement,
        &[
            &payments.iter().map(|p| p.id.0).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.status().as_str()).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.exception().map(|e| e.as_str())).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.received().to_string()).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.cancelled).collect::<Vec<_>>(),
            &payments.iter().map(|p| p.expired_by.map(bigint)).collect::<Vec<_>>(),
            &payments.iter().map(|p| bigint(p.sequence)).collect::<Vec<_>>(),
            &payments.iter().map(|p| bigint(p.updated_at)).collect::<Vec<_>>(),
            &sums(|sums| sums.received),
            &sums(|sums| sums.in_time),
            &sums(|sums| sums.confirmed),
            &sums(|sums| sums.confirmed_in_time),
            &settlements().map(|s| s.map(|s| s.transaction.as_slice())).collect::<Vec<_>>(),
            &settlements().map(|s| s.map(|s| s.block.hash.as_slice())).collect::<Vec<_>>(),
            &settlements().map(|s| s.map(|s| bigint(s.block.number))).collect::<Vec<_>>(),
            &settlements().map(|s| s.map(|s| bigint(s.timestamp))).collect::<Vec<_>>(),
            &settlements().map(|s| s.and_then(|s| s.fee).map(|fee| fee.to_string())).collect::<Vec<_>>(),
        ],
    )
    .await?;
    Ok(())
}

pub(super) fn read_total(row: &Row, column: usize) -> Result<Total, Failure> {
    row.get::<_, &str>(column).parse().map_err(Failure::halt)
}

/// A settlement of five columns.
pub(super) fn read_settlement(row: &Row, column: usize) -> Result<Settlement, Failure> {
    let hash = |field, column: usize| topics::hash(field, row.get(column)).map_err(Failure::halt);
    Ok(Settlement {
        transaction: hash("transaction_hash", column)?,
        block: BlockRef { number: unsigned(row.get(column + 2)), hash: hash("block_hash", column + 1)? },
        timestamp: unsigned(row.get(column + 3)),
        fee: row.get::<_, Option<&str>>(column + 4).map(|fee| fee.parse().map_err(Failure::halt)).transpose()?,
    })
}

fn read_payment(row: &Row) -> Result<Payment, Failure> {
    let token: Option<&str> = row.get(6);
    let token = match (token, row.get::<_, Option<&[u8]>>(7)) {
        (Some(symbol), Some(address)) => Some(Token {
            symbol: symbol.to_owned(),
            address: topics::address("token_address", address).map_err(Failure::halt)?,
        }),
        _ => None,
    };
    let confirmations = u32::try_from(row.get::<_, i32>(13)).unwrap_or_default();
    let policy = match row.get::<_, Option<&str>>(14) {
        None => Policy::Confirmations(confirmations),
        Some("safe") => Policy::Safe,
        Some(_) => Policy::Finalized,
    };
    Ok(Payment {
        id: PaymentId(row.get(0)),
        merchant: row.get(1),
        external_id: row.get(2),
        metadata: row.get::<_, Option<&str>>(3).map(Into::into),
        chain: ChainId(unsigned(row.get(4))),
        chain_name: row.get(5),
        asset: Asset { token, decimals: u8::try_from(row.get::<_, i16>(8)).unwrap_or_default() },
        address: topics::address("address", row.get(9)).map_err(Failure::halt)?,
        xpub: row.get(10),
        address_index: u32::try_from(row.get::<_, i64>(11)).unwrap_or_default(),
        amount: read_amount(row, 12)?,
        terms: Terms {
            underpaid_tolerance: read_amount(row, 21)?,
            overpaid_tolerance: read_amount(row, 22)?,
            accept_late: row.get(23),
        },
        policy,
        sequence: unsigned(row.get(15)),
        created_at: unsigned(row.get(16)),
        expires_at: unsigned(row.get(17)),
        updated_at: unsigned(row.get(18)),
        cancelled: row.get(19),
        expired_by: row.get::<_, Option<i64>>(20).map(unsigned),
        settlement: row.get::<_, Option<&[u8]>>(29).map(|_| read_settlement(row, 29)).transpose()?,
        deposit_address: row.get(24),
        sums: Sums {
            received: read_total(row, 25)?,
            in_time: read_total(row, 26)?,
            confirmed: read_total(row, 27)?,
            confirmed_in_time: read_total(row, 28)?,
        },
        parts: Vec::new(),
        transfers: Vec::new(),
    })
}

/// The payments on a chain whose end is open.
#[derive(Clone, Copy, Debug)]
pub struct OpenPayments {
    pub pending: i64,
    pub detected: i64,
}

/// Counts the payments on a chain whose end is open.
///
/// # Errors
/// When the database fails.
pub async fn open_payments(db: &impl GenericClient, chain: ChainId) -> Result<OpenPayments, Failure> {
    let sql = "SELECT count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'detected') FROM payments
               WHERE chain_id = $1 AND status IN ('pending', 'detected')";
    let row = db.query_one(sql, &[&bigint(chain.0)]).await?;
    Ok(OpenPayments { pending: row.get(0), detected: row.get(1) })
}
