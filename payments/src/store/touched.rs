//! The query that finds which payments a batch of `chain.matches` can change, before
//! [`lock_touched_payments`](super::lock_touched_payments) loads them. It may return more than the batch changes, and never fewer.

use super::heads::ChainHead;
use super::lost::LostBlocks;
use super::orphans::OrphanTransfer;
use crate::deposit::{deposit_id, deposits_of_many};
use chain::MAX_SKIPPED;
use deadpool_postgres::GenericClient;
use runtime::Failure;
use runtime::db::bigint;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use topics::{B256, ChainId, Kind, Matches, Source, Transfer, TransferId};
use uuid::Uuid;

/// What a batch of `chain.matches` brings, as arguments of statements.
pub struct BatchScope<'a> {
    pub(super) chain: i64,
    /// Addresses paid.
    addresses: Vec<&'a [u8]>,
    /// Deposits that its transfers may create, or may have created before.
    deposits: BTreeSet<Uuid>,
    /// The highest of its blocks' timestamps; -1 for none.
    timestamp: i64,
    /// What is due at these numbers or below is deep enough at some point of the batch, by policy: under confirmations, `safe` and
    /// `finalized`. Nothing is where witnesses have not been. -1 for nothing.
    pub(super) number: i64,
    pub(super) safe: i64,
    pub(super) finalized: i64,
    /// Hashes of the blocks that have transfers.
    pub(super) paying_blocks: Vec<&'a [u8]>,
    /// The transactions with its transfers, by block and source, with the lowest and the highest index of those. A block in parts has
    /// more, also of one transaction.
    pub(super) transactions: BTreeMap<(B256, B256, Source), (u32, u32)>,
    /// Hashes of the blocks that it replays and that may come with other content than was applied: too few endpoints had given
    /// them.
    pub(super) replayed_in_doubt: Vec<&'a [u8]>,
    /// Hashes of the blocks that it takes back, and their numbers with those that the chain skips below them: all that the head
    /// falls from.
    pub(super) removed_blocks: Vec<&'a [u8]>,
    pub(super) removed_numbers: Vec<i64>,
}

impl<'a> BatchScope<'a> {
    /// `head` is the one before the batch; `orphans` are credited with it; `lost` is taken back where the chain begins anew.
    pub fn new(
        chain: ChainId,
        head: Option<&ChainHead>,
        records: &[&'a Matches],
        orphans: &'a [OrphanTransfer],
        lost: &'a LostBlocks,
    ) -> Self {
        let added = || records.iter().filter(|r| r.kind != Kind::Removed);
        let removed = || records.iter().filter(|r| r.kind == Kind::Removed);
        let transfers = || added().flat_map(|r| &r.transfers).chain(orphans.iter().map(|orphan| &orphan.transfer));
        let addresses: BTreeSet<&[u8]> = transfers().map(|t| t.to.as_slice()).collect();
        let paying_blocks: BTreeSet<&[u8]> = transfers().map(|t| t.id.block.as_slice()).collect();
        let mut transactions = BTreeMap::new();
        for TransferId { block, transaction, source, index, .. } in transfers().map(|transfer| transfer.id) {
            let (lowest, highest) = transactions.entry((block, transaction, source)).or_insert((index, index));
            (*lowest, *highest) = (index.min(*lowest), index.max(*highest));
        }
        let mut deposits = BTreeSet::new();
        let mut add_deposits = |transfers: Vec<&Transfer>, timestamp| {
            deposits.extend(deposits_of_many(transfers.iter().copied(), timestamp).into_values().map(|id| id.0));
            deposits.extend(transfers.into_iter().map(|transfer| deposit_id([transfer], timestamp).0));
        };
        added().for_each(|record| add_deposits(record.transfers.iter().collect(), record.timestamp));
        for orphans in OrphanTransfer::by_part(orphans) {
            add_deposits(
                orphans.iter().map(|orphan| &orphan.transfer).collect(),
                orphans.first().map_or(0, |one| one.timestamp),
            );
        }
        // From there on blocks may be in doubt at some point of the batch.
        let known = removed().map(|r| r.number_below()).chain(head.map(ChainHead::known_by_hash)).min();
        let replayed = records.iter().filter(|r| r.sequence == 0 && known.is_none_or(|known| known < r.block.number));
        let highest = |of: fn(&Matches) -> Option<u64>| added().filter_map(|r| of(r)).max();
        // A record without a tag, or without a word on witnesses, leaves both where they were.
        let witnessed = highest(|r| r.witnessed).max(head.and_then(|head| head.witnessed));
        let due = |reached: Option<u64>| reached.min(witnessed).map_or(-1, bigint);
        Self {
            chain: bigint(chain.0),
            addresses: addresses.into_iter().collect(),
            deposits,
            timestamp: highest(|r| Some(r.timestamp)).map_or(-1, bigint),
            number: due(highest(|r| Some(r.block.number)).max(head.filter(|head| head.hash.is_some()).map(|head| head.number))),
            safe: due(highest(|r| r.safe).max(head.and_then(|head| head.safe))),
            finalized: due(highest(|r| r.finalized).max(head.and_then(|head| head.finalized))),
            paying_blocks: paying_blocks.into_iter().collect(),
            transactions,
            replayed_in_doubt: replayed.map(|r| r.block.hash.as_slice()).collect(),
            removed_blocks: removed().map(|r| &r.block.hash).chain(lost.numbers.keys()).map(|hash| hash.as_slice()).collect(),
            removed_numbers: removed().flat_map(fallen_numbers).map(bigint).chain(lost.heights.iter().copied()).collect(),
        }
    }

    /// Hashes of the blocks that the batch replays and that may come with other content than was applied.
    pub fn replayed_in_doubt(&self) -> &[&'a [u8]] {
        &self.replayed_in_doubt
    }

    /// The deposits that the batch's transfers may create, or may have created before.
    pub fn deposits(&self) -> impl Iterator<Item = Uuid> {
        self.deposits.iter().copied()
    }
}

/// The numbers from which the head falls where this block is removed. A record of a wider hole than a chain may have is refused.
fn fallen_numbers(removed: &&Matches) -> RangeInclusive<u64> {
    let number = removed.block.number;
    let lowest = removed.number_below().saturating_add(1).max(number.saturating_sub(MAX_SKIPPED));
    lowest.min(number)..=number
}

/// The parts that blocks have brought, as a table: the chain and the hashes are these parameters of a statement. The index has
/// seven bytes of each hash. Without OFFSET the planner may read what the whole chain has.
pub(super) fn parts_of_blocks(chain: u8, hashes: u8) -> String {
    format!(
        "(SELECT of_block.* FROM (SELECT DISTINCT hash FROM unnest(${hashes}::bytea[]) AS hash) AS asked
             CROSS JOIN LATERAL (SELECT * FROM payment_parts WHERE chain_id = ${chain} AND block_hash = hash
                 AND substring(block_hash FROM 1 FOR 7) = substring(hash FROM 1 FOR 7) OFFSET 0) AS of_block) AS part"
    )
}

/// Ids of the payments that any record of the batch can change: those at the addresses paid, those that a timestamp expires, those
/// that get deep enough, and for removed blocks those that the blocks had paid, confirmed or expired. The flag tells whether the
/// batch can hold a transfer to the payment.
///
/// # Errors
/// When the database fails.
pub async fn touched_payments(db: &impl GenericClient, scope: &BatchScope<'_>) -> Result<BTreeMap<Uuid, bool>, Failure> {
    let sql = format!(
        "SELECT id, true FROM payments WHERE address = ANY($2) AND deposit_address IS NULL
         UNION SELECT id, true FROM payments WHERE id = ANY($9)
         UNION SELECT id, false FROM payments WHERE chain_id = $1 AND status = 'pending' AND expires_at < $3
         UNION SELECT payment_id, false FROM payment_parts
             WHERE chain_id = $1 AND due IS NOT NULL AND confirmed <> credited AND finality IS NULL AND due <= $4
         UNION SELECT payment_id, false FROM payment_parts
             WHERE chain_id = $1 AND due IS NOT NULL AND confirmed <> credited AND finality = 'safe' AND due <= $5
         UNION SELECT payment_id, false FROM payment_parts
             WHERE chain_id = $1 AND due IS NOT NULL AND confirmed <> credited AND finality = 'finalized' AND due <= $6
         UNION SELECT payment_id, false FROM {of_blocks}
         UNION SELECT payment_id, false FROM payment_parts
             WHERE chain_id = $1 AND confirmed > 0 AND finality IS NULL AND due = ANY($8)
         UNION SELECT id, false FROM payments WHERE chain_id = $1 AND expired_by = ANY($8)",
        of_blocks = parts_of_blocks(1, 7)
    );
    let statement = db.prepare_cached(&sql).await?;
    let rows = db
        .query(
            &statement,
            &[
                &scope.chain,
                &scope.addresses,
                &scope.timestamp,
                &scope.number,
                &scope.safe,
                &scope.finalized,
                &scope.removed_blocks,
                &scope.removed_numbers,
                &scope.deposits().collect::<Vec<_>>(),
            ],
        )
        .await?;
    let mut touched = BTreeMap::new();
    for row in &rows {
        *touched.entry(row.get(0)).or_default() |= row.get::<_, bool>(1);
    }
    Ok(touched)
}
