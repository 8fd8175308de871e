//! Copies each merchant's events to a topic of its own, `merchant.<merchant id>.events`, for merchants that read Kafka
//! directly: Kafka's ACLs know topics and no records (docs/consuming.md). Exactly once: copies and offsets are one transaction.
//!
//! `forward MERCHANT_ID…` forwards these merchants' events. ACLs are the operator's to make; the topics too, or `--create` makes
//! them. It goes on until it is killed, or with `--to-end` until it has copied all that is there. Run one of it a group.
//!
//! Keys and values are copied byte for byte, so the schema is the one that the values name. A group begins with the oldest event;
//! a merchant that is added to the list of a group that is under way gets what comes from then on. To give it its past as well,
//! start a `forward` of its own for it, under another FORWARD_GROUP.

use anyhow::{Context as _, Result, bail};
use examples::{client, consumer, prefixed};
use futures::executor::block_on;
use rdkafka::Message as _;
use rdkafka::Timestamp;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use topics::{Topic, frame, wire};

const PATIENCE: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_millis(100);
/// Records a transaction.
const MOST: usize = 500;

fn main() -> Result<()> {
    let (flags, merchants): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with("--"));
    let to_end = flags.iter().any(|flag| flag == "--to-end");
    let merchants: BTreeSet<String> = merchants.into_iter().collect();
    if merchants.is_empty() || flags.iter().any(|flag| !["--to-end", "--create"].contains(&flag.as_str())) {
        bail!("usage: forward [--create] [--to-end] MERCHANT_ID…");
    }
    if flags.iter().any(|flag| flag == "--create") {
        create(&merchants)?;
    }
    let group = std::env::var("FORWARD_GROUP").unwrap_or_else(|_| prefixed("forward"));
    let consumer: BaseConsumer = consumer(&group)?.create()?;
    let events = prefixed(Topic::Events.name());
    consumer.subscribe(&[&events])?;
    let producer: BaseProducer = client()?
        .set("transactional.id", &group)
        // As the pipeline does, so that a payment is in the same partition for everyone.
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", Topic::Events.max_message_bytes().to_string())
        .create()?;
    // Fences a predecessor that still runs.
    producer.init_transactions(PATIENCE)?;
    let metadata = consumer.fetch_metadata(Some(&events), PATIENCE).context("Kafka does not answer")?;
    let partitions = metadata.topics().first().context("no metadata")?.partitions().len();
    let mut ended = BTreeSet::new();
    while !(to_end && ended.len() == partitions) {
        let (records, ends) = batch(&consumer)?;
        ended.extend(ends);
        if !records.is_empty() {
            copy(&consumer, &producer, &merchants, &records)?;
        }
    }
    Ok(())
}

fn topic_of(merchant: &str) -> String {
    prefixed(&format!("merchant.{merchant}.events"))
}

/// With as many partitions as payment.events has, and kept as long: for ever.
fn create(merchants: &BTreeSet<String>) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = client()?.create()?;
    let names: Vec<String> = merchants.iter().map(|merchant| topic_of(merchant)).collect();
    let limit = Topic::Events.max_message_bytes().to_string();
    let new: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| {
            NewTopic::new(name, Topic::Events.partitions(), TopicReplication::Fixed(-1))
                .set("retention.ms", "-1")
                .set("max.message.bytes", &limit)
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for outcome in block_on(admin.create_topics(&new, &options)).context("creating topics")? {
        match outcome {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => bail!("creating {name}: {code}"),
        }
    }
    Ok(())
}

/// What is at hand, and the partitions that had no more.
fn batch(consumer: &BaseConsumer) -> Result<(Vec<BorrowedMessage<'_>>, Vec<i32>)> {
    let (mut records, mut ended) = (Vec::new(), Vec::new());
    while records.len() < MOST {
        match consumer.poll(WAIT) {
            None => break,
            Some(Err(KafkaError::PartitionEOF(partition))) => ended.push(partition),
            Some(Err(error)) => return Err(error).context("reading"),
            Some(Ok(record)) => records.push(record),
        }
    }
    Ok((records, ended))
}

/// A failure ends the program, and the transaction with it: started again, it is where it was before.
fn copy(
    consumer: &BaseConsumer,
    producer: &BaseProducer,
    merchants: &BTreeSet<String>,
    records: &[BorrowedMessage<'_>],
) -> Result<()> {
    producer.begin_transaction()?;
    let mut next: BTreeMap<(&str, i32), i64> = BTreeMap::new();
    for record in records {
        next.insert((record.topic(), record.partition()), record.offset() + 1);
        let value = record.payload().unwrap_or_default();
        let event: wire::PaymentEvent = frame::decode(value)?;
        if !merchants.contains(&event.merchant_id) {
            continue;
        }
        let topic = topic_of(&event.merchant_id);
        let mut copy = BaseRecord::to(&topic).key(record.key().unwrap_or_default()).payload(value);
        if let Timestamp::CreateTime(written) = record.timestamp() {
            copy = copy.timestamp(written);
        }
        producer.send(copy).map_err(|(error, _)| error).with_context(|| topic.clone())?;
        producer.poll(Duration::ZERO);
    }
    let mut offsets = TopicPartitionList::new();
    for ((topic, partition), offset) in next {
        offsets.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    }
    let group = consumer.group_metadata().context("no group")?;
    producer.send_offsets_to_transaction(&offsets, &group, PATIENCE)?;
    // Fails if a record was not taken, as when its topic is not there.
    Ok(producer.commit_transaction(PATIENCE)?)
}
