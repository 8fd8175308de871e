//! Rows that a restored database lost, written again from `payment.intents`.

use super::deposit_addresses::restore_addresses;
use super::outbox::record_requested_events;
use super::payments::restore_payments;
use super::told::{apply_told, forget_told_creations};
use crate::events::created_event;
use crate::intents::{Issued, Origin};
use crate::payment::Payment;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::bigint;
use std::collections::HashSet;
use uuid::Uuid;

/// What was written again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoredRows {
    pub payments: usize,
    pub addresses: usize,
    pub keys: u64,
    /// Those that stay lost, and why.
    pub refused: Vec<(Issued, String)>,
}

/// The payments and static addresses among `ids` that the database does not have.
///
/// # Errors
/// When the database fails.
pub async fn lost_ids(db: &impl GenericClient, ids: &[Uuid]) -> Result<HashSet<Uuid>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT id FROM unnest($1::uuid[]) AS t (id)
             WHERE NOT EXISTS (SELECT FROM payments p WHERE p.id = t.id)
                 AND NOT EXISTS (SELECT FROM deposit_addresses d WHERE d.id = t.id)",
        )
        .await?;
    Ok(db.query(&statement, &[&ids]).await?.iter().map(|row| row.get(0)).collect())
}

/// Inserts lost payments, static addresses and idempotency keys. Merchants and accounts have to be there. A creation that was not
/// told is told now; cancellations that were told are applied. One that contradicts the database, whichever of its rules it is, stays
/// out and keeps none of the others out.
///
/// # Errors
/// When the database fails.
pub async fn restore_issued(db: &impl GenericClient, lost: &[(Issued, Origin)]) -> Result<RestoredRows, Failure> {
    let mut restored = RestoredRows::default();
    let mut slices = vec![lost];
    while let Some(slice) = slices.pop() {
        db.batch_execute("SAVEPOINT slice").await?;
        match restore_slice(db, slice).await {
            Ok(RestoredRows { payments, addresses, keys, refused }) => {
                restored.payments += payments;
                restored.addresses += addresses;
                restored.keys += keys;
                restored.refused.extend(refused);
                db.batch_execute("RELEASE SAVEPOINT slice").await?;
            }
            Err(Failure::Halt(cause)) => {
                db.batch_execute("ROLLBACK TO SAVEPOINT slice").await?;
                match slice {
                    [(issued, _)] => restored.refused.push((issued.clone(), format!("{cause:#}"))),
                    // Halves, until the one is found.
                    _ => {
                        let (first, second) = slice.split_at(slice.len() / 2);
                        slices.extend([second, first]);
                    }
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(restored)
}

async fn restore_slice(db: &impl GenericClient, lost: &[(Issued, Origin)]) -> Result<RestoredRows, Failure> {
    let mut addresses = Vec::new();
    let mut payments: Vec<(&Payment, &Origin)> = Vec::new();
    for (issued, origin) in lost {
        match issued {
            Issued::Payment(payment) => payments.push((payment, origin)),
            Issued::Address(address) => addresses.push(address),
        }
    }
    let written_addresses = restore_addresses(db, &addresses).await?;
    let written: HashSet<Uuid> =
        restore_payments(db, &payments.iter().map(|(p, _)| *p).collect::<Vec<_>>()).await?.into_iter().collect();
    let is_written = |issued: &Issued| written.contains(&issued.id()) || written_addresses.contains(&issued.id());
    let cause = "another payment or static address of this database has its address, its index or its customer";
    let refused = lost.iter().filter(|(issued, _)| !is_written(issued));
    let refused = refused.map(|(issued, _)| (issued.clone(), cause.to_owned())).collect();
    payments.retain(|(payment, _)| written.contains(&payment.id.0));
    let keys = restore_keys(db, &payments).await?;

    let ids: Vec<Uuid> = written.into_iter().collect();
    let told = forget_told_creations(db, &ids).await?;
    let untold: Vec<_> = payments
        .iter()
        .filter(|(payment, _)| !told.contains(&payment.id.0))
        .map(|(payment, origin)| (*payment, created_event(payment), origin.asked_by()))
        .collect();
    record_requested_events(db, untold.iter().map(|(payment, event, key)| (*payment, event, *key))).await?;
    apply_told(db, &ids).await?;
    Ok(RestoredRows { payments: payments.len(), addresses: written_addresses.len(), keys, refused })
}

/// A key is used again after a day, and stands for its newest payment.
async fn restore_keys(db: &impl GenericClient, payments: &[(&Payment, &Origin)]) -> Result<u64, Failure> {
    let claims: Vec<_> =
        payments.iter().filter_map(|(payment, origin)| Some((payment, origin.idempotency.as_ref()?))).collect();
    if claims.is_empty() {
        return Ok(0);
    }
    let statement = db
        .prepare_cached(
            "INSERT INTO idempotency_keys (merchant_id, key, request_hash, payment_id, created_at)
             SELECT DISTINCT ON (merchant_id, key) merchant_id, key, request_hash, payment_id, to_timestamp(created_at)
             FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[], $5::bigint[])
               AS t (merchant_id, key, request_hash, payment_id, created_at)
             ORDER BY merchant_id, key, created_at DESC, payment_id DESC
             ON CONFLICT (merchant_id, key) DO UPDATE SET request_hash = EXCLUDED.request_hash, payment_id = EXCLUDED.payment_id,
                 created_at = EXCLUDED.created_at
             WHERE EXCLUDED.created_at > idempotency_keys.created_at",
        )
        .await?;
    let merchants: Vec<Uuid> = claims.iter().map(|(payment, _)| payment.merchant).collect();
    let keys: Vec<&str> = claims.iter().map(|(_, claim)| claim.key.as_str()).collect();
    let hashes: Vec<&[u8]> = claims.iter().map(|(_, claim)| claim.request_hash.as_slice()).collect();
    let ids: Vec<Uuid> = claims.iter().map(|(payment, _)| payment.id.0).collect();
    let times: Vec<i64> = claims.iter().map(|(payment, _)| bigint(payment.created_at)).collect();
    Ok(db.execute(&statement, &[&merchants, &keys, &hashes, &ids, &times]).await?)
}
