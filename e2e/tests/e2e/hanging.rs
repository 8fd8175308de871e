//! A transaction that stays open in Kafka, as one of which a broker has lost sight.

use crate::groups::{Chain, block};
use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Plan, Process, eventually, root};
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use runtime::kafka::PartitionReader;
use std::process::Command;
use std::time::{Duration, Instant};
use topics::wire::block_record::Kind;
use topics::wire::{BlockRecord, MatchesRecord};
use topics::{Topic, frame};

const PATIENCE: Duration = Duration::from_secs(30);
const UNCOMMITTED: &[u8] = b"of a transaction that nobody ends";

/// The place of the chain's matches.
fn place(lab: &Lab) -> (String, i32) {
    (format!("{}{}", lab.env["TOPIC_PREFIX"], Topic::Matches), Topic::Matches.partition_of("31337"))
}

/// A producer, which ends the transaction that it had left open before.
fn producer(lab: &Lab) -> Result<BaseProducer> {
    let mut config = lab.kafka_connection();
    config.set("transactional.id", format!("{}.gone", place(lab).0)).set("transaction.timeout.ms", "900000");
    let producer: BaseProducer = config.create()?;
    producer.init_transactions(PATIENCE)?;
    Ok(producer)
}

/// Begins a transaction, and goes. The broker keeps it open for a quarter of an hour.
fn leave_open(lab: &Lab) -> Result<()> {
    let ((topic, partition), producer) = (place(lab), producer(lab)?);
    producer.begin_transaction()?;
    producer.send(BaseRecord::<(), _>::to(&topic).partition(partition).payload(UNCOMMITTED)).map_err(|(error, _)| error)?;
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
    leave_open(&lab)?;
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

/// The sequences of a chain that can be read in its partition of `chain.matches`, whatever is open there.
async fn matched(lab: &Lab, chain: u64) -> Result<Vec<u64>> {
    let kafka = lab.kafka().await?;
    let read = tokio::task::spawn_blocking(move || {
        let (mut sequences, partition) = (Vec::new(), Topic::Matches.partition_of(&chain.to_string()));
        let reader = PartitionReader::open_at_once(&kafka, Topic::Matches, partition)?;
        while let Some(record) = reader.next()? {
            let record: Option<MatchesRecord> = frame::decode(record.payload()).ok();
            sequences.extend(record.filter(|record| record.chain_id == chain).map(|record| record.sequence));
        }
        Ok::<_, runtime::Failure>(sequences)
    });
    read.await?.map_err(Into::into)
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
    let until_matched = async |chain, count: usize| {
        eventually(&format!("{count} matches of chain {chain}"), async || {
            Ok((matched(&lab, chain).await?.len() == count).then_some(()))
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
    leave_open(&lab)?;
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
    told(&detector, &topic, partition).await?;
    write(other, 6).await?;
    until_matched(other, 6).await?;
    // As `kafka-transactions.sh abort` does.
    drop(producer(&lab)?);
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

/// Waits until the log and a metric have the partition that is held, with the command that ends it.
async fn told(detector: &Process, topic: &str, partition: i32) -> Result<()> {
    let named = format!("detector: partition {partition}");
    let command = format!("abort --topic {topic} --partition {partition} --start-offset");
    eventually("the held partition to be told", async || {
        let log = detector.log();
        let told = detector.metric("set_aside_items", &[("kind", "stage")]).await.unwrap_or_default();
        Ok((told >= 1.0 && log.lines().any(|line| line.contains(&named) && line.contains(&command))).then_some(()))
    })
    .await
}
