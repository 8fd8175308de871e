//! What an operator sees of sweeps, and decides about them.

use super::rules::Hold;
use super::store::{capped, hold_columns, look_at_all, replan_held, replan_one};
use crate::engine::rows::number;
use alloy::primitives::{Address, B256};
use deadpool_postgres::{Client, GenericClient};
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::BTreeSet;
use tokio_postgres::Row;
use topics::{Amount, ChainId};
use uuid::Uuid;

/// How many sweeps of a chain are in a state, and what they move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub chain: ChainId,
    pub count: u64,
    pub amount: Amount,
}

/// A sweep that is not over, or that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    pub id: Uuid,
    pub chain: ChainId,
    pub address: Address,
    pub amount: Amount,
    /// Of its outgoing transaction, whose id is `outgoing`.
    pub state: String,
    pub outgoing: Uuid,
    /// What holds it up.
    pub told: Option<String>,
    /// Of the last attempt.
    pub hash: Option<B256>,
    pub is_set_aside: bool,
    /// It is to be dropped, and its address is planned anew then.
    pub is_to_go: bool,
    /// Seconds since it was planned.
    pub age: u64,
}

/// A hold as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedHold {
    pub id: i64,
    pub hold: Hold,
    pub reason: String,
}

/// The sweeps of each chain by state, or of one chain.
///
/// # Errors
/// When the database fails.
pub async fn counts(db: &impl GenericClient, chain: Option<ChainId>) -> Result<Vec<(String, Count)>, Failure> {
    let sql = format!(
        "SELECT CASE WHEN set_aside THEN 'set aside' ELSE state END, chain_id, count(*), {}
         FROM sweeps WHERE $1::bigint IS NULL OR chain_id = $1 GROUP BY 1, 2 ORDER BY 2, 1",
        capped("sum(amount)")
    );
    let read = |row: &Row| {
        let amount = number(row.get(3))?;
        Ok((row.get(0), Count { chain: ChainId(unsigned(row.get(1))), count: unsigned(row.get(2)), amount }))
    };
    db.query(&sql, &[&chain.map(|chain| bigint(chain.0))]).await?.iter().map(read).collect()
}

/// Sweeps that wait for a person or are not over.
const UNFINISHED: &str = "(SELECT id FROM sweeps WHERE set_aside UNION SELECT id FROM sweeps WHERE state = 'open'
     UNION SELECT f.id FROM outgoing o JOIN sweeps f ON f.outgoing = o.id WHERE o.frozen IS NOT NULL)";

/// The sweeps that wait for a person, then those that are not over, the oldest first, and how many there are in all.
///
/// # Errors
/// When the database fails.
pub async fn unfinished(
    db: &impl GenericClient,
    chain: Option<ChainId>,
    limit: usize,
) -> Result<(Vec<Unfinished>, u64), Failure> {
    let sql = format!(
        "SELECT s.id, s.chain_id, s.address, s.amount::text, o.state, o.id, coalesce(o.frozen, o.told),
             (SELECT hash FROM outgoing_attempts WHERE outgoing = o.id ORDER BY place DESC LIMIT 1), s.set_aside,
             s.replan AND s.state = 'open', greatest(extract(epoch FROM now() - s.created_at), 0)::bigint
         FROM sweeps s JOIN outgoing o ON o.id = s.outgoing
         WHERE s.id IN {UNFINISHED} AND ($1::bigint IS NULL OR s.chain_id = $1)
         ORDER BY s.set_aside OR o.frozen IS NOT NULL DESC, s.created_at, s.id LIMIT $2"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let read = |row: &Row| {
        Ok(Unfinished {
            id: row.get(0),
            chain: ChainId(unsigned(row.get(1))),
            address: Address::from_slice(row.get(2)),
            amount: number(row.get(3))?,
            state: row.get(4),
            outgoing: row.get(5),
            told: row.get(6),
            hash: row.get::<_, Option<&[u8]>>(7).map(B256::from_slice),
            is_set_aside: row.get(8),
            is_to_go: row.get(9),
            age: unsigned(row.get(10)),
        })
    };
    let chain = chain.map(|chain| bigint(chain.0));
    let found: Result<Vec<_>, Failure> = db.query(&sql, &[&chain, &limit]).await?.iter().map(read).collect();
    let count = format!("SELECT count(*) FROM sweeps WHERE id IN {UNFINISHED} AND ($1::bigint IS NULL OR chain_id = $1)");
    Ok((found?, unsigned(db.query_one(&count, &[&chain]).await?.get(0))))
}

/// Why nothing is planned on a chain, as the sweeper's last turn has found.
///
/// # Errors
/// When the database fails.
pub async fn waiting(db: &impl GenericClient, chain: Option<ChainId>) -> Result<Vec<(ChainId, String)>, Failure> {
    let sql = "SELECT chain_id, waits FROM sweep_chains
               WHERE waits IS NOT NULL AND ($1::bigint IS NULL OR chain_id = $1) ORDER BY chain_id";
    let rows = db.query(sql, &[&chain.map(|chain| bigint(chain.0))]).await?;
    Ok(rows.iter().map(|row| (ChainId(unsigned(row.get(0))), row.get(1))).collect())
}

/// How many addresses of each chain have less than a sweep of what has arrived there would take, and so are not swept, as the
/// sweeper found when it looked last; and some of them.
///
/// # Errors
/// When the database fails.
pub async fn missing(
    db: &impl GenericClient,
    chain: Option<ChainId>,
    some: i32,
) -> Result<Vec<(ChainId, u64, Vec<Address>)>, Failure> {
    let sql = "SELECT chain_id, count(*), (array_agg(address ORDER BY address))[1:$2] FROM sweep_candidates
               WHERE missing AND ($1::bigint IS NULL OR chain_id = $1) GROUP BY chain_id ORDER BY chain_id";
    let rows = db.query(sql, &[&chain.map(|chain| bigint(chain.0)), &some]).await?;
    let read = |row: &Row| {
        let addresses = row.get::<_, Vec<&[u8]>>(2).into_iter().map(Address::from_slice).collect();
        (ChainId(unsigned(row.get(0))), unsigned(row.get(1)), addresses)
    };
    Ok(rows.iter().map(read).collect())
}

/// All holds, the oldest first.
///
/// # Errors
/// When the database fails.
pub async fn listed_holds(db: &impl GenericClient) -> Result<Vec<ListedHold>, Failure> {
    let sql = "SELECT chain_id, address, token_address, merchant_id, id, reason FROM sweep_holds ORDER BY id";
    let read = |row: &Row| ListedHold { hold: super::store::read_hold(row), id: row.get(4), reason: row.get(5) };
    Ok(db.query(sql, &[]).await?.iter().map(read).collect())
}

/// Adds a hold, or gives one that names the same another reason; returns its id. No planner that does not know of it is at work
/// any more then, and nothing that it covers is signed. What is signed goes on.
///
/// # Errors
/// When the database fails.
pub async fn hold(db: &mut Client, hold: &Hold, reason: &str) -> Result<i64, Failure> {
    let tx = db.transaction().await?;
    // Changed, and not only locked: a planner whose snapshot is of before fails, and looks again.
    tx.execute("UPDATE sweep_chains SET waits = waits", &[]).await?;
    let sql = "INSERT INTO sweep_holds (chain_id, address, token_address, merchant_id, reason) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (chain_id, address, token_address, merchant_id) DO UPDATE SET reason = EXCLUDED.reason RETURNING id";
    let (chain, address, token) = hold_columns(hold);
    let row = tx.query_one(sql, &[&chain, &address, &token, &hold.merchant, &reason]).await?;
    replan_held(&tx, hold).await?;
    tx.commit().await?;
    Ok(row.get(0))
}

/// Ends a hold. Returns whether there was one. What it held is looked at in the next turn.
///
/// # Errors
/// When the database fails.
pub async fn release(db: &impl GenericClient, id: i64) -> Result<bool, Failure> {
    let sql = "DELETE FROM sweep_holds WHERE id = $1 RETURNING chain_id";
    let Some(row) = db.query_opt(sql, &[&id]).await? else { return Ok(false) };
    look_at_all(db, row.get::<_, Option<i64>>(0).map(|chain| ChainId(unsigned(chain)))).await?;
    Ok(true)
}

/// Lets the addresses be swept again whose sweeps have come to nothing: of one sweep, or of a chain. Returns how many. One of
/// the last is enough for a chain that waits for their sake to be planned again.
///
/// # Errors
/// When the database fails.
pub async fn retry(db: &impl GenericClient, sweep: Option<Uuid>, chain: Option<ChainId>) -> Result<usize, Failure> {
    let sql = "UPDATE sweeps SET set_aside = false
               WHERE set_aside AND ($1::uuid IS NULL OR id = $1) AND ($2::bigint IS NULL OR chain_id = $2) RETURNING chain_id";
    let retried = db.query(sql, &[&sweep, &chain.map(|chain| bigint(chain.0))]).await?;
    for chain in retried.iter().map(|row| row.get(0)).collect::<BTreeSet<i64>>() {
        look_at_all(db, Some(ChainId(unsigned(chain)))).await?;
    }
    Ok(retried.len())
}

/// Has a sweep dropped that is not over, in the sweeper's next turn, and its address planned anew, unless that could not pay for
/// it. Returns whether there is one. If its transaction is mined before, it has happened.
///
/// # Errors
/// When the database fails.
pub async fn drop_sweep(db: &impl GenericClient, sweep: Uuid) -> Result<bool, Failure> {
    replan_one(db, sweep).await?;
    Ok(db.query_opt("SELECT FROM sweeps WHERE id = $1 AND state = 'open'", &[&sweep]).await?.is_some())
}

/// The id of a merchant.
///
/// # Errors
/// When the database fails.
pub async fn merchant(db: &impl GenericClient, name: &str) -> Result<Option<Uuid>, Failure> {
    let row = db.query_opt("SELECT id FROM merchants WHERE name = $1 OR id::text = $1", &[&name]).await?;
    Ok(row.map(|row| row.get(0)))
}
