//! Chains that are set aside: one whose records can't be applied, or that chains.yaml does not have, stops no other.
//!
//! Its records stay unread from an offset of its own on (`runtime::set_aside`), while the partition's offset moves on with its
//! neighbours. Once the chain can go on, [`catch_up`] applies what has waited, in order, up to the partition's offset and no
//! further: what comes after it is the stage's.

use crate::fold::{Batch, ChainFault, FOLDING, MAX_PAYMENTS_IN_MEMORY, fold_chain, fold_chains};
use crate::orphans::OrphanLook;
use crate::unapplied::{begins_anew, said_again, say};
use anyhow::anyhow;
use base::metrics;
use chain::{Chains, Listing};
use deadpool_postgres::Pool;
use payments::store::{self, ChainHead};
use runtime::kafka::{Kafka, PartitionReader, Record};
use runtime::{Failure, SetAside, Span, stage};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::{ChainId, Matches, Topic, frame, wire};

/// How often to look for chains that can go on.
const CATCH_UP_INTERVAL: Duration = Duration::from_secs(1);
/// Records of any chain that are read for one transaction.
const MAX_PASSED: usize = 16_384;
/// How soon a chain is tried again whose records could not be applied.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// How soon it is looked whether such a chain begins anew.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a chain's records are applied before the others have their turn.
const TURN: Duration = Duration::from_secs(10);

/// The chains of a batch whose records can't be applied, and why.
pub type Faults = BTreeMap<ChainId, String>;

/// Reads a record. One that can't be read is a fault of its chain, which the key names.
///
/// # Errors
/// `Halt` when the key names no chain.
pub fn read(record: &Record<'_>, faults: &mut Faults) -> Result<Option<Matches>, Failure> {
    let decoded = frame::decode::<wire::MatchesRecord>(record.payload()).map_err(|e| format!("{e}"));
    let fault = match decoded.and_then(|decoded| Matches::try_from(&decoded).map_err(|e| format!("{e}"))) {
        Ok(matches) => return Ok(Some(matches)),
        Err(fault) => format!("{}: {fault}", FOLDING.place(record)),
    };
    let chain = std::str::from_utf8(record.key()).ok().and_then(|key| key.parse().ok());
    let chain = chain.ok_or_else(|| Failure::Halt(anyhow!("{fault}; and its key names no chain")))?;
    faults.entry(ChainId(chain)).or_insert(fault);
    Ok(None)
}

/// Applies a batch, but for the chains that are set aside; `faults` are set aside as well, from the batch's beginning on. Returns
/// how many events it emitted.
///
/// # Errors
/// `Retry` when the database fails or another instance has read on.
pub async fn apply(pool: &Pool, chains: &Chains, batch: &Batch, mut faults: Faults) -> Result<usize, Failure> {
    for record in &batch.records {
        if chains.by_id(record.chain).is_none() {
            faults.entry(record.chain).or_insert_with(|| unlisted(record.chain));
        }
    }
    loop {
        match attempt(pool, chains, batch, &faults).await? {
            Err(ChainFault { chain, failure: Failure::Halt(cause) }) => {
                faults.insert(chain, format!("{cause:#}; `ctrip chain restart {chain}` begins anew"));
            }
            outcome => return outcome.map_err(|fault| fault.failure),
        }
    }
}

fn unlisted(chain: ChainId) -> String {
    format!(
        "the chains file does not have it; once it does, its records are applied, or `ctrip chain forget {chain}` drops them"
    )
}

async fn attempt(pool: &Pool, chains: &Chains, batch: &Batch, faults: &Faults) -> Result<Result<usize, ChainFault>, Failure> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    let waiting = FOLDING.claim_beside_set_aside(&tx, &batch.span).await?;
    let mut skipped: HashSet<ChainId> = waiting.iter().filter_map(chain_of).collect();
    let new: Vec<(&ChainId, &String)> = faults.iter().filter(|(chain, _)| skipped.insert(**chain)).collect();
    for (chain, cause) in &new {
        let Span { topic, partition, from, .. } = &batch.span;
        FOLDING.set_aside(&tx, (topic, *partition), &chain.to_string(), *from, cause).await?;
    }
    let events = match fold_chains(&tx, chains, &batch.records, &skipped, MAX_PAYMENTS_IN_MEMORY).await {
        Ok(events) => events,
        Err(fault) => return Ok(Err(fault)),
    };
    tx.commit().await?;
    for (chain, cause) in new {
        tracing::error!("chain {chain} is set aside, the others go on: {cause}");
    }
    Ok(Ok(events))
}

fn chain_of(item: &SetAside) -> Option<ChainId> {
    item.item.parse().ok().map(ChainId)
}

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
    let mut failed: HashMap<(i32, String), Failed> = HashMap::new();
    let mut orphans = OrphanLook::default();
    while !stop.is_cancelled() {
        let chains = &*listing.chains();
        handle.block_on(orphans.credit_owned(pool, chains))?;
        let items = handle.block_on(items(kafka, pool))?;
        report(&items);
        for item in items {
            let Some(chain) = chain_of(&item).filter(|chain| chains.by_id(*chain).is_some()) else { continue };
            let key = (item.partition, item.item.clone());
            let last = failed.get(&key);
            if last.is_some_and(|last| last.looked.elapsed() < LOOK_INTERVAL) {
                continue;
            }
            let searched = last.filter(|last| last.from <= item.next_offset).map_or(0, |last| last.searched);
            let batch = FOLDING.max_records;
            let waits = last.is_some_and(|last| last.at.elapsed() < RETRY_INTERVAL);
            let mut returning = Returning { kafka, pool, chains, handle, chain, item, batch, ahead: Ahead::None(0), searched };
            let is_due = if waits { returning.find_new_beginning().map(|found| found.is_some()) } else { Ok(true) };
            if let Some(last) = failed.get_mut(&key) {
                (last.looked, last.searched) = (Instant::now(), returning.searched);
            }
            match is_due.and_then(|is_due| if is_due { returning.run(stop).map(Some) } else { Ok(None) }) {
                // It has not begun anew.
                Ok(None) => {}
                Ok(Some(true)) => tracing::warn!("chain {chain} goes on"),
                // The partition's offset has moved on meanwhile, or it is the others' turn.
                Ok(Some(false)) => drop(failed.remove(&key)),
                Err(Failure::Halt(cause)) => {
                    tracing::error!("chain {chain} stays set aside: {cause:#}");
                    let (from, searched) = (returning.item.next_offset, returning.searched);
                    let now = Instant::now();
                    failed.insert(key, Failed { at: now, looked: now, from, searched });
                }
                // It keeps none of the others from going on.
                Err(failure) => tracing::warn!("chain {chain} stays set aside for now: {failure}"),
            }
        }
        stage::pause(stop, CATCH_UP_INTERVAL);
    }
    Ok(())
}

/// A chain that was tried without success.
struct Failed {
    at: Instant,
    /// When it was looked for a new beginning last.
    looked: Instant,
    /// Its offset.
    from: i64,
    /// Between these offsets it does not begin anew.
    searched: i64,
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
    kafka: &'a Kafka,
    pool: &'a Pool,
    chains: &'a Chains,
    handle: &'a Handle,
    chain: ChainId,
    item: SetAside,
    /// Records per transaction: one after a fault, so that what comes before it is applied.
    batch: usize,
    /// What comes after replayed blocks, which may tell whether they have left the chain since.
    ahead: Ahead,
    /// Up to this offset the chain does not begin anew.
    searched: i64,
}

/// What the chain has after its next records.
enum Ahead {
    /// Replayed blocks alone, or nothing, up to this offset, or a record there that can't be read.
    None(i64),
    /// The first record that is not replayed, and its offset.
    Record(i64, Box<Matches>),
}

/// The chain's next records, and the offset after them.
struct Waiting {
    records: Vec<Matches>,
    next: i64,
    /// Why the record at that offset can't be read.
    fault: Option<String>,
    /// Nothing else waits below the partition's offset.
    at_end: bool,
}

impl Returning<'_> {
    /// Applies what has waited, up to the partition's offset, for some time. Returns whether the chain goes on with its neighbours
    /// from there.
    fn run(&mut self, stop: &CancellationToken) -> Result<bool, Failure> {
        let (reader, started) = (self.reader()?, Instant::now());
        while !stop.is_cancelled() && started.elapsed() < TURN {
            let waiting = self.read_waiting(&reader)?;
            let fault = self.apply(&waiting.records, waiting.next)?.or(waiting.fault);
            match fault {
                Some(_) if self.batch > 1 => {
                    self.batch = 1;
                    reader.seek(self.item.next_offset)?;
                }
                Some(fault) => {
                    if !self.is_said_again()? {
                        self.skip_to_new_beginning(fault)?;
                    }
                    self.batch = FOLDING.max_records;
                    reader.seek(self.item.next_offset)?;
                }
                None if waiting.at_end => return self.handle.block_on(self.rejoin()),
                None => {}
            }
        }
        Ok(false)
    }

    fn reader(&self) -> Result<PartitionReader, Failure> {
        let reader = PartitionReader::open(self.kafka, Topic::Matches, self.item.partition)?;
        reader.seek(self.item.next_offset)?;
        Ok(reader)
    }

    /// The partition's offset: the stage applies the records from there on, once the chain is back.
    fn limit(&self) -> Result<i64, Failure> {
        let SetAside { topic, partition, .. } = &self.item;
        Ok(self.handle.block_on(FOLDING.position(self.pool, topic, *partition))?.unwrap_or_default())
    }

    fn read_waiting(&mut self, reader: &PartitionReader) -> Result<Waiting, Failure> {
        let mut waiting = Waiting { records: Vec::new(), next: self.item.next_offset, fault: None, at_end: false };
        let (mut bytes, mut passed) = (0, 0);
        let limit = self.limit()?;
        while waiting.records.len() < self.batch && bytes < FOLDING.max_bytes && passed < MAX_PASSED {
            let record = if waiting.next < limit { reader.next()?.filter(|record| record.offset() < limit) } else { None };
            let Some(record) = record else {
                waiting.at_end = true;
                // Retention may have deleted what was there.
                waiting.next = waiting.next.max(limit);
                break;
            };
            if self.is_ours(&record) {
                let mut faults = Faults::new();
                let Some(matches) = read(&record, &mut faults)? else {
                    waiting.fault = faults.into_values().next();
                    break;
                };
                bytes += record.payload().len();
                waiting.records.push(matches);
            }
            passed += 1;
            waiting.next = record.offset() + 1;
        }
        if waiting.records.last().is_some_and(|last| last.sequence == 0) {
            self.look_ahead(reader, waiting.next, limit)?;
        }
        Ok(waiting)
    }

    /// Looks for the first record from this offset on that is not replayed, however many are.
    fn look_ahead(&mut self, reader: &PartitionReader, from: i64, limit: i64) -> Result<(), Failure> {
        let looked = match self.ahead {
            Ahead::Record(offset, _) if from <= offset => return Ok(()),
            Ahead::Record(..) => from,
            Ahead::None(looked) => looked.max(from),
        };
        reader.seek(looked)?;
        self.ahead = Ahead::None(limit.max(looked));
        while let Some(record) = reader.next()?.filter(|record| record.offset() < limit) {
            let offset = record.offset();
            if self.is_ours(&record) {
                match read(&record, &mut Faults::new())? {
                    Some(matches) if matches.sequence == 0 => continue,
                    Some(matches) => self.ahead = Ahead::Record(offset, Box::new(matches)),
                    None => self.ahead = Ahead::None(offset),
                }
                break;
            }
        }
        reader.seek(from)
    }

    fn is_ours(&self, record: &Record<'_>) -> bool {
        record.key() == self.item.item.as_bytes()
    }

    /// Applies records and advances the chain's offset; returns the fault of one that can't be applied.
    fn apply(&mut self, records: &[Matches], next: i64) -> Result<Option<String>, Failure> {
        if next == self.item.next_offset {
            return Ok(None);
        }
        let all: Vec<&Matches> = records.iter().collect();
        let ahead = match &self.ahead {
            Ahead::Record(offset, record) if next <= *offset => Some(&**record),
            _ => None,
        };
        let applied = self.handle.block_on(async {
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            FOLDING.claim_set_aside(&tx, &self.item, next).await?;
            match fold_chain(&tx, self.chains, self.chain, &all, ahead, &[], MAX_PAYMENTS_IN_MEMORY).await {
                Ok(_) => tx.commit().await?,
                Err(Failure::Halt(cause)) => return Ok(Some(format!("chain {}: {cause:#}", self.chain))),
                Err(failure) => return Err(failure),
            }
            Ok::<_, Failure>(None)
        })?;
        if applied.is_none() {
            self.item.next_offset = next;
        }
        Ok(applied)
    }

    /// Passes over what can't be applied, up to where `ctrip chain restart` has begun the chain anew.
    ///
    /// # Errors
    /// `Halt` with the fault when it has not.
    fn skip_to_new_beginning(&mut self, fault: String) -> Result<(), Failure> {
        if let Some((beginning, stands)) = self.find_new_beginning()? {
            tracing::warn!("chain {} begins anew, past: {fault}", self.chain);
            return self.pass_to(beginning, stands);
        }
        let cause = format!("{fault}; `ctrip chain restart {}` begins anew", self.chain);
        let SetAside { topic, partition, item, next_offset, .. } = &self.item;
        let place = (topic.as_str(), *partition);
        self.handle.block_on(async { FOLDING.set_aside(&self.pool.get().await?, place, item, *next_offset, &cause).await })?;
        Err(Failure::Halt(anyhow!(cause)))
    }

    /// Whether the chain may go on, since replayed blocks say again what was applied of those in doubt: over records that are missing
    /// it does not, and a backfill comes behind the record that shows that. It is noted in the chain's head.
    fn is_said_again(&mut self) -> Result<bool, Failure> {
        let (head, applied) = self.handle.block_on(async {
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            Ok::<_, Failure>((store::lock_head(&tx, self.chain).await?, store::applied_records(&tx, self.chain).await?))
        })?;
        let is_in_doubt = |head: &ChainHead| head.known_by_hash() < head.number && said_again(head).is_none();
        let Some(mut head) = head.filter(is_in_doubt) else { return Ok(false) };
        let (reader, limit) = (self.reader()?, self.limit()?);
        while let Some(record) = reader.next()?.filter(|record| record.offset() < limit) {
            let matches = if self.is_ours(&record) { read(&record, &mut Faults::new())? } else { None };
            if let Some(replayed) = matches.filter(|matches| matches.sequence == 0) {
                say(&mut head, &replayed, &applied);
            }
        }
        if is_in_doubt(&head) {
            return Ok(false);
        }
        tracing::warn!("chain {} goes on over missing records, since replayed blocks say again what was in doubt", self.chain);
        self.handle.block_on(async {
            let mut client = self.pool.get().await?;
            let tx = client.transaction().await?;
            // Nobody else has moved on with the chain meanwhile.
            FOLDING.claim_set_aside(&tx, &self.item, self.item.next_offset).await?;
            store::save_head(&tx, self.chain, &head).await?;
            Ok::<_, Failure>(tx.commit().await?)
        })?;
        Ok(true)
    }

    /// The offset of the record with which the chain begins anew, and the block up to which it stands. What was searched is not searched
    /// again.
    fn find_new_beginning(&mut self) -> Result<Option<(i64, u64)>, Failure> {
        let (reader, limit) = (self.reader()?, self.limit()?);
        reader.seek(self.searched.max(self.item.next_offset + 1))?;
        while let Some(record) = reader.next()?.filter(|record| record.offset() < limit) {
            let matches = if self.is_ours(&record) { read(&record, &mut Faults::new())? } else { None };
            if let Some(matches) = matches.filter(begins_anew) {
                return Ok(Some((record.offset(), matches.block.number)));
            }
            self.searched = record.offset() + 1;
        }
        Ok(None)
    }

    /// Passes over what lies before a new beginning, but for replayed blocks up to the one that stands: they need no order, and nobody
    /// brings them again. Those above it are taken back by the new beginning, which may have been applied before.
    fn pass_to(&mut self, beginning: i64, stands: u64) -> Result<(), Failure> {
        let reader = self.reader()?;
        let (mut replayed, mut nexts, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(record) = reader.next()?.filter(|record| record.offset() < beginning) {
            if !self.is_ours(&record) {
                continue;
            }
            let mut faults = Faults::new();
            let is_left = |matches: &Matches| matches.sequence == 0 && matches.block.number <= stands;
            if let Some(matches) = read(&record, &mut faults)?.filter(is_left) {
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
        }
        self.apply_replayed(&replayed, &nexts)?;
        self.apply(&[], beginning)?;
        Ok(())
    }

    /// Applies replayed blocks before a new beginning, and names those that can't be. `nexts` are the offsets after them.
    fn apply_replayed(&mut self, replayed: &[Matches], nexts: &[i64]) -> Result<(), Failure> {
        let Some(next) = nexts.last() else { return Ok(()) };
        if self.apply(replayed, *next)?.is_none() {
            return Ok(());
        }
        for (matches, next) in replayed.iter().zip(nexts) {
            if let Some(fault) = self.apply(std::slice::from_ref(matches), *next)? {
                let (chain, number) = (self.chain, matches.block.number);
                tracing::error!(
                    "replayed block {number} of chain {chain} is passed over: {fault}; `ctrip backfill --chain {chain} --from {number} \
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
