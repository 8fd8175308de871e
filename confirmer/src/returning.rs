//! Brings chains back that are set aside: once one can go on, what has waited is applied in order, up to the partition's offset and no
//! further, since what comes after it is the stage's.
//!
//! One that can't be applied waits for what comes behind it: a new beginning, or, where records are missing before it, replayed blocks that
//! say again what was in doubt. Both are looked for in turn with the other chains, and nothing is looked through twice.

use crate::aside::{Faults, chain_of, read};
use crate::fold::{FOLDING, MAX_PAYMENTS_IN_MEMORY, fold_chain};
use crate::orphans::OrphanLook;
use crate::seek::{Next, Sought, next_below, seek_in};
use crate::unapplied::{Fault, LookForSaid, begins_anew, said_again, say};
use anyhow::anyhow;
use base::metrics;
use chain::{Chains, Listing};
use deadpool_postgres::Pool;
use payments::store;
use runtime::kafka::{Kafka, PartitionReader, Record};
use runtime::{Failure, SetAside, stage};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::{ChainId, Matches, Topic};

/// How often to look for chains that can go on.
const CATCH_UP_INTERVAL: Duration = Duration::from_secs(1);
/// Records of any chain that are read for one transaction.
const MAX_PASSED: usize = 16_384;
/// How soon a chain is tried again whose records could not be applied.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// How soon it is looked whether such a chain begins anew.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a chain's records are applied, or looked through, before the others have their turn.
const TURN: Duration = Duration::from_secs(10);

/// Brings chains back that are set aside and can go on, and credits orphans that have an owner by now, until `stop`.
///
/// # Errors
/// `Retry` when Kafka or the database fails.
pub fn catch_up(
    kafka: &Kafka,
    pool: &Pool,
    listing: &Listing,
    handle: &Handle,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let mut met: HashMap<(i32, String), Met> = HashMap::new();
    let mut orphans = OrphanLook::default();
    while !stop.is_cancelled() {
        let chains = &*listing.chains();
        handle.block_on(orphans.credit_owned(pool, chains))?;
        let items = handle.block_on(items(kafka, pool))?;
        report(&items);
        for item in items {
            let Some(chain) = chain_of(&item).filter(|chain| chains.by_id(*chain).is_some()) else { continue };
            let Met { failed, looked } = met.entry((item.partition, item.item.clone())).or_default();
            if failed.as_ref().is_some_and(|last| last.looked.elapsed() < LOOK_INTERVAL) {
                continue;
            }
            let batch = FOLDING.max_records;
            let waits = failed.as_ref().is_some_and(|last| last.at.elapsed() < RETRY_INTERVAL);
            looked.begin(item.next_offset);
            // The stage has read what lies below the partition's offset, so no open transaction is before it.
            let reader = PartitionReader::open_at_once(kafka, Topic::Matches, item.partition);
            let mut returning = Returning { pool, chains, handle, stop, chain, item, batch, looked };
            let outcome = reader.and_then(|reader| {
                if waits && !matches!(returning.find_new_beginning(&reader)?, Sought::Found(_)) {
                    return Ok(None);
                }
                returning.run(&reader).map(Some)
            });
            if let Some(last) = failed.as_mut() {
                last.looked = Instant::now();
            }
            // Wherever it goes back to from here, what lies there may be other records by then.
            returning.looked.from = returning.item.next_offset;
            match outcome {
                // It has not begun anew.
                Ok(None) => {}
                Ok(Some(true)) => {
                    *looked = Looked::default();
                    tracing::warn!("chain {chain} goes on");
                }
                // The partition's offset has moved on meanwhile, or it is the others' turn.
                Ok(Some(false)) => *failed = None,
                Err(Failure::Halt(cause)) => {
                    tracing::error!("chain {chain} stays set aside: {cause:#}");
                    let now = Instant::now();
                    *failed = Some(Failed { at: now, looked: now });
                }
                // It keeps none of the others from going on.
                Err(failure) => tracing::warn!("chain {chain} stays set aside for now: {failure}"),
            }
        }
        stage::pause(stop, CATCH_UP_INTERVAL);
    }
    Ok(())
}

/// A chain that is set aside, as it was met last.
#[derive(Default)]
struct Met {
    failed: Option<Failed>,
    looked: Looked,
}

/// A chain that was tried without success.
struct Failed {
    at: Instant,
    /// When it was looked for a new beginning last.
    looked: Instant,
}

/// How far a chain's waiting records were looked through, and for what: none is for the same twice.
#[derive(Default)]
struct Looked {
    /// The chain's offset.
    from: i64,
    /// Up to here it does not begin anew.
    for_beginning: i64,
    ahead: Ahead,
    for_said: Option<LookForSaid>,
}

impl Looked {
    /// Begins with the chain's offset, or goes on if that has not gone back.
    fn begin(&mut self, offset: i64) {
        if offset < self.from {
            *self = Self::default();
        }
        self.from = offset;
        // It may be another one by now.
        self.ahead.record = None;
    }
}

async fn items(kafka: &Kafka, pool: &Pool) -> Result<Vec<SetAside>, Failure> {
    let all = runtime::set_aside::chains(&pool.get().await?, kafka.topic_prefix()).await?;
    Ok(all.into_iter().filter(|item| item.stage == FOLDING.stage).collect())
}

fn report(items: &[SetAside]) {
    #[expect(clippy::cast_precision_loss, reason = "there are dozens of chains")]
    metrics::SET_ASIDE.gauge(&[("kind", "confirmer_chain")]).set(items.len() as f64);
}

/// A chain that can go on.
struct Returning<'a> {
    pool: &'a Pool,
    chains: &'a Chains,
    handle: &'a Handle,
    stop: &'a CancellationToken,
    chain: ChainId,
    item: SetAside,
    /// Records per transaction: one after a fault, so that what comes before it is applied.
    batch: usize,
    looked: &'a mut Looked,
}

/// What comes after replayed blocks, which may tell whether they have left the chain since.
#[derive(Default)]
struct Ahead {
    /// Between these offsets are replayed blocks alone.
    from: i64,
    to: i64,
    /// The one there, if it can be read.
    record: Option<Matches>,
}

impl Ahead {
    /// Whether it is what comes after the records before this offset.
    const fn is_after(&self, offset: i64) -> bool {
        self.from <= offset && offset <= self.to
    }
}

/// The chain's next records, and the offset after them.
struct Waiting {
    records: Vec<Matches>,
    next: i64,
    /// Why the record at that offset can't be read.
    fault: Option<Refused>,
    /// Nothing else waits below the partition's offset.
    at_end: bool,
}

/// Why a record can't be applied.
struct Refused {
    cause: String,
    /// Records before it are missing: replayed blocks behind it may say again what is in doubt.
    is_after_gap: bool,
}

impl Returning<'_> {
    /// Applies what has waited, up to the partition's offset, for some time. Returns whether the chain goes on with its neighbours
    /// from there.
    fn run(&mut self, reader: &PartitionReader) -> Result<bool, Failure> {
        let started = Instant::now();
        reader.seek(self.item.next_offset);
        while !self.is_over(started) {
            let Some(waiting) = self.read_waiting(reader, self.limit()?)? else { break };
            let fault = self.apply(&waiting.records, waiting.next)?.or(waiting.fault);
            match fault {
                Some(_) if self.batch > 1 => {
                    self.batch = 1;
                    reader.seek(self.item.next_offset);
                }
                Some(fault) => {
                    if !self.get_past(fault, reader)? {
                        break;
                    }
                    self.batch = FOLDING.max_records;
                    reader.seek(self.item.next_offset);
                }
                None if waiting.at_end => return self.handle.block_on(self.rejoin()),
                None => {}
            }
        }
        Ok(false)
    }

    fn is_over(&self, turn: Instant) -> bool {
        self.stop.is_cancelled() || turn.elapsed() >= TURN
    }

    /// The partition's offset: the stage applies the records from there on, once the chain is back.
    fn limit(&self) -> Result<i64, Failure> {
        let SetAside { topic, partition, .. } = &self.item;
        Ok(self.handle.block_on(FOLDING.position(self.pool, topic, *partition))?.unwrap_or_default())
    }

    /// Shows the chain's records from an offset on, up to where the stage reads, to `see`, until that has found something. One that can't
    /// be read is `None`.
    fn seek<T>(
        &self,
        reader: &PartitionReader,
        from: i64,
        mut see: impl FnMut(i64, Option<Matches>) -> Option<T>,
    ) -> Result<Sought<T>, Failure> {
        let (started, limit) = (Instant::now(), self.limit()?);
        seek_in(reader, from, limit, |record| {
            if self.is_ours(record)
                && let Some(found) = see(record.offset(), read(record, &mut Faults::new())?)
            {
                return Ok(ControlFlow::Break(Sought::Found(found)));
            }
            let is_over = self.is_over(started);
            Ok(if is_over { ControlFlow::Break(Sought::Until(record.offset() + 1)) } else { ControlFlow::Continue(()) })
        })
    }

    /// The chain's next records below the limit; `None` where there was no time to look for what comes after them.
    fn read_waiting(&mut self, reader: &PartitionReader, limit: i64) -> Result<Option<Waiting>, Failure> {
        let mut waiting = Waiting { records: Vec::new(), next: self.item.next_offset, fault: None, at_end: false };
        let (mut bytes, mut passed) = (0, 0);
        while waiting.records.len() < self.batch && bytes < FOLDING.max_bytes && passed < MAX_PASSED {
            let record = match next_below(reader, waiting.next, limit)? {
                Next::Record(record) => record,
                Next::None => {
                    waiting.at_end = true;
                    // Retention may have deleted what was there.
                    waiting.next = waiting.next.max(limit);
                    break;
                }
                Next::Unseen if waiting.records.is_empty() => return Ok(None),
                Next::Unseen => {
                    // Kafka tells an end once for each assignment.
                    reader.seek(waiting.next);
                    break;
                }
            };
            if self.is_ours(&record) {
                let mut faults = Faults::new();
                let Some(matches) = read(&record, &mut faults)? else {
                    waiting.fault = faults.into_values().next().map(|cause| Refused { cause, is_after_gap: false });
                    break;
                };
                bytes += record.payload().len();
                waiting.records.push(matches);
            }
            passed += 1;
            waiting.next = record.offset() + 1;
        }
        let ends_replayed = waiting.records.last().is_some_and(|last| last.sequence == 0);
        let is_known = !ends_replayed || self.look_ahead(reader, waiting.next, limit)?;
        Ok(is_known.then_some(waiting))
    }

    /// Looks for the first record from this offset on that is not replayed, however many are. Returns whether there was time for that.
    fn look_ahead(&mut self, reader: &PartitionReader, from: i64, limit: i64) -> Result<bool, Failure> {
        if !self.looked.ahead.is_after(from) {
            self.looked.ahead = Ahead { from, to: from, record: None };
        }
        let Ahead { to, ref record, .. } = self.looked.ahead;
        if record.is_some() || to >= limit {
            return Ok(true);
        }
        let see = |offset, matches: Option<Matches>| match matches {
            Some(matches) if matches.sequence == 0 => None,
            matches => Some((offset, matches)),
        };
        let sought = self.seek(reader, to, see)?;
        reader.seek(from);
        let is_known = !matches!(sought, Sought::Until(_));
        (self.looked.ahead.to, self.looked.ahead.record) = match sought {
            Sought::Found(found) => found,
            Sought::Until(offset) | Sought::None(offset) => (offset, None),
        };
        Ok(is_known)
    }

    fn is_ours(&self, record: &Record<'_>) -> bool {
        record.key() == self.item.item.as_bytes()
    }

    /// Applies records and advances the chain's offset; returns the fault of one that can't be applied.
    fn apply(&mut self, records: &[Matches], next: i64) -> Result<Option<Refused>, Failure> {
        if next == self.item.next_offset {
            return Ok(None);
        }
        let all: Vec<&Matches> = records.iter().collect();
        let ahead = Some(&self.looked.ahead).filter(|ahead| ahead.is_after(next)).and_then(|ahead| ahead.record.as_ref());
        let applied = self.handle.block_on(async {
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            FOLDING.claim_set_aside(&tx, &self.item, next).await?;
            match fold_chain(&tx, self.chains, self.chain, &all, ahead, &[], MAX_PAYMENTS_IN_MEMORY).await {
                Ok(_) => tx.commit().await?,
                Err(Failure::Halt(cause)) => {
                    let is_after_gap = matches!(cause.downcast_ref(), Some(Fault::Missing { .. }));
                    return Ok(Some(Refused { cause: format!("chain {}: {cause:#}", self.chain), is_after_gap }));
                }
                Err(failure) => return Err(failure),
            }
            Ok::<_, Failure>(None)
        })?;
        if applied.is_none() {
            self.item.next_offset = next;
        }
        Ok(applied)
    }

    /// Gets past a record that can't be applied, if what comes behind it says that the chain may go on. Returns whether there was time to
    /// look for that, and all could be seen.
    ///
    /// # Errors
    /// `Halt` with the fault when nothing does.
    fn get_past(&mut self, refused: Refused, reader: &PartitionReader) -> Result<bool, Failure> {
        if refused.is_after_gap {
            match self.look_for_said(reader)? {
                Sought::Found(_) => return Ok(true),
                Sought::Until(_) => return Ok(false),
                Sought::None(_) => {}
            }
        }
        match self.find_new_beginning(reader)? {
            Sought::Found((beginning, stands)) => {
                tracing::warn!("chain {} begins anew, past: {}", self.chain, refused.cause);
                return self.pass_to(reader, beginning, stands);
            }
            Sought::Until(_) => return Ok(false),
            Sought::None(_) => {}
        }
        let cause = format!("{}; `ctrip chain restart {}` begins anew", refused.cause, self.chain);
        let SetAside { topic, partition, item, next_offset, .. } = &self.item;
        let place = (topic.as_str(), *partition);
        self.handle.block_on(async { FOLDING.set_aside(&self.pool.get().await?, place, item, *next_offset, &cause).await })?;
        Err(Failure::Halt(anyhow!(cause)))
    }

    /// Looks whether replayed blocks say again what was applied of those in doubt, so that the chain may go on over missing records: a
    /// backfill comes behind the record that shows that some are. It is noted in the chain's head.
    fn look_for_said(&mut self, reader: &PartitionReader) -> Result<Sought<u64>, Failure> {
        let (head, applied) = self.handle.block_on(async {
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            Ok::<_, Failure>((store::lock_head(&tx, self.chain).await?, store::applied_records(&tx, self.chain).await?))
        })?;
        let from = self.item.next_offset;
        let Some(head) = head else { return Ok(Sought::None(from)) };
        let mut look = LookForSaid::after(self.looked.for_said, from, head);
        let see = |_, matches: Option<Matches>| {
            say(&mut look.head, &matches?, &applied);
            said_again(&look.head)
        };
        let sought = self.seek(reader, look.looked, see)?;
        if let Sought::Until(offset) | Sought::None(offset) = sought {
            look.looked = offset;
            self.looked.for_said = Some(look);
            return Ok(sought);
        }
        let chain = self.chain;
        tracing::warn!("chain {chain} goes on over missing records, since replayed blocks say again what was in doubt");
        self.handle.block_on(async {
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            // Nobody else has moved on with the chain meanwhile.
            FOLDING.claim_set_aside(&tx, &self.item, from).await?;
            store::save_head(&tx, chain, &look.head).await?;
            Ok::<_, Failure>(tx.commit().await?)
        })?;
        Ok(sought)
    }

    /// The offset of the record with which the chain begins anew, and the block up to which it stands.
    fn find_new_beginning(&mut self, reader: &PartitionReader) -> Result<Sought<(i64, u64)>, Failure> {
        let see =
            |offset, matches: Option<Matches>| matches.filter(begins_anew).map(|beginning| (offset, beginning.block.number));
        let sought = self.seek(reader, self.looked.for_beginning.max(self.item.next_offset + 1), see)?;
        let (Sought::Found((offset, _)) | Sought::Until(offset) | Sought::None(offset)) = &sought;
        self.looked.for_beginning = *offset;
        Ok(sought)
    }

    /// Passes over what lies before a new beginning, but for replayed blocks up to the one that stands: they need no order, and nobody
    /// brings them again. Those above it are taken back by the new beginning, which may have been applied before. Returns whether all could
    /// be seen: what is not shown may be replayed blocks, and is not passed over.
    fn pass_to(&mut self, reader: &PartitionReader, beginning: i64, stands: u64) -> Result<bool, Failure> {
        let (mut replayed, mut nexts, mut bytes) = (Vec::new(), Vec::new(), 0);
        let sought = seek_in(reader, self.item.next_offset, beginning, |record| {
            if !self.is_ours(record) {
                return Ok(ControlFlow::<Sought<()>>::Continue(()));
            }
            let mut faults = Faults::new();
            let is_left = |matches: &Matches| matches.sequence == 0 && matches.block.number <= stands;
            if let Some(matches) = read(record, &mut faults)?.filter(is_left) {
                bytes += record.payload().len();
                replayed.push(matches);
                nexts.push(record.offset() + 1);
            }
            for fault in faults.values() {
                tracing::error!("chain {} passes over a record that can't be read: {fault}", self.chain);
            }
            if replayed.len() >= FOLDING.max_records || bytes >= FOLDING.max_bytes {
                self.apply_replayed(&replayed, &nexts)?;
                (replayed, nexts, bytes) = (Vec::new(), Vec::new(), 0);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Sought::Until(_) = sought {
            return Ok(false);
        }
        self.apply_replayed(&replayed, &nexts)?;
        self.apply(&[], beginning)?;
        Ok(true)
    }

    /// Applies replayed blocks before a new beginning, and names those that can't be. `nexts` are the offsets after them.
    fn apply_replayed(&mut self, replayed: &[Matches], nexts: &[i64]) -> Result<(), Failure> {
        let Some(next) = nexts.last() else { return Ok(()) };
        if self.apply(replayed, *next)?.is_none() {
            return Ok(());
        }
        for (matches, next) in replayed.iter().zip(nexts) {
            if let Some(Refused { cause, .. }) = self.apply(std::slice::from_ref(matches), *next)? {
                let (chain, number) = (self.chain, matches.block.number);
                tracing::error!(
                    "replayed block {number} of chain {chain} is passed over: {cause}; `ctrip backfill --chain {chain} --from {number} \
                     --to {number} --again` brings it again"
                );
            }
        }
        Ok(())
    }

    async fn rejoin(&self) -> Result<bool, Failure> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let met = FOLDING.rejoin(&tx, &self.item).await?;
        tx.commit().await?;
        Ok(met)
    }
}

#[cfg(test)]
#[path = "returning_tests.rs"]
mod tests;
