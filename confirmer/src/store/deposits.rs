//! Rows of `deposit_addresses`, and of the deposits at them.

use super::{bigint, insert_rows, unsigned};
use crate::deposit::DepositAddress;
use crate::events::address_intent_record;
use crate::payment::Payment;
use deadpool_postgres::GenericClient;
use prost::Message as _;
use runtime::{Failure, db};
use std::collections::HashSet;
use tokio_postgres::Row;
use topics::Address;
use uuid::Uuid;

/// Writes new static addresses, and their intents as not acknowledged yet.
///
/// # Errors
/// When the database refuses: the merchant has an address under this reference, for one.
pub async fn insert_addresses(db: &impl GenericClient, new: &[DepositAddress]) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "INSERT INTO deposit_addresses (id, merchant_id, external_id, metadata, address, xpub, address_index, created_at)
             SELECT id, merchant_id, external_id, metadata::json, address, xpub, address_index, created_at
             FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::bigint[], $8::bigint[])
               AS t (id, merchant_id, external_id, metadata, address, xpub, address_index, created_at)",
        )
        .await
        .map_err(db::failure)?;
    let ids: Vec<Uuid> = new.iter().map(|a| a.id).collect();
    db.execute(
        &statement,
        &[
            &ids,
            &new.iter().map(|a| a.merchant).collect::<Vec<_>>(),
            &new.iter().map(|a| a.external_id.as_deref()).collect::<Vec<_>>(),
            &new.iter().map(|a| a.metadata.as_deref()).collect::<Vec<_>>(),
            &new.iter().map(|a| a.address.as_slice()).collect::<Vec<_>>(),
            &new.iter().map(|a| a.xpub.as_str()).collect::<Vec<_>>(),
            &new.iter().map(|a| i64::from(a.address_index)).collect::<Vec<_>>(),
            &new.iter().map(|a| bigint(a.created_at)).collect::<Vec<_>>(),
        ],
    )
    .await
    .map_err(db::failure)?;
    let statement = db
        .prepare_cached("INSERT INTO unacknowledged_intents (payment_id, intent) SELECT * FROM unnest($1::uuid[], $2::bytea[])")
        .await
        .map_err(db::failure)?;
    let intents: Vec<Vec<u8>> = new.iter().map(|address| address_intent_record(address).encode_to_vec()).collect();
    db.execute(&statement, &[&ids, &intents]).await.map_err(db::failure)?;
    Ok(())
}

/// Static addresses by where they are; others are left out.
///
/// # Errors
/// When the database fails, or holds what is no address.
pub async fn deposit_addresses(db: &impl GenericClient, addresses: &HashSet<Address>) -> Result<Vec<DepositAddress>, Failure> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let statement = db
        .prepare_cached(
            "SELECT id, merchant_id, external_id, metadata::text, address, xpub, address_index, created_at
             FROM deposit_addresses WHERE address = ANY($1)",
        )
        .await
        .map_err(db::failure)?;
    let addresses: Vec<&[u8]> = addresses.iter().map(|address| address.as_slice()).collect();
    let rows = db.query(&statement, &[&addresses]).await.map_err(db::failure)?;
    rows.iter().map(deposit_address).collect()
}

/// Writes the rows of new deposits. What is known of them since is written like any payment's ([`save`](super::save)).
///
/// # Errors
/// When the database refuses.
pub async fn insert_deposits(db: &impl GenericClient, new: &[&Payment]) -> Result<(), Failure> {
    if new.is_empty() { Ok(()) } else { insert_rows(db, new).await }
}

fn deposit_address(row: &Row) -> Result<DepositAddress, Failure> {
    Ok(DepositAddress {
        id: row.get(0),
        merchant: row.get(1),
        external_id: row.get(2),
        metadata: row.get(3),
        address: topics::address("address", row.get(4)).map_err(Failure::halt)?,
        xpub: row.get(5),
        address_index: u32::try_from(row.get::<_, i64>(6)).unwrap_or_default(),
        created_at: unsigned(row.get(7)),
    })
}
