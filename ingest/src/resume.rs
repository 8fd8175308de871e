//! Letting a halted chain go on, after a person has looked at it.
//!
//! What the nodes' chain no longer has is taken back by ingest itself, as in any reorganisation: here only its cursor is
//! made to remember far enough. What was published is read from `chain.blocks`, so it reaches as far back as that topic.

use crate::halt;
use crate::records::restore;
use crate::role::{STAGE, reach};
use crate::window::{DEPTH, Window};
use anyhow::{Context as _, bail, ensure};
use chain::{BlockId, Chain, Chains, Head, Rpc, fetch_head};
use runtime::kafka::{Kafka, TransactionalProducer};
use runtime::{Failure, Settings};
use topics::lazy::Fields;
use topics::wire::ChainCursor;
use topics::wire::block_record::Kind;
use topics::{B256, BlockRef, ChainId, Topic, frame};

/// What there is to resume.
#[derive(Clone, Debug)]
pub struct Resumable {
    /// Why the chain halted.
    pub halted: String,
    /// The last block published.
    pub tip: BlockRef,
    /// The last block published that the nodes still have.
    pub common: BlockRef,
    /// Blocks that will be taken back.
    pub take_back: u64,
}

/// Looks at a halted chain and, if `take_back` is what there is to take back, lets it go on; a running ingest goes on by itself.
/// Returns what it found, and whether the chain goes on.
///
/// # Errors
/// When the chain is not halted, or its nodes have nothing in common with what was published.
pub async fn resume(settings: &Settings, name: &str, take_back: u64) -> anyhow::Result<(Resumable, bool)> {
    let chains = Chains::load(&settings.chains_file)?.resolve().await?;
    let (chain, rpc) = reach(chains.named(name)?.clone()).await?;
    let kafka = Kafka::connect(settings).await?;
    let (cursor, stack) = {
        let (kafka, id) = (kafka.clone(), chain.id);
        blocking(move || {
            let cursor = halt::read(&kafka, id)?;
            Ok((cursor, published(&kafka, id)?))
        })
        .await?
    };
    let cursor = cursor.filter(|cursor| !cursor.halted.is_empty()).with_context(|| format!("chain {name} is not halted"))?;
    let (sequence, window) = restore(chain.id, &cursor)?;
    let tip = *window.tip().context("the chain halted before its first block")?;
    ensure!(
        stack.last() == Some(&tip),
        "chain.blocks ends at {:?} and the cursor at block {}: is this the right topic?",
        stack.last().map(|last| last.number),
        tip.number
    );
    let Some(common) = last_common(&rpc, &stack).await? else {
        let oldest = stack.first().map_or(0, |first| first.number);
        bail!(
            "the nodes have none of our blocks {oldest} to {}, all that chain.blocks still holds: is it another chain? \
             Nothing was changed",
            tip.number
        );
    };
    let found = Resumable {
        halted: cursor.halted.clone(),
        tip: refer(&tip),
        common: refer(&common),
        take_back: tip.number - common.number,
    };
    let goes_on = found.take_back == take_back;
    if goes_on {
        blocking(move || write(&kafka, &chain, sequence, &cursor, stack, common.number)).await?;
    }
    Ok((found, goes_on))
}

fn refer(head: &Head) -> BlockRef {
    BlockRef { number: head.number, hash: head.hash }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await?.map_err(|(Failure::Retry(error) | Failure::Halt(error))| error)
}

/// The canonical blocks as published, oldest first, as far back as the topic reaches.
fn published(kafka: &Kafka, chain: ChainId) -> Result<Vec<Head>, Failure> {
    let key = chain.to_string();
    let (mut stack, mut unreadable) = (Vec::new(), None);
    kafka.read_all(Topic::Blocks, |record| {
        if record.key() != key.as_bytes() {
            return;
        }
        match frame::payload(record.payload()).map_err(Failure::halt).and_then(step) {
            Ok((Kind::Added, head)) => stack.push(head),
            // Below what the topic still holds there is nothing to take off.
            Ok((Kind::Removed, _)) => drop(stack.pop()),
            Ok((Kind::Replayed | Kind::Unspecified, _)) => {}
            Err(failure) => unreadable = Some(failure.context(format!("chain.blocks, offset {}", record.offset()))),
        }
    })?;
    unreadable.map_or(Ok(stack), Err)
}

/// Reads the beginning of a record, without its transactions.
fn step(message: &[u8]) -> Result<(Kind, Head), Failure> {
    let mut kind = Kind::Unspecified;
    let mut head = Head { number: 0, hash: B256::ZERO, parent_hash: B256::ZERO, timestamp: 0 };
    for field in Fields::new(message) {
        match field.map_err(Failure::halt)? {
            (3, value) => kind = i32::try_from(value.varint()).ok().and_then(|n| Kind::try_from(n).ok()).unwrap_or_default(),
            (4, value) => head.number = value.varint(),
            (5, value) => head.hash = topics::hash("hash", value.bytes()).map_err(Failure::halt)?,
            (6, value) => head.parent_hash = topics::hash("parent_hash", value.bytes()).map_err(Failure::halt)?,
            (7, value) => head.timestamp = value.varint(),
            (12, _) => break,
            _ => {}
        }
    }
    Ok((kind, head))
}

/// The newest of these blocks that the nodes have. A node that has one has all below it, so a binary search finds it.
async fn last_common(rpc: &Rpc, stack: &[Head]) -> anyhow::Result<Option<Head>> {
    let (mut known, mut unknown) = (0, stack.len());
    while known < unknown {
        let middle = known.midpoint(unknown);
        let Some(ours) = stack.get(middle) else { break };
        let theirs = fetch_head(rpc, Some(BlockId::Number(ours.number))).await?;
        if theirs.is_some_and(|theirs| theirs.hash == ours.hash) {
            known = middle + 1;
        } else {
            unknown = middle;
        }
    }
    Ok(known.checked_sub(1).and_then(|last| stack.get(last)).copied())
}

/// A cursor at the same place that remembers the common block, and does not call final what is to be taken back.
fn write(
    kafka: &Kafka,
    chain: &Chain,
    sequence: u64,
    cursor: &ChainCursor,
    mut stack: Vec<Head>,
    common: u64,
) -> Result<(), Failure> {
    let producer = TransactionalProducer::open(kafka, &format!("{}-{}", STAGE, chain.id))?;
    let kept = stack.iter().position(|head| head.number == common).unwrap_or_default().saturating_sub(DEPTH);
    stack.drain(..kept);
    let finalized = cursor.finalized_number.map(|number| number.min(common));
    halt::write(&producer, kafka, chain.id, sequence, &Window::new(stack, false, finalized), "")
}
