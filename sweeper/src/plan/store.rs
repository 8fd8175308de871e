//! Rows of `sweeps`, `sweep_candidates`, `sweep_chains` and `sweep_holds`.

use super::rules::{Hold, MAX_VAIN};
use crate::engine::rows::{TOO_DEAR, UNPAID};
use alloy::primitives::{Address, U256};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use std::collections::HashSet;
use std::time::Duration;
use tokio_postgres::Row;
use topics::ChainId;
use uuid::Uuid;

/// Of a sweep: it is over, and says something of its treasury. What was dropped to be planned anew does not, since its address
/// could not pay for it or for another reason.
const TELLS: &str = "state <> 'open' AND NOT (state = 'dropped' AND replan)";

/// Up to where a chain was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    /// What has arrived up to this block is among the candidates, or was; -1 for none.
    pub number: i64,
    /// When all addresses are looked at again, in Unix seconds.
    pub all_at: u64,
}

/// A sweep to write.
#[derive(Clone, Debug)]
pub struct NewSweep {
    pub id: Uuid,
    pub chain: ChainId,
    pub address: Address,
    pub merchant: Uuid,
    pub amount: U256,
    pub treasury: Address,
    pub arrived: U256,
    pub outgoing: Uuid,
}

/// What of a chain's sweeps waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// The age of the oldest one that is not over; 0 where there is none.
    pub oldest: Duration,
    /// How many wait for a person.
    pub set_aside: u32,
}

/// What of a chain's sweeps waits.
///
/// # Errors
/// When the database fails.
pub async fn waiting(db: &impl GenericClient, chain: ChainId) -> Result<Waiting, Failure> {
    let sql = "SELECT coalesce((SELECT extract(epoch FROM now() - min(created_at)) FROM sweeps
                   WHERE chain_id = $1 AND state = 'open'), 0)::float8,
                   (SELECT count(*) FROM sweeps WHERE chain_id = $1 AND set_aside)";
    let row = db.query_one(&db.prepare_cached(sql).await?, &[&bigint(chain.0)]).await?;
    let oldest = Duration::try_from_secs_f64(row.get(0)).unwrap_or_default();
    Ok(Waiting { oldest, set_aside: u32::try_from(row.get::<_, i64>(1)).unwrap_or(u32::MAX) })
}

/// Notes that a chain is swept.
///
/// # Errors
/// When the database fails.
pub async fn begin(db: &impl GenericClient, chain: ChainId) -> Result<(), Failure> {
    let statement = db.prepare_cached("INSERT INTO sweep_chains (chain_id) VALUES ($1) ON CONFLICT DO NOTHING").await?;
    db.execute(&statement, &[&bigint(chain.0)]).await?;
    Ok(())
}

/// Keeps other planners of the chain out until the transaction ends; `None` if one is at work.
///
/// # Errors
/// When the database fails.
pub async fn lock(tx: &impl GenericClient, chain: ChainId) -> Result<Option<Looked>, Failure> {
    let sql = "SELECT read_number, all_at FROM sweep_chains WHERE chain_id = $1 FOR UPDATE SKIP LOCKED";
    let row = tx.query_opt(&tx.prepare_cached(sql).await?, &[&bigint(chain.0)]).await?;
    Ok(row.map(|row| Looked { number: row.get(0), all_at: unsigned(row.get(1)) }))
}

/// Notes up to where the chain was looked at.
///
/// # Errors
/// When the database fails.
pub async fn set_looked(tx: &impl GenericClient, chain: ChainId, looked: &Looked) -> Result<(), Failure> {
    let statement = tx.prepare_cached("UPDATE sweep_chains SET read_number = $2, all_at = $3 WHERE chain_id = $1").await?;
    tx.execute(&statement, &[&bigint(chain.0), &looked.number, &bigint(looked.all_at)]).await?;
    Ok(())
}

/// Has all addresses of a chain looked at in the next turn, or of all chains: for what was released, or has come otherwise.
///
/// # Errors
/// When the database fails.
pub async fn look_at_all(db: &impl GenericClient, chain: Option<ChainId>) -> Result<(), Failure> {
    let sql = "UPDATE sweep_chains SET all_at = 0 WHERE $1::bigint IS NULL OR chain_id = $1";
    db.execute(&db.prepare_cached(sql).await?, &[&chain.map(|chain| bigint(chain.0))]).await?;
    Ok(())
}

/// Adds those to the candidates that coin has come to in blocks above one number, up to another.
///
/// # Errors
/// When the database fails.
pub async fn add_arrivals(tx: &impl GenericClient, chain: ChainId, above: i64, until: i64) -> Result<(), Failure> {
    let statement = tx
        .prepare_cached(
            "INSERT INTO sweep_candidates (chain_id, address)
             SELECT DISTINCT t.chain_id, coalesce(p.address, d.address) FROM transfers t
             LEFT JOIN payments p ON p.id = t.payment_id
             LEFT JOIN deposit_addresses d ON d.id = t.deposit_address AND t.payment_id IS NULL
             WHERE t.chain_id = $1 AND t.listed AND t.block_number > $2 AND t.block_number <= $3
                 AND t.token_address IS NULL AND NOT t.removed
             ON CONFLICT DO NOTHING",
        )
        .await?;
    tx.execute(&statement, &[&bigint(chain.0), &above, &until]).await?;
    Ok(())
}

/// Adds candidates, or has those looked at that are put off.
///
/// # Errors
/// When the database fails.
pub async fn add_candidates(tx: &impl GenericClient, chain: ChainId, addresses: &[Address]) -> Result<(), Failure> {
    let sql = "INSERT INTO sweep_candidates (chain_id, address) SELECT $1, unnest($2::bytea[])
               ON CONFLICT (chain_id, address) DO UPDATE SET look_at = 0";
    tx.execute(&tx.prepare_cached(sql).await?, &[&bigint(chain.0), &bytes(addresses)]).await?;
    Ok(())
}

/// The candidates that are due, those first that have waited for longest.
///
/// # Errors
/// When the database fails.
pub async fn due(tx: &impl GenericClient, chain: ChainId, now: u64, limit: usize) -> Result<Vec<Address>, Failure> {
    let sql = "SELECT address FROM sweep_candidates WHERE chain_id = $1 AND look_at <= $2 ORDER BY look_at, address LIMIT $3";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = tx.query(&tx.prepare_cached(sql).await?, &[&bigint(chain.0), &bigint(now), &limit]).await?;
    Ok(rows.iter().map(|row| Address::from_slice(row.get(0))).collect())
}

/// Whether there may be something to plan on a chain, or to drop: a candidate is due, a sweep is open, coin has arrived since
/// it was looked, or all addresses are to be looked at. If not, nobody has to be asked what gas costs.
///
/// # Errors
/// When the database fails.
pub async fn has_work(db: &impl GenericClient, chain: ChainId, now: u64) -> Result<bool, Failure> {
    let sql = "SELECT EXISTS (SELECT FROM sweep_candidates WHERE chain_id = $1 AND look_at <= $2)
                   OR EXISTS (SELECT FROM sweeps WHERE chain_id = $1 AND state = 'open')
                   OR NOT EXISTS (SELECT FROM sweep_chains WHERE chain_id = $1 AND all_at > $2)
                   OR EXISTS (SELECT FROM transfers WHERE chain_id = $1 AND listed AND token_address IS NULL AND NOT removed
                       AND block_number > (SELECT read_number FROM sweep_chains WHERE chain_id = $1))";
    Ok(db.query_one(&db.prepare_cached(sql).await?, &[&bigint(chain.0), &bigint(now)]).await?.get(0))
}

/// Puts the look at candidates off. That the chain had less than it should of them is forgotten, unless `keeps_missing`.
///
/// # Errors
/// When the database fails.
pub async fn put_off(
    tx: &impl GenericClient,
    chain: ChainId,
    addresses: &[Address],
    until: u64,
    keeps_missing: bool,
) -> Result<(), Failure> {
    let sql = "UPDATE sweep_candidates SET look_at = $3, missing = missing AND $4 WHERE chain_id = $1 AND address = ANY($2)";
    let statement = tx.prepare_cached(sql).await?;
    tx.execute(&statement, &[&bigint(chain.0), &bytes(addresses), &bigint(until), &keeps_missing]).await?;
    Ok(())
}

/// Puts the look at candidates off of which the chain has less than it should: until `again` if it had so before, else until
/// `first`, since the one node that was asked may be wrong.
///
/// # Errors
/// When the database fails.
pub async fn put_off_missing(
    tx: &impl GenericClient,
    chain: ChainId,
    addresses: &[Address],
    first: u64,
    again: u64,
) -> Result<(), Failure> {
    let sql = "UPDATE sweep_candidates SET look_at = CASE WHEN missing THEN $4::bigint ELSE $3 END, missing = true
               WHERE chain_id = $1 AND address = ANY($2)";
    let statement = tx.prepare_cached(sql).await?;
    tx.execute(&statement, &[&bigint(chain.0), &bytes(addresses), &bigint(first), &bigint(again)]).await?;
    Ok(())
}

/// The addresses of which the chain had less than it should when they were looked at last.
///
/// # Errors
/// When the database fails.
pub async fn missing(db: &impl GenericClient, chain: ChainId) -> Result<HashSet<Address>, Failure> {
    let statement = db.prepare_cached("SELECT address FROM sweep_candidates WHERE chain_id = $1 AND missing").await?;
    let rows = db.query(&statement, &[&bigint(chain.0)]).await?;
    Ok(rows.iter().map(|row| Address::from_slice(row.get(0))).collect())
}

/// Puts the look at candidates off, each to another time within so many seconds.
///
/// # Errors
/// When the database fails.
pub async fn scatter(
    db: &impl GenericClient,
    chain: ChainId,
    addresses: &[Address],
    from: u64,
    seconds: u64,
) -> Result<(), Failure> {
    let sql = "UPDATE sweep_candidates SET look_at = $3 + floor(random() * $4::bigint)::bigint
               WHERE chain_id = $1 AND address = ANY($2)";
    let statement = db.prepare_cached(sql).await?;
    db.execute(&statement, &[&bigint(chain.0), &bytes(addresses), &bigint(from), &bigint(seconds)]).await?;
    Ok(())
}

/// Forgets candidates: what comes to them later makes them some again.
///
/// # Errors
/// When the database fails.
pub async fn forget(tx: &impl GenericClient, chain: ChainId, addresses: &[Address]) -> Result<(), Failure> {
    let sql = "DELETE FROM sweep_candidates WHERE chain_id = $1 AND address = ANY($2)";
    tx.execute(&tx.prepare_cached(sql).await?, &[&bigint(chain.0), &bytes(addresses)]).await?;
    Ok(())
}

/// Writes sweeps, whose outgoing transactions are there. One that is open for the same asset and address fails all of it.
///
/// # Errors
/// When the database fails.
pub async fn insert(tx: &impl GenericClient, sweeps: &[NewSweep]) -> Result<(), Failure> {
    let statement = tx
        .prepare_cached(
            "INSERT INTO sweeps (id, chain_id, address, token_address, merchant_id, amount, treasury, way, arrived, outgoing)
             SELECT id, chain_id, address, '', merchant_id, amount::numeric, treasury, 'coin', arrived::numeric, outgoing
             FROM unnest($1::uuid[], $2::bigint[], $3::bytea[], $4::uuid[], $5::text[], $6::bytea[], $7::text[], $8::uuid[])
               AS t (id, chain_id, address, merchant_id, amount, treasury, arrived, outgoing)",
        )
        .await?;
    tx.execute(
        &statement,
        &[
            &sweeps.iter().map(|sweep| sweep.id).collect::<Vec<_>>(),
            &sweeps.iter().map(|sweep| bigint(sweep.chain.0)).collect::<Vec<_>>(),
            &sweeps.iter().map(|sweep| sweep.address.as_slice()).collect::<Vec<_>>(),
            &sweeps.iter().map(|sweep| sweep.merchant).collect::<Vec<_>>(),
            &sweeps.iter().map(|sweep| sweep.amount.to_string()).collect::<Vec<_>>(),
            &sweeps.iter().map(|sweep| sweep.treasury.as_slice()).collect::<Vec<_>>(),
            &sweeps.iter().map(|sweep| sweep.arrived.to_string()).collect::<Vec<_>>(),
            &sweeps.iter().map(|sweep| sweep.outgoing).collect::<Vec<_>>(),
        ],
    )
    .await?;
    Ok(())
}

/// What past sweeps of a chain tell of its treasury.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// The last one to this treasury that came to an end is final.
    pub is_proven: bool,
    /// One to this treasury that is not over, and may get somewhere.
    pub open: Option<Uuid>,
    /// The last ones have come to nothing, and nobody has looked.
    pub is_vain: bool,
}

/// What the past sweeps of a chain to a treasury tell.
///
/// # Errors
/// When the database fails.
pub async fn past(db: &impl GenericClient, chain: ChainId, treasury: Address) -> Result<Past, Failure> {
    // Of those that one block has ended the last that was planned is the last. What is in a block comes after what is final,
    // and has come to nothing if that says so. What only takes the nonce of one that is to be dropped says nothing.
    let sql = format!(
        "SELECT coalesce((SELECT state = 'final' FROM sweeps WHERE chain_id = $1 AND treasury = $2 AND {TELLS}
                 ORDER BY ended_at DESC, id DESC LIMIT 1), false),
             (SELECT s.id FROM sweeps s JOIN outgoing o ON o.id = s.outgoing
              WHERE s.chain_id = $1 AND s.treasury = $2 AND s.state = 'open'
                  AND (o.state = 'mined' OR NOT o.dropping AND o.told IS DISTINCT FROM '{UNPAID}') LIMIT 1),
             (SELECT count(*) FROM (SELECT * FROM (
                  (SELECT NOT o.succeeded AS is_vain, 1 AS class, o.block_number AS at, s.id
                   FROM outgoing o JOIN sweeps s ON s.outgoing = o.id
                   WHERE o.chain_id = $1 AND o.state = 'mined' AND o.succeeded IS NOT NULL AND s.state = 'open'
                       AND NOT EXISTS (SELECT FROM outgoing_attempts a WHERE a.hash = o.mined_hash AND a.cancels)
                   ORDER BY o.block_number DESC, s.id DESC LIMIT {MAX_VAIN})
                  UNION ALL
                  (SELECT set_aside, 0, extract(epoch FROM ended_at) * 1000000, id FROM sweeps
                   WHERE chain_id = $1 AND {TELLS} AND NOT put_back ORDER BY ended_at DESC, id DESC LIMIT {MAX_VAIN})) AS ended
                  ORDER BY class DESC, at DESC, id DESC LIMIT {MAX_VAIN}) AS last WHERE is_vain)"
    );
    let row = db.query_one(&db.prepare_cached(&sql).await?, &[&bigint(chain.0), &treasury.as_slice()]).await?;
    let vain = usize::try_from(row.get::<_, i64>(2)).unwrap_or_default();
    Ok(Past { is_proven: row.get(0), open: row.get(1), is_vain: vain >= MAX_VAIN })
}

/// Notes why nothing is planned on a chain, for whoever looks.
///
/// # Errors
/// When the database fails.
pub async fn set_waits(tx: &impl GenericClient, chain: ChainId, waits: Option<&str>) -> Result<(), Failure> {
    let sql = "UPDATE sweep_chains SET waits = $2 WHERE chain_id = $1 AND waits IS DISTINCT FROM $2";
    tx.execute(&tx.prepare_cached(sql).await?, &[&bigint(chain.0), &waits]).await?;
    Ok(())
}

/// Whether cTrip gives this address out: what is sent there would be a payment.
///
/// # Errors
/// When the database fails.
pub async fn is_given_out(db: &impl GenericClient, address: Address) -> Result<bool, Failure> {
    let sql = "SELECT EXISTS (SELECT FROM payments WHERE address = $1 AND deposit_address IS NULL)
                   OR EXISTS (SELECT FROM deposit_addresses WHERE address = $1)";
    Ok(db.query_one(&db.prepare_cached(sql).await?, &[&address.as_slice()]).await?.get(0))
}

/// Of `outgoing o`: its sender can't pay for it, and it is to be sent all the same.
fn is_without_funds() -> String {
    format!("o.told = '{UNPAID}' AND NOT o.dropping")
}

/// The open sweeps of a chain whose addresses can't pay for them: their outgoing transactions. Which ones if there are more is
/// left to chance, so that those that nothing helps hide none.
///
/// # Errors
/// When the database fails.
pub async fn without_funds(db: &impl GenericClient, chain: ChainId, limit: usize) -> Result<Vec<(Address, Uuid)>, Failure> {
    let sql = format!(
        "SELECT s.address, s.outgoing FROM outgoing o JOIN sweeps s ON s.outgoing = o.id
         WHERE o.chain_id = $1 AND {} AND s.state = 'open' ORDER BY random() LIMIT $2",
        is_without_funds()
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = db.query(&db.prepare_cached(&sql).await?, &[&bigint(chain.0), &limit]).await?;
    Ok(rows.iter().map(|row| (Address::from_slice(row.get(0)), row.get(1))).collect())
}

/// An open sweep whose transaction is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsigned {
    pub outgoing: Uuid,
    pub address: Address,
    pub merchant: Uuid,
}

/// The open sweeps of a chain whose transactions are not signed.
///
/// # Errors
/// When the database fails.
pub async fn unsigned_sweeps(tx: &impl GenericClient, chain: ChainId) -> Result<Vec<Unsigned>, Failure> {
    let sql = "SELECT s.outgoing, s.address, s.merchant_id FROM sweeps s JOIN outgoing o ON o.id = s.outgoing
               WHERE s.chain_id = $1 AND s.state = 'open' AND NOT s.replan AND o.state = 'queued'";
    let rows = tx.query(&tx.prepare_cached(sql).await?, &[&bigint(chain.0)]).await?;
    let read = |row: &Row| Unsigned { outgoing: row.get(0), address: Address::from_slice(row.get(1)), merchant: row.get(2) };
    Ok(rows.iter().map(read).collect())
}

/// Notes that open sweeps are to be dropped and planned anew: what of them is not signed is not signed any more. `unwanted` says
/// which, of `sweeps s` and `outgoing o`. Outgoing transactions are written first, as the engine does, so that nobody waits in a
/// circle. Where somebody else is at work on a row of `outgoing`, this waits, and goes by what that says then; a row of
/// `sweeps` is looked at again when it is written.
///
/// Those of them are told apart, if that is asked for, whose addresses could not pay.
fn replanned(unwanted: &str, notes_unpaid: bool) -> String {
    format!(
        "WITH unwanted AS (UPDATE outgoing o SET withheld = true FROM sweeps s
             WHERE s.outgoing = o.id AND s.state = 'open' AND NOT s.replan
                 AND o.state NOT IN ('final', 'failed', 'dropped') AND {unwanted}
             RETURNING o.id, {notes_unpaid} AND o.told IS NOT DISTINCT FROM '{UNPAID}' AS is_unpaid)
         UPDATE sweeps s SET replan = true, unpaid = u.is_unpaid FROM unwanted u
         WHERE s.outgoing = u.id AND s.state = 'open' AND NOT s.replan"
    )
}

/// Has those of these sweeps dropped and planned anew that are not signed by now.
///
/// # Errors
/// When the database fails.
pub async fn replan_unsigned(tx: &impl GenericClient, outgoing: &[Uuid]) -> Result<(), Failure> {
    let sql = replanned("o.id = ANY($1) AND o.state = 'queued'", false);
    tx.execute(&tx.prepare_cached(&sql).await?, &[&outgoing]).await?;
    Ok(())
}

/// The same for those of these whose addresses still can't pay for them.
///
/// # Errors
/// When the database fails.
pub async fn replan_without_funds(tx: &impl GenericClient, outgoing: &[Uuid]) -> Result<(), Failure> {
    let sql = replanned(&format!("o.id = ANY($1) AND {}", is_without_funds()), false);
    tx.execute(&tx.prepare_cached(&sql).await?, &[&outgoing]).await?;
    Ok(())
}

/// The same for one that a person has dropped.
///
/// # Errors
/// When the database fails.
pub async fn replan_one(db: &impl GenericClient, sweep: Uuid) -> Result<(), Failure> {
    db.execute(&db.prepare_cached(&replanned("s.id = $1", true)).await?, &[&sweep]).await?;
    Ok(())
}

/// The same for all of a chain that go elsewhere.
///
/// # Errors
/// When the database fails.
pub async fn replan_to_others(tx: &impl GenericClient, chain: ChainId, treasury: Option<Address>) -> Result<(), Failure> {
    let sql = replanned("s.chain_id = $1 AND s.treasury IS DISTINCT FROM $2", true);
    let treasury = treasury.as_ref().map(|treasury| treasury.as_slice());
    tx.execute(&tx.prepare_cached(&sql).await?, &[&bigint(chain.0), &treasury]).await?;
    Ok(())
}

/// The same for those that wait unsigned, since gas costs more than they leave for it and would not if they were planned now.
///
/// # Errors
/// When the database fails.
pub async fn replan_too_dear(tx: &impl GenericClient, chain: ChainId, max_fee: u128) -> Result<(), Failure> {
    let too_dear =
        format!("o.chain_id = $1 AND o.told = '{TOO_DEAR}' AND o.state = 'queued' AND o.max_fee < $2::text::numeric");
    let sql = replanned(&too_dear, false);
    tx.execute(&tx.prepare_cached(&sql).await?, &[&bigint(chain.0), &max_fee.to_string()]).await?;
    Ok(())
}

/// The same for those that are not signed and that a hold covers.
///
/// # Errors
/// When the database fails.
pub async fn replan_held(tx: &impl GenericClient, hold: &Hold) -> Result<(), Failure> {
    let sql = replanned(
        "o.state = 'queued' AND ($1::bigint IS NULL OR s.chain_id = $1) AND ($2::bytea IS NULL OR s.address = $2)
             AND ($3::bytea IS NULL OR s.token_address = $3) AND ($4::uuid IS NULL OR s.merchant_id = $4)",
        false,
    );
    let (chain, address, token) = hold_columns(hold);
    tx.execute(&tx.prepare_cached(&sql).await?, &[&chain, &address, &token, &hold.merchant]).await?;
    Ok(())
}

/// The outgoing transactions of a chain that are to be dropped and are not yet. What is in a block can't be any more.
///
/// # Errors
/// When the database fails.
pub async fn to_drop(tx: &impl GenericClient, chain: ChainId, limit: usize) -> Result<Vec<Uuid>, Failure> {
    let sql = "SELECT o.id FROM sweeps s JOIN outgoing o ON o.id = s.outgoing
               WHERE s.chain_id = $1 AND s.state = 'open' AND s.replan AND NOT o.dropping AND o.state <> 'mined' LIMIT $2";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = tx.query(&tx.prepare_cached(sql).await?, &[&bigint(chain.0), &limit]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Notes of an open sweep, if the transaction is one's, that what became of it is put back into a database that went back.
/// What was dropped before it was signed was dropped to be planned anew; why what was signed has come to nothing, and what a
/// person has said to that, no record tells.
///
/// # Errors
/// When the database fails.
pub async fn put_back(tx: &impl GenericClient, outgoing: Uuid, is_dropped_unsigned: bool) -> Result<(), Failure> {
    // First, as by all who change both.
    tx.execute(&tx.prepare_cached("SELECT FROM outgoing WHERE id = $1 FOR NO KEY UPDATE").await?, &[&outgoing]).await?;
    let sql = "UPDATE sweeps SET put_back = true, replan = replan OR $2 WHERE outgoing = $1 AND state = 'open'";
    tx.execute(&tx.prepare_cached(sql).await?, &[&outgoing, &is_dropped_unsigned]).await?;
    Ok(())
}

/// All holds.
///
/// # Errors
/// When the database fails.
pub async fn holds(db: &impl GenericClient) -> Result<Vec<Hold>, Failure> {
    let statement = db.prepare_cached("SELECT chain_id, address, token_address, merchant_id FROM sweep_holds").await?;
    Ok(db.query(&statement, &[]).await?.iter().map(read_hold).collect())
}

/// A hold, of the first four columns.
pub(super) fn read_hold(row: &Row) -> Hold {
    let token = |bytes: &[u8]| (!bytes.is_empty()).then(|| Address::from_slice(bytes));
    Hold {
        chain: row.get::<_, Option<i64>>(0).map(|chain| ChainId(unsigned(chain))),
        address: row.get::<_, Option<&[u8]>>(1).map(Address::from_slice),
        token: row.get::<_, Option<&[u8]>>(2).map(token),
        merchant: row.get(3),
    }
}

/// Chain, address and token of a hold.
pub(super) fn hold_columns(hold: &Hold) -> (Option<i64>, Option<&[u8]>, Option<&[u8]>) {
    let token = hold.token.as_ref().map(|token| token.as_ref().map_or([].as_slice(), |token| token.as_slice()));
    (hold.chain.map(|chain| bigint(chain.0)), hold.address.as_ref().map(|address| address.as_slice()), token)
}

/// A sum as text: where 256 bits don't hold it, the most that they do.
pub(super) fn capped(sum: &str) -> String {
    format!("least({sum}, 2::numeric ^ 256 - 1)::numeric(78, 0)::text")
}

fn bytes(addresses: &[Address]) -> Vec<&[u8]> {
    addresses.iter().map(|address| address.as_slice()).collect()
}
