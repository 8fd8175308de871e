//! Whether a treasury is an address that cTrip gives out later: what is swept there would be swept on, and be a payment one
//! day.

use super::settings::Refused;
use alloy::primitives::Address;
use anyhow::Context as _;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use wallet::AccountXpub;

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

/// The index of an address among the next ones. The last of an account have none after them.
fn find(xpub: &AccountXpub, next: u32, address: Address) -> Option<u32> {
    (next..next.saturating_add(MAX_AHEAD)).find(|index| xpub.address(*index).is_ok_and(|derived| derived == address))
}
