//! The payments that are covered by what has left their addresses, and rows of `settled_up_to`, from where on a static address is looked
//! through: it may have a million deposits.

use super::amount::read_amount;
use super::payments::{read_settlement, read_total};
use super::swept::{columns, contract};
use crate::status::Status;
use crate::swept::{
    ArrivedDeposit, CoveredFrom, DepositPlace, DepositStage, SettledUpTo, Settlement, Step, Swept, SweptAsset, Walk,
};
use crate::total::Total;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::HashMap;
use tokio_postgres::Row;
use topics::{Address, ChainId};
use uuid::Uuid;

/// Deposits of a static address, and transactions that took from it, that are read at a time.
const PAGE: usize = 1_000;
/// Pages of static addresses that one transaction looks through, while the chain's head waits. Behind a deposit that waits for its
/// confirmation no more are looked at before it has come.
const MAX_PAGES: usize = 5;

/// A payment that is covered, and how much of what was credited to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoveredPayment {
    pub id: Uuid,
    pub covered: Total,
    pub settlement: Settlement,
}

/// Has static addresses looked through anew of which something changes in this block of the chain, or above.
///
/// # Errors
/// When the database fails.
pub async fn forget_settled_from(db: &impl GenericClient, chain: ChainId, block: u64) -> Result<(), Failure> {
    let statement = db.prepare_cached("DELETE FROM settled_up_to WHERE chain_id = $1 AND block_number >= $2").await?;
    db.execute(&statement, &[&bigint(chain.0), &bigint(block)]).await?;
    Ok(())
}

/// Has these addresses looked through anew, if they are static and settled up to this block of the chain, or further.
///
/// # Errors
/// When the database fails.
pub async fn forget_settled_at(
    db: &impl GenericClient,
    chain: ChainId,
    block: u64,
    addresses: &[Address],
) -> Result<(), Failure> {
    if addresses.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "DELETE FROM settled_up_to s USING deposit_addresses d
             WHERE d.address = ANY($3) AND s.deposit_address = d.id AND s.chain_id = $1 AND s.block_number >= $2",
        )
        .await?;
    let addresses: Vec<&[u8]> = addresses.iter().map(|address| address.as_slice()).collect();
    db.execute(&statement, &[&bigint(chain.0), &bigint(block), &addresses]).await?;
    Ok(())
}

/// The confirmed payments at these addresses of one chain that are covered by what has moved up to a block. Those at static addresses are
/// deposits, and not among them.
///
/// # Errors
/// When the database fails, or a row holds no valid settlement.
pub async fn covered_payments(
    db: &impl GenericClient,
    chain: ChainId,
    assets: &[SweptAsset],
    up_to: u64,
) -> Result<Vec<CoveredPayment>, Failure> {
    let statement = db
        .prepare_cached(
            // What is confirmed has arrived before what is not, and what is in time before what is late. Whatever else has
            // arrived up to the block that reaches the amount is in the balance too, and what arrives later has left with none
            // of that. As `swept::covering` does, it takes the first transaction with which all of that had left. Of a token
            // that is not listed anyone can make any number of transfers: the index of dust has none.
            "SELECT p.id, reached.arrived::text, by.transaction_hash, by.block_hash, by.block_number, by.block_timestamp, by.fee::text
             FROM unnest($2::bytea[], $3::bytea[]) AS a (address, token)
             JOIN payments p ON p.address = a.address AND p.deposit_address IS NULL
             CROSS JOIN LATERAL (
                 SELECT block_number, arrived FROM (
                     SELECT block_number, sum(credited) OVER (ORDER BY block_number) AS arrived,
                         sum(confirmed) OVER (ORDER BY block_number) AS confirmed
                     FROM payment_parts WHERE payment_id = p.id AND credited > 0) AS parts
                 WHERE confirmed >= greatest(p.amount - p.underpaid_tolerance, 1) ORDER BY block_number LIMIT 1) AS reached
             CROSS JOIN LATERAL (
                 SELECT coalesce(sum(amount), 0) AS amount FROM transfers
                 WHERE payment_id = p.id AND listed AND below_minimum AND NOT removed
                     AND chain_id = p.chain_id AND coalesce(token_address, '') = a.token
                     AND block_number <= reached.block_number) AS beside
             CROSS JOIN LATERAL (
                 SELECT * FROM swept s WHERE s.chain_id = $1 AND s.address = a.address AND s.token_address = a.token
                     AND s.total >= reached.arrived + beside.amount AND s.block_number BETWEEN reached.block_number AND $4
                 ORDER BY s.total, s.block_number LIMIT 1) AS by
             WHERE p.chain_id = $1 AND coalesce(p.token_address, '') = a.token AND p.status = 'confirmed'",
        )
        .await?;
    let (_, addresses, tokens) = columns(assets.iter());
    let rows = db.query(&statement, &[&bigint(chain.0), &addresses, &tokens, &bigint(up_to)]).await?;
    let read =
        |row: &Row| Ok(CoveredPayment { id: row.get(0), covered: read_total(row, 1)?, settlement: read_settlement(row, 2)? });
    rows.iter().map(read).collect()
}

/// The static addresses among these, with their ids.
///
/// # Errors
/// When the database fails, or a row holds no valid address.
pub async fn static_addresses(db: &impl GenericClient, assets: &[SweptAsset]) -> Result<HashMap<Address, Uuid>, Failure> {
    let statement = db.prepare_cached("SELECT address, id FROM deposit_addresses WHERE address = ANY($1)").await?;
    let (_, addresses, _) = columns(assets.iter());
    let read = |row: &Row| Ok((topics::address("address", row.get(0)).map_err(Failure::halt)?, row.get(1)));
    db.query(&statement, &[&addresses]).await?.iter().map(read).collect()
}

/// The deposits of a static address that are covered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoveredDeposits {
    pub covered: Vec<CoveredPayment>,
    /// There may be more, once these are settled.
    pub are_more: bool,
}

/// How far a look at static addresses may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// What has moved in a block above this one counts for nothing yet.
    pub up_to: u64,
    /// Deposits that are found.
    pub limit: usize,
    /// Pages that are read, [`MAX_PAGES`] for the first address.
    pages: usize,
}

impl Reach {
    pub fn new(up_to: u64, limit: usize) -> Self {
        Self { up_to, limit, pages: MAX_PAGES }
    }

    /// Whether nothing more is read or found.
    pub fn is_used_up(&self) -> bool {
        self.limit == 0 || self.pages == 0
    }

    fn take_page(&mut self) -> bool {
        let is_there = self.pages > 0;
        self.pages = self.pages.saturating_sub(1);
        is_there
    }
}

/// The confirmed deposits of a static address in one asset that are covered. They are to be settled in the same transaction: the next look
/// begins behind them. `reach` is less by what it has taken.
///
/// # Errors
/// When the database fails, or a row holds no valid settlement.
pub async fn covered_deposits(
    db: &impl GenericClient,
    address: Uuid,
    asset: &SweptAsset,
    reach: &mut Reach,
) -> Result<CoveredDeposits, Failure> {
    let (settled, sum) = tokio::try_join!(settled_up_to(db, address, asset), settled_sum(db, address, asset))?;
    let mut walk = Walk::new(settled, sum);
    let swept = swept_from(db, asset, walk.covered_from(), reach.up_to).await?;
    let is_first = reach.pages == MAX_PAGES;
    let (mut found, mut is_through, mut is_full) = (CoveredDeposits::default(), swept.is_empty(), swept.len() >= PAGE);
    walk.read(swept);
    // A second may have been passed in part.
    let (mut since, mut from) = settled.place.map_or((-1, 0), |place| (bigint(place.timestamp), bigint(place.timestamp)));
    while !is_through && reach.take_page() {
        let page = deposits_from(db, address, asset, from, since).await?;
        is_through = page.len() < PAGE;
        since = page.last().map_or(since, |last| bigint(last.place.timestamp));
        from = since.saturating_add(1);
        for deposit in page.iter().filter(|deposit| settled.place.is_none_or(|settled| settled < deposit.place)) {
            let mut step = walk.step(deposit);
            // More transactions than were read may cover it.
            if let Step::End(from) = step
                && is_full
                && reach.take_page()
            {
                let swept = swept_from(db, asset, from, reach.up_to).await?;
                is_full = swept.len() >= PAGE;
                walk.read(swept);
                step = walk.step(deposit);
            }
            match step {
                Step::Settle(settlement) => {
                    found.covered.push(CoveredPayment { id: deposit.place.id, covered: deposit.received, settlement });
                }
                Step::Pass => {}
                Step::End(_) => {
                    is_through = !is_full;
                    break;
                }
            }
            if found.covered.len() >= reach.limit {
                (found.are_more, is_through) = (true, true);
                break;
            }
        }
    }
    reach.limit = reach.limit.saturating_sub(found.covered.len());
    // One that has had all pages and has come no further waits for a confirmation.
    found.are_more |= !is_through && (walk.settled != settled || !found.covered.is_empty() || !is_first);
    if walk.settled != settled {
        save_settled_up_to(db, address, asset, &walk.settled).await?;
    }
    Ok(found)
}

/// A chain and a contract as a statement has them.
fn key(asset: &SweptAsset) -> (i64, &[u8]) {
    (bigint(asset.chain.0), contract(asset.token.as_ref()))
}

async fn settled_up_to(db: &impl GenericClient, address: Uuid, asset: &SweptAsset) -> Result<SettledUpTo, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT created_at, place_number, id, block_number, arrived::text, received::text FROM settled_up_to
             WHERE deposit_address = $1 AND chain_id = $2 AND token_address = $3",
        )
        .await?;
    let (chain, token) = key(asset);
    let Some(row) = db.query_opt(&statement, &[&address, &chain, &token]).await? else {
        return Ok(SettledUpTo::default());
    };
    Ok(SettledUpTo {
        place: Some(DepositPlace { timestamp: unsigned(row.get(0)), block: unsigned(row.get(1)), id: row.get(2) }),
        block: unsigned(row.get(3)),
        arrived: read_total(&row, 4)?,
        received: read_total(&row, 5)?,
    })
}

/// What all settled deposits of a static address in one asset have received.
async fn settled_sum(db: &impl GenericClient, address: Uuid, asset: &SweptAsset) -> Result<Total, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT received::text FROM settled_sums WHERE deposit_address = $1 AND chain_id = $2 AND token_address = $3",
        )
        .await?;
    let (chain, token) = key(asset);
    let row = db.query_opt(&statement, &[&address, &chain, &token]).await?;
    row.map_or(Ok(Total::ZERO), |row| read_total(&row, 0))
}

async fn save_settled_up_to(
    db: &impl GenericClient,
    address: Uuid,
    asset: &SweptAsset,
    settled: &SettledUpTo,
) -> Result<(), Failure> {
    let Some(DepositPlace { timestamp, block, id }) = settled.place else { return Ok(()) };
    let statement = db
        .prepare_cached(
            "INSERT INTO settled_up_to (deposit_address, chain_id, token_address, created_at, place_number, id, block_number, arrived,
                 received)
             VALUES ($1, $2, $3, $4, $5, $6, $7, ($8::text)::numeric, ($9::text)::numeric)
             ON CONFLICT (deposit_address, chain_id, token_address) DO UPDATE SET created_at = EXCLUDED.created_at,
                 place_number = EXCLUDED.place_number, id = EXCLUDED.id, block_number = EXCLUDED.block_number, arrived = EXCLUDED.arrived,
                 received = EXCLUDED.received",
        )
        .await?;
    let ((chain, token), arrived, received) = (key(asset), settled.arrived.to_string(), settled.received.to_string());
    let (timestamp, block, highest) = (bigint(timestamp), bigint(block), bigint(settled.block));
    db.execute(&statement, &[&address, &chain, &token, &timestamp, &block, &id, &highest, &arrived, &received]).await?;
    Ok(())
}

/// The transactions up to a block that may cover a deposit, by their totals: a page of the first of them.
async fn swept_from(db: &impl GenericClient, asset: &SweptAsset, from: CoveredFrom, up_to: u64) -> Result<Vec<Swept>, Failure> {
    let statement = db
        .prepare_cached(
            // By the number, and not by its text, which has the column's name too.
            "SELECT s.total::text, transaction_hash, block_hash, block_number, block_timestamp, fee::text FROM swept s
             WHERE chain_id = $1 AND address = $2 AND token_address = $3 AND s.total >= ($4::text)::numeric
                 AND block_number BETWEEN $5 AND $6
             ORDER BY s.total, block_number LIMIT $7",
        )
        .await?;
    let ((chain, token), page) = (key(asset), i64::try_from(PAGE).unwrap_or(i64::MAX));
    let (total, block, up_to) = (from.total.to_string(), bigint(from.block), bigint(up_to));
    let rows = db.query(&statement, &[&chain, &asset.address.as_slice(), &token, &total, &block, &up_to, &page]).await?;
    let read = |row: &Row| Ok(Swept { total: read_amount(row, 0)?, settlement: read_settlement(row, 1)? });
    rows.iter().map(read).collect()
}

/// The deposits of a static address in one asset from this second on, in order, each with what has arrived since the one before and is
/// none: about a page of whole seconds. `since` is the second of the one before.
async fn deposits_from(
    db: &impl GenericClient,
    address: Uuid,
    asset: &SweptAsset,
    from: i64,
    since: i64,
) -> Result<Vec<ArrivedDeposit>, Failure> {
    // The coin and tokens have an index each: of one over both the planner would have no statistics.
    let is_of_asset = if asset.token.is_none() { "token_address IS NULL" } else { "token_address = $3" };
    let statement = db
        .prepare_cached(&format!(
            "SELECT d.id, d.created_at, d.received::text, d.status, d.number, coalesce(beside.amount, 0)::text
             FROM (
                 SELECT *, lag(created_at, 1, $5) OVER (ORDER BY created_at, number, id) AS since FROM (
                     SELECT id, created_at, received, status, coalesce(
                         (SELECT block_number FROM payment_parts WHERE payment_id = payments.id LIMIT 1), 0) AS number
                     FROM payments
                     WHERE deposit_address = $1 AND chain_id = $2 AND {is_of_asset} AND created_at >= $4
                     ORDER BY created_at FETCH FIRST $6 ROWS WITH TIES) AS page) AS d
             LEFT JOIN LATERAL (
                 SELECT sum(amount) AS amount FROM transfers
                 WHERE deposit_address = $1 AND payment_id IS NULL AND listed AND below_minimum AND NOT removed
                     AND chain_id = $2 AND coalesce(token_address, '') = $3
                     AND block_timestamp > d.since AND block_timestamp <= d.created_at
             ) AS beside ON d.created_at > d.since
             ORDER BY d.created_at, d.number, d.id",
        ))
        .await?;
    let ((chain, token), page) = (key(asset), i64::try_from(PAGE).unwrap_or(i64::MAX));
    let rows = db.query(&statement, &[&address, &chain, &token, &from, &since, &page]).await?;
    let read = |row: &Row| {
        let received = read_total(row, 2)?;
        let stage = match row.get::<_, &str>(3).parse().map_err(Failure::halt)? {
            Status::Confirmed => DepositStage::Settlement,
            Status::Settled => DepositStage::Nothing,
            // A reorg has taken it back.
            _ if received.is_zero() => DepositStage::Nothing,
            Status::Pending | Status::Detected | Status::Expired | Status::Cancelled => DepositStage::Confirmation,
        };
        let place = DepositPlace { timestamp: unsigned(row.get(1)), block: unsigned(row.get(4)), id: row.get(0) };
        Ok(ArrivedDeposit { place, received, beside: read_total(row, 5)?, stage })
    };
    rows.iter().map(read).collect()
}
