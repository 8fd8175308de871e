//! Rows of `sweeps`, `sweep_candidates`, `sweep_chains` and `sweep_holds`.

use super::rules::{Hold, MAX_VAIN};
use alloy::primitives::{Address, U256};
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, unsigned};
use tokio_postgres::Row;
use topics::ChainId;
use uuid::Uuid;

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

/// Adds candidates.
///
/// # Errors
/// When the database fails.
pub async fn add_candidates(tx: &impl GenericClient, chain: ChainId, addresses: &[Address]) -> Result<(), Failure> {
    let sql = "INSERT INTO sweep_candidates (chain_id, address) SELECT $1, unnest($2::bytea[]) ON CONFLICT DO NOTHING";
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

/// Puts the look at candidates off.
///
/// # Errors
/// When the database fails.
pub async fn put_off(tx: &impl GenericClient, chain: ChainId, addresses: &[Address], until: u64) -> Result<(), Failure> {
    let sql = "UPDATE sweep_candidates SET look_at = $3 WHERE chain_id = $1 AND address = ANY($2)";
    tx.execute(&tx.prepare_cached(sql).await?, &[&bigint(chain.0), &bytes(addresses), &bigint(until)]).await?;
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
    /// One to this treasury is final.
    pub is_proven: bool,
    /// One is not over.
    pub has_open: bool,
    /// The last ones have come to nothing, and nobody has looked.
    pub is_vain: bool,
}

/// # Errors
/// When the database fails.
pub async fn past(db: &impl GenericClient, chain: ChainId, treasury: Address) -> Result<Past, Failure> {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM sweeps WHERE chain_id = $1 AND treasury = $2 AND state = 'final'),
             EXISTS (SELECT FROM sweeps WHERE chain_id = $1 AND state = 'open'),
             (SELECT count(*) FROM (SELECT set_aside FROM sweeps WHERE chain_id = $1 AND state <> 'open'
                  ORDER BY ended_at DESC LIMIT {MAX_VAIN}) AS last WHERE set_aside)"
    );
    let row = db.query_one(&db.prepare_cached(&sql).await?, &[&bigint(chain.0), &treasury.as_slice()]).await?;
    let vain = usize::try_from(row.get::<_, i64>(2)).unwrap_or_default();
    Ok(Past { is_proven: row.get(0), has_open: row.get(1), is_vain: vain >= MAX_VAIN })
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

/// The open sweeps of a chain whose addresses can't pay for them: their outgoing transactions.
///
/// # Errors
/// When the database fails.
pub async fn without_funds(db: &impl GenericClient, chain: ChainId, limit: usize) -> Result<Vec<(Address, Uuid)>, Failure> {
    let sql = "SELECT s.address, s.outgoing FROM outgoing o JOIN sweeps s ON s.outgoing = o.id
               WHERE o.chain_id = $1 AND o.told = 'insufficient funds' AND NOT o.dropping AND s.state = 'open' LIMIT $2";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = db.query(&db.prepare_cached(sql).await?, &[&bigint(chain.0), &limit]).await?;
    Ok(rows.iter().map(|row| (Address::from_slice(row.get(0)), row.get(1))).collect())
}

/// The open sweeps of a chain that wait unsigned, since gas costs more than they leave for it and would not if they were planned
/// now: their outgoing transactions.
///
/// # Errors
/// When the database fails.
pub async fn too_dear(
    db: &impl GenericClient,
    chain: ChainId,
    max_fee: u128,
    limit: usize,
) -> Result<Vec<(Address, Uuid)>, Failure> {
    let sql = "SELECT s.address, s.outgoing FROM outgoing o JOIN sweeps s ON s.outgoing = o.id
               WHERE o.chain_id = $1 AND o.told = 'too dear' AND o.state = 'queued' AND o.max_fee < $2::text::numeric
                   AND NOT o.dropping AND s.state = 'open' LIMIT $3";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = db.query(&db.prepare_cached(sql).await?, &[&bigint(chain.0), &max_fee.to_string(), &limit]).await?;
    Ok(rows.iter().map(|row| (Address::from_slice(row.get(0)), row.get(1))).collect())
}

/// Notes that sweeps are dropped to be planned anew.
///
/// # Errors
/// When the database fails.
pub async fn replan(tx: &impl GenericClient, outgoing: &[Uuid]) -> Result<(), Failure> {
    let statement = tx.prepare_cached("UPDATE sweeps SET replan = true WHERE outgoing = ANY($1) AND NOT replan").await?;
    tx.execute(&statement, &[&outgoing]).await?;
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

fn bytes(addresses: &[Address]) -> Vec<&[u8]> {
    addresses.iter().map(|address| address.as_slice()).collect()
}
