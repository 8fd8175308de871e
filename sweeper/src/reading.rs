//! The stage that reads `chain.blocks` into the engine. What a record says and the offset behind it are one transaction of
//! Postgres.
//!
//! - **A transaction of ours is known by its hash.** Its sender and nonce are those that we signed: the record's `from` is one
//!   endpoint's word, and not every record has the nonce.
//! - **A stranger's is not believed.** A record has no signature, so who sent it can't be recovered. Where one seems to be of a
//!   sender of ours, that lane is counted anew: what the chain counts, as many providers say as a block needs witnesses. What
//!   of ours is below the count and in no block is lost until a person has looked, and is signed no second time.
//! - A record that can't be read, or is missing, stops nothing: see [`Place`].
//! - It begins at the end where nothing was ever sent, since nothing of ours is in a block before; else where the topic begins.

use crate::blocks::{Change, Outcome, Place};
use crate::engine::fold::{ChainEvent, apply_chain_event};
use crate::engine::history::SeenTransaction;
use crate::engine::outgoing::Pace;
use alloy::primitives::{Address, B256};
use deadpool_postgres::{GenericClient, Pool};
use runtime::db::{bigint, unsigned};
use runtime::kafka::{Backlog, Record};
use runtime::{Failure, FoldStage, Kafka, Span};
use std::collections::{BTreeMap, HashMap};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::wire::BlockRecord;
use topics::wire::block_record::Transaction;
use topics::{ChainId, Topic, frame};

pub const READING: FoldStage =
    FoldStage { stage: "sweeper", topic: Topic::Blocks, max_records: 128, max_bytes: 32 * 1024 * 1024, on_return: None };

/// Consumes until `stop`. `pace` is that of each chain.
///
/// # Errors
/// `Retry` when Kafka or the database fails.
pub fn run(
    kafka: &Kafka,
    pool: &Pool,
    handle: &Handle,
    pace: impl Fn(ChainId) -> Pace,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    begin(kafka, pool, handle)?;
    READING.follow(kafka, pool, handle, stop, |spans| {
        spans.iter().try_for_each(|(span, records)| handle.block_on(apply(pool, span, records, &pace)))
    })
}

/// A topic that nothing was read of is read from its end where nothing was sent, and from its beginning by a database that went
/// back to before its first read.
fn begin(kafka: &Kafka, pool: &Pool, handle: &Handle) -> Result<(), Failure> {
    let (name, topic) = (kafka.name(READING.topic), READING.topic);
    let begins_at_end = async {
        let sql = "SELECT NOT EXISTS (SELECT FROM stage_offsets WHERE stage = $1 AND topic = $2)
                       AND NOT EXISTS (SELECT FROM outgoing_attempts)";
        Ok::<bool, Failure>(pool.get().await?.query_one(sql, &[&READING.stage, &name]).await?.get(0))
    };
    if !handle.block_on(begins_at_end)? {
        return Ok(());
    }
    // One that does not answer is read from its beginning.
    let (ends, _) = Backlog::open(kafka)?.answered_ends(topic)?;
    let (partitions, ends): (Vec<i32>, Vec<i64>) = ends.into_iter().unzip();
    let sql = "INSERT INTO stage_offsets (stage, topic, partition, next_offset)
               SELECT $1::text, $2::text, * FROM unnest($3::integer[], $4::bigint[]) ON CONFLICT DO NOTHING";
    handle.block_on(async {
        pool.get().await?.execute(sql, &[&READING.stage, &name, &partitions, &ends]).await?;
        Ok(())
    })
}

async fn apply(pool: &Pool, span: &Span, records: &[&Record<'_>], pace: &impl Fn(ChainId) -> Pace) -> Result<(), Failure> {
    let mut db = pool.get().await?;
    let tx = db.transaction().await?;
    READING.claim(&tx, span).await?;
    let mut places: BTreeMap<ChainId, Place> = BTreeMap::new();
    for record in records {
        let read = frame::decode::<BlockRecord>(record.payload());
        let chain = match &read {
            Ok(read) => Some(ChainId(read.chain_id)),
            Err(_) => record.chain(),
        };
        let Some(chain) = chain else {
            tracing::error!("{} is passed over: neither it nor its key can be read", READING.place(record));
            continue;
        };
        let place = match places.entry(chain) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(new) => new.insert(load(&tx, chain).await?),
        };
        match read {
            Ok(read) => take(&tx, chain, place, &read, &pace(chain)).await?,
            Err(error) => {
                tracing::error!("{} is passed over, as if it were missing: {error}", READING.place(record));
                place.sequence = None;
            }
        }
    }
    for (chain, place) in &places {
        save(&tx, *chain, place).await?;
    }
    Ok(tx.commit().await?)
}

/// Applies a record of a chain.
///
/// # Errors
/// When the database fails.
pub async fn take(
    tx: &impl GenericClient,
    chain: ChainId,
    place: &mut Place,
    record: &BlockRecord,
    pace: &Pace,
) -> Result<(), Failure> {
    let is_first = *place == Place::default();
    for change in place.read(record) {
        match change {
            Change::Added(block) => {
                let (transactions, recounted) = ours(tx, chain, &record.transactions).await?;
                if !transactions.is_empty() {
                    note_time(tx, block.hash, record.timestamp).await?;
                }
                apply_chain_event(tx, chain, &ChainEvent::Added { block, transactions }, pace).await?;
                count_anew(tx, chain, &recounted).await?;
            }
            Change::Restarted(above) => {
                if is_first {
                    tracing::info!(%chain, sequence = record.sequence, "the chain is read from here on");
                } else {
                    tracing::warn!(%chain, sequence = record.sequence, above, "blocks are missing, or the chain begins anew");
                }
                apply_chain_event(tx, chain, &change.event(), pace).await?;
            }
            change => apply_chain_event(tx, chain, &change.event(), pace).await?,
        }
    }
    Ok(())
}

/// Which of these transactions are ours; and which senders of ours seem to have sent others.
async fn ours(
    tx: &impl GenericClient,
    chain: ChainId,
    all: &[Transaction],
) -> Result<(Vec<SeenTransaction>, Vec<Address>), Failure> {
    if all.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let statement =
        tx.prepare_cached("SELECT hash, sender, nonce FROM outgoing_attempts WHERE chain_id = $1 AND hash = ANY($2)").await?;
    let hashes: Vec<&[u8]> = all.iter().map(|transaction| &transaction.hash[..]).collect();
    let rows = tx.query(&statement, &[&bigint(chain.0), &hashes]).await?;
    let signed: HashMap<&[u8], (Address, u64)> =
        rows.iter().map(|row| (row.get(0), (Address::from_slice(row.get(1)), unsigned(row.get(2))))).collect();
    let statement = tx.prepare_cached("SELECT sender FROM outgoing_lanes WHERE chain_id = $1 AND sender = ANY($2)").await?;
    let others = all.iter().filter(|transaction| !signed.contains_key(&transaction.hash[..]));
    let others: Vec<&[u8]> = others.map(|transaction| &transaction.from[..]).collect();
    let recounted = tx.query(&statement, &[&bigint(chain.0), &others]).await?;
    let seen = all.iter().filter_map(|transaction| {
        let (from, nonce) = *signed.get(&transaction.hash[..])?;
        let Outcome { succeeded, gas_used, gas_price } = Outcome::of(transaction);
        Some(SeenTransaction { hash: B256::from_slice(&transaction.hash), from, nonce, succeeded, gas_used, gas_price })
    });
    Ok((seen.collect(), recounted.iter().map(|row| Address::from_slice(row.get(0))).collect()))
}

/// Asks anew what the chain counts of these senders, in the order in which lanes are locked.
async fn count_anew(tx: &impl GenericClient, chain: ChainId, senders: &[Address]) -> Result<(), Failure> {
    if senders.is_empty() {
        return Ok(());
    }
    let statement = tx
        .prepare_cached(
            "WITH locked AS (
                 SELECT sender FROM outgoing_lanes WHERE chain_id = $1 AND sender = ANY($2) ORDER BY sender FOR NO KEY UPDATE)
             UPDATE outgoing_lanes l SET counted = NULL, counted_in = NULL FROM locked
             WHERE l.chain_id = $1 AND l.sender = locked.sender",
        )
        .await?;
    let slices: Vec<&[u8]> = senders.iter().map(|sender| sender.as_slice()).collect();
    tx.execute(&statement, &[&bigint(chain.0), &slices]).await?;
    for sender in senders {
        tracing::warn!(%chain, %sender, "somebody else may have sent with its key: its transactions are counted anew");
    }
    Ok(())
}

pub(crate) async fn note_time(tx: &impl GenericClient, block: B256, time: u64) -> Result<(), Failure> {
    let statement =
        tx.prepare_cached("INSERT INTO outgoing_blocks (hash, time) VALUES ($1, $2) ON CONFLICT DO NOTHING").await?;
    tx.execute(&statement, &[&block.as_slice(), &bigint(time)]).await?;
    Ok(())
}

/// Up to where a chain was read. Nobody else reads it on until the transaction ends.
///
/// # Errors
/// When the database fails.
pub async fn load(tx: &impl GenericClient, chain: ChainId) -> Result<Place, Failure> {
    let chain = bigint(chain.0);
    let statement = tx.prepare_cached("INSERT INTO outgoing_chains (chain_id) VALUES ($1) ON CONFLICT DO NOTHING").await?;
    tx.execute(&statement, &[&chain]).await?;
    let statement = tx
        .prepare_cached(
            "SELECT sequence, head_hash, finalized, witnessed, final_number, recent FROM outgoing_chains WHERE chain_id = $1
             FOR NO KEY UPDATE",
        )
        .await?;
    let row = tx.query_one(&statement, &[&chain]).await?;
    let number = |column| row.get::<_, Option<i64>>(column).map(unsigned);
    Ok(Place {
        sequence: number(0),
        head: row.get::<_, Option<&[u8]>>(1).map(B256::from_slice),
        finalized: number(2),
        witnessed: number(3),
        final_number: number(4),
        recent: row.get::<_, Vec<i64>>(5).into_iter().map(unsigned).collect(),
    })
}

/// Keeps what [`apply_chain_event`] does not.
///
/// # Errors
/// When the database fails.
pub async fn save(tx: &impl GenericClient, chain: ChainId, place: &Place) -> Result<(), Failure> {
    let statement = tx
        .prepare_cached(
            "UPDATE outgoing_chains SET sequence = $2, finalized = $3, witnessed = $4, recent = $5 WHERE chain_id = $1",
        )
        .await?;
    let [sequence, finalized, witnessed] = [place.sequence, place.finalized, place.witnessed].map(|number| number.map(bigint));
    let recent: Vec<i64> = place.recent.iter().copied().map(bigint).collect();
    tx.execute(&statement, &[&bigint(chain.0), &sequence, &finalized, &witnessed, &recent]).await?;
    Ok(())
}
