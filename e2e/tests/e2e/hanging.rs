//! A transaction that stays open in Kafka, as one of which a broker has lost sight.

use anyhow::{Context as _, Result, ensure};
use e2e::{Lab, Plan, root};
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::process::Command;
use std::time::{Duration, Instant};
use topics::wire::MatchesRecord;
use topics::{Topic, frame};

const PATIENCE: Duration = Duration::from_secs(30);
const UNCOMMITTED: &[u8] = b"of a transaction that nobody ends";

/// The place of the chain's matches.
fn place(lab: &Lab) -> (String, i32) {
    (format!("{}{}", lab.env["TOPIC_PREFIX"], Topic::Matches), Topic::Matches.partition_of("31337"))
}

/// Begins a transaction, and goes. The broker keeps it open for a quarter of an hour.
fn leave_open(lab: &Lab) -> Result<()> {
    let (topic, partition) = place(lab);
    let mut config = lab.kafka_connection();
    config.set("transactional.id", format!("{topic}.gone")).set("transaction.timeout.ms", "900000");
    let producer: BaseProducer = config.create()?;
    producer.init_transactions(PATIENCE)?;
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
