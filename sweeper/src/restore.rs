//! `sweep.events` read whole, and what Postgres lacks of it put back, before anything is signed or sent: at the start, and
//! whenever a connection reaches another database than before.
//!
//! - Of what was signed nothing is believed that the signature does not say: each transaction is decoded, and who signed it
//!   recovered. What became of one has no signature: it is believed as far as its row and its attempts allow it, which may be
//!   further behind in the topic.
//! - A record that contradicts a row freezes its lane, and one that can't be read its chain; both are set aside by name. All
//!   others go on. What is set aside already freezes nothing anew, so that a person who has looked is not asked again.
//! - A partition that has no leader, or in which somebody has left a transaction open, is waited for: what is in it may have
//!   been sent.

use crate::blocks::wei;
use crate::engine::content::{Content, ReadBack};
use crate::engine::outgoing::{Mined, Pace, Phase};
use crate::engine::restored::{self, Ended, Outcome, Signed, Taken};
use crate::engine::rows::{LaneId, phase_columns};
use crate::engine::store;
use crate::plan;
use crate::reading::note_time;
use crate::records::{OUTCOMES, SIGNED, Told};
use alloy::primitives::{Address, B256, Bytes, keccak256};
use deadpool_postgres::{Client, GenericClient, Transaction};
use runtime::kafka::{Backlog, Record};
use runtime::{Failure, Kafka, set_aside};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use tokio::runtime::Handle;
use topics::wire::SweepEvent;
use topics::{BlockRef, ChainId, MAX_TIMESTAMP, Topic, frame};
use uuid::Uuid;

/// Under which records are set aside.
pub const STAGE: &str = "sweeper-restore";
/// Records that are compared in one transaction of Postgres.
const MAX_RECORDS: usize = 500;
/// What Postgres keeps of a record's key: an index entry has room for some 2,700 bytes.
const MAX_KEY_BYTES: usize = 2_000;

/// What a record says, or what can't be believed of it.
#[derive(Debug)]
struct Item {
    partition: i32,
    offset: i64,
    /// The transaction's id and the signed bytes' hash, or the place.
    name: String,
    /// Of what the record is, whether the rest of it can be believed or not.
    of: Option<Of>,
    said: Said,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    /// Bytes with this hash.
    Signed(B256),
    Outcome(Uuid),
}

#[derive(Debug)]
enum Said {
    Signed(Box<Signed>),
    /// When its block was made, in Unix seconds; 0 if that is not known.
    Outcome(Outcome, u64),
    /// What is told of these lanes can't be believed.
    WrongOfLanes(Vec<LaneId>, String),
    /// It can't be read; its key names a chain, if it does.
    Unreadable(Option<ChainId>, String),
}

/// What was put back, and what is in the topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Transactions, signed bytes of those that Postgres knew, and what became of one.
    pub rows: usize,
    pub attempts: usize,
    pub outcomes: usize,
    /// Records that were set aside, now or before.
    pub aside: usize,
    /// What Postgres says that the topic has, as long as it was not found there.
    pub lacking: Lacking,
    /// Where each partition begins, and the offset behind its last record; the same where it has none.
    pub read: BTreeMap<i32, (i64, i64)>,
    /// The place of the last signed transaction that Postgres had while records were compared. One that has less afterwards has lost
    /// what was found there.
    pub last_place: i64,
}

/// What the topic has, as Postgres says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacking {
    pub signed: HashSet<B256>,
    pub outcomes: HashSet<Uuid>,
}

impl Lacking {
    /// All that Postgres says.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn all(db: &impl GenericClient) -> Result<Self, Failure> {
        let signed = db.query("SELECT hash FROM outgoing_attempts WHERE acknowledged", &[]).await?;
        let outcomes = db.query("SELECT id FROM outgoing WHERE announced IS NOT NULL", &[]).await?;
        Ok(Self {
            signed: signed.iter().map(|row| B256::from_slice(row.get(0))).collect(),
            outcomes: outcomes.iter().map(|row| row.get(0)).collect(),
        })
    }

    fn found(&mut self, item: &Item) {
        match item.of {
            Some(Of::Signed(hash)) => _ = self.signed.remove(&hash),
            Some(Of::Outcome(id)) => _ = self.outcomes.remove(&id),
            None => {}
        }
    }

    pub fn is_empty(&self) -> bool {
        self.signed.is_empty() && self.outcomes.is_empty()
    }
}

/// Reads all, and puts back what is lacking. Blocks.
///
/// # Errors
/// When Kafka or the database fails, or a partition can't be read to its end.
pub fn restore(kafka: &Kafka, handle: &Handle, db: &mut Client) -> Result<Restored, Failure> {
    let (mut chunk, mut held, mut failed) = (Vec::new(), Vec::new(), None);
    // What is recorded meanwhile is not looked for.
    let lacking = handle.block_on(Lacking::all(db))?;
    let ends = Backlog::open(kafka)?.ends(Topic::Sweeps)?;
    let places = ends.into_iter().map(|(partition, end)| (partition, (end, end))).collect();
    let mut restored = Restored { lacking, read: places, ..Restored::default() };
    let name = kafka.name(Topic::Sweeps);
    kafka.read_all(Topic::Sweeps, |record| {
        if failed.is_some() {
            return;
        }
        let (begins, next) = restored.read.entry(record.partition()).or_insert((i64::MAX, 0));
        (*begins, *next) = (record.offset().min(*begins), (record.offset() + 1).max(*next));
        if let Some(item) = read(record) {
            restored.lacking.found(&item);
            chunk.push(item);
        }
        if chunk.len() >= MAX_RECORDS {
            failed = handle.block_on(take(db, &name, std::mem::take(&mut chunk), &mut restored, Some(&mut held))).err();
        }
    })?;
    if let Some(failure) = failed {
        return Err(failure);
    }
    handle.block_on(take(db, &name, chunk, &mut restored, Some(&mut held)))?;
    while !held.is_empty() {
        let items = held.drain(..held.len().min(MAX_RECORDS)).collect();
        handle.block_on(take(db, &name, items, &mut restored, None))?;
    }
    Ok(restored)
}

fn read(record: &Record<'_>) -> Option<Item> {
    let (partition, offset) = (record.partition(), record.offset());
    let (name, of, said) = match frame::decode::<SweepEvent>(record.payload()) {
        Ok(event) if event.r#type == SIGNED => (name(&event), Some(Of::Signed(keccak256(&event.raw))), signed(&event)),
        Ok(event) => (name(&event), event.transaction_id.parse().ok().map(Of::Outcome), outcome(&event)?),
        Err(error) => (None, None, Said::Unreadable(record.chain(), error.to_string())),
    };
    Some(Item { partition, offset, name: name.unwrap_or_else(|| format!("{partition}/{offset}")), of, said })
}

/// Another attempt of a transaction has another name.
fn name(event: &SweepEvent) -> Option<String> {
    let id: Uuid = event.transaction_id.parse().ok()?;
    Some(if event.raw.is_empty() { format!("{id} {}", event.r#type) } else { format!("{id} {}", keccak256(&event.raw)) })
}

/// What a record of a signed transaction says, as far as the transaction itself says it.
fn signed(event: &SweepEvent) -> Said {
    let read = ReadBack::of(&event.raw);
    // Whom the record names, and who signed.
    let named = Address::try_from(&event.sender[..]).ok().map(|sender| LaneId { chain: ChainId(event.chain_id), sender });
    let signer = read.as_ref().map(|read| LaneId { chain: read.chain, sender: read.sender });
    let wrong = |fault: String| {
        let lanes: BTreeSet<LaneId> = named.into_iter().chain(signer).filter(|lane| is_kept(lane.chain.0)).collect();
        if lanes.is_empty() {
            let chain = is_kept(event.chain_id).then_some(ChainId(event.chain_id));
            return Said::Unreadable(chain, fault);
        }
        Said::WrongOfLanes(lanes.into_iter().collect(), fault)
    };
    let told = match Told::of(event) {
        Ok(told) => told,
        Err(fault) => return wrong(fault),
    };
    let Told { id, kind, sender, nonce, hash, cancels, idempotency_key, request_hash } = told;
    let Some(read) = read else { return wrong("raw: no signed transaction of a type that is signed here".to_owned()) };
    if (read.chain, read.sender, read.nonce, read.hash) != (ChainId(event.chain_id), sender, nonce, hash) {
        return wrong("raw: it is of another chain, sender, nonce or hash than the record says".to_owned());
    }
    if cancels && read.content != (Content { gas_limit: read.content.gas_limit, ..Content::nothing(sender) }) {
        return wrong("raw: it does something, and is said to do nothing".to_owned());
    }
    let is_possible = read.content.gas_limit > 0 && [read.content.gas_limit, nonce, event.chain_id].into_iter().all(is_kept);
    if !is_possible || event.occurred_at > MAX_TIMESTAMP {
        return wrong("its gas, its nonce, its chain or its time are no such".to_owned());
    }
    if idempotency_key.len() > MAX_KEY_BYTES || idempotency_key.contains('\0') {
        return wrong("idempotency_key: it is too long, or holds a NUL".to_owned());
    }
    let raw = Bytes::copy_from_slice(&event.raw);
    let signed_at = event.occurred_at;
    Said::Signed(Box::new(Signed { id, kind, cancels, idempotency_key, request_hash, raw, read, signed_at }))
}

fn is_kept(number: u64) -> bool {
    i64::try_from(number).is_ok()
}

/// What became of one. `None` for a type that is not known: what else may come says nothing of what is sent.
fn outcome(event: &SweepEvent) -> Option<Said> {
    let state = event.r#type.strip_prefix("sweep.").filter(|state| OUTCOMES.contains(state))?;
    let named = Address::try_from(&event.sender[..]).ok().filter(|_| is_kept(event.chain_id));
    let lane = named.map(|sender| LaneId { chain: ChainId(event.chain_id), sender });
    let Some((lane, id)) = lane.zip(event.transaction_id.parse().ok()) else {
        let chain = is_kept(event.chain_id).then_some(ChainId(event.chain_id));
        return Some(Said::Unreadable(chain, "sender or transaction_id can't be read".to_owned()));
    };
    let mined = event.block.as_ref().and_then(|block| {
        Some(Mined {
            hash: B256::try_from(&event.transaction_hash[..]).ok()?,
            block: BlockRef {
                number: Some(block.number).filter(|number| is_kept(*number))?,
                hash: B256::try_from(&block.hash[..]).ok()?,
            },
            succeeded: Some(state != "failed"),
            gas_used: event.gas_used.filter(|gas| is_kept(*gas)),
            gas_price: event.gas_price.as_deref().and_then(wei),
        })
    });
    let phase = match (state, mined) {
        ("final", Some(mined)) => Phase::Final(mined),
        ("failed", Some(mined)) => Phase::Failed(mined),
        ("dropped", mined) if mined.is_some() || event.block.is_none() => Phase::Dropped(mined),
        _ => return Some(Said::WrongOfLanes(vec![lane], "block or transaction_hash: it can't be read".to_owned())),
    };
    let time = event.block.as_ref().map_or(0, |block| block.timestamp).min(MAX_TIMESTAMP);
    Some(Said::Outcome(Outcome { id, lane, phase }, time))
}

/// What Postgres has of what records say.
struct Known {
    signed: BTreeMap<B256, Uuid>,
    told: BTreeMap<Uuid, String>,
}

impl Known {
    async fn of(db: &impl GenericClient, items: &[Item]) -> Result<Self, Failure> {
        let signed: Vec<B256> = items.iter().filter_map(Item::signed).map(|signed| signed.read.hash).collect();
        let outcomes = items.iter().filter_map(|item| if let Said::Outcome(of, _) = &item.said { Some(of.id) } else { None });
        let told = restored::told(db, &outcomes.collect::<Vec<_>>()).await?;
        Ok(Self { signed: restored::known(db, &signed).await?, told })
    }

    fn has(&self, item: &Item) -> bool {
        match &item.said {
            Said::Signed(signed) => self.signed.get(&signed.read.hash) == Some(&signed.id),
            Said::Outcome(Outcome { id, phase, .. }, _) => self.told.get(id).is_some_and(|told| told == phase_columns(phase).0),
            Said::WrongOfLanes(..) | Said::Unreadable(..) => false,
        }
    }
}

/// Compares records, in their order, with the rows. Outcomes that contradict them are `held`, if somebody holds them: what was
/// signed may come behind them, where it was written again.
async fn take(
    db: &mut Client,
    topic: &str,
    items: Vec<Item>,
    restored: &mut Restored,
    mut held: Option<&mut Vec<Item>>,
) -> Result<(), Failure> {
    // Before anything is looked up: what is lost after that is missed afterwards.
    restored.last_place = restored.last_place.max(store::last_place(db).await?);
    let known = Known::of(db, &items).await?;
    let items: Vec<Item> = items.into_iter().filter(|item| !known.has(item)).collect();
    let mut tx = db.transaction().await?;
    restored::lock_lanes(&tx, items.iter().flat_map(Item::lanes).collect()).await?;
    // Another sweeper may have put some back meanwhile.
    let mut known = Known::of(&tx, &items).await?;
    for item in items {
        if known.has(&item) {
            continue;
        }
        match &item.said {
            Said::Signed(signed) => {
                let taken = match known.signed.get(&signed.read.hash) {
                    // Another transaction of ours has these very bytes.
                    Some(other) => Taken::Contradicts(*other, format!("the same was signed for {other} here")),
                    None => {
                        let taken = alone(&mut tx, async |tx| {
                            let taken = restored::take(tx, signed, &Pace::USUAL).await?;
                            if signed.cancels && !matches!(taken, Taken::Contradicts(..)) {
                                plan::store::put_back(tx, signed.id, false).await?;
                            }
                            Ok(Ok(taken))
                        });
                        taken.await?.unwrap_or_else(|refused| Taken::Contradicts(signed.id, refused))
                    }
                };
                // A record may be there twice.
                if !matches!(taken, Taken::Contradicts(..)) {
                    known.signed.insert(signed.read.hash, signed.id);
                }
                match taken {
                    Taken::Attempt => restored.attempts += 1,
                    Taken::Row => restored.rows += 1,
                    Taken::Contradicts(other, why) => {
                        restored::keep_nonce(&tx, signed, other).await?;
                        let others = store::lane_of(&tx, other).await?.filter(|other| *other != signed.lane());
                        let lanes: Vec<LaneId> = others.into_iter().chain([signed.lane()]).collect();
                        aside(&tx, topic, &item, Frozen::Lanes(&lanes), &why, restored).await?;
                    }
                }
            }
            Said::Outcome(outcome, time) => {
                let ended = alone(&mut tx, async |tx| {
                    plan::store::put_back(tx, outcome.id, outcome.phase == Phase::Dropped(None)).await?;
                    restored::take_outcome(tx, outcome, &Pace::USUAL).await
                });
                match ended.await? {
                    Err(why) => match &mut held {
                        Some(held) => held.push(item),
                        None => aside(&tx, topic, &item, Frozen::Lanes(&[outcome.lane]), &why, restored).await?,
                    },
                    Ok(Ended::Nothing) => {}
                    Ok(Ended::Row) => {
                        restored.outcomes += 1;
                        if let (_, Some(mined), _) = phase_columns(&outcome.phase)
                            && *time > 0
                        {
                            note_time(&tx, mined.block.hash, *time).await?;
                        }
                    }
                }
            }
            Said::WrongOfLanes(lanes, why) => aside(&tx, topic, &item, Frozen::Lanes(lanes), why, restored).await?,
            Said::Unreadable(chain, why) => aside(&tx, topic, &item, Frozen::Chain(*chain), why, restored).await?,
        }
    }
    restored.last_place = restored.last_place.max(store::last_place(&tx).await?);
    Ok(tx.commit().await?)
}

/// Does something that may be refused, by Postgres too, since of what a record says it is to judge. Then nothing of it is done,
/// and the reason is returned.
async fn alone<T>(
    tx: &mut Transaction<'_>,
    work: impl AsyncFnOnce(&Transaction<'_>) -> Result<Result<T, String>, Failure>,
) -> Result<Result<T, String>, Failure> {
    let savepoint = tx.savepoint("record").await?;
    match work(&savepoint).await {
        Ok(Ok(done)) => {
            savepoint.commit().await?;
            Ok(Ok(done))
        }
        Ok(Err(refused)) => {
            savepoint.rollback().await?;
            Ok(Err(refused))
        }
        Err(Failure::Halt(refused)) => {
            savepoint.rollback().await?;
            Ok(Err(format!("Postgres refuses it: {refused:#}")))
        }
        Err(failure) => Err(failure),
    }
}

impl Item {
    fn signed(&self) -> Option<&Signed> {
        if let Said::Signed(signed) = &self.said { Some(signed) } else { None }
    }

    fn lanes(&self) -> Vec<LaneId> {
        match &self.said {
            Said::Signed(signed) => vec![signed.lane()],
            Said::Outcome(outcome, _) => vec![outcome.lane],
            Said::WrongOfLanes(lanes, _) => lanes.clone(),
            Said::Unreadable(..) => Vec::new(),
        }
    }
}

/// What sends nothing until a person has looked.
#[derive(Clone, Copy)]
enum Frozen<'a> {
    Lanes(&'a [LaneId]),
    /// None, where the record names none.
    Chain(Option<ChainId>),
}

/// Sets a record aside, and freezes what it is about, unless that was done before.
async fn aside(
    tx: &impl GenericClient,
    topic: &str,
    item: &Item,
    frozen: Frozen<'_>,
    why: &str,
    restored: &mut Restored,
) -> Result<(), Failure> {
    restored.aside += 1;
    let Item { partition, offset, name, .. } = item;
    let statement =
        tx.prepare_cached("SELECT FROM set_aside WHERE topic = $1 AND stage = $2 AND partition = $3 AND item = $4").await?;
    if tx.query_opt(&statement, &[&topic, &STAGE, partition, name]).await?.is_some() {
        return Ok(());
    }
    // A text of Postgres has no NUL.
    let why = why.replace('\0', "");
    let cause = format!("{why}; `ctrip tail {} --from {offset}` shows it in partition {partition}", Topic::Sweeps);
    set_aside::set_aside(tx, STAGE, (topic, *partition), name, *offset, &cause).await?;
    match frozen {
        Frozen::Lanes(lanes) => {
            for lane in lanes {
                let LaneId { chain, sender } = lane;
                tracing::error!(%chain, %sender, "the record of {name} is set aside, and its sender sends nothing: {cause}");
                restored::freeze_lane(tx, lane, &cause).await?;
            }
        }
        Frozen::Chain(Some(chain)) => {
            tracing::error!(%chain, "the record {name} is set aside, and nothing is sent on its chain: {cause}");
            restored::freeze_chain(tx, chain, &cause).await?;
        }
        Frozen::Chain(None) => tracing::error!("the record {name} is set aside; its key names no chain: {cause}"),
    }
    Ok(())
}

#[cfg(test)]
#[path = "restore_tests.rs"]
mod tests;
