//! `ctrip resume`: resumes a halted chain after a person's decision.
//!
//! Ingest itself takes back the blocks that the nodes no longer have, as in any reorg. Here its cursor only gets a window that
//! reaches down to the common ancestor. The published blocks are read from `chain.blocks`, so a resume reaches as far back as
//! that topic's retention.

use crate::cursor::{StoredCursor, restore};
use crate::halt;
use crate::nodes::connect;
use crate::publish::STAGE;
use crate::window::{MIN_WINDOW_BLOCKS, Window};
use anyhow::{Context as _, bail, ensure};
use chain::{Chain, Chains, Head, Rpc, Witnesses, find_witnesses};
use runtime::kafka::{Kafka, TransactionalProducer};
use runtime::{Failure, Settings};
use topics::lazy::Fields;
use topics::wire::block_record::Kind;
use topics::{B256, BlockRef, ChainId, Topic, frame};

/// What resuming a halted chain would do.
#[derive(Clone, Debug)]
pub struct ResumePlan {
    /// Why the chain halted.
    pub halted: String,
    /// The last block published.
    pub tip: BlockRef,
    /// The common ancestor: the last block published that the nodes still have.
    pub common: BlockRef,
    /// The number of blocks that would be taken back.
    pub take_back: u64,
}

/// Examines a halted chain, and resumes it if `take_back` is the number of blocks to take back; a running ingest then continues
/// by itself. Returns the plan, and whether the chain was resumed.
///
/// # Errors
/// If the chain is not halted, or its nodes have none of the blocks published.
pub async fn resume(settings: &Settings, name: &str, take_back: u64) -> anyhow::Result<(ResumePlan, bool)> {
    let chains = Chains::load(&settings.chains_file)?.only(name).resolve().await?;
    let (chain, rpc) = connect(chains.named(name)?.clone()).await?;
    let kafka = Kafka::connect(settings).await?;
    let (stored, stack) = {
        let (kafka, id) = (kafka.clone(), chain.id);
        blocking(move || {
            let stored = halt::read(&kafka, id)?;
            Ok((stored, read_published(&kafka, id)?))
        })
        .await?
    };
    let stored =
        stored.filter(|stored| !stored.cursor.halted.is_empty()).with_context(|| format!("chain {name} is not halted"))?;
    let (_, window, _) = restore(chain.id, &stored)?;
    let tip = *window
        .tip()
        .with_context(|| format!("chain {name} halted before its first block; `ctrip chain restart {name}` lets it begin"))?;
    ensure!(
        !stack.is_empty(),
        "chain.blocks has no block of {name}, or none since the chain began anew: `ctrip chain restart {name}` lets it begin"
    );
    ensure!(
        stack.last() == Some(&tip),
        "chain.blocks ends at {:?} and the cursor at block {}: is this the right topic?",
        stack.last().map(|last| last.number),
        tip.number
    );
    let Some(common) = find_common_ancestor(&rpc, chain.witnesses, &stack).await? else {
        let oldest = stack.first().map_or(0, |first| first.number);
        bail!(
            "the nodes have none of our blocks {oldest} to {}, which are all that chain.blocks still holds: is this \
             another chain? Nothing was changed",
            tip.number
        );
    };
    let count = stack.iter().rev().take_while(|head| head.number > common.number).count() as u64;
    let plan =
        ResumePlan { halted: stored.cursor.halted.clone(), tip: block_ref(&tip), common: block_ref(&common), take_back: count };
    let resumed = plan.take_back == take_back;
    if resumed {
        blocking(move || write_cursor(&kafka, &chain, &stored, &window, stack, common.number)).await?;
    }
    Ok((plan, resumed))
}

fn block_ref(head: &Head) -> BlockRef {
    BlockRef { number: head.number, hash: head.hash }
}

pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work)
        .await?
        .map_err(|(Failure::Retry(error) | Failure::Reopen(error) | Failure::Halt(error))| error)
}

/// Reads the canonical blocks as published, oldest first, as far back as the topic reaches.
fn read_published(kafka: &Kafka, chain: ChainId) -> Result<Vec<Head>, Failure> {
    let key = chain.to_string();
    let (mut stack, mut unreadable) = (Vec::new(), None);
    // All of a chain's are in one partition. What is the matter with the others keeps it from nothing.
    kafka.read_partitions(Topic::Blocks, &[Topic::Blocks.partition_of(&key)], |record| {
        if record.key() != key.as_bytes() {
            return;
        }
        match frame::payload(record.payload()).map_err(Failure::halt).and_then(read_head) {
            Ok(read) => take(&mut stack, read),
            Err(failure) => unreadable = Some(failure.context(format!("chain.blocks, offset {}", record.offset()))),
        }
    })?;
    unreadable.map_or(Ok(stack), Err)
}

/// Takes a record of `chain.blocks` to the blocks that are canonical.
fn take(stack: &mut Vec<Head>, (kind, sequence, head): (Kind, u64, Head)) {
    match kind {
        Kind::Added => stack.push(head),
        // Below the topic's retention there is nothing to take off.
        Kind::Removed => drop(stack.pop()),
        // The chain begins anew: what was published may be of another branch, and the next block stands on none of it.
        Kind::Replayed if sequence != 0 => stack.clear(),
        Kind::Replayed | Kind::Tags | Kind::Unspecified => {}
    }
}

/// Reads the beginning of a block's record, without its transactions: its kind, sequence and place.
fn read_head(message: &[u8]) -> Result<(Kind, u64, Head), Failure> {
    let (mut kind, mut sequence) = (Kind::Unspecified, 0);
    let mut head = Head { number: 0, hash: B256::ZERO, parent_hash: B256::ZERO, timestamp: 0 };
    for field in Fields::new(message) {
        match field.map_err(Failure::halt)? {
            (2, value) => sequence = value.varint(),
            (3, value) => kind = i32::try_from(value.varint()).ok().and_then(|n| Kind::try_from(n).ok()).unwrap_or_default(),
            (4, value) => head.number = value.varint(),
            (5, value) => head.hash = topics::hash("hash", value.bytes()).map_err(Failure::halt)?,
            (6, value) => head.parent_hash = topics::hash("parent_hash", value.bytes()).map_err(Failure::halt)?,
            (7, value) => head.timestamp = value.varint(),
            (12, _) => break,
            _ => {}
        }
    }
    Ok((kind, sequence, head))
}

/// Finds the newest of these blocks that the nodes have. A node that has a block has all below it, so it is a binary search. It
/// must have as many witnesses as any.
async fn find_common_ancestor(rpc: &Rpc, witnesses: usize, stack: &[Head]) -> anyhow::Result<Option<Head>> {
    let (mut known, mut unknown) = (0, stack.len());
    while known < unknown {
        let middle = known.midpoint(unknown);
        let Some(ours) = stack.get(middle) else { break };
        let found = find_witnesses(rpc, ours.number, ours.hash).await;
        match has_block(&found, witnesses) {
            Some(true) => known = middle + 1,
            Some(false) => unknown = middle,
            None => bail!(
                "of block {}, {} providers have ours, and {} have another or end below; expected {witnesses} that agree, and most of \
                 those that answer. Try again when more answer, or with witnesses: 1. Nothing was changed",
                ours.number,
                found.count_with(),
                found.count_without()
            ),
        }
    }
    Ok(known.checked_sub(1).and_then(|last| stack.get(last)).copied())
}

/// Whether the nodes have a block, as far as enough of them say. Silence says nothing.
fn has_block(found: &Witnesses, needed: usize) -> Option<bool> {
    let is_gone = || found.refute(needed) || found.with.is_empty() && found.count_without() >= needed;
    if found.confirm(needed) { Some(true) } else { is_gone().then_some(false) }
}

/// Writes the cursor with a window that includes the common block, and with no block to take back marked as final.
fn write_cursor(
    kafka: &Kafka,
    chain: &Chain,
    stored: &StoredCursor,
    before: &Window,
    stack: Vec<Head>,
    common: u64,
) -> Result<(), Failure> {
    let producer = TransactionalProducer::open(kafka, &format!("{}-{}", STAGE, chain.id))?;
    let window = resumed_window(stack, before, common);
    halt::write(&producer, kafka, chain.id, stored.cursor.sequence, &window, "", &mut stored.outdated_parts())
}

/// A window that reaches below the common block, and below none that is in doubt: once forgotten it would be believed by its hash.
fn resumed_window(stack: Vec<Head>, before: &Window, common: u64) -> Window {
    // The topic may reach less far back.
    let first = stack.first().map_or(0, |first| first.number);
    let mut blocks: Vec<Head> = before.iter().take_while(|block| block.number < first).copied().chain(stack).collect();
    let place = |number: u64| blocks.iter().position(|head| head.number == number);
    let doubtful = before.doubts().next().and_then(|(doubtful, _)| place(doubtful.number));
    let kept = place(common).unwrap_or_default().saturating_sub(MIN_WINDOW_BLOCKS);
    blocks.drain(..doubtful.map_or(kept, |doubtful| doubtful.min(kept)));
    let mut window = Window::new(blocks, false, before.finalized().map(|number| number.min(common)));
    before.doubts().for_each(|(head, content)| window.doubt(&head, content));
    window
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::block;
    use prost::Message as _;

    fn head(number: u64) -> Head {
        let hash = |number: u64| B256::from(topics::U256::from(number + 1));
        Head { number, hash: hash(number), parent_hash: hash(number.saturating_sub(1)), timestamp: number }
    }

    /// A time-out was taken for "its head is below", and blocks that stand were taken back.
    #[test]
    fn silence_does_not_say_that_a_block_is_gone() {
        let urls: Vec<_> = [1, 2, 3].map(|port| format!("http://127.0.0.1:{port}").parse().unwrap()).into();
        let endpoints = Rpc::new("it", &urls, None).endpoints().to_vec();
        let has = |with: usize, against: usize, below: usize| {
            let take = |from: usize, count: usize| endpoints[from..from + count].to_vec();
            let (with, rest) = (take(0, with), with);
            let found = Witnesses { with, against: take(rest, against), below: take(rest + against, below) };
            has_block(&found, 2)
        };
        assert_eq!([has(2, 0, 0), has(2, 1, 0), has(2, 0, 1)], [Some(true); 3]);
        assert_eq!([has(0, 2, 0), has(0, 0, 2), has(0, 1, 1), has(1, 2, 0)], [Some(false); 4]);
        assert_eq!([has(0, 0, 0), has(0, 1, 0), has(0, 0, 1), has(1, 0, 0), has(1, 1, 0), has(1, 0, 2)], [None; 6]);
    }

    /// The search for the common ancestor went through the branch that the chain had left by beginning anew.
    #[test]
    fn what_was_published_before_a_chain_began_anew_is_not_looked_at() {
        let read = |(kind, sequence, number): (Kind, u64, u64)| {
            let record = block(ChainId(1), sequence, &head(number), kind);
            read_head(&record.encode_to_vec()).unwrap()
        };
        let history = [
            (Kind::Added, 1, 10),
            (Kind::Added, 2, 11),
            (Kind::Replayed, 3, 10),
            (Kind::Added, 4, 20),
            (Kind::Added, 5, 21),
            (Kind::Removed, 6, 21),
            (Kind::Replayed, 0, 15),
            (Kind::Tags, 7, 20),
        ];
        let mut stack = Vec::new();
        history.into_iter().for_each(|record| take(&mut stack, read(record)));
        assert_eq!(stack, [head(20)]);
    }

    #[test]
    fn a_resumed_window_forgets_no_doubt() {
        let mut before = Window::new((0..2_000).map(head), true, Some(1_900));
        before.doubt(&head(10), B256::repeat_byte(1));
        // Also if the topic reaches less far back.
        for first in [0, 1_000] {
            let resumed = resumed_window((first..2_000).map(head).collect(), &before, 1_800);
            assert_eq!(resumed.doubts().map(|(head, _)| head.number).collect::<Vec<_>>(), [10]);
            assert_eq!(resumed.finalized(), Some(1_800));
            assert!(resumed.iter().zip(resumed.iter().skip(1)).all(|(below, block)| block.stands_on(below)));
        }
        before.trust(&head(10), B256::repeat_byte(1));
        let resumed = resumed_window(before.iter().copied().collect(), &before, 1_800);
        assert_eq!(resumed.bottom().map(|bottom| bottom.number), Some(1_544));
    }
}
