//! The query that finds which payments a batch of `chain.matches` can change, before [`lock_payments`](super::lock_payments) loads
//! them. It may return more than the batch changes, and never fewer.

use super::heads::ChainHead;
use crate::deposit::deposit_id;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::bigint;
use std::collections::BTreeMap;
use topics::{ChainId, Kind, Matches};
use uuid::Uuid;

/// Ids of the payments that any record of the batch can change, given the head before it: those at the addresses paid, those that a timestamp expires, those
/// whose transfers get deep enough, and for removed blocks those that the blocks had paid, confirmed or expired. The flag tells
/// whether the batch can hold a transfer to the payment.
///
/// # Errors
/// When the database fails.
pub async fn touched_payments(
    db: &impl GenericClient,
    chain: ChainId,
    head: Option<&ChainHead>,
    records: &[&Matches],
) -> Result<BTreeMap<Uuid, bool>, Failure> {
    let added = || records.iter().filter(|r| r.kind != Kind::Removed);
    let removed = || records.iter().filter(|r| r.kind == Kind::Removed);
    let addresses: Vec<&[u8]> = added().flat_map(|r| &r.transfers).map(|t| t.to.as_slice()).collect();
    let deposits: Vec<Uuid> = added().flat_map(|r| &r.transfers).map(|t| deposit_id(&t.id).0).collect();
    let hashes: Vec<&[u8]> = removed().map(|r| r.block.hash.as_slice()).collect();
    let numbers: Vec<i64> = removed().map(|r| bigint(r.block.number)).collect();
    let highest = |of: fn(&Matches) -> Option<u64>| added().filter_map(|r| of(r)).max();
    // A record without a tag, or without a word on witnesses, leaves both where they were.
    let witnessed = highest(|r| r.witnessed).max(head.and_then(|head| head.witnessed));
    let due = |reached: Option<u64>| reached.min(witnessed).map_or(-1, bigint);
    let statement = db
        .prepare_cached(
            "SELECT id, true FROM payments WHERE address = ANY($2) AND deposit_address IS NULL
             UNION SELECT id, true FROM payments WHERE id = ANY($9)
             UNION SELECT id, false FROM payments WHERE chain_id = $1 AND status = 'pending' AND expires_at < $3
             UNION SELECT payment_id, false FROM transfers
                 WHERE chain_id = $1 AND due IS NOT NULL AND NOT confirmed AND NOT removed AND finality IS NULL AND due <= $4
             UNION SELECT payment_id, false FROM transfers
                 WHERE chain_id = $1 AND due IS NOT NULL AND NOT confirmed AND NOT removed AND finality = 'safe' AND due <= $5
             UNION SELECT payment_id, false FROM transfers
                 WHERE chain_id = $1 AND due IS NOT NULL AND NOT confirmed AND NOT removed AND finality = 'finalized' AND due <= $6
             UNION SELECT payment_id, false FROM transfers WHERE chain_id = $1 AND block_hash = ANY($7) AND listed AND NOT removed
             UNION SELECT payment_id, false FROM transfers
                 WHERE chain_id = $1 AND confirmed AND NOT removed AND finality IS NULL AND due = ANY($8)
             UNION SELECT id, false FROM payments WHERE chain_id = $1 AND expired_by = ANY($8)",
        )
        .await?;
    let rows = db
        .query(
            &statement,
            &[
                &bigint(chain.0),
                &addresses,
                &highest(|r| Some(r.timestamp)).map_or(-1, bigint),
                &due(highest(|r| Some(r.block.number))),
                &due(highest(|r| r.safe).max(head.and_then(|head| head.safe))),
                &due(highest(|r| r.finalized).max(head.and_then(|head| head.finalized))),
                &hashes,
                &numbers,
                &deposits,
            ],
        )
        .await?;
    let mut touched = BTreeMap::new();
    for row in &rows {
        *touched.entry(row.get(0)).or_default() |= row.get::<_, bool>(1);
    }
    Ok(touched)
}
