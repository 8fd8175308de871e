//! Rows of `deposit_addresses`, the static addresses. The deposits at them are rows of `payments`.

use super::intents::insert_intents;
use super::lists::Place;
use super::page::Page;
use crate::deposit::DepositAddress;
use crate::intents::address_intent_record;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::{bigint, lock, unsigned};
use std::collections::HashSet;
use tokio_postgres::Row;
use topics::Address;
use uuid::Uuid;

/// Inserts new static addresses of this installation, and their intents as not yet acknowledged.
///
/// # Errors
/// When the database fails, or the merchant has an address under the same external id.
pub async fn insert_addresses(db: &impl GenericClient, new: &[DepositAddress], installation: Uuid) -> Result<(), Failure> {
    insert_rows(db, &new.iter().collect::<Vec<_>>(), "").await?;
    let intents: Vec<_> = new.iter().map(|address| (address.id, address_intent_record(address, installation))).collect();
    insert_intents(db, &intents).await
}

/// Inserts static addresses that the database had lost. Returns the ids of those inserted: one that contradicts a row stays out.
///
/// # Errors
/// When the database fails.
pub async fn restore_addresses(db: &impl GenericClient, lost: &[&DepositAddress]) -> Result<Vec<Uuid>, Failure> {
    if lost.is_empty() { Ok(Vec::new()) } else { insert_rows(db, lost, "ON CONFLICT DO NOTHING").await }
}

async fn insert_rows(db: &impl GenericClient, new: &[&DepositAddress], conflict: &str) -> Result<Vec<Uuid>, Failure> {
    let sql = format!(
        "INSERT INTO deposit_addresses (id, merchant_id, external_id, metadata, address, xpub, address_index, created_at, asked_by)
         SELECT id, merchant_id, external_id, metadata::json, address, xpub, address_index, created_at, asked_by
         FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::bigint[], $8::bigint[],
             $9::text[])
           AS t (id, merchant_id, external_id, metadata, address, xpub, address_index, created_at, asked_by)
         {conflict} RETURNING id"
    );
    let statement = db.prepare_cached(&sql).await?;
    let rows = db
        .query(
            &statement,
            &[
                &new.iter().map(|a| a.id).collect::<Vec<_>>(),
                &new.iter().map(|a| a.merchant).collect::<Vec<_>>(),
                &new.iter().map(|a| a.external_id.as_deref()).collect::<Vec<_>>(),
                &new.iter().map(|a| a.metadata.as_deref()).collect::<Vec<_>>(),
                &new.iter().map(|a| a.address.as_slice()).collect::<Vec<_>>(),
                &new.iter().map(|a| a.xpub.as_str()).collect::<Vec<_>>(),
                &new.iter().map(|a| i64::from(a.address_index)).collect::<Vec<_>>(),
                &new.iter().map(|a| bigint(a.created_at)).collect::<Vec<_>>(),
                &new.iter().map(|a| a.asked_by.as_deref()).collect::<Vec<_>>(),
            ],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

const COLUMNS: &str = "id, merchant_id, external_id, metadata::text, address, xpub, address_index, created_at, asked_by";

/// A customer's static address, if there is one. Takes an advisory lock on the customer until the transaction ends, so that
/// concurrent requests create one address.
///
/// # Errors
/// When the database fails, others keep the lock, or the row holds no valid address.
pub async fn lock_customer_address(
    db: &impl GenericClient,
    merchant: Uuid,
    external_id: &str,
) -> Result<Option<DepositAddress>, Failure> {
    lock::take_turn(db, lock::CUSTOMERS, &format!("{merchant}/{external_id}")).await?;
    let sql = format!("SELECT {COLUMNS} FROM deposit_addresses WHERE merchant_id = $1 AND external_id = $2");
    let statement = db.prepare_cached(&sql).await?;
    db.query_opt(&statement, &[&merchant, &external_id]).await?.as_ref().map(read_address).transpose()
}

/// A merchant's static address by its id.
///
/// # Errors
/// When the database fails, or the row holds no valid address.
pub async fn find_address(db: &impl GenericClient, merchant: Uuid, id: Uuid) -> Result<Option<DepositAddress>, Failure> {
    let sql = format!("SELECT {COLUMNS} FROM deposit_addresses WHERE merchant_id = $1 AND id = $2");
    let statement = db.prepare_cached(&sql).await?;
    db.query_opt(&statement, &[&merchant, &id]).await?.as_ref().map(read_address).transpose()
}

/// At most `limit` of a merchant's static addresses below a place, newest first. `external_id` filters by the customer.
///
/// # Errors
/// When the database fails, or a row holds no valid address.
pub async fn list_addresses(
    db: &impl GenericClient,
    merchant: Uuid,
    external_id: Option<&str>,
    below: Place,
    limit: i64,
) -> Result<Vec<DepositAddress>, Failure> {
    let (created_at, id) = (below.created_at, below.id.0);
    let rows = if let Some(external_id) = external_id {
        let sql = format!(
            "SELECT {COLUMNS} FROM deposit_addresses WHERE merchant_id = $1 AND external_id = $2 AND (created_at, id) < ($3, $4)"
        );
        let statement = db.prepare_cached(&sql).await?;
        db.query(&statement, &[&merchant, &external_id, &created_at, &id]).await?
    } else {
        let sql = format!(
            "SELECT {COLUMNS} FROM deposit_addresses WHERE merchant_id = $1 AND (created_at, id) < ($2, $3)
             ORDER BY created_at DESC, id DESC LIMIT $4"
        );
        let statement = db.prepare_cached(&sql).await?;
        db.query(&statement, &[&merchant, &created_at, &id, &limit]).await?
    };
    rows.iter().map(read_address).collect()
}

/// The static addresses among `addresses`.
///
/// # Errors
/// When the database fails, or a row holds no valid address.
pub async fn deposit_addresses(db: &impl GenericClient, addresses: &HashSet<Address>) -> Result<Vec<DepositAddress>, Failure> {
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT {COLUMNS} FROM deposit_addresses WHERE address = ANY($1)");
    let statement = db.prepare_cached(&sql).await?;
    let addresses: Vec<&[u8]> = addresses.iter().map(|address| address.as_slice()).collect();
    let rows = db.query(&statement, &[&addresses]).await?;
    rows.iter().map(read_address).collect()
}

/// At most `limit` static addresses with ids below `below`, by falling id.
pub(super) async fn all_addresses(db: &impl GenericClient, below: Uuid, limit: i64) -> Result<Page<DepositAddress>, Failure> {
    let sql = format!("SELECT {COLUMNS} FROM deposit_addresses WHERE id < $1 ORDER BY id DESC LIMIT $2");
    let statement = db.prepare_cached(&sql).await?;
    let rows = db.query(&statement, &[&below, &limit]).await?;
    Ok(Page::of(rows.iter().map(|row| (row.get(0), read_address(row)))))
}

fn read_address(row: &Row) -> Result<DepositAddress, Failure> {
    Ok(DepositAddress {
        id: row.get(0),
        merchant: row.get(1),
        external_id: row.get(2),
        metadata: row.get::<_, Option<&str>>(3).map(Into::into),
        address: topics::address("address", row.get(4)).map_err(Failure::halt)?,
        xpub: row.get(5),
        address_index: u32::try_from(row.get::<_, i64>(6)).unwrap_or_default(),
        created_at: unsigned(row.get(7)),
        asked_by: row.get(8),
    })
}
