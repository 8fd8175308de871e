//! The role: joins blocks with their logs, matches them, and commits input and output in one Kafka transaction.

use crate::begin;
use crate::chains::{Action, Chains, Rewind};
use crate::held::Held;
use crate::intents::IntentBarrier;
use crate::join::{ChainRecord as _, Join, JoinedBlock, Popped, head_of, payload, unreadable};
use crate::logs_watch::LogsWatch;
use crate::matching::{BlockView, Matcher, RecordHead};
use crate::output::{BLOCK_OFFSET, LOGS_OFFSET};
use crate::parts::split_matches;
use crate::watch_set::WatchSet;
use crate::written::{More, Note, Written};
use anyhow::anyhow;
use base::{locked, metrics};
use runtime::kafka::{Batch, Consumer, Ends, Kafka, Record, TransactionalProducer};
use runtime::{Failure, stage};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use topics::{Message as _, Topic, WRITING};

const STAGE: &str = "detector";
/// Per Kafka transaction, when far behind: large enough that the commit costs little in comparison.
const MAX_BATCH_RECORDS: usize = 8192;
const MAX_BATCH_BYTES: usize = 96 * 1024 * 1024;

/// Matches every block with the addresses ever issued, until `stop`.
///
/// # Errors
/// If the stage halts.
pub async fn run(kafka: Kafka, stop: CancellationToken) -> anyhow::Result<()> {
    // Kept across restarts of the stage: reading millions of intents again takes long.
    let mut intents: Option<IntentBarrier> = None;
    let mut watched = WatchSet::default();
    let held = Held::new(&kafka, STAGE);
    let mut chains = Chains::new(&kafka, &held);
    let rewind = Arc::default();
    stage::run(STAGE, stop, move |stop| {
        if intents.is_none() {
            intents = Some(IntentBarrier::open(&kafka, STAGE, &mut watched)?);
        }
        let outcome = match intents.as_mut() {
            Some(intents) => detect(&kafka, intents, &mut chains, &held, &rewind, stop),
            None => Ok(()),
        };
        if outcome.is_err() && intents.as_ref().is_some_and(|intents| intents.failed) {
            watched = intents.take().map(|intents| intents.watched).unwrap_or_default();
        }
        outcome
    })
    .await
}

fn detect(
    kafka: &Kafka,
    intents: &mut IntentBarrier,
    chains: &mut Chains,
    held: &Held,
    rewind: &Arc<Mutex<Option<Rewind>>>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let producer = TransactionalProducer::open(kafka, &format!("{STAGE}-{}", kafka.instance()))?;
    held.clear();
    if let Some(asked) = chains.rewind.take() {
        locked(rewind).replace(asked);
    }
    let written_ends = Written::default();
    let positions = begin::positions(kafka, STAGE, rewind, held, &written_ends);
    let consumer = Consumer::open(kafka, STAGE, &[Topic::Blocks, Topic::Logs], Some(positions))?;
    let ends = Ends::open(kafka)?;
    let mut joins: BTreeMap<i32, Join<Record<'_>>> = BTreeMap::new();
    // Up to where each partition was read.
    let mut read: HashMap<(Topic, i32), i64> = HashMap::new();
    chains.clear();
    let mut matcher = Matcher::default();
    let (mut assignment, mut watch) = (0, LogsWatch::default());
    while !stop.is_cancelled() {
        let Batch { records, assignment: now } =
            consumer.poll(MAX_BATCH_RECORDS, MAX_BATCH_BYTES, Duration::from_millis(100))?;
        let started = Instant::now();
        if now != assignment {
            assignment = now;
            joins.clear();
            chains.clear();
            read.clear();
        }
        let written = records.last().and_then(Record::timestamp_ms);
        for record in records {
            let (topic, partition, offset) = (record.topic, record.partition(), record.offset());
            if let Some(next) = read.insert((topic, partition), offset + 1).filter(|next| offset < *next) {
                return Err(Failure::Retry(anyhow!(
                    "{topic}/{partition} was read up to {next}, and goes on at {offset}: Kafka has lost its end, or it was made anew"
                )));
            }
            let is_done = |chain, sequence| chains.is_used(chain, sequence, offset);
            joins.entry(partition).or_default().push(record, is_done);
        }
        held.look()?;
        let (pairs, passed) = take(&mut joins, chains, held)?;
        if !pairs.is_empty() || passed {
            intents.catch_up()?;
            let matched = match_blocks(kafka, &intents.watched, &mut matcher, chains, &pairs);
            for (partition, more) in per_partition(&matched) {
                written_ends.write(partition, more, started, || ends.of(Topic::Matches, partition))?;
            }
            let transaction = producer.begin()?;
            intents.quarantine(kafka, &transaction)?;
            for Matched { key, records, block, logs, writing } in &matched {
                let (block, logs, writing) = (block.to_string(), logs.to_string(), writing.map(|writing| writing.to_string()));
                let headers = [(BLOCK_OFFSET, &*block), (LOGS_OFFSET, &*logs)].into_iter();
                let headers: Vec<_> = headers.chain(writing.as_deref().map(|writing| (WRITING, writing))).collect();
                for record in records {
                    transaction.send_with_headers(Topic::Matches, key, record, &headers)?;
                }
            }
            chains.notify(&transaction)?;
            transaction.send_noted_offsets(&offsets(&joins), &notes(&joins, &written_ends), &consumer.group_metadata()?)?;
            transaction.commit()?;
            intents.quarantined();
            record_metrics(pairs.len(), &mut matcher, started, written);
        }
        if let Some(Rewind { chain, partition, to }) = chains.rewind {
            return Err(Failure::Retry(anyhow!(
                "chain {chain} goes on at offset {} of chain.blocks/{partition}, from which the partition is read again",
                to.blocks
            )));
        }
        apply_backpressure(&consumer, &mut joins, held)?;
        for (partition, join) in &mut joins {
            watch.look(kafka, &consumer, STAGE, *partition, join)?;
        }
    }
    Ok(())
}

/// Takes the blocks that come next, with their logs; and whether others were passed over.
fn take<'c>(
    joins: &mut BTreeMap<i32, Join<Record<'c>>>,
    chains: &mut Chains,
    held: &Held,
) -> Result<(Vec<JoinedBlock<Record<'c>>>, bool), Failure> {
    let (mut pairs, mut passed) = (Vec::new(), false);
    for (_, join) in joins.iter_mut().filter(|(partition, _)| !held.holds(**partition)) {
        while let Some(front) = join.front() {
            // The partition is read again first: what was matched beyond would end past the block that closes the gap.
            if chains.rewind.is_some() {
                break;
            }
            match chains.action(front)? {
                Action::Wait => break,
                Action::Pass => {
                    passed = true;
                    join.pass();
                }
                Action::Match => match join.pop() {
                    Ok(Popped::Pair(pair)) => {
                        chains.advance(&pair.block)?;
                        pairs.push(*pair);
                    }
                    Ok(Popped::Waiting) => break,
                    without_logs => {
                        let Some(front) = join.front() else { break };
                        // As before a gap: the backfill that is named goes by what is written.
                        if without_logs.is_ok() && chains.has_taken(head_of(front)?.chain_id) {
                            break;
                        }
                        give_up(chains, front, without_logs)?;
                        passed = true;
                        join.pass();
                    }
                },
            }
        }
    }
    Ok((pairs, passed))
}

/// Sets the chain of a block aside whose logs are gone or can't be joined, or names it if it is a replayed one. The caller passes
/// over the block: a new beginning would be taken up again and again.
fn give_up(chains: &mut Chains, front: &Record<'_>, without_logs: Result<Popped<Record<'_>>, Failure>) -> Result<(), Failure> {
    let head = head_of(front)?;
    if head.sequence == 0 {
        skip_replayed(&head, &without_logs.err().map_or("its logs are gone".to_owned(), |failure| failure.to_string()));
        return Ok(());
    }
    match without_logs {
        Err(failure) => chains.set_aside_at(front.partition(), &head, &failure),
        Ok(Popped::WithoutLogs { next_with_logs }) => chains.set_aside_before(front, next_with_logs)?,
        Ok(Popped::Pair(_) | Popped::Waiting) => {}
    }
    Ok(())
}

/// Names a replayed block that can't be matched. Nothing waits for it but the backfill's user.
fn skip_replayed(block: &RecordHead<'_>, cause: &str) {
    let RecordHead { chain_id, number, .. } = block;
    metrics::UNMATCHED_REPLAYS.counter(&[]).increment(1);
    tracing::error!(
        "replayed block {number} of chain {chain_id} is not matched: {cause}; `ctrip backfill --chain {chain_id} --from {number} --to \
         {number} --again` brings it again"
    );
}

/// What a block becomes in `chain.matches`.
struct Matched {
    key: String,
    /// One, or all parts in order.
    records: Vec<Vec<u8>>,
    /// The block's offset in `chain.blocks`.
    block: i64,
    /// Below this offset of `chain.logs` everything is used.
    logs: i64,
    /// Which transaction has written the block.
    writing: Option<i64>,
}

/// Matches blocks. One that can't be read sets its chain aside from there on.
fn match_blocks(
    kafka: &Kafka,
    watched: &WatchSet,
    matcher: &mut Matcher,
    chains: &mut Chains,
    pairs: &[JoinedBlock<Record<'_>>],
) -> Vec<Matched> {
    let (mut matched, mut unreadable_from) = (Vec::with_capacity(pairs.len()), HashSet::new());
    for pair in pairs {
        let Ok(head) = head_of(&pair.block) else { continue };
        if head.sequence != 0 && unreadable_from.contains(&head.chain_id) {
            continue;
        }
        match match_block(kafka, watched, matcher, pair) {
            Ok(block) => matched.push(block),
            Err(failure) if head.sequence == 0 => {
                skip_replayed(&head, &failure.to_string());
                chains.forget_replayed(head.chain_id);
            }
            Err(failure) => {
                unreadable_from.insert(head.chain_id);
                chains.set_aside_at(pair.block.partition(), &head, &failure);
            }
        }
    }
    matched
}

fn match_block(
    kafka: &Kafka,
    watched: &WatchSet,
    matcher: &mut Matcher,
    pair: &JoinedBlock<Record<'_>>,
) -> Result<Matched, Failure> {
    let block = BlockView::read(payload(&pair.block)?).map_err(|e| unreadable(&pair.block, e))?;
    let logs: Vec<&[u8]> = pair.logs.iter().map(payload).collect::<Result<_, _>>()?;
    let matches = matcher.matches_in_parts(watched, &block, &logs).map_err(|e| unreadable(&pair.block, e))?;
    for transfer in &matches.transfers {
        metrics::MATCHED_TRANSFERS.counter(&[("source", transfer.source().as_str_name())]).increment(1);
    }
    let key = matches.key();
    let records = split_matches(matches).iter().map(|part| kafka.encode(part)).collect();
    Ok(Matched { key, records, block: pair.block.offset(), logs: pair.logs_used, writing: pair.block.writing() })
}

/// What each partition of `chain.matches` gets.
fn per_partition(matched: &[Matched]) -> BTreeMap<i32, More> {
    let mut written = BTreeMap::<_, More>::new();
    for Matched { key, records, block, .. } in matched {
        let more = written.entry(Topic::Matches.partition_of(key)).or_default();
        *more = More { records: more.records + records.len(), last: *block };
    }
    written
}

/// What is noted with the offsets, for the next assignment. It is of the same transaction as the matches.
fn notes(joins: &BTreeMap<i32, Join<Record<'_>>>, written: &Written) -> BTreeMap<(Topic, i32), String> {
    let note = |(partition, join): (&i32, &Join<Record<'_>>)| {
        let note = Note { matched: written.matched(*partition)?, writing: join.last_writing()? };
        Some(((Topic::Blocks, *partition), note.text()))
    };
    joins.iter().filter_map(note).collect()
}

fn offsets(joins: &BTreeMap<i32, Join<Record<'_>>>) -> Vec<(Topic, i32, i64)> {
    let mut offsets = Vec::new();
    for (partition, join) in joins {
        let (blocks, logs) = join.offsets();
        offsets.extend(blocks.map(|offset| (Topic::Blocks, *partition, offset)));
        offsets.extend(logs.map(|offset| (Topic::Logs, *partition, offset)));
    }
    offsets
}

/// Pauses a topic of a partition while too many of its records wait for their counterparts: `chain.blocks`, since logs are larger
/// and so arrive later, or `chain.logs` where blocks do. Both are paused while the partition is held.
fn apply_backpressure(consumer: &Consumer, joins: &mut BTreeMap<i32, Join<Record<'_>>>, held: &Held) -> Result<(), Failure> {
    for (partition, join) in joins {
        for (topic, is_paused) in join.pauses(held.holds(*partition)) {
            if is_paused { consumer.pause(topic, *partition)? } else { consumer.resume(topic, *partition)? }
        }
    }
    Ok(())
}

fn record_metrics(blocks: usize, matcher: &mut Matcher, started: Instant, written: Option<i64>) {
    let stage = [("stage", STAGE)];
    metrics::STAGE_RECORDS.counter(&stage).increment(u64::try_from(blocks).unwrap_or_default());
    metrics::STAGE_LATENCY.histogram(&stage).record(started.elapsed());
    metrics::MATCHED_LOGS.counter(&[]).increment(std::mem::take(&mut matcher.logs));
    if let Some(written) = written {
        metrics::stage_lag(STAGE, written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;
    use runtime::kafka::PartitionReader;
    use topics::wire::{BlockRecord, LogsRecord, block_record, logs_record};

    /// The backfill that is named would begin above what was taken and is not written.
    #[test]
    fn a_block_without_logs_waits_until_what_was_taken_before_it_is_written() {
        const CHAIN: &str = "31337";
        let cluster = MockCluster::new(1).unwrap();
        let topics = [Topic::Blocks, Topic::Logs, Topic::Matches, Topic::Cursors];
        topics.iter().for_each(|topic| cluster.create_topic(topic.name(), topic.partitions(), 1).unwrap());
        let kafka = Kafka::on_brokers(&cluster.bootstrap_servers());
        let producer = TransactionalProducer::open(&kafka, "lab").unwrap();
        let transaction = producer.begin().unwrap();
        for sequence in 1..=3_u8 {
            let (chain_id, number, hash, mark) = (31337, sequence.into(), vec![sequence; 32], sequence.to_string());
            let (parent_hash, kind) = (vec![sequence - 1; 32].into(), block_record::Kind::Added.into());
            let (sequence, logs_kind) = (u64::from(sequence), logs_record::Kind::Added.into());
            let block =
                BlockRecord { chain_id, sequence, kind, number, hash: hash.clone().into(), parent_hash, ..Default::default() };
            let logs = LogsRecord { chain_id, sequence, kind: logs_kind, number, hash: hash.into(), ..Default::default() };
            transaction.send_with_headers(Topic::Blocks, CHAIN, &kafka.encode(&block), &[(WRITING, &*mark)]).unwrap();
            if sequence != 2 {
                transaction.send_with_headers(Topic::Logs, CHAIN, &kafka.encode(&logs), &[(WRITING, &*mark)]).unwrap();
            }
        }
        transaction.commit().unwrap();
        let partition = Topic::Blocks.partition_of(CHAIN);
        let readers =
            [Topic::Blocks, Topic::Logs].map(|topic| PartitionReader::open_at_once(&kafka, topic, partition).unwrap());
        let mut joins = BTreeMap::from([(partition, Join::default())]);
        for reader in &readers {
            while let Some(record) = reader.next().unwrap() {
                joins.get_mut(&partition).unwrap().push(record, |_, _| false);
            }
        }
        let held = Held::new(&kafka, "lab");
        let mut chains = Chains::new(&kafka, &held);
        let (pairs, passed) = take(&mut joins, &mut chains, &held).unwrap();
        assert_eq!((pairs.len(), passed), (1, false));
        assert!(take(&mut joins, &mut chains, &held).is_ok_and(|(pairs, passed)| pairs.is_empty() && !passed), "it waits");
        let transaction = producer.begin().unwrap();
        chains.notify(&transaction).unwrap();
        transaction.commit().unwrap();
        assert!(take(&mut joins, &mut chains, &held).unwrap().1, "the block is passed over");
    }
}
