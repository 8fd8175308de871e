//! A transaction that stays open in Kafka, as one of which a broker has lost sight.

use crate::groups::{CHAIN, Chain, block};
use anyhow::{Context as _, Result, ensure};
use e2e::{Api, KafkaAdmin, Lab, Plan, Process, eventually, root};
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use reqwest::Method;
use runtime::Failure;
use runtime::kafka::{Kafka, PartitionReader};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};
use topics::wire::block_record::Kind;
use topics::wire::{BlockRecord, MatchesRecord, PaymentEvent};
use topics::{Topic, frame};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);
const UNCOMMITTED: &[u8] = b"of a transaction that nobody ends";

/// A topic and one of its partitions.
pub type Place = (String, i32);

/// Where the records of a key are.
pub fn place_of(lab: &Lab, topic: Topic, key: &str) -> Place {
    (format!("{}{topic}", lab.env["TOPIC_PREFIX"]), topic.partition_of(key))
}

/// The place of the chain's matches.
pub fn place(lab: &Lab) -> Place {
    place_of(lab, Topic::Matches, CHAIN)
}

/// A producer, which ends the transaction that it had left open in that place before, as `kafka-transactions.sh abort` does.
fn producer_of(lab: &Lab, (topic, _): &Place, whose: &str) -> Result<BaseProducer> {
    let mut config = lab.kafka_connection();
    config.set("transactional.id", format!("{topic}.{whose}")).set("transaction.timeout.ms", "900000");
    let producer: BaseProducer = config.create()?;
    producer.init_transactions(PATIENCE)?;
    Ok(producer)
}

/// Begins a transaction, and goes. The broker keeps it open for a quarter of an hour.
pub fn leave_open(lab: &Lab, place: &Place) -> Result<()> {
    leave_open_of(lab, place, "gone")
}

/// Ends the transaction that was left open there.
pub fn end(lab: &Lab, place: &Place) -> Result<()> {
    producer_of(lab, place, "gone").map(drop)
}

fn leave_open_of(lab: &Lab, place: &Place, whose: &str) -> Result<()> {
    let ((topic, partition), producer) = (place, producer_of(lab, place, whose)?);
    producer.begin_transaction()?;
    producer.send(BaseRecord::<(), _>::to(topic).partition(*partition).payload(UNCOMMITTED)).map_err(|(error, _)| error)?;
    Ok(producer.flush(PATIENCE)?)
}

/// Where the open transaction begins, once a transfer was matched behind it.
fn beginning(lab: &Lab) -> Result<i64> {
    let (topic, partition) = place(lab);
    let mut config = lab.kafka_connection();
    config.set("group.id", format!("{topic}.uncommitted")).set("isolation.level", "read_uncommitted");
    let consumer: BaseConsumer = config.create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, partition, Offset::Beginning)?;
    consumer.assign(&list)?;
    let (mut begins, started) = (None, Instant::now());
    while started.elapsed() < PATIENCE {
        let Some(record) = consumer.poll(Duration::from_millis(100)).transpose()? else { continue };
        let value = record.payload().unwrap_or_default();
        if value == UNCOMMITTED {
            begins = Some(record.offset());
        } else if let Some(begins) = begins
            && !frame::decode::<MatchesRecord>(value)?.transfers.is_empty()
        {
            return Ok(begins);
        }
    }
    anyhow::bail!("no transfer was matched behind the open transaction, which begins at {begins:?}")
}

/// The commands of docs/operations.md, as they stand there but for the place.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_commands_end_a_transaction_that_hangs_and_its_stage_goes_on() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (mut up, api) = lab.serve("up", "shop").await?;
    let pay = async || {
        let payment = api.coin(1000).await?;
        lab.node.pay(payment.address()?, payment.amount()?).await?;
        lab.node.mine(3).await?;
        anyhow::Ok(payment)
    };
    // All stages are at work: a detector that begins waits for the end of its own topic.
    api.until(pay().await?.id(), "confirmed").await?;
    leave_open(&lab, &place(&lab))?;
    let payment = pay().await?;
    let offset = beginning(&lab)?;
    let found = api.get(payment.id()).await?;
    ensure!(found.status() == "pending", "{}: what is behind an open transaction was read", found.status());

    let page = std::fs::read_to_string(root().join("docs/operations.md"))?;
    let mut blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let commands = blocks.find(|block| block.contains("kafka-transactions.sh")).context("docs/operations.md")?;
    let (topic, partition) = place(&lab);
    let commands = commands.replace("OFFSET", &offset.to_string()).replace("TOPIC", &topic);
    let commands = commands.replace("--partition P", &format!("--partition {partition}"));
    let output = Command::new("sh").args(["-euc", &commands]).envs(&lab.env).envs(lab.stack.kafka_tools(&lab.dir)?).output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{commands}{said}");
    api.until(payment.id(), "confirmed").await.context(said)?;
    up.check()
}

/// The records of these partitions that can be read now, whatever is open there. A broker that is too busy to answer is asked again.
async fn readable<M: topics::Message + Send + 'static>(kafka: &Kafka, partitions: Range<i32>) -> Result<Vec<M>> {
    eventually("the broker to answer", async || {
        let (kafka, partitions) = (kafka.clone(), partitions.clone());
        match tokio::task::spawn_blocking(move || read_at_once(&kafka, partitions)).await? {
            Err(Failure::Retry(_)) => Ok(None),
            read => Ok(Some(read?)),
        }
    })
    .await
}

fn read_at_once<M: topics::Message>(kafka: &Kafka, partitions: Range<i32>) -> Result<Vec<M>, Failure> {
    let mut records = Vec::new();
    for partition in partitions {
        let reader = PartitionReader::open_at_once(kafka, M::TOPIC, partition)?;
        while let Some(record) = reader.next()? {
            records.extend(frame::decode::<M>(record.payload()).ok());
        }
    }
    Ok(records)
}

/// The sequences of a chain that can be read in its partition of `chain.matches`, whatever is open there.
async fn matched(kafka: &Kafka, chain: u64) -> Result<Vec<u64>> {
    let partition = Topic::Matches.partition_of(&chain.to_string());
    let read: Vec<MatchesRecord> = readable(kafka, partition..partition + 1).await?;
    Ok(read.into_iter().filter(|record| record.chain_id == chain).map(|record| record.sequence).collect())
}

/// A detector that begins, or meets a chain for the first time, looks at the end of its own topic, in that partition alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_hangs_holds_the_chains_of_its_partition_and_no_others() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let (topic, partition) = place(&lab);
    let chain = Chain::of(&lab).await?;
    let other = (1..31337_u64).find(|id| Topic::Matches.partition_of(&id.to_string()) != partition).context("a chain")?;
    let write = async |chain_id, sequence| {
        let written = BlockRecord { chain_id, ..block(sequence, Kind::Added, 9 + sequence, 1) };
        chain.write(written, Vec::new()).await
    };
    let kafka = &chain.kafka;
    let until_matched = async |chain, count: usize| {
        eventually(&format!("{count} matches of chain {chain}"), async || {
            Ok((matched(kafka, chain).await?.len() == count).then_some(()))
        })
        .await
    };
    // Two more in the partition: it is begun in front of the transaction, and its chain is met behind it.
    let neighbour = (1..31337_u64).find(|id| Topic::Matches.partition_of(&id.to_string()) == partition).context("a chain")?;
    write(neighbour, 1).await?;
    write(other, 1).await?;
    let mut detector = lab.spawn("detector")?;
    until_matched(neighbour, 1).await?;
    until_matched(other, 1).await?;
    leave_open(&lab, &place(&lab))?;
    // What is known of a chain needs no look, so it goes on behind the transaction.
    for sequence in [2, 3] {
        write(neighbour, sequence).await?;
        write(other, sequence).await?;
        until_matched(other, usize::try_from(sequence)?).await?;
        // Then the detector looks at the end again before it writes.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
    }
    write(31337, 1).await?;
    write(other, 4).await?;
    until_matched(other, 4).await?;
    ensure!(!detector.log().contains("has lost its end"), "{}", detector.tail());

    detector.terminate()?;
    let mut detector = lab.spawn("detector")?;
    write(other, 5).await?;
    let began = Instant::now();
    until_matched(other, 5).await?;
    ensure!(began.elapsed() < Duration::from_secs(20), "it waited for another partition: {:?}", began.elapsed());
    told(&detector, "detector", &(topic, partition)).await?;
    write(other, 6).await?;
    until_matched(other, 6).await?;
    end(&lab, &place(&lab))?;
    until_matched(31337, 1).await?;
    write(neighbour, 4).await?;
    until_matched(neighbour, 4).await?;
    eventually("the wait to be over", async || {
        let log = detector.log();
        let told = detector.metric("set_aside_items", &[("kind", "stage")]).await?;
        Ok((told < 1.0).then_some(()).filter(|()| log.contains("can be begun")))
    })
    .await?;
    detector.check()
}

/// Waits until the log and a metric have the partition that a stage holds, with the command that ends it.
async fn told(process: &Process, stage: &str, (topic, partition): &Place) -> Result<()> {
    let named = format!("{stage}: partition {partition}");
    let command = format!("abort --topic {topic} --partition {partition} --start-offset");
    eventually("the held partition to be told", async || {
        let log = process.log();
        let told = process.metric("set_aside_items", &[("kind", "stage")]).await.unwrap_or_default();
        Ok((told >= 1.0 && log.lines().any(|line| line.contains(&named) && line.contains(&command))).then_some(()))
    })
    .await
}

/// The events that can be read now, whatever is open: the payment and number of each.
async fn readable_events(kafka: &Kafka) -> Result<Vec<(String, u64)>> {
    let read: Vec<PaymentEvent> = readable(kafka, 0..Topic::Events.partitions()).await?;
    Ok(read.into_iter().map(|event| (event.payment_id, event.sequence)).collect())
}

async fn until_readable(kafka: &Kafka, payments: &[String]) -> Result<()> {
    eventually("the events of payments", async || {
        let read: BTreeSet<String> = readable_events(kafka).await?.into_iter().map(|(payment, _)| payment).collect();
        Ok(payments.iter().all(|payment| read.contains(payment)).then_some(()))
    })
    .await
}

/// Two payments, of which the events of the first are in the partition.
async fn one_in_and_one_beside(api: &Api, partition: i32) -> Result<[String; 2]> {
    let (mut within, mut beside) = (None, None);
    while within.is_none() || beside.is_none() {
        let id = api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?.id().to_owned();
        let of = if Topic::Events.partition_of(&id) == partition { &mut within } else { &mut beside };
        of.get_or_insert(id);
    }
    within.zip(beside).map(Into::into).context("payments")
}

/// What a relay has told is read from the ends of `payment.events` when the next begins. Nobody knows what is behind the
/// transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_hangs_holds_the_events_of_its_partition_and_no_others() -> Result<()> {
    let lab = Lab::start(Plan::default()).await?;
    let kafka = lab.kafka().await?;
    let (mut server, mut confirmer) = (lab.spawn("api")?, lab.spawn("confirmer")?);
    let api = lab.merchant("shop")?;
    api.ready(&mut server).await?;
    let first = api.create_surely(json!({ "chain": "anvil", "amount": "1" })).await?.id().to_owned();
    until_readable(&kafka, std::slice::from_ref(&first)).await?;
    let place = place_of(&lab, Topic::Events, &first);
    let partition = place.1;
    leave_open(&lab, &place)?;

    // A relay that runs publishes behind the transaction, and is killed before it deletes what it has published.
    let [hidden, beside] = one_in_and_one_beside(&api, partition).await?;
    let db = lab.database().await?;
    let rows = "SELECT count(*) FROM outbox WHERE batch IS NULL";
    eventually("all to be published", async || Ok((db.query_one(rows, &[]).await?.get::<_, i64>(0) == 0).then_some(())))
        .await?;
    until_readable(&kafka, std::slice::from_ref(&beside)).await?;
    confirmer.kill()?;
    let payment = Uuid::parse_str(&hidden)?;
    let history = db.query_one("SELECT record FROM payment_events WHERE payment_id = $1", &[&payment]).await?;
    let claim = "INSERT INTO outbox (batch, payment_id, sequence, event, state) VALUES ($1, $2, 1, $3, '')";
    db.execute("DELETE FROM outbox", &[]).await?;
    let group = kafka.clone();
    let next = tokio::task::spawn_blocking(move || group.committed("outbox", Topic::Events, 0)).await??;
    let last = next.context("the relay's group")? - 1;
    db.execute(claim, &[&last, &payment, &history.get::<_, Vec<u8>>(0)]).await?;
    // What it had claimed after that was not published, and nobody knows.
    let [claimed, other] = one_in_and_one_beside(&api, partition).await?;
    let sql = "UPDATE outbox SET batch = $1 WHERE payment_id = $2";
    db.execute(sql, &[&(last + 1), &Uuid::parse_str(&claimed)?]).await?;
    KafkaAdmin::of(&lab)?.delete_group("outbox").await?;

    let mut confirmer = lab.spawn("confirmer")?;
    until_readable(&kafka, std::slice::from_ref(&other)).await?;
    let [kept, beside] = one_in_and_one_beside(&api, partition).await?;
    api.request(Method::POST, &format!("/api/v1/payments/{kept}/cancel"), None, &[]).await?;
    until_readable(&kafka, std::slice::from_ref(&beside)).await?;
    told(&confirmer, "outbox", &place).await?;
    confirmer.terminate()?;
    let mut confirmer = lab.spawn("confirmer")?;
    let [later, beside] = one_in_and_one_beside(&api, partition).await?;
    until_readable(&kafka, &[beside]).await?;
    let read = readable_events(&kafka).await?;
    let held = [&hidden, &claimed, &kept, &later];
    ensure!(!read.iter().any(|(payment, _)| held.contains(&payment)), "what is behind an open transaction was read: {read:?}");

    let began = |confirmer: &Process| confirmer.log().matches("the relay is the leader").count();
    let before = began(&confirmer);
    // Another begins before this one is over. Only what was there when the relay began has to be read.
    leave_open_of(&lab, &place, "another")?;
    end(&lab, &place)?;
    eventually("the outbox to be empty", async || {
        let left: i64 = db.query_one("SELECT count(*) FROM outbox", &[]).await?.get(0);
        Ok((left == 0).then_some(()))
    })
    .await?;
    ensure!(began(&confirmer) == before, "the relay began anew for it: {}", confirmer.tail());
    drop(producer_of(&lab, &place, "another")?);
    until_readable(&kafka, &held.map(Clone::clone)).await?;
    let mut numbers: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for (payment, number) in readable_events(&kafka).await? {
        numbers.entry(payment).or_default().push(number);
    }
    for (payment, numbers) in &numbers {
        let expected: &[u64] = if *payment == kept { &[1, 2] } else { &[1] };
        ensure!(numbers == expected, "{payment} has the events {numbers:?}");
    }
    ensure!(held.iter().all(|payment| numbers.contains_key(*payment)), "{numbers:?}");
    confirmer.check()?;
    server.check()
}
