//! Applies batches of `chain.matches` to payments: one Postgres transaction per batch, together with the offset that it ends at.
//!
//! - A batch gives what its records give one at a time: it is applied block by block, in memory. Each payment that any of its blocks
//!   can change is loaded and saved once.
//! - Records of a chain form a stack. A record that does not continue the known head is a fault of its chain, which is set
//!   aside. One that was applied before is passed over (`unapplied`), and whatever its sequence, a block that stands on the
//!   head by its parent continues it. Over a gap the chain goes on where replayed blocks lead to by their parents, unless what
//!   was missed may have brought other content for blocks in doubt.
//! - The parts of a block may be in several batches: each is credited as it comes, and the block is the head with the last one. So
//!   memory does not grow with a block, and a crash between parts continues with the next one.
//! - An offset that is not where this writer left it fails the transaction: another instance has read on.

use crate::settle;
use crate::unapplied::{Unapplied, begins_anew, continue_head, head_before, unapplied};
use crate::working_set::WorkingSet;
use anyhow::anyhow;
use chain::{Chains, may_stand_above};
use deadpool_postgres::{GenericClient, Pool};
use payments::lifecycle::{Cause, Head};
use payments::store::{self, BatchScope, ChainHead, LostBlocks, OpenBlock, OrphanTransfer, Reading};
use runtime::{Failure, FoldStage, Span};
use std::collections::{BTreeMap, HashMap, HashSet};
use topics::{Address, B256, BlockRef, ChainId, Kind, Matches, Topic};
use uuid::Uuid;

/// The stage's name and topic, and the limits of its batches.
pub const FOLDING: FoldStage = FoldStage {
    stage: "confirmer",
    topic: Topic::Matches,
    max_records: 256,
    max_bytes: 4 * 1024 * 1024,
    on_return: Some(store::ON_RETURN),
};
/// Payments in memory at once: each takes about 1 kB, may have an event, and has up to 16 kB of metadata, which is there twice while
/// it is loaded.
pub(crate) const MAX_PAYMENTS_IN_MEMORY: usize = 4_000;

/// Consecutive records of one partition of `chain.matches`.
pub struct Batch {
    pub span: Span,
    pub records: Vec<Matches>,
}

/// Applies a batch with at most `slice` payments in memory at once, and sets no chain aside; returns how many events it emitted. The
/// result does not depend on `slice`.
///
/// # Errors
/// `Retry` when the database fails or another instance has read on; `Halt` when the records contradict the known head or payments.
pub async fn apply_in_slices(pool: &Pool, chains: &Chains, batch: &Batch, slice: usize) -> Result<usize, Failure> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    FOLDING.claim(&tx, &batch.span).await?;
    let events = fold_chains(&tx, chains, &batch.records, &HashSet::new(), slice).await.map_err(|fault| fault.failure)?;
    tx.commit().await?;
    Ok(events)
}

/// A failure, and the chain whose records brought it.
pub struct ChainFault {
    pub chain: ChainId,
    pub failure: Failure,
}

/// Applies records, but for those of skipped chains; returns how many events they emitted. The transaction is of no use after a
/// fault.
///
/// # Errors
/// As for [`apply_in_slices`], with the chain.
pub(crate) async fn fold_chains(
    db: &impl GenericClient,
    chains: &Chains,
    records: &[Matches],
    skipped: &HashSet<ChainId>,
    slice: usize,
) -> Result<usize, ChainFault> {
    let mut by_chain: Vec<(ChainId, Vec<&Matches>)> = Vec::new();
    for record in records.iter().filter(|record| !skipped.contains(&record.chain)) {
        match by_chain.iter_mut().find(|(chain, _)| *chain == record.chain) {
            Some((_, records)) => records.push(record),
            None => by_chain.push((record.chain, vec![record])),
        }
    }
    let mut events = 0;
    for (chain, records) in by_chain {
        let fault = |failure: Failure| ChainFault { chain, failure: failure.context(format!("chain {chain}")) };
        events += fold_chain(db, chains, chain, &records, None, &[], slice).await.map_err(fault)?;
    }
    Ok(events)
}

/// Applies a chain's records, but for those that say nothing new. `ahead` is the next one that is not replayed, where they end with
/// replayed blocks and it is known. `orphans`, whose payment was not there when their block came, are credited first.
pub(crate) async fn fold_chain(
    db: &impl GenericClient,
    chains: &Chains,
    chain: ChainId,
    records: &[&Matches],
    ahead: Option<&Matches>,
    orphans: &[OrphanTransfer],
    slice: usize,
) -> Result<usize, Failure> {
    let head = store::lock_head(db, chain).await?;
    let before = head.unwrap_or_else(|| head_before(records));
    let read = match continue_head(&before, records) {
        Some(reading) => Unapplied { new: records.to_vec(), remembered: records.to_vec(), reading, fault: None },
        None => {
            let left = store::left_blocks(db, chain, &paying_replays(records).collect::<Vec<_>>()).await?;
            unapplied(&before, records, ahead, &mut store::applied_records(db, chain).await?, &left)
        }
    };
    if let Some(fault) = read.fault {
        return Err(Failure::halt(fault));
    }
    if !read.new.is_empty() || !orphans.is_empty() {
        return apply(db, chains, chain, head, &read, orphans, slice).await;
    }
    if let Some(head) = head.filter(|head| head.reading != read.reading || !read.remembered.is_empty()) {
        let head = ChainHead { reading: read.reading, ..head };
        tokio::try_join!(store::save_head(db, chain, &head), store::remember_records(db, chain, &read.remembered))?;
    }
    Ok(0)
}

/// Hashes of the replayed blocks with transfers.
fn paying_replays<'a>(records: &[&'a Matches]) -> impl Iterator<Item = &'a B256> {
    records.iter().filter(|record| record.sequence == 0 && !record.transfers.is_empty()).map(|record| &record.block.hash)
}

/// Payments do not depend on each other. So where a batch can change very many (after a day of downtime one block expires a
/// day's payments), they are applied slice by slice, all in the one transaction. Where its transfers are to very many, it is
/// several batches.
async fn apply(
    db: &impl GenericClient,
    chains: &Chains,
    chain: ChainId,
    head: Option<ChainHead>,
    read: &Unapplied<'_>,
    orphans: &[OrphanTransfer],
    slice: usize,
) -> Result<usize, Failure> {
    let records = read.new.as_slice();
    check_parts(head.as_ref(), records)?;
    let beginnings = beginnings(head.as_ref(), records);
    let lost = lost_blocks(db, chain, records, &beginnings).await?;
    let removed = removed_blocks(records, &beginnings, &lost);
    let scope = BatchScope::new(chain, head.as_ref(), records, orphans, &lost);
    let touched = store::touched_payments(db, &scope).await?;
    let paid = touched.values().filter(|paid| **paid).count();
    if paid > slice && records.len() > 1 {
        let (mut events, mut orphans, mut remembered) = (0, orphans, read.remembered.clone());
        for records in records.chunks(records.len().div_ceil(paid.div_ceil(slice.max(1)))) {
            let (new, remembered) = (records.to_vec(), std::mem::take(&mut remembered));
            let part = Unapplied { new, remembered, reading: read.reading, fault: None };
            let head = store::lock_head(db, chain).await?;
            events += Box::pin(apply(db, chains, chain, head, &part, orphans, slice)).await?;
            orphans = &[];
        }
        return Ok(events);
    }
    let replays: Vec<&B256> = paying_replays(records).collect();
    store::remove_orphans(db, chain, &removed, &replays, read.remembered.len()).await?;
    let mut known = store::known_transfers(db, &scope).await?;
    settle::forget_settled(db, chain, records, &beginnings, orphans, &known).await?;
    let mut waiting = store::orphans_in(db, chain, scope.replayed_in_doubt()).await?;
    let mut parts = if touched.is_empty() { HashMap::new() } else { store::touched_parts(db, &scope).await? };
    // Transfers are credited with the first slice, which has every payment that they can be to.
    let mut slices: Vec<Vec<Uuid>> = Vec::new();
    if touched.len() <= slice {
        slices.push(touched.into_keys().collect());
    } else {
        let (paid, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = touched.into_iter().partition(|(_, paid)| *paid);
        slices.push(paid.into_keys().collect());
        slices.extend(rest.into_keys().collect::<Vec<_>>().chunks(slice.max(1)).map(<[Uuid]>::to_vec));
    }
    let (mut after, mut events, mut rows) = (head, 0, (Vec::new(), Vec::new()));
    for (index, ids) in slices.iter().enumerate() {
        let payments = store::lock_touched_payments(db, ids, &scope, &mut parts).await?;
        let told = if index == 0 {
            store::told_events(db, &ids.iter().copied().chain(scope.deposits()).collect::<Vec<_>>()).await?
        } else {
            store::told_events(db, ids).await?
        };
        let mut working = if index == 0 {
            let paid: HashSet<Address> = payments.iter().filter(|p| p.deposit_address.is_none()).map(|p| p.address).collect();
            let transfers = records.iter().flat_map(|r| &r.transfers).chain(orphans.iter().map(|orphan| &orphan.transfer));
            let others = transfers.map(|t| t.to).filter(|to| !paid.contains(to));
            let deposit_addresses = store::deposit_addresses(db, &others.collect::<HashSet<_>>()).await?;
            WorkingSet::new(chains, payments, deposit_addresses, std::mem::take(&mut known), told)
                .with_waiting(std::mem::take(&mut waiting))
        } else {
            WorkingSet::without_transfers(chains, payments, told)
        };
        after = head;
        for orphans in OrphanTransfer::by_part(orphans) {
            credit_orphans(&mut working, orphans)?;
        }
        if let Some((head, hash)) = head.as_ref().and_then(|head| Some((head, head.hash?))).filter(|_| !orphans.is_empty()) {
            working.head(head_of(chain, head, hash))?;
        }
        for record in records {
            after = apply_record(&mut working, after, record, &lost)
                .map_err(|f| f.context(format!("record {} of chain {chain}, block {}", record.sequence, record.block)))?;
        }
        if index == 0 {
            rows = working.take_rows();
        }
        events += working.write(db).await?;
    }
    // After the last slice, since a payment's events show the transfers of the blocks before they are removed. A block may come
    // again without one of its transfers, so all of a removed block are marked before those that stand are written.
    let (gone, standing) = rows;
    store::save_transfers(db, &gone).await?;
    store::remove_transfers(db, chain, &removed).await?;
    store::save_transfers(db, &standing).await?;
    if let Some(mut head) = after {
        if let Some(last) = records.last() {
            head.open = (!last.ends_block()).then_some(OpenBlock { hash: last.block.hash, part: last.part });
        }
        head.reading = read.reading;
        tokio::try_join!(store::save_head(db, chain, &head), store::remember_records(db, chain, &read.remembered))?;
    }
    Ok(events)
}

/// Checks that no part of a block is missing between two records, nor before the first of them.
fn check_parts(head: Option<&ChainHead>, records: &[&Matches]) -> Result<(), Failure> {
    let place = |record: &Matches| format!("part {} of {} of block {}", record.part, record.parts, record.block);
    let out_of_order = |record, before: String| {
        Failure::Halt(anyhow!("chain.matches is out of order: {} comes after {before}", place(record)))
    };
    if let (Some(head), Some(first)) = (head, records.first()) {
        // It stands in no order. Where one is read again, its first parts may be read no more.
        let is_past = first.sequence == 0;
        let follows = match head.open {
            Some(open) if first.block.hash == open.hash => first.part == open.part + 1,
            Some(_) => is_past || begins_anew(first),
            None => is_past || first.begins_block(),
        };
        if !follows {
            let whole = "a whole block".to_owned();
            return Err(out_of_order(
                first,
                head.open.map_or(whole, |open| format!("part {} of block {}", open.part, open.hash)),
            ));
        }
    }
    match records.iter().zip(records.iter().skip(1)).find(|(before, record)| !record.can_follow(before)) {
        Some((before, record)) => Err(out_of_order(record, place(before))),
        None => Ok(()),
    }
}

/// The block up to which the chain stands that begins anew with this record, if it does: where somebody asked for it, or where a
/// branch begins below the first block of the chain that made way for it. What both have is taken back as well, since nothing tells
/// yet where the branch leaves; it brings that again.
fn stands_up_to(head: Option<&ChainHead>, record: &Matches) -> Option<u64> {
    let is_below = |head: &&ChainHead| head.makes_way && record.block.number <= head.number;
    match record.kind {
        Kind::Replayed => begins_anew(record).then_some(record.block.number),
        Kind::Added if record.begins_block() => head.filter(is_below).map(|_| record.block.number.saturating_sub(1)),
        Kind::Added | Kind::Removed | Kind::Tags => None,
    }
}

/// The records with which the chain begins anew, each with the block up to which it stands then.
fn beginnings<'a>(head: Option<&ChainHead>, records: &[&'a Matches]) -> Vec<(u64, &'a Matches)> {
    let (mut head, mut beginnings) = (head.copied(), Vec::new());
    for record in records {
        beginnings.extend(stands_up_to(head.as_ref(), record).map(|number| (number, *record)));
        // Whoever applies a record that does not fit says so.
        let Ok(after) = head_after(head, record) else { break };
        head = after;
    }
    beginnings
}

/// The blocks that a chain that begins anew may lose, those of the batch included.
async fn lost_blocks(
    db: &impl GenericClient,
    chain: ChainId,
    records: &[&Matches],
    beginnings: &[(u64, &Matches)],
) -> Result<LostBlocks, Failure> {
    let Some(lowest) = beginnings.iter().map(|(number, _)| *number).min() else { return Ok(LostBlocks::default()) };
    let mut lost = store::lost_blocks(db, chain, lowest).await?;
    let of_batch = records.iter().map(|record| record.block).filter(|block| block.number > lowest);
    lost.numbers.extend(of_batch.map(|block| (block.hash, block.number)));
    Ok(lost)
}

/// Hashes of the blocks that the records take back, if they bring them again or not, and the sequences of those records.
fn removed_blocks(records: &[&Matches], beginnings: &[(u64, &Matches)], lost: &LostBlocks) -> HashMap<B256, u64> {
    let begins = beginnings.last().map_or(0, |(_, record)| record.sequence);
    let mut removed: HashMap<B256, u64> = lost.numbers.keys().map(|hash| (*hash, begins)).collect();
    for record in records.iter().filter(|record| record.kind == Kind::Removed) {
        // The chain may have begun anew since.
        let by = removed.entry(record.block.hash).or_default();
        *by = record.sequence.max(*by);
    }
    removed
}

/// Credits orphans of one block, or of one part of it.
fn credit_orphans(working: &mut WorkingSet<'_>, orphans: &[OrphanTransfer]) -> Result<(), Failure> {
    let Some(OrphanTransfer { block, timestamp, part, transfer, .. }) = orphans.first() else {
        return Ok(());
    };
    let cause = Cause { chain: transfer.id.chain, block: *block, timestamp: *timestamp };
    working.credit(&cause, *part, &orphans.iter().map(|orphan| orphan.transfer.clone()).collect::<Vec<_>>())
}

/// Applies one record after checking that it continues the chain's stack. Returns the head after it.
fn apply_record(
    working: &mut WorkingSet<'_>,
    head: Option<ChainHead>,
    record: &Matches,
    lost: &LostBlocks,
) -> Result<Option<ChainHead>, Failure> {
    let cause = Cause { chain: record.chain, block: record.block, timestamp: record.timestamp };
    let after = head_after(head, record)?;
    if let Some(number) = stands_up_to(head.as_ref(), record) {
        let hash = if record.kind == Kind::Added { record.parent } else { record.block.hash };
        working.rewind(Cause { block: BlockRef { number, hash }, ..cause }, &lost.numbers)?;
    }
    match record.kind {
        Kind::Added => {
            if record.begins_block() {
                working.expire(cause)?;
            }
            working.credit(&cause, record.part, &record.transfers)?;
        }
        Kind::Replayed if !begins_anew(record) => {
            if head.is_some_and(|head| head.has_in_doubt(record)) {
                working.check_replayed(&cause, record)?;
            }
            working.credit(&cause, record.part, &record.transfers)?;
        }
        Kind::Removed => working.remove(cause, record.number_below())?,
        Kind::Replayed | Kind::Tags => {}
    }
    if let Some(head @ ChainHead { hash: Some(hash), .. }) = &after
        && record.kind != Kind::Removed
        && record.ends_block()
    {
        working.head(head_of(record.chain, head, *hash))?;
    }
    Ok(after)
}

/// The head after a record, if it continues the chain's stack.
fn head_after(head: Option<ChainHead>, record: &Matches) -> Result<Option<ChainHead>, Failure> {
    let out_of_order = |expected: &str| {
        let at = head.map_or("nothing".to_owned(), |h| format!("block {} ({:?}) at sequence {}", h.number, h.hash, h.sequence));
        Err(Failure::Halt(anyhow!("chain.matches is out of order: expected {expected}, after {at}")))
    };
    match (record.kind, head) {
        (Kind::Added, head) => {
            if let Some(head) = head {
                // The parent alone says that nothing lies between: some chains skip numbers.
                let on = |tip: BlockRef| record.parent == tip.hash && record.block.number > tip.number;
                let tip = head.hash.map(|hash| BlockRef { number: head.number, hash });
                let next = record.sequence == head.sequence + 1 && tip.is_none_or(on);
                // No block is missing where the parents lead on, whatever the counter says.
                if !next && !head.bridge.or(tip).is_some_and(on) {
                    return out_of_order("the child of the head");
                }
            }
            if !record.ends_block() {
                return Ok(head);
            }
            Ok(Some(ChainHead {
                sequence: record.sequence,
                first: head.filter(|h| h.hash.is_some()).map_or(record.block.number, |h| h.first),
                number: record.block.number,
                hash: Some(record.block.hash),
                makes_way: false,
                timestamp: record.timestamp,
                // An endpoint may not report the tags for a while; what was safe or final before stays so.
                safe: record.safe.or(head.and_then(|h| h.safe)),
                finalized: record.finalized.or(head.and_then(|h| h.finalized)),
                // A fact: once enough endpoints have given a block, only its removal takes that back.
                witnessed: record.witnessed.max(head.and_then(|h| h.witnessed)),
                bridge: None,
                open: None,
                reading: Reading::default(),
            }))
        }
        (Kind::Tags, Some(head)) => {
            // Of that block nothing is missing, whatever the counter says.
            if head.hash.map_or(record.sequence != head.sequence + 1, |hash| hash != record.block.hash) {
                return out_of_order("what is known of the head");
            }
            // It is of a block that was not applied, on which the chain begins anew.
            if head.hash.is_none() {
                return Ok(Some(ChainHead { sequence: record.sequence, ..head }));
            }
            // What is read again may be old.
            let is_later = record.sequence > head.sequence;
            let tag = |told: Option<u64>, known: Option<u64>| if is_later { told.or(known) } else { told.max(known) };
            // The time stays the block's own: what comes to light about it later is no news of a later time.
            Ok(Some(ChainHead {
                sequence: record.sequence,
                safe: tag(record.safe, head.safe),
                finalized: tag(record.finalized, head.finalized),
                witnessed: record.witnessed.max(head.witnessed),
                ..head
            }))
        }
        (Kind::Removed, Some(head)) => {
            if Some(record.block.hash) != head.hash {
                return out_of_order("the removal of the head");
            }
            let number = record.number_below();
            if !record.parent_number.is_none_or(|below| may_stand_above(record.block.number, below)) {
                return out_of_order("the parent of the removed block below it, over no wider a hole than a chain may have");
            }
            // A tag that covered the removed block does not cover the one that takes its place, whatever that one's number is.
            // Below the first block nothing is known: another branch may begin there.
            let left = head.number > head.first;
            let below = |tag: Option<u64>| tag.filter(|_| left).map(|tag| tag.min(number));
            Ok(Some(ChainHead {
                sequence: record.sequence,
                number,
                hash: left.then_some(record.parent),
                makes_way: !left,
                safe: below(head.safe),
                finalized: below(head.finalized),
                witnessed: below(head.witnessed),
                bridge: None,
                ..head
            }))
        }
        (Kind::Removed | Kind::Tags, None) => out_of_order("an added block first"),
        (Kind::Replayed, head) if begins_anew(record) => {
            if head.is_some_and(|head| record.sequence <= head.sequence) {
                return out_of_order("a later sequence");
            }
            // The chain begins anew: what comes next may stand on anything, no tag of before is of that history, and nobody will
            // remove the blocks above the one up to which it stands, nor what a backfill brought before the first.
            Ok(head.map(|head| ChainHead {
                sequence: record.sequence,
                number: head.number.min(record.block.number),
                hash: None,
                makes_way: false,
                safe: None,
                finalized: None,
                witnessed: None,
                bridge: None,
                ..head
            }))
        }
        (Kind::Replayed, head) if !record.ends_block() => Ok(head),
        (Kind::Replayed, head) => Ok(head.map(|head| ChainHead { bridge: bridge_after(&head, record), ..head })),
    }
}

/// A known head as an input to payments.
fn head_of(chain: ChainId, head: &ChainHead, hash: B256) -> Head {
    let ChainHead { number, timestamp, safe, finalized, witnessed, .. } = *head;
    Head { cause: Cause { chain, block: BlockRef { number, hash }, timestamp }, safe, finalized, witnessed }
}

/// The bridge after a replayed block: it grows if the block leads on from its end, or from the head.
fn bridge_after(head: &ChainHead, record: &Matches) -> Option<BlockRef> {
    let leads_on = |from: B256| from == record.parent;
    let grows = head.bridge.is_some_and(|bridge| leads_on(bridge.hash)) || head.hash.is_some_and(leads_on);
    if grows { Some(record.block) } else { head.bridge }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unapplied::tests::record;

    /// A backfill may bring it between the two, and the stage may read it again without the second.
    #[test]
    fn a_block_that_leaves_the_chain_twice_in_a_batch_has_left_it_with_the_later_record() {
        let (left, begins) = (record(10, Kind::Removed, 7, 0), record(12, Kind::Replayed, 5, 0));
        let gone = record(9, Kind::Removed, 8, 0);
        let mut lost = LostBlocks::default();
        lost.numbers.insert(left.block.hash, 7);
        let removed = removed_blocks(&[&gone, &left, &begins], &[(5, &begins)], &lost);
        assert_eq!(removed, HashMap::from([(left.block.hash, 12), (gone.block.hash, 9)]));
    }
}
