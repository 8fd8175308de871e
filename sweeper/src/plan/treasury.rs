//! Whether a treasury is an address that cTrip gives out later: what is swept there would be swept on, and be a payment one
//! day. And who would send to it.

use super::settings::Refused;
use super::store;
use alloy::primitives::Address;
use anyhow::Context as _;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::bigint;
use topics::ChainId;
use wallet::AccountXpub;

/// Who is asked for, of those that could pay: enough that one that is poor, or has too much for it, does not decide alone.
pub const MAX_PAYERS: usize = 3;
/// Addresses of each account that are looked at, from the next one on.
const MAX_AHEAD: u32 = 10_000;

/// Why the treasury can't be, if it is among the next addresses of these accounts. Takes about half a second for each.
///
/// # Errors
/// When the database fails.
pub async fn check_treasury(
    db: &impl GenericClient,
    treasury: Address,
    accounts: &[String],
) -> Result<Option<Refused>, Failure> {
    let sql = "SELECT x.fingerprint, x.xpub, coalesce(greatest(
                   (SELECT max(address_index) FROM payments WHERE xpub = x.fingerprint AND deposit_address IS NULL),
                   (SELECT max(address_index) FROM deposit_addresses WHERE xpub = x.fingerprint)) + 1, 0)
               FROM xpubs x WHERE x.fingerprint = ANY($1) AND x.xpub IS NOT NULL";
    for row in db.query(sql, &[&accounts]).await? {
        let (account, next): (String, i64) = (row.get(0), row.get(2));
        let xpub = AccountXpub::parse(row.get(1)).map_err(Failure::halt)?;
        let next = u32::try_from(next).map_err(Failure::halt)?;
        let search = move || find(&xpub, next, treasury);
        let found = tokio::task::spawn_blocking(search).await.context("deriving addresses").map_err(Failure::Halt)?;
        if let Some(index) = found {
            return Ok(Some(Refused::GivenOutLater { treasury, account, index }));
        }
    }
    Ok(None)
}

/// Addresses that may have coin to sweep: those that are due, then those of open sweeps.
///
/// # Errors
/// When the database fails.
pub async fn payers(db: &impl GenericClient, chain: ChainId, now: u64) -> Result<Vec<Address>, Failure> {
    let mut payers = store::due(db, chain, now, MAX_PAYERS).await?;
    let sql = "SELECT address FROM sweeps WHERE chain_id = $1 AND state = 'open' ORDER BY created_at DESC, id DESC LIMIT $2";
    let left = i64::try_from(MAX_PAYERS.saturating_sub(payers.len())).unwrap_or(i64::MAX);
    let rows = db.query(&db.prepare_cached(sql).await?, &[&bigint(chain.0), &left]).await?;
    payers.extend(rows.iter().map(|row| Address::from_slice(row.get(0))));
    Ok(payers)
}

/// The index of an address among the next ones. The last of an account have none after them.
fn find(xpub: &AccountXpub, next: u32, address: Address) -> Option<u32> {
    (next..next.saturating_add(MAX_AHEAD)).find(|index| xpub.address(*index).is_ok_and(|derived| derived == address))
}
