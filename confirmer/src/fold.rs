//! Records of `chain.matches` into payments: one Postgres transaction a batch, with the offset it ends at.
//!
//! The batch is applied block by block in memory, so that it gives what its records give one at a time; the database sees
//! only the payments that any of its blocks can touch, once.

use crate::deposit::deposit_id;
use crate::lifecycle::{Cause, Head};
use crate::store::{self, bigint};
use crate::working::Working;
use anyhow::anyhow;
use chain::Chains;
use deadpool_postgres::{GenericClient, Pool};
use runtime::{Failure, Folding, Span, db};
use std::collections::{BTreeMap, HashSet};
use topics::{Address, B256, BlockRef, ChainId, Kind, Matches, Topic};
use uuid::Uuid;

/// The stage.
pub const FOLDING: Folding = Folding { stage: "confirmer", topic: Topic::Matches, most: 256, most_bytes: 4 * 1024 * 1024 };
/// Payments in memory at once, each about 1 kB and with an event maybe.
const SLICE: usize = 20_000;

/// Records of one partition, in order.
pub struct Batch {
    /// Where in `chain.matches`.
    pub span: Span,
    /// The records.
    pub records: Vec<Matches>,
}

/// Applies a batch; returns how many events it made.
///
/// # Errors
/// `Retry` when the database fails or another instance has read on; `Halt` when the records contradict what is known.
pub async fn apply(pool: &Pool, chains: &Chains, batch: &Batch) -> Result<usize, Failure> {
    apply_in_slices(pool, chains, batch, SLICE).await
}

/// [`apply`] with so many payments in memory at once. The result is the same.
///
/// # Errors
/// As [`apply`] does.
pub async fn apply_in_slices(pool: &Pool, chains: &Chains, batch: &Batch, slice: usize) -> Result<usize, Failure> {
    let mut client = pool.get().await.map_err(db::unavailable)?;
    let tx = client.transaction().await.map_err(db::failure)?;
    FOLDING.claim(&tx, batch.span).await?;
    let mut by_chain: Vec<(ChainId, Vec<&Matches>)> = Vec::new();
    for record in &batch.records {
        match by_chain.iter_mut().find(|(chain, _)| *chain == record.chain) {
            Some((_, records)) => records.push(record),
            None => by_chain.push((record.chain, vec![record])),
        }
    }
    let mut events = 0;
    for (chain, records) in by_chain {
        events += fold_chain(&tx, chains, chain, &records, slice).await.map_err(|f| f.context(format!("chain {chain}")))?;
    }
    tx.commit().await.map_err(db::failure)?;
    Ok(events)
}

/// The head of a chain, as the database has it.
#[derive(Clone, Copy)]
struct Known {
    sequence: u64,
    /// Number of the first block ever put on.
    first: u64,
    number: u64,
    /// `None` when that first block was taken off: nothing is left.
    hash: Option<B256>,
    timestamp: u64,
    safe: Option<u64>,
    finalized: Option<u64>,
}

/// Payments are nothing to each other, so where a batch can touch very many (a pipeline that was down for a day expires a
/// day's payments with one block), they are folded slice by slice, all in the one transaction.
async fn fold_chain(
    db: &impl GenericClient,
    chains: &Chains,
    chain: ChainId,
    records: &[&Matches],
    slice: usize,
) -> Result<usize, Failure> {
    let head = known_head(db, chain).await?;
    let touched = candidates(db, chain, records).await?;
    // Transfers are credited with the first slice, which has all payments that they can be to.
    let mut slices: Vec<Vec<Uuid>> = Vec::new();
    if touched.len() <= slice {
        slices.push(touched.into_keys().collect());
    } else {
        let (paid, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = touched.into_iter().partition(|(_, paid)| *paid);
        slices.push(paid.into_keys().collect());
        slices.extend(rest.into_keys().collect::<Vec<_>>().chunks(slice.max(1)).map(<[Uuid]>::to_vec));
    }
    let (mut after, mut events) = (head, 0);
    for (place, ids) in slices.iter().enumerate() {
        let payments = store::lock(db, ids).await?;
        let mut working = if place == 0 {
            let paid: HashSet<Address> = payments.iter().filter(|p| p.deposit_address.is_none()).map(|p| p.address).collect();
            let others = records.iter().flat_map(|r| &r.transfers).map(|t| t.to).filter(|to| !paid.contains(to));
            let deposit_addresses = store::deposit_addresses(db, &others.collect::<HashSet<_>>()).await?;
            Working::new(chains, payments, deposit_addresses)
        } else {
            Working::uncredited(chains, payments)
        };
        after = head;
        for record in records {
            after = block(&mut working, after, record)
                .map_err(|f| f.context(format!("record {} of chain {chain}, block {}", record.sequence, record.block)))?;
        }
        working.write(db, chain).await?;
        events += working.events.len();
    }
    if let Some(head) = after {
        write_head(db, chain, &head).await?;
    }
    Ok(events)
}

/// One record: checks that it continues the chain's stack, and gives the payments what it says. Returns the head after it.
fn block(working: &mut Working<'_>, head: Option<Known>, record: &Matches) -> Result<Option<Known>, Failure> {
    let cause = Cause { chain: record.chain, block: record.block, timestamp: record.timestamp };
    let off = |expected: &str| {
        let at = head.map_or("nothing".to_owned(), |h| format!("block {} ({:?}) at sequence {}", h.number, h.hash, h.sequence));
        Err(Failure::Halt(anyhow!("chain.matches is out of order: expected {expected}, after {at}")))
    };
    match (record.kind, head) {
        (Kind::Added, head) => {
            if let Some(head) = head {
                let fits = head.hash.is_none_or(|hash| record.parent == hash && record.block.number == head.number + 1);
                if !fits || record.sequence != head.sequence + 1 {
                    return off("the next block on the head");
                }
            }
            // An endpoint may not know the tags for a while; what it called safe or final before stays so.
            let safe = record.safe.or(head.and_then(|h| h.safe));
            let finalized = record.finalized.or(head.and_then(|h| h.finalized));
            working.expire(cause)?;
            for transfer in &record.transfers {
                working.credit(&cause, transfer)?;
            }
            working.head(Head { cause, safe, finalized })?;
            Ok(Some(Known {
                sequence: record.sequence,
                first: head.filter(|h| h.hash.is_some()).map_or(record.block.number, |h| h.first),
                number: record.block.number,
                hash: Some(record.block.hash),
                timestamp: record.timestamp,
                safe,
                finalized,
            }))
        }
        (Kind::Removed, Some(head)) => {
            if Some(record.block.hash) != head.hash || record.sequence != head.sequence + 1 {
                return off("the head to be removed");
            }
            working.remove(cause)?;
            let number = head.number.saturating_sub(1);
            // What a tag said of the removed block, it did not say of the one that takes its place.
            let below = |tag: Option<u64>| tag.map(|tag| tag.min(number));
            Ok(Some(Known {
                sequence: record.sequence,
                number,
                hash: (head.number > head.first).then_some(record.parent),
                safe: below(head.safe),
                finalized: below(head.finalized),
                ..head
            }))
        }
        (Kind::Removed, None) => off("a first block before one is removed"),
        (Kind::Replayed, head) => {
            for transfer in &record.transfers {
                working.credit(&cause, transfer)?;
            }
            if let Some(Known { number, hash: Some(hash), timestamp, safe, finalized, .. }) = head {
                let cause = Cause { chain: record.chain, block: BlockRef { number, hash }, timestamp };
                working.head(Head { cause, safe, finalized })?;
            }
            Ok(head)
        }
    }
}

async fn known_head(db: &impl GenericClient, chain: ChainId) -> Result<Option<Known>, Failure> {
    let statement = db
        .prepare_cached(
            "SELECT sequence, first_number, number, hash, block_timestamp, safe_number, finalized_number FROM chain_heads
             WHERE chain_id = $1 FOR UPDATE",
        )
        .await
        .map_err(db::failure)?;
    let Some(row) = db.query_opt(&statement, &[&bigint(chain.0)]).await.map_err(db::failure)? else {
        return Ok(None);
    };
    let number = |column: usize| row.get::<_, Option<i64>>(column).and_then(|n| u64::try_from(n).ok());
    let hash = row.get::<_, Option<&[u8]>>(3).map(|hash| topics::hash("hash", hash)).transpose().map_err(Failure::halt)?;
    Ok(Some(Known {
        sequence: number(0).unwrap_or_default(),
        first: number(1).unwrap_or_default(),
        number: number(2).unwrap_or_default(),
        hash,
        timestamp: number(4).unwrap_or_default(),
        safe: number(5),
        finalized: number(6),
    }))
}

/// Whatever any block of the batch can touch: payments to the addresses paid, those that a timestamp expires, those whose
/// transfers get deep enough, and for removed blocks those that they had paid, confirmed or expired.
/// Each with whether a transfer of the batch can be to it.
async fn candidates(db: &impl GenericClient, chain: ChainId, records: &[&Matches]) -> Result<BTreeMap<Uuid, bool>, Failure> {
    let added = || records.iter().filter(|r| r.kind != Kind::Removed);
    let removed = || records.iter().filter(|r| r.kind == Kind::Removed);
    let addresses: Vec<&[u8]> = added().flat_map(|r| &r.transfers).map(|t| t.to.as_slice()).collect();
    let deposits: Vec<Uuid> = added().flat_map(|r| &r.transfers).map(|t| deposit_id(&t.id).0).collect();
    let hashes: Vec<&[u8]> = removed().map(|r| r.block.hash.as_slice()).collect();
    let numbers: Vec<i64> = removed().map(|r| bigint(r.block.number)).collect();
    let highest = |of: fn(&Matches) -> Option<u64>| added().filter_map(|r| of(r)).max().map_or(-1, bigint);
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
        .await
        .map_err(db::failure)?;
    let rows = db
        .query(
            &statement,
            &[
                &bigint(chain.0),
                &addresses,
                &highest(|r| Some(r.timestamp)),
                &highest(|r| Some(r.block.number)),
                &highest(|r| r.safe),
                &highest(|r| r.finalized),
                &hashes,
                &numbers,
                &deposits,
            ],
        )
        .await
        .map_err(db::failure)?;
    let mut touched = BTreeMap::new();
    for row in &rows {
        *touched.entry(row.get(0)).or_default() |= row.get::<_, bool>(1);
    }
    Ok(touched)
}

async fn write_head(db: &impl GenericClient, chain: ChainId, head: &Known) -> Result<(), Failure> {
    let statement = db
        .prepare_cached(
            "INSERT INTO chain_heads (chain_id, sequence, first_number, number, hash, block_timestamp, safe_number, finalized_number)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (chain_id) DO UPDATE SET sequence = EXCLUDED.sequence, first_number = EXCLUDED.first_number, number = EXCLUDED.number, hash = EXCLUDED.hash,
                 block_timestamp = EXCLUDED.block_timestamp, safe_number = EXCLUDED.safe_number,
                 finalized_number = EXCLUDED.finalized_number, updated_at = now()",
        )
        .await
        .map_err(db::failure)?;
    db.execute(
        &statement,
        &[
            &bigint(chain.0),
            &bigint(head.sequence),
            &bigint(head.first),
            &bigint(head.number),
            &head.hash.as_ref().map(|hash| hash.as_slice()),
            &bigint(head.timestamp),
            &head.safe.map(bigint),
            &head.finalized.map(bigint),
        ],
    )
    .await
    .map_err(db::failure)?;
    Ok(())
}
