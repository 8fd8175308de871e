//! `ctrip chain restart`: lets a chain begin anew, as at its first start, after what can't be continued: a gap that nobody
//! wants to fill, records that contradict each other, a lost cursor, or years without it.
//!
//! The new beginning is a record like any other: REPLAYED, with a sequence. Whoever reads the chain in order passes it, and takes
//! what comes next without asking for its parent. The last block that was matched has to be on the chain still: what it brought is
//! confirmed by the heads to come.

use crate::cursor::{StoredCursor, encode};
use crate::halt;
use crate::nodes::connect;
use crate::publish::{OutgoingRecords, STAGE, send_cursor};
use crate::records::{block, logs};
use crate::resume::blocking;
use crate::window::Window;
use anyhow::{Context as _, bail};
use chain::{BlockId, Chain, Chains, Head, fetch_head};
use runtime::kafka::{Kafka, PartitionReader, TransactionalProducer};
use runtime::{Failure, Settings};
use std::ops::ControlFlow;
use topics::wire::{BlockRecord, LogsRecord, MatchesRecord, block_record, logs_record, matches_record};
use topics::{B256, BlockRef, ChainId, Topic, frame};

/// What restarting a chain would do.
#[derive(Clone, Debug)]
pub struct RestartPlan {
    pub chain: ChainId,
    /// The last block that was matched, if any is left.
    pub last: Option<BlockRef>,
    /// The highest block that the chain can begin with: its `start_block`, or the head that the nodes have now. The last final block,
    /// if that is lower.
    pub begins: u64,
}

/// The end of a chain in `chain.matches`.
#[derive(Clone, Copy)]
struct Matched {
    sequence: u64,
    head: Option<BlockRef>,
    timestamp: u64,
}

/// Examines a chain, and restarts it if `execute`; a running ingest then begins anew with the next block.
///
/// # Errors
/// If the nodes do not have the last block that was matched, or a running ingest has gone on meanwhile.
pub async fn restart(settings: &Settings, name: &str, execute: bool) -> anyhow::Result<RestartPlan> {
    let chains = Chains::load(&settings.chains_file)?.only(name).resolve().await?;
    let (chain, rpc) = connect(chains.named(name)?.clone()).await?;
    let kafka = Kafka::connect(settings).await?;
    let (id, reading) = (chain.id, kafka.clone());
    let (sequence, matched) = blocking(move || {
        let sequence = halt::read(&reading, id)?.map(|stored| stored.cursor.sequence);
        Ok((sequence, read_matched(&reading, id)?))
    })
    .await?;
    let last = matched.and_then(|matched| matched.head);
    if let Some(last) = last {
        let theirs = fetch_head(&rpc, Some(BlockId::Number(last.number))).await?;
        if theirs.is_none_or(|theirs| theirs.hash != last.hash) {
            bail!(
                "the nodes do not have block {} ({}), the last one that was matched, so what it brought has to be taken back first: \
                 let ingest follow the chain until it has taken back that block, then run this again",
                last.number,
                last.hash
            );
        }
    }
    let head = fetch_head(&rpc, None).await?.context("the nodes have no head")?;
    let plan = RestartPlan { chain: id, last, begins: chain.start_block.unwrap_or(head.number) };
    if execute {
        blocking(move || write(&kafka, &chain, sequence, matched)).await?;
    }
    Ok(plan)
}

/// Reads the end of the chain's matches.
fn read_matched(kafka: &Kafka, chain: ChainId) -> Result<Option<Matched>, Failure> {
    let key = chain.to_string();
    let mut matched = None;
    PartitionReader::open(kafka, Topic::Matches, Topic::Matches.partition_of(&key))?.read_back(|records| {
        for record in records.iter().rev().filter(|record| record.key() == key.as_bytes()) {
            let record: MatchesRecord = frame::decode(record.payload()).map_err(Failure::halt)?;
            if record.sequence != 0 {
                matched = Some(end_after(&record)?);
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(matched)
}

fn end_after(record: &MatchesRecord) -> Result<Matched, Failure> {
    let at =
        |number, hash: &[u8]| Ok::<_, Failure>(BlockRef { number, hash: topics::hash("hash", hash).map_err(Failure::halt)? });
    let head = match record.kind() {
        matches_record::Kind::Removed => Some(at(record.number.saturating_sub(1), &record.parent_hash)?),
        matches_record::Kind::Replayed => None,
        _ => Some(at(record.number, &record.hash)?),
    };
    Ok(Matched { sequence: record.sequence, head, timestamp: record.timestamp })
}

fn write(kafka: &Kafka, chain: &Chain, planned: Option<u64>, matched: Option<Matched>) -> Result<(), Failure> {
    let producer = TransactionalProducer::open(kafka, &format!("{STAGE}-{}", chain.id))?;
    let stored = halt::read(kafka, chain.id)?;
    if stored.as_ref().map(|stored| stored.cursor.sequence) != planned {
        return Err(Failure::halt(MovedOn));
    }
    let mut sequence = planned.unwrap_or_default().max(matched.map_or(0, |matched| matched.sequence));
    let transaction = producer.begin()?;
    if sequence > 0 {
        sequence += 1;
        let (block, logs) = beginning(chain.id, sequence, matched);
        let mut outgoing = OutgoingRecords::default();
        outgoing.push_block(kafka, chain, block, logs);
        outgoing.send(&transaction, chain.id)?;
    }
    let mut parts = stored.as_ref().map(StoredCursor::outdated_parts).unwrap_or_default();
    send_cursor(kafka, &transaction, &encode(chain.id, sequence, &Window::default(), "", &mut parts))?;
    transaction.commit()
}

/// A running ingest has published meanwhile.
#[derive(Debug, thiserror::Error)]
#[error("ingest has gone on meanwhile: run this again, or stop ingest first")]
struct MovedOn;

/// The records of the new beginning.
fn beginning(chain: ChainId, sequence: u64, matched: Option<Matched>) -> (BlockRecord, LogsRecord) {
    let last = matched.and_then(|matched| matched.head);
    let (number, hash) = last.map_or((0, B256::ZERO), |last| (last.number, last.hash));
    let head = Head { number, hash, parent_hash: B256::ZERO, timestamp: matched.map_or(0, |matched| matched.timestamp) };
    let block = block(chain, sequence, &head, block_record::Kind::Replayed);
    (block, logs(chain, sequence, &head, logs_record::Kind::Replayed))
}
