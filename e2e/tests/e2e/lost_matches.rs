//! Kafka loses the end of `chain.matches`, or of the blocks that it tells of, and keeps what the group had committed: what is missing
//! is matched again, whoever has the partition by then.

use crate::groups::{CHAIN, Chain, block, no_logs, until_matched, until_set_aside};
use anyhow::{Context as _, Result, ensure};
use e2e::{KafkaAdmin, Lab, Plan, eventually, records};
use runtime::Kafka;
use runtime::kafka::{Consumer, TransactionalProducer};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::oneshot;
use topics::wire::MatchesRecord;
use topics::wire::block_record::Kind;
use topics::{Topic, WRITING, wire};

/// Lets the group, which has no members, have committed this offset of the chain's blocks and logs, as if all below were matched.
async fn commit(admin: &KafkaAdmin, offset: i64) -> Result<()> {
    let commit =
        || [Topic::Blocks, Topic::Logs].into_iter().try_for_each(|topic| admin.commit("detector", topic, CHAIN, offset));
    // A coordinator that is still loading, or has yet to see its members go, refuses.
    eventually("the offsets to be committed", async || Ok(commit().ok())).await
}

/// Leaves nothing but the marker of an aborted transaction in the chain's partition of `chain.matches`.
fn abort_matches(kafka: &Kafka) -> Result<()> {
    let producer = TransactionalProducer::open(kafka, "lab")?;
    let transaction = producer.begin()?;
    transaction.send(Topic::Matches, CHAIN, b"aborted")?;
    // Only a record that has reached the broker leaves a marker when it is aborted.
    for _ in 0..300 {
        if kafka.ends(Topic::Matches, Topic::Matches.partition_of(CHAIN))?.1 > 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("nothing arrived that could be aborted")
}

/// Of replayed blocks no sequence tells that they were matched, and no block after them waits for one.
#[tokio::test(flavor = "multi_thread")]
async fn matches_that_kafka_lost_come_again_also_those_of_replayed_blocks() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (chain, admin) = (Chain::of(&lab).await?, KafkaAdmin::of(&lab)?);
    chain.write(block(0, Kind::Replayed, 4, 1), Vec::new()).await?;
    chain.write(block(1, Kind::Added, 10, 1), Vec::new()).await?;
    // All of chain.matches is lost. Whoever began since was stopped amid its first transaction.
    commit(&admin, 2).await?;
    let kafka = chain.kafka.clone();
    tokio::task::spawn_blocking(move || abort_matches(&kafka)).await??;
    let mut detector = lab.spawn("detector")?;
    until_matched(&lab, &[0, 1]).await?;
    detector.terminate()?;
    // Its end is lost.
    chain.write(block(0, Kind::Replayed, 5, 1), Vec::new()).await?;
    chain.write(block(2, Kind::Added, 11, 1), Vec::new()).await?;
    commit(&admin, 4).await?;
    let mut detector = lab.spawn("detector")?;
    let matches = until_matched(&lab, &[0, 1, 0, 2]).await?;
    let numbers: Vec<u64> = matches.iter().map(|record| record.number).collect();
    ensure!(numbers == [4, 10, 5, 11], "chain.matches has the blocks {numbers:?}");
    // Nothing is matched twice where nothing was lost.
    detector.terminate()?;
    chain.write(block(3, Kind::Added, 12, 1), Vec::new()).await?;
    let mut detector = lab.spawn("detector")?;
    until_matched(&lab, &[0, 1, 0, 2, 3]).await?;
    detector.check()
}

/// Writes a block and its logs in one transaction under a mark of its own, as ingest does.
fn write_marked(kafka: &Kafka, block: &wire::BlockRecord) -> Result<()> {
    let producer = TransactionalProducer::open(kafka, "lab")?;
    let (transaction, mark) = (producer.begin()?, block.sequence.to_string());
    for (topic, record) in [(Topic::Blocks, kafka.encode(block)), (Topic::Logs, kafka.encode(&no_logs(block)))] {
        transaction.send_with_headers(topic, CHAIN, &record, &[(WRITING, &*mark)])?;
    }
    transaction.commit().map_err(Into::into)
}

/// A chain that is set aside matches nothing, for days. Nothing is lost meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_over_since_the_newest_match_is_not_read_again() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (chain, admin) = (Chain::of(&lab).await?, KafkaAdmin::of(&lab)?);
    let mut detector = chain.matched(&lab, 2).await?;
    // Block 3 is missing.
    for sequence in [4, 5, 6] {
        let before = admin.end(Topic::Blocks, CHAIN)?;
        let (kafka, passed) = (chain.kafka.clone(), block(sequence, Kind::Added, 9 + sequence, 1));
        tokio::task::spawn_blocking(move || write_marked(&kafka, &passed)).await??;
        eventually("the block to be passed over", async || {
            let kafka = chain.kafka.clone();
            let partition = Topic::Blocks.partition_of(CHAIN);
            let committed = tokio::task::spawn_blocking(move || kafka.committed("detector", Topic::Blocks, partition));
            Ok(committed.await??.filter(|offset| *offset > before))
        })
        .await?;
        ensure!(!detector.log().contains("is read again from offset"), "block {sequence}: {}", detector.log());
        detector.terminate()?;
        detector = lab.spawn("detector")?;
    }
    until_matched(&lab, &[1, 2]).await?;
    detector.check()
}

/// As after a power cut that took far more of `chain.blocks` than of `chain.matches`. What the group had committed lies within what
/// was written since.
#[tokio::test(flavor = "multi_thread")]
async fn however_many_matched_blocks_kafka_loses_those_that_are_written_instead_are_matched() -> Result<()> {
    const LOST: u64 = 1_500;
    let lab = Lab::start(Plan::default()).await?;
    let (chain, admin) = (Chain::of(&lab).await?, KafkaAdmin::of(&lab)?);
    let mut detector = chain.matched(&lab, 3).await?;
    detector.terminate()?;
    let lost: Vec<wire::BlockRecord> = (4..4 + LOST).map(|sequence| block(sequence, Kind::Tags, 12, 1)).collect();
    chain.write_matches(lost, 3).await?;
    let sequences: Vec<u64> = (4..14 + LOST).collect();
    let again: Vec<_> = sequences.iter().map(|sequence| block(*sequence, Kind::Added, sequence + 9, 1)).collect();
    chain.write_all(&again).await?;
    commit(&admin, i64::try_from(3 + LOST)?).await?;
    let mut detector = lab.spawn("detector")?;
    let matches = eventually("the blocks that were written instead", || async {
        let matches: Vec<MatchesRecord> = records(&lab).await?;
        Ok(Some(matches).filter(|matches| matches.len() >= 3 + usize::try_from(LOST).unwrap_or(0) + again.len()))
    })
    .await?;
    let numbers: Vec<u64> = matches.iter().skip(3 + usize::try_from(LOST)?).map(|record| record.number).collect();
    ensure!(numbers.iter().copied().eq(sequences.iter().map(|sequence| sequence + 9)), "{numbers:?}");
    detector.check()
}

/// A detector that begins anew looks for such a block between the chain's last match and what does not stand on it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_continues_a_chain_past_a_block_that_was_written_again_however_many_neighbours_come_between() -> Result<()> {
    const BETWEEN: u64 = 9_000;
    let lab = Lab::start(Plan::default()).await?;
    let chain = Chain::of(&lab).await?;
    let partition = |id: u64| Topic::Blocks.partition_of(&id.to_string());
    let neighbour = (1..31337).find(|id| partition(*id) == partition(31337)).context("a chain in the same partition")?;
    let mut detector = chain.matched(&lab, 2).await?;
    detector.terminate()?;
    let between =
        (1..=BETWEEN).map(|sequence| wire::BlockRecord { chain_id: neighbour, ..block(sequence, Kind::Added, sequence, 3) });
    chain.write_all(&between.collect::<Vec<_>>()).await?;
    // Another block under a sequence that was matched, without its logs.
    chain.write_without_logs(&block(2, Kind::Added, 11, 2)).await?;
    // The partition's last match is behind it.
    chain
        .write(wire::BlockRecord { chain_id: neighbour, ..block(BETWEEN + 1, Kind::Added, BETWEEN + 1, 3) }, Vec::new())
        .await?;
    let count = async |of: u64| {
        Ok::<_, anyhow::Error>(records::<MatchesRecord>(&lab).await?.iter().filter(|r| r.chain_id == of).count())
    };
    let mut detector = lab.spawn("detector")?;
    until_set_aside(&detector).await?;
    let all = usize::try_from(BETWEEN + 1)?;
    eventually("the neighbour's blocks", async || Ok((count(neighbour).await? == all).then_some(()))).await?;
    detector.terminate()?;
    chain.write(block(3, Kind::Added, 12, 2), Vec::new()).await?;
    let mut detector = lab.spawn("detector")?;
    until_set_aside(&detector).await?;
    ensure!(count(31337).await? == 2, "a block was matched that stands on one that was not");
    detector.check()
}

/// A chain for each partition.
fn chains() -> BTreeMap<i32, u64> {
    (1..200_u64).map(|id| (Topic::Blocks.partition_of(&id.to_string()), id)).collect()
}

/// Another member of the detector's group. It reads the replayed blocks of its partitions, says that it has matched them, and goes.
fn match_and_lose(kafka: &Kafka, joined: oneshot::Sender<()>) -> Result<BTreeSet<i32>> {
    let consumer = Consumer::open(kafka, "detector", &[Topic::Blocks, Topic::Logs], None)?;
    let (mut next, mut joined, mut polls_without) = (BTreeMap::<(Topic, i32), i64>::new(), Some(joined), 0);
    for _ in 0..600 {
        let batch = consumer.poll(100, 1 << 20, Duration::from_millis(100))?;
        if batch.assignment > 0 {
            joined.take().map(|joined| joined.send(()));
        }
        polls_without = if batch.records.is_empty() && !next.is_empty() { polls_without + 1 } else { 0 };
        next.extend(batch.records.iter().map(|record| ((record.topic, record.partition()), record.offset() + 1)));
        if polls_without > 10 {
            let producer = TransactionalProducer::open(kafka, "lab")?;
            let transaction = producer.begin()?;
            let offsets: Vec<_> = next.iter().map(|((topic, partition), offset)| (*topic, *partition, *offset)).collect();
            transaction.send_offsets(&offsets, &consumer.group_metadata()?)?;
            transaction.commit()?;
            return Ok(next.into_keys().filter(|(topic, _)| *topic == Topic::Blocks).map(|(_, partition)| partition).collect());
        }
    }
    anyhow::bail!("no partition was assigned")
}

/// The stage looked for losses when it began, and had other partitions then.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_gets_a_partition_matches_what_was_lost_of_it() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let chain = Chain::of(&lab).await?;
    let chains = chains();
    ensure!(chains.len() == 8, "{chains:?}");
    let of = |chain_id: &u64, record| wire::BlockRecord { chain_id: *chain_id, ..record };
    for id in chains.values() {
        chain.write(of(id, block(1, Kind::Added, 10, 1)), Vec::new()).await?;
    }
    let mut detector = lab.spawn("detector")?;
    let matched = |count| {
        let lab = &lab;
        async move {
            eventually(&format!("{count} matches"), || async {
                let matches: Vec<MatchesRecord> = records(lab).await?;
                Ok((matches.len() >= count).then_some(matches))
            })
            .await
        }
    };
    matched(8).await?;
    let mut settings = lab.settings()?;
    settings.instance = "other".to_owned();
    let (other, (sender, joined)) = (Kafka::connect(&settings).await?, oneshot::channel());
    let other = tokio::task::spawn_blocking(move || match_and_lose(&other, sender));
    joined.await.context("the other member")?;
    for id in chains.values() {
        chain.write(of(id, block(0, Kind::Replayed, 5, 1)), Vec::new()).await?;
    }
    let lost = other.await??;
    ensure!(lost.len() == 4, "the other member had {lost:?}");
    let matches = matched(16).await?;
    let replayed: BTreeSet<u64> = matches.iter().filter(|record| record.sequence == 0).map(|record| record.chain_id).collect();
    ensure!(replayed.len() == 8, "matched: {replayed:?}; the other member had {lost:?}");
    detector.check()
}
