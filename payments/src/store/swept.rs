//! Rows of `swept`, what final transactions have moved, of `to_settle`, the addresses of which payments may be covered by that, and of
//! `settled_up_to`, from where on a static address is looked through: it may have a million deposits.

use super::payments::read_settlement;
use crate::payment::Payment;
use crate::status::Status;
use crate::swept::{ArrivedDeposit, DepositPlace, DepositStage, SettledUpTo, Settlement, Step, Swept, SweptAsset, Walk};
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
/// Pages of a static address that one transaction looks through. A deposit that waits for its confirmation may have many behind it that
/// are settled.
const MAX_PAGES: usize = 100;

/// A payment that is covered, and how much of what was credited to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoveredPayment {
    pub id: Uuid,
    pub covered: Total,
    pub settlement: Settlement,
}

/// Columns of lists of assets: addresses, and contracts that are empty for the coin.
fn columns<'a>(assets: impl Iterator<Item = &'a SweptAsset>) -> (Vec<i64>, Vec<&'a [u8]>, Vec<&'a [u8]>) {
    let (mut chains, mut addresses, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    for SweptAsset { chain, address, token } in assets {
        chains.push(bigint(chain.0));
        addresses.push(address.as_slice());
        tokens.push(contract(token.as_ref()));
    }
    (chains, addresses, tokens)
}

/// What stands for an asset's contract in the tables: nothing is a value that a key can have.
fn contract(token: Option<&Address>) -> &[u8] {
    token.map(|token| token.as_slice()).unwrap_or_default()
}

/// Writes down what final transactions have moved, and that payments may be covered by it. What is known changes nothing.
///
/// # Errors
/// When the database fails.
pub async fn save_swept(db: &impl GenericClient, rows: &[(SweptAsset, Swept)]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "INSERT INTO swept (chain_id, address, token_address, total, transaction_hash, block_hash, block_number, block_timestamp, fee)
             SELECT chain_id, address, token_address, total::numeric, transaction_hash, block_hash, block_number, block_timestamp,
                 fee::numeric
             FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::text[], $5::bytea[], $6::bytea[], $7::bigint[], $8::bigint[],
                 $9::text[])
               AS t (chain_id, address, token_address, total, transaction_hash, block_hash, block_number, block_timestamp, fee)
             ON CONFLICT DO NOTHING",
        )
        .await?;
    let (chains, addresses, tokens) = columns(rows.iter().map(|(asset, _)| asset));
    let settlements = || rows.iter().map(|(_, swept)| &swept.settlement);
    db.execute(
        &statement,
        &[
            &chains,
            &addresses,
            &tokens,
            &rows.iter().map(|(_, swept)| swept.total.to_string()).collect::<Vec<_>>(),
            &settlements().map(|s| s.transaction.as_slice()).collect::<Vec<_>>(),
            &settlements().map(|s| s.block.hash.as_slice()).collect::<Vec<_>>(),
            &settlements().map(|s| bigint(s.block.number)).collect::<Vec<_>>(),
            &settlements().map(|s| bigint(s.timestamp)).collect::<Vec<_>>(),
            &settlements().map(|s| s.fee.map(|fee| fee.to_string())).collect::<Vec<_>>(),
        ],
    )
    .await?;
    put_to_settle(db, rows.iter().map(|(asset, _)| asset)).await
}

/// Notes that payments at these addresses may be covered.
///
/// # Errors
/// When the database fails.
pub async fn put_to_settle<'a>(db: &impl GenericClient, assets: impl Iterator<Item = &'a SweptAsset>) -> Result<(), Failure> {
    let (chains, addresses, tokens) = columns(assets);
    if chains.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "INSERT INTO to_settle (chain_id, address, token_address)
             SELECT DISTINCT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) ON CONFLICT DO NOTHING",
        )
        .await?;
    db.execute(&statement, &[&chains, &addresses, &tokens]).await?;
    Ok(())
}

/// Notes that these payments, which are confirmed, may be covered, if something has left their addresses already. A deposit that is
/// confirmed again, below where its address is settled, has that address looked through anew.
///
/// # Errors
/// When the database fails.
pub async fn put_confirmed(db: &impl GenericClient, payments: &[&Payment]) -> Result<(), Failure> {
    let confirmed = payments.iter().filter(|payment| payment.status() == Status::Confirmed);
    let confirmed: Vec<(SweptAsset, &Payment)> = confirmed.map(|payment| (payment.swept_asset(), *payment)).collect();
    if confirmed.is_empty() {
        return Ok(());
    }
    let statement = db
        .prepare_cached(
            "WITH confirmed AS (
                 SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::uuid[], $5::bigint[])
                   AS t (chain_id, address, token_address, deposit_address, created_at)
             ), anew AS (
                 DELETE FROM settled_up_to s USING confirmed c
                 WHERE s.deposit_address = c.deposit_address AND s.chain_id = c.chain_id AND s.token_address = c.token_address
                     AND s.created_at >= c.created_at
             )
             INSERT INTO to_settle (chain_id, address, token_address)
             SELECT DISTINCT chain_id, address, token_address FROM confirmed c
             WHERE EXISTS (SELECT FROM swept s
                 WHERE s.chain_id = c.chain_id AND s.address = c.address AND s.token_address = c.token_address)
             ON CONFLICT DO NOTHING",
        )
        .await?;
    let (chains, addresses, tokens) = columns(confirmed.iter().map(|(asset, _)| asset));
    let payments = || confirmed.iter().map(|(_, payment)| payment);
    db.execute(
        &statement,
        &[
            &chains,
            &addresses,
            &tokens,
            &payments().map(|p| p.deposit_address).collect::<Vec<_>>(),
            &payments().map(|p| bigint(p.created_at)).collect::<Vec<_>>(),
        ],
    )
    .await?;
    Ok(())
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

/// The chains on which payments may be covered.
///
/// # Errors
/// When the database fails.
pub async fn chains_to_settle(db: &impl GenericClient) -> Result<Vec<ChainId>, Failure> {
    // From one chain to the next along the index, however many addresses each has.
    let statement = db
        .prepare_cached(
            "WITH RECURSIVE chains AS (
                 (SELECT chain_id FROM to_settle ORDER BY chain_id LIMIT 1)
                 UNION ALL SELECT (SELECT t.chain_id FROM to_settle t WHERE t.chain_id > c.chain_id ORDER BY t.chain_id LIMIT 1)
                 FROM chains c WHERE c.chain_id IS NOT NULL)
             SELECT chain_id FROM chains WHERE chain_id IS NOT NULL",
        )
        .await?;
    Ok(db.query(&statement, &[]).await?.iter().map(|row| ChainId(unsigned(row.get(0)))).collect())
}

/// Takes those addresses of a chain out of `to_settle` that have waited longest, at most `limit`.
///
/// # Errors
/// When the database fails, or a row holds no valid address.
pub async fn take_to_settle(db: &impl GenericClient, chain: ChainId, limit: usize) -> Result<Vec<SweptAsset>, Failure> {
    let statement = db
        .prepare_cached(
            "DELETE FROM to_settle WHERE chain_id = $1 AND place IN (
                 SELECT place FROM to_settle WHERE chain_id = $1 ORDER BY place LIMIT $2)
             RETURNING address, token_address",
        )
        .await?;
    let address = |field, bytes: &[u8]| topics::address(field, bytes).map_err(Failure::halt);
    let read = |row: &Row| {
        let token = Some(row.get::<_, &[u8]>(1)).filter(|bytes| !bytes.is_empty());
        let token = token.map(|bytes| address("token_address", bytes)).transpose()?;
        Ok(SweptAsset { chain, address: address("address", row.get(0))?, token })
    };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    db.query(&statement, &[&bigint(chain.0), &limit]).await?.iter().map(read).collect()
}

/// The confirmed payments at these addresses of one chain that are covered. Those at static addresses are deposits, and not among them.
///
/// # Errors
/// When the database fails, or a row holds no valid settlement.
pub async fn covered_payments(
    db: &impl GenericClient,
    chain: ChainId,
    assets: &[SweptAsset],
) -> Result<Vec<CoveredPayment>, Failure> {
    let statement = db
        .prepare_cached(
            // What is confirmed has arrived before what is not. Whatever else has arrived up to its last block is in the balance too. As
            // `swept::covering` does, it takes the first transaction with which all of that had left.
            "SELECT p.id, p.confirmed::text, by.transaction_hash, by.block_hash, by.block_number, by.block_timestamp, by.fee::text
             FROM unnest($2::bytea[], $3::bytea[]) AS a (address, token)
             JOIN payments p ON p.address = a.address AND p.deposit_address IS NULL
             CROSS JOIN LATERAL (
                 SELECT block_number FROM payment_parts WHERE payment_id = p.id AND credited > 0 AND confirmed > 0
                 ORDER BY block_number DESC LIMIT 1) AS last
             CROSS JOIN LATERAL (
                 SELECT coalesce(sum(amount), 0) AS amount FROM transfers
                 WHERE payment_id = p.id AND NOT (listed AND NOT below_minimum) AND NOT removed AND chain_id = p.chain_id
                     AND coalesce(token_address, '') = a.token AND block_number <= last.block_number) AS beside
             CROSS JOIN LATERAL (
                 SELECT * FROM swept s WHERE s.chain_id = $1 AND s.address = a.address AND s.token_address = a.token
                     AND s.total >= p.confirmed + beside.amount AND s.block_number >= last.block_number
                 ORDER BY s.total LIMIT 1) AS by
             WHERE p.chain_id = $1 AND coalesce(p.token_address, '') = a.token AND p.status = 'confirmed'",
        )
        .await?;
    let (_, addresses, tokens) = columns(assets.iter());
    let rows = db.query(&statement, &[&bigint(chain.0), &addresses, &tokens]).await?;
    let read = |row: &Row| {
        let covered = row.get::<_, &str>(1).parse().map_err(Failure::halt)?;
        Ok(read_settlement(row, 2)?.map(|settlement| CoveredPayment { id: row.get(0), covered, settlement }))
    };
    rows.iter().filter_map(|row| read(row).transpose()).collect()
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

/// The confirmed deposits of a static address in one asset that are covered, at most `limit`. They are to be settled in the same
/// transaction: the next look begins behind them.
///
/// # Errors
/// When the database fails, or a row holds no valid settlement.
pub async fn covered_deposits(
    db: &impl GenericClient,
    address: Uuid,
    asset: &SweptAsset,
    limit: usize,
) -> Result<CoveredDeposits, Failure> {
    let settled = settled_up_to(db, address, asset).await?;
    let swept = swept_above(db, asset, settled.arrived).await?;
    let mut walk = Walk::new(&swept, settled);
    let (mut found, mut is_through) = (CoveredDeposits::default(), swept.is_empty());
    // A second may have been passed in part.
    let (mut since, mut from) = settled.place.map_or((-1, 0), |place| (bigint(place.timestamp), bigint(place.timestamp)));
    for _ in 0..MAX_PAGES {
        if is_through {
            break;
        }
        let page = deposits_from(db, address, asset, from, since).await?;
        is_through = page.len() < PAGE;
        since = page.last().map_or(since, |last| bigint(last.place.timestamp));
        from = since.saturating_add(1);
        for deposit in page.iter().filter(|deposit| settled.place.is_none_or(|settled| settled < deposit.place)) {
            match walk.step(deposit) {
                Step::Settle(settlement) => {
                    found.covered.push(CoveredPayment { id: deposit.place.id, covered: deposit.received, settlement });
                }
                Step::Pass => {}
                Step::End => {
                    // More transactions than were read may cover it.
                    found.are_more = swept.len() == PAGE && walk.settled != settled;
                    is_through = true;
                    break;
                }
            }
            if found.covered.len() >= limit {
                (found.are_more, is_through) = (true, true);
                break;
            }
        }
    }
    if walk.settled != settled {
        found.are_more |= !is_through;
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
            "SELECT created_at, place_number, id, block_number, arrived::text FROM settled_up_to
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
        arrived: row.get::<_, &str>(4).parse().map_err(Failure::halt)?,
    })
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
            "INSERT INTO settled_up_to (deposit_address, chain_id, token_address, created_at, place_number, id, block_number, arrived)
             VALUES ($1, $2, $3, $4, $5, $6, $7, ($8::text)::numeric)
             ON CONFLICT (deposit_address, chain_id, token_address) DO UPDATE SET created_at = EXCLUDED.created_at,
                 place_number = EXCLUDED.place_number, id = EXCLUDED.id, block_number = EXCLUDED.block_number, arrived = EXCLUDED.arrived",
        )
        .await?;
    let ((chain, token), arrived) = (key(asset), settled.arrived.to_string());
    let (timestamp, block, highest) = (bigint(timestamp), bigint(block), bigint(settled.block));
    db.execute(&statement, &[&address, &chain, &token, &timestamp, &block, &id, &highest, &arrived]).await?;
    Ok(())
}

/// The transactions with which more than that had left, by their totals: the first of them.
async fn swept_above(db: &impl GenericClient, asset: &SweptAsset, total: Total) -> Result<Vec<Swept>, Failure> {
    let statement = db
        .prepare_cached(
            // By the number, and not by its text, which has the column's name too.
            "SELECT s.total::text, transaction_hash, block_hash, block_number, block_timestamp, fee::text FROM swept s
             WHERE chain_id = $1 AND address = $2 AND token_address = $3 AND s.total > ($4::text)::numeric
             ORDER BY s.total LIMIT $5",
        )
        .await?;
    let ((chain, token), page) = (key(asset), i64::try_from(PAGE).unwrap_or(i64::MAX));
    let rows = db.query(&statement, &[&chain, &asset.address.as_slice(), &token, &total.to_string(), &page]).await?;
    let read = |row: &Row| {
        let total = row.get::<_, &str>(0).parse().map_err(Failure::halt)?;
        Ok(read_settlement(row, 1)?.map(|settlement| Swept { total, settlement }))
    };
    rows.iter().filter_map(|row| read(row).transpose()).collect()
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
    let statement = db
        .prepare_cached(
            "SELECT d.id, d.created_at, d.received::text, d.status, d.number, coalesce(beside.amount, 0)::text
             FROM (
                 SELECT *, lag(created_at, 1, $5) OVER (ORDER BY created_at, number, id) AS since FROM (
                     SELECT id, created_at, received, status, coalesce(
                         (SELECT block_number FROM payment_parts WHERE payment_id = payments.id LIMIT 1), 0) AS number
                     FROM payments
                     WHERE deposit_address = $1 AND chain_id = $2 AND coalesce(token_address, '') = $3 AND created_at >= $4
                     ORDER BY created_at FETCH FIRST $6 ROWS WITH TIES) AS page) AS d
             LEFT JOIN LATERAL (
                 SELECT sum(amount) AS amount FROM transfers
                 WHERE deposit_address = $1 AND payment_id IS NULL AND NOT removed AND chain_id = $2
                     AND coalesce(token_address, '') = $3 AND block_timestamp > d.since AND block_timestamp <= d.created_at
             ) AS beside ON d.created_at > d.since
             ORDER BY d.created_at, d.number, d.id",
        )
        .await?;
    let ((chain, token), page) = (key(asset), i64::try_from(PAGE).unwrap_or(i64::MAX));
    let rows = db.query(&statement, &[&address, &chain, &token, &from, &since, &page]).await?;
    let total = |row: &Row, column| row.get::<_, &str>(column).parse::<Total>().map_err(Failure::halt);
    let read = |row: &Row| {
        let received = total(row, 2)?;
        let stage = match row.get::<_, &str>(3).parse().map_err(Failure::halt)? {
            Status::Confirmed => DepositStage::Settlement,
            Status::Settled => DepositStage::Nothing,
            // A reorg has taken it back.
            _ if received.is_zero() => DepositStage::Nothing,
            Status::Pending | Status::Detected | Status::Expired | Status::Cancelled => DepositStage::Confirmation,
        };
        let place = DepositPlace { timestamp: unsigned(row.get(1)), block: unsigned(row.get(4)), id: row.get(0) };
        Ok(ArrivedDeposit { place, received, beside: total(row, 5)?, stage })
    };
    rows.iter().map(read).collect()
}
