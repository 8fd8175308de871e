//! Consumer groups expire, are deleted, or are not copied with a cluster. What was written tells where a stage goes on.

use anyhow::{Context as _, Result, ensure};
use e2e::{Api, KafkaAdmin, Lab, Payment, Plan, Process, events, eventually, records};
use prost::Message as _;
use runtime::Kafka;
use runtime::kafka::{Consumer, Publisher, Record, TransactionalProducer};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::oneshot::{self, Sender};
use tokio_util::sync::CancellationToken;
use topics::wire::block_record::Kind;
use topics::wire::logs_record::Log;
use topics::{Address, Message as _, TRANSFER_TOPIC, Topic, wire};

/// anvil calls every block final that is this far below its head.
const FINAL_BELOW: u64 = 64;

async fn pay(lab: &Lab, api: &Api) -> Result<Payment> {
    let payment = api.create_surely(json!({ "chain": "anvil", "amount": "1000", "expires_in": 86_400 })).await?;
    let hash = lab.node.pay(payment.address()?, payment.amount()?).await?;
    eventually("the receipt", || lab.node.receipt(hash)).await?;
    lab.node.mine(3).await?;
    Ok(payment)
}

/// The numbers of the replayed blocks in `chain.matches`.
async fn replayed(lab: &Lab) -> Result<Vec<u64>> {
    let matches: Vec<wire::MatchesRecord> = records(lab).await?;
    Ok(matches.iter().filter(|record| record.sequence == 0).map(|record| record.number).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_detector_goes_on_where_its_output_ends_when_its_group_is_gone() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut roles: Vec<Process> =
        ["api", "ingest", "confirmer"].map(|role| lab.spawn(role)).into_iter().collect::<Result<_>>()?;
    let mut detector = lab.spawn("detector")?;
    let api = lab.merchant("shop")?;
    api.ready(&mut roles[0]).await?;
    api.until(pay(&lab, &api).await?.id(), "confirmed").await?;
    // A backfill replays final blocks only.
    lab.node.mine(FINAL_BELOW + 10).await?;
    lab.ctrip(&["backfill", "--chain", "anvil", "--from", "1", "--to", "3"])?;
    eventually("replayed blocks to be matched", || async { Ok((replayed(&lab).await?.len() == 3).then_some(())) }).await?;
    detector.terminate()?;
    lab.ctrip(&["backfill", "--chain", "anvil", "--from", "4", "--to", "6"])?;
    let meanwhile = pay(&lab, &api).await?;
    KafkaAdmin::of(&lab)?.delete_group("detector").await?;

    let mut detector = lab.spawn("detector")?;
    api.until(meanwhile.id(), "confirmed").await?;
    api.until(pay(&lab, &api).await?.id(), "confirmed").await?;
    let matches: Vec<wire::MatchesRecord> = records(&lab).await?;
    let sequences: Vec<u64> = matches.iter().map(|record| record.sequence).filter(|sequence| *sequence != 0).collect();
    let expected: Vec<u64> = (1..=sequences.len() as u64).collect();
    ensure!(sequences == expected, "chain.matches has the sequences {sequences:?}");
    // Nothing tells of a replayed block whether it was matched but the place of the last match.
    let replayed = replayed(&lab).await?;
    ensure!(replayed == [1, 2, 3, 4, 5, 6], "chain.matches has the replayed blocks {replayed:?}");
    detector.check()?;
    roles.iter_mut().try_for_each(Process::check)
}

/// Writes a chain's records as ingest does.
pub struct Chain {
    pub kafka: Kafka,
    publisher: Publisher,
}

impl Chain {
    pub async fn of(lab: &Lab) -> Result<Self> {
        let kafka = lab.kafka().await?;
        Ok(Self { publisher: Publisher::open(&kafka, Duration::from_secs(10))?, kafka })
    }

    async fn publish(&self, topic: Topic, key: String, value: Vec<u8>) -> Result<()> {
        self.publisher.publish(topic, &[(key, value)]).await.into_iter().collect()
    }

    pub async fn write(&self, block: wire::BlockRecord, logs: Vec<Log>) -> Result<()> {
        self.write_logs(&block, logs).await?;
        self.write_without_logs(&block).await
    }

    async fn write_logs(&self, block: &wire::BlockRecord, logs: Vec<Log>) -> Result<()> {
        let logs = wire::LogsRecord { logs, ..no_logs(block) };
        self.publish(Topic::Logs, logs.key(), self.kafka.encode(&logs)).await
    }

    /// Writes many blocks of one chain, which have no logs in them.
    pub async fn write_all(&self, blocks: &[wire::BlockRecord]) -> Result<()> {
        let logs: Vec<_> = blocks.iter().map(no_logs).map(|logs| (logs.key(), self.kafka.encode(&logs))).collect();
        let blocks: Vec<_> = blocks.iter().map(|block| (block.key(), self.kafka.encode(block))).collect();
        for (topic, records) in [(Topic::Logs, logs), (Topic::Blocks, blocks)] {
            self.publisher.publish(topic, &records).await.into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    pub async fn write_without_logs(&self, block: &wire::BlockRecord) -> Result<()> {
        self.publish(Topic::Blocks, block.key(), self.kafka.encode(block)).await
    }

    /// Writes matches of blocks, as if their records had been at this offset of `chain.blocks` and the next ones.
    pub async fn write_matches(&self, blocks: Vec<wire::BlockRecord>, first: i64) -> Result<()> {
        let kafka = self.kafka.clone();
        let written = tokio::task::spawn_blocking(move || {
            let producer = TransactionalProducer::open(&kafka, "lab")?;
            let transaction = producer.begin()?;
            for (block, offset) in blocks.into_iter().zip(first..) {
                let wire::BlockRecord { chain_id, sequence, kind, number, hash, parent_hash, .. } = block;
                let matched = wire::MatchesRecord { chain_id, sequence, kind, number, hash, parent_hash, ..Default::default() };
                let (offset, record) = (offset.to_string(), kafka.encode(&matched));
                let headers = [("ctrip-block-offset", offset.as_str()), ("ctrip-logs-offset", &offset)];
                transaction.send_with_headers(Topic::Matches, &matched.key(), &record, &headers)?;
            }
            transaction.commit()
        });
        written.await?.map_err(Into::into)
    }

    /// Writes blocks from number 10 on, with sequences from 1 to this one, and returns a detector that has matched them.
    pub async fn matched(&self, lab: &Lab, last: u64) -> Result<Process> {
        let sequences: Vec<u64> = (1..=last).collect();
        for sequence in &sequences {
            self.write(block(*sequence, Kind::Added, 9 + sequence, 1), Vec::new()).await?;
        }
        let detector = lab.spawn("detector")?;
        until_matched(lab, &sequences).await?;
        Ok(detector)
    }
}

/// What `chain.logs` has of a block without logs.
pub fn no_logs(block: &wire::BlockRecord) -> wire::LogsRecord {
    let wire::BlockRecord { chain_id, sequence, kind, number, hash, .. } = block.clone();
    wire::LogsRecord { chain_id, sequence, kind, number, hash, ..Default::default() }
}

pub const CHAIN: &str = "31337";

/// A block on the one before it, of this branch.
pub fn block(sequence: u64, kind: Kind, number: u64, branch: u8) -> wire::BlockRecord {
    let hash = |number: u64| [&[branch; 24][..], &number.to_be_bytes()].concat();
    wire::BlockRecord {
        chain_id: 31337,
        sequence,
        kind: kind.into(),
        number,
        hash: hash(number).into(),
        parent_hash: hash(number - 1).into(),
        timestamp: number,
        ..Default::default()
    }
}

/// Waits until `chain.matches` has records of these sequences.
pub async fn until_matched(lab: &Lab, sequences: &[u64]) -> Result<Vec<wire::MatchesRecord>> {
    eventually(&format!("matches of {sequences:?}"), || async {
        let matches: Vec<wire::MatchesRecord> = records(lab).await?;
        let found: Vec<u64> = matches.iter().map(|record| record.sequence).collect();
        ensure!(sequences.starts_with(&found), "chain.matches has the sequences {found:?}, expected {sequences:?}");
        Ok((found.len() == sequences.len()).then_some(matches))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_read_again_contradict_nothing() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (chain, admin) = (Chain::of(&lab).await?, KafkaAdmin::of(&lab)?);
    let watched = Address::repeat_byte(7);
    chain.publish(Topic::Intents, format!("{watched:#x}"), chain.kafka.encode(&wire::PaymentIntent::default())).await?;
    let log = |index| Log {
        address: vec![1; 20].into(),
        topics: [TRANSFER_TOPIC, Address::ZERO.into_word(), watched.into_word()].map(|topic| topic.to_vec().into()).to_vec(),
        data: vec![1; 32].into(),
        index,
        transaction_index: 0,
        transaction_hash: vec![2; 32].into(),
    };
    // Retention deleted what was before the tags.
    chain.write(block(4, Kind::Tags, 9, 1), Vec::new()).await?;
    chain.write(block(5, Kind::Added, 10, 1), (0..40_000).map(log).collect()).await?;
    chain.write(block(6, Kind::Added, 11, 1), Vec::new()).await?;
    // A block that a backfill brings, and that what comes after it may take back: matched again, it would be credited for good.
    chain.write(block(0, Kind::Replayed, 10, 1), Vec::new()).await?;
    // The counter went back, and the chain began anew.
    chain.write(block(1, Kind::Added, 11, 2), Vec::new()).await?;
    chain.write(block(2, Kind::Added, 12, 2), Vec::new()).await?;
    chain.write(block(7, Kind::Replayed, 10, 1), Vec::new()).await?;
    chain.write(block(8, Kind::Added, 11, 2), Vec::new()).await?;
    let mut detector = lab.spawn("detector")?;
    let matches = until_matched(&lab, &[5, 5, 6, 0, 7, 8]).await?;
    let parts: Vec<_> = matches.iter().map(|record| (record.part, record.parts)).collect();
    ensure!(parts == [(1, 2), (2, 2), (0, 0), (0, 0), (0, 0), (0, 0)], "{parts:?}");
    let indices = matches.iter().flat_map(|record| &record.transfers).map(|transfer| transfer.index);
    ensure!(indices.eq(0..40_000), "transfers are lost");

    detector.terminate()?;
    let logged = std::fs::read_to_string(&detector.log)?.len();
    admin.delete_group("detector").await?;
    for topic in [Topic::Blocks, Topic::Logs] {
        admin.commit("detector", topic, CHAIN, 0)?;
    }
    chain.write(block(9, Kind::Added, 12, 2), Vec::new()).await?;
    let mut detector = lab.spawn("detector")?;
    until_matched(&lab, &[5, 5, 6, 0, 7, 8, 9]).await?;
    let log = std::fs::read_to_string(&detector.log)?.split_off(logged);
    ensure!(!log.contains("set aside"), "{log}");
    detector.check()
}

/// As after a power cut that took more of `chain.blocks` and `chain.cursors` than of `chain.matches`.
#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_are_written_instead_of_lost_ones_are_matched() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (chain, admin) = (Chain::of(&lab).await?, KafkaAdmin::of(&lab)?);
    let mut detector = chain.matched(&lab, 3).await?;
    detector.terminate()?;
    let lost = [block(4, Kind::Tags, 12, 1), block(5, Kind::Added, 13, 1), block(6, Kind::Added, 14, 1)];
    chain.write_matches(lost.to_vec(), 3).await?;
    admin.delete_group("detector").await?;
    for topic in [Topic::Blocks, Topic::Logs] {
        admin.commit("detector", topic, CHAIN, 6)?;
    }
    // Less was told of tags, so that the chain's blocks have other sequences, one of which was matched.
    for (sequence, number) in [(4, 13), (5, 14), (6, 15), (7, 16)] {
        chain.write(block(sequence, Kind::Added, number, 1), Vec::new()).await?;
    }
    let mut detector = lab.spawn("detector")?;
    let matches = until_matched(&lab, &[1, 2, 3, 4, 5, 6, 4, 5, 6, 7]).await?;
    let numbers: Vec<u64> = matches.iter().skip(6).map(|record| record.number).collect();
    ensure!(numbers == [13, 14, 15, 16], "chain.matches has the blocks {numbers:?}");
    detector.check()
}

pub async fn until_set_aside(detector: &Process) -> Result<()> {
    eventually("the chain to be set aside", || async {
        let aside = detector.metric("set_aside_items", &[("kind", "detector_chain")]).await.unwrap_or_default();
        Ok((aside >= 1.0).then_some(()))
    })
    .await
}

/// What was matched under its sequence stands downstream, maybe with other content. So nothing may seem to continue it.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_written_again_and_can_not_be_matched_is_not_passed_over() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let chain = Chain::of(&lab).await?;
    let mut detector = chain.matched(&lab, 2).await?;
    detector.terminate()?;
    let again = wire::BlockRecord { parent_hash: block(1, Kind::Added, 10, 1).hash, ..block(2, Kind::Added, 11, 2) };
    chain.write_without_logs(&again).await?;
    chain.write(block(3, Kind::Added, 12, 2), Vec::new()).await?;
    // Nor does a backfill lead on.
    chain.write(wire::BlockRecord { sequence: 0, kind: Kind::Replayed.into(), ..again }, Vec::new()).await?;
    let mut detector = lab.spawn("detector")?;
    until_set_aside(&detector).await?;
    until_matched(&lab, &[1, 2, 0]).await?;
    detector.terminate()?;
    chain.write(block(4, Kind::Added, 13, 2), Vec::new()).await?;
    let mut detector = lab.spawn("detector")?;
    until_set_aside(&detector).await?;
    chain.write(block(9, Kind::Replayed, 10, 1), Vec::new()).await?;
    chain.write(block(10, Kind::Added, 11, 2), Vec::new()).await?;
    until_matched(&lab, &[1, 2, 0, 9, 10]).await?;
    detector.check()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_whose_logs_kafka_does_not_have_waits_for_nothing() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let chain = Chain::of(&lab).await?;
    chain.write(block(1, Kind::Added, 10, 1), Vec::new()).await?;
    chain.write_without_logs(&block(2, Kind::Added, 11, 1)).await?;
    let mut detector = lab.spawn("detector")?;
    until_set_aside(&detector).await?;
    // A backfill brings it again.
    chain.write(block(3, Kind::Added, 12, 1), Vec::new()).await?;
    chain.write(block(0, Kind::Replayed, 11, 1), Vec::new()).await?;
    // The partition is read again from the block after the gap, and with it the replayed one.
    until_matched(&lab, &[1, 0, 3, 0]).await?;
    detector.check()
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_whose_block_kafka_does_not_have_are_not_read_again_for_ever() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let chain = Chain::of(&lab).await?;
    // A retention deleted the block of a backfill.
    chain.write_logs(&block(0, Kind::Replayed, 500, 1), Vec::new()).await?;
    let mut detector = lab.spawn("detector")?;
    let written = AtomicU64::new(0);
    eventually("the offset to pass the logs without a block", || async {
        // All the time, so that Kafka has blocks that were not read yet whenever the detector looks.
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(300) {
            let next = written.fetch_add(1, Ordering::Relaxed) + 1;
            chain.write(block(next, Kind::Added, 10 + next, 1), Vec::new()).await?;
        }
        let kafka = chain.kafka.clone();
        let committed = move || kafka.committed("detector", Topic::Logs, Topic::Logs.partition_of(CHAIN));
        // A coordinator that is still loading answers with an error.
        let committed = tokio::task::spawn_blocking(committed).await?.ok().flatten();
        Ok(committed.filter(|offset| *offset > 0))
    })
    .await?;
    detector.check()
}

/// The partition goes to the end of a gap only if it was there before.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_whose_end_is_yet_to_come_skips_no_block_of_a_neighbour() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let chain = Chain::of(&lab).await?;
    let partition = |id: u64| Topic::Blocks.partition_of(&id.to_string());
    let neighbour = (1..31337).find(|id| partition(*id) == partition(31337)).context("a chain in the same partition")?;
    chain.write(block(1, Kind::Added, 10, 1), Vec::new()).await?;
    // Block 11 is missing, and comes as a replayed one.
    chain.write(block(3, Kind::Tags, 11, 1), Vec::new()).await?;
    chain.write(block(0, Kind::Replayed, 11, 1), Vec::new()).await?;
    chain.write(wire::BlockRecord { chain_id: neighbour, ..block(1, Kind::Added, 50, 3) }, Vec::new()).await?;
    chain.write(block(4, Kind::Added, 12, 1), Vec::new()).await?;
    let mut detector = lab.spawn("detector")?;
    until_matched(&lab, &[1, 0, 1, 4]).await?;
    detector.check()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_publishes_each_event_once_when_its_group_is_gone() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let mut server = lab.spawn("api")?;
    let mut confirmer = lab.spawn("confirmer")?;
    let api = lab.merchant("shop")?;
    api.ready(&mut server).await?;
    for _ in 0..3 {
        let payment = api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?;
        until_published(&lab, &[payment.id().to_owned()]).await?;
    }
    confirmer.kill()?;
    KafkaAdmin::of(&lab)?.delete_group("outbox").await?;
    let mut claimed = Vec::new();
    for _ in 0..3 {
        claimed.push(api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?.id().to_owned());
    }
    let db = lab.database().await?;
    eventually("the intents to be acknowledged", || async {
        let row = db.query_one("SELECT count(*) FROM unacknowledged_intents", &[]).await?;
        Ok((row.get::<_, i64>(0) == 0).then_some(()))
    })
    .await?;
    // As a crash leaves it: one batch was published and is still there, the next was claimed.
    let last = leave_published(&lab, events(&lab).await?.first().context("an event")?).await?;
    db.execute("UPDATE outbox SET batch = $1 WHERE batch IS NULL", &[&(last + 1)]).await?;
    // And as a fail-over that was taken back leaves it: the other database has told others under the number of a claim.
    let untold: uuid::Uuid = claimed[0].parse()?;
    db.execute("UPDATE outbox SET batch = $1 WHERE payment_id = $2", &[&last, &untold]).await?;

    let mut confirmer = lab.spawn("confirmer")?;
    until_published(&lab, &claimed).await?;
    let later = api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?;
    until_published(&lab, &[later.id().to_owned()]).await?;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for event in events(&lab).await? {
        *seen.entry(event.id).or_default() += 1;
    }
    ensure!(seen.len() == 7 && seen.values().all(|count| *count == 1), "events and how often each is there: {seen:?}");
    confirmer.check()
}

pub async fn until_published(lab: &Lab, payments: &[String]) -> Result<()> {
    eventually("the events of payments", || async {
        let published: BTreeSet<String> = events(lab).await?.into_iter().map(|event| event.payment_id).collect();
        Ok(payments.iter().all(|payment| published.contains(payment)).then_some(()))
    })
    .await
}

/// As a crash leaves it: the last batch was published, and is still there with this event. Returns its number.
pub async fn leave_published(lab: &Lab, event: &wire::PaymentEvent) -> Result<i64> {
    let last = batches(lab).await?.last().copied().context("a batch")?;
    let payment: uuid::Uuid = event.payment_id.parse()?;
    let sql = "INSERT INTO outbox (batch, payment_id, event, state) VALUES ($1, $2, $3, '')";
    lab.database().await?.execute(sql, &[&last, &payment, &event.encode_to_vec()]).await?;
    Ok(last)
}

/// The numbers of the batches in payment.events, as their headers have it.
async fn batches(lab: &Lab) -> Result<BTreeSet<i64>> {
    let kafka = lab.kafka().await?;
    let read = tokio::task::spawn_blocking(move || {
        let mut batches = BTreeSet::new();
        let see = |record: &Record<'_>| {
            let batch = record.header("ctrip-batch").and_then(|value| std::str::from_utf8(value).ok()?.parse::<i64>().ok());
            batches.extend(batch);
        };
        kafka.read_all(Topic::Events, see).map(|()| batches)
    });
    read.await?.map_err(Into::into)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_paused_before_a_rebalance_is_read_after_it() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (kafka, mut other) = (lab.kafka().await?, lab.settings()?);
    other.instance = "other".to_owned();
    let other = Kafka::connect(&other).await?;
    let publisher = Publisher::open(&kafka, Duration::from_secs(10))?;
    let write = async |round: u32| {
        // So many keys are in every partition.
        let records: Vec<_> = (0..200).map(|key| (format!("{round}-{key}"), b"value".to_vec())).collect();
        publisher.publish(Topic::Intents, &records).await.into_iter().collect::<Result<Vec<()>>>()
    };
    write(1).await?;
    let (sender, paused) = oneshot::channel();
    let first = tokio::task::spawn_blocking(move || read_as_first(&kafka, sender));
    paused.await?;
    // Another member joins: the partitions are assigned anew.
    let stop = CancellationToken::new();
    let second = {
        let stop = stop.clone();
        tokio::task::spawn_blocking(move || -> Result<()> {
            let consumer = Consumer::open(&other, "pausing", &[Topic::Intents], None)?;
            while !stop.is_cancelled() {
                consumer.poll(100, 1 << 20, Duration::from_millis(50))?;
            }
            Ok(())
        })
    };
    write(2).await?;
    let outcome = first.await?;
    stop.cancel();
    second.await??;
    outcome
}

/// Pauses every partition, and reads the half that it has after a rebalance.
fn read_as_first(kafka: &Kafka, paused: Sender<()>) -> Result<()> {
    let consumer = Consumer::open(kafka, "pausing", &[Topic::Intents], None)?;
    let (started, mut assignment, mut paused) = (Instant::now(), 0, Some(paused));
    let mut seen = BTreeSet::new();
    let all = usize::try_from(Topic::Intents.partitions())?;
    while started.elapsed() < Duration::from_secs(40) {
        let batch = consumer.poll(1000, 1 << 20, Duration::from_millis(50))?;
        seen.extend(batch.records.iter().map(Record::partition));
        if let Some(sender) = paused.take_if(|_| seen.len() == all) {
            (0..Topic::Intents.partitions()).try_for_each(|p| consumer.pause(Topic::Intents, p))?;
            assignment = batch.assignment;
            seen.clear();
            let _ = sender.send(());
        } else if paused.is_none() && batch.assignment == assignment {
            ensure!(batch.records.is_empty(), "a paused partition was read");
        } else if paused.is_none() && seen.len() == all / 2 {
            // Nothing was committed, so each of its partitions begins anew.
            return Ok(());
        }
    }
    anyhow::bail!("only {seen:?} were read {:.0?} after the start", started.elapsed())
}
