//! Copies each merchant's events to a topic of its own, `merchant.<merchant id>.events`, for merchants that read Kafka
//! directly: Kafka's ACLs apply to topics and not to records (docs/consuming.md). Exactly once: copies and offsets are one
//! transaction.
//!
//! `forward MERCHANT_ID…` forwards these merchants' events. The operator creates the ACLs, and the topics too unless `--create`
//! is given. It runs until it is killed, or with `--to-end` until it has copied every event. Run one instance per group.
//!
//! Keys and values are copied byte for byte, so a copy names the schema of its original. Only the merchant's id is read, with a
//! type that is compiled in. A new group begins with the oldest event. A merchant that is added to a running group gets the
//! events from then on; for its past as well, start another `forward` for it under another FORWARD_GROUP.

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

const TIMEOUT: Duration = Duration::from_secs(30);
const POLL_TIMEOUT: Duration = Duration::from_millis(100);
/// Records per transaction.
const MAX_RECORDS: usize = 500;

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
        // The pipeline's partitioner, so that a payment has the same partition in both topics.
        .set("partitioner", "murmur2_random")
        .set("message.max.bytes", Topic::Events.max_message_bytes().to_string())
        .create()?;
    // Fences a predecessor that is still running.
    producer.init_transactions(TIMEOUT)?;
    let metadata = consumer.fetch_metadata(Some(&events), TIMEOUT).context("Kafka does not answer")?;
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

/// Creates the topics with the partitions and the retention of payment.events, which is kept forever.
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
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT));
    for outcome in block_on(admin.create_topics(&new, &options)).context("creating topics")? {
        match outcome {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => bail!("creating {name}: {code}"),
        }
    }
    Ok(())
}

/// A batch of the records that have arrived, and the partitions that have reached their ends.
fn batch(consumer: &BaseConsumer) -> Result<(Vec<BorrowedMessage<'_>>, Vec<i32>)> {
    let (mut records, mut ended) = (Vec::new(), Vec::new());
    while records.len() < MAX_RECORDS {
        match consumer.poll(POLL_TIMEOUT) {
            None => break,
            Some(Err(KafkaError::PartitionEOF(partition))) => ended.push(partition),
            Some(Err(error)) => return Err(error).context("reading"),
            Some(Ok(record)) => records.push(record),
        }
    }
    Ok((records, ended))
}

/// Copies a batch in one transaction. A failure ends the program and aborts the transaction; the next run reads the batch again.
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
    producer.send_offsets_to_transaction(&offsets, &group, TIMEOUT)?;
    // Fails if Kafka did not take a record, for example because its topic does not exist.
    Ok(producer.commit_transaction(TIMEOUT)?)
}
