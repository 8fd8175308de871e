//! What a final sweep has moved, for whoever settles payments by it.

use super::store::capped;
use crate::engine::rows::number;
use alloy::primitives::{Address, U256};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use uuid::Uuid;

/// What has left a deposit address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    pub address: Address,
    /// `None` is the coin.
    pub token: Option<Address>,
    /// What the treasury got, in base units.
    pub amount: U256,
    /// How much of all that ever arrived at this address in this asset final sweeps account for, this one included: what they
    /// moved, what their gas cost, and the dust that stays since it is worth no gas. In base units. It never falls.
    pub total: U256,
    /// How much of that stays at the address, in base units: the treasury has not got it, nor has gas.
    pub remains: U256,
}

/// What a final transaction has moved; nothing for one that is not final, or is no sweep. The same whenever it is asked.
///
/// The total is what had arrived when the sweep was planned, and at most what of that is on the chain still, but never less
/// than what final transactions have spent: that was there. Where the database has lost the sweep, and has the transaction back
/// from its record, it is what they have spent: dust is left out, so payments settle later, and never earlier.
///
/// # Errors
/// When the database fails.
pub async fn moved(db: &impl GenericClient, outgoing: Uuid) -> Result<Vec<Moved>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT o.sender, o.value::text, s.total::text, s.remains::text
             FROM outgoing o LEFT JOIN sweeps s ON s.outgoing = o.id
             WHERE o.id = $1 AND o.kind = 'sweep' AND o.state = 'final'",
        )
        .await?;
    let Some(row) = db.query_opt(&statement, &[&outgoing]).await? else { return Ok(Vec::new()) };
    let (address, amount) = (Address::from_slice(row.get(0)), number(row.get(1))?);
    let (total, remains) = match row.get::<_, Option<&str>>(2) {
        Some(total) => (number(total)?, number(row.get(3))?),
        None => note(db, outgoing, total(db, outgoing).await?).await?,
    };
    Ok(vec![Moved { address, token: None, amount, total, remains }])
}

/// Notes what is told, if there is a sweep to note it at; returns what is noted, which another one may have done before.
async fn note(db: &impl GenericClient, outgoing: Uuid, told: (U256, U256)) -> Result<(U256, U256), Failure> {
    let sql = "UPDATE sweeps SET total = coalesce(total, $2::text::numeric), remains = coalesce(remains, $3::text::numeric)
               WHERE outgoing = $1 RETURNING total::text, remains::text";
    let (total, remains) = told;
    let row = db.query_opt(&db.prepare_cached(sql).await?, &[&outgoing, &total.to_string(), &remains.to_string()]).await?;
    row.map_or(Ok(told), |row| Ok((number(row.get(0))?, number(row.get(1))?)))
}

/// The total, and what of it remains.
async fn total(db: &impl GenericClient, outgoing: Uuid) -> Result<(U256, U256), Failure> {
    // Of the coin's transfers to an address, whatever they count for.
    let seen = "(SELECT coalesce(sum(t.amount), 0) FROM payments p JOIN transfers t ON t.payment_id = p.id
             WHERE p.id IN (SELECT id FROM payments WHERE address = o.sender AND deposit_address IS NULL
                 UNION ALL SELECT q.id FROM deposit_addresses d JOIN payments q ON q.deposit_address = d.id
                     WHERE d.address = o.sender)
                 AND t.listed AND NOT t.removed AND t.token_address IS NULL AND t.chain_id = o.chain_id)
         + (SELECT coalesce(sum(t.amount), 0) FROM deposit_addresses d JOIN transfers t ON t.deposit_address = d.id
             WHERE d.address = o.sender AND t.payment_id IS NULL AND t.listed AND t.below_minimum AND NOT t.removed
                 AND t.token_address IS NULL AND t.chain_id = o.chain_id)";
    // By this one and those before it: another answer at another time would be another record.
    let spent = "(SELECT coalesce(sum(CASE WHEN f.state = 'final' THEN f.value ELSE 0 END
                 + coalesce(f.gas_used, 0) * coalesce(f.gas_price, 0)), 0)
             FROM outgoing f WHERE f.state IN ('final', 'failed', 'dropped') AND f.nonce <= o.nonce AND f.id IN (
                 SELECT n.outgoing FROM outgoing_nonces n WHERE n.chain_id = o.chain_id AND n.sender = o.sender))";
    let before = "(SELECT coalesce(max(b.total), 0) FROM sweeps b JOIN outgoing f ON f.id = b.outgoing
             WHERE b.chain_id = o.chain_id AND b.address = o.sender AND b.token_address = '' AND b.state = 'final'
                 AND f.nonce < o.nonce)";
    let sql = format!(
        "SELECT {total}, {remains}
         FROM (SELECT sums.spent, greatest(sums.before,
                   least(coalesce(sums.arrived, sums.spent), greatest(sums.seen, sums.spent))) AS total
               FROM (SELECT {spent} AS spent, {seen} AS seen, {before} AS before, s.arrived
                     FROM outgoing o LEFT JOIN sweeps s ON s.outgoing = o.id WHERE o.id = $1) AS sums) AS told",
        total = capped("told.total"),
        remains = capped("greatest(told.total - told.spent, 0)")
    );
    let row = db.query_one(&db.prepare_cached(&sql).await?, &[&outgoing]).await?;
    Ok((number(row.get(0))?, number(row.get(1))?))
}
