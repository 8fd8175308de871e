//! Publishing a batch: blocks, logs and the chain's cursor in one Kafka transaction.

use crate::cursor::{CursorRecord, WrittenParts, encode};
use crate::follow::Batch;
use crate::record_size::bound_block;
use crate::records::{Change, records};
use crate::window::Window;
use base::metrics;
use chain::Chain;
use runtime::Failure;
use runtime::kafka::{Kafka, Transaction, TransactionalProducer};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use topics::wire::{BlockRecord, LogsRecord};
use topics::{ChainId, Topic, WRITING};

/// The name of the stage; with the chain's id it is the transactional id, so that a successor fences its predecessor.
pub const STAGE: &str = "ingest";

/// Writes a chain's records of `chain.cursors`.
pub fn send_cursor(kafka: &Kafka, transaction: &Transaction<'_>, records: &[CursorRecord]) -> Result<(), Failure> {
    records.iter().try_for_each(|(key, record)| match record {
        Some(record) => transaction.send(Topic::Cursors, key, &kafka.encode(record)),
        None => transaction.delete(Topic::Cursors, key),
    })
}

/// The encoded records of a batch. All are encoded before the first is sent, so that the producer sends them together: while a
/// request is under way, librdkafka's thread busy-waits to send records that came too late for it.
#[derive(Default)]
pub struct OutgoingRecords(Vec<(Topic, Vec<u8>)>);

impl OutgoingRecords {
    /// Adds the records of a block: its own and that of its logs, or several if there are too many.
    pub fn push_block(&mut self, kafka: &Kafka, chain: &Chain, mut block: BlockRecord, logs: LogsRecord) {
        let (parts, is_untraced) = bound_block(&mut block, logs);
        if is_untraced {
            metrics::CHAIN_UNTRACED.counter(&[("chain", &chain.name)]).increment(1);
            tracing::warn!(chain = chain.name, "block {} has too many internal transfers for a record", block.number);
        }
        self.0.push((Topic::Blocks, kafka.encode(&block)));
        self.0.extend(parts.iter().map(|part| (Topic::Logs, kafka.encode(part))));
    }

    /// Sends all records under the chain's key, with what tells this transaction from any other of the chain.
    pub fn send(&self, transaction: &Transaction<'_>, chain: ChainId) -> Result<(), Failure> {
        let key = chain.to_string();
        let writing = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
        let send = |(topic, record): &(Topic, Vec<u8>)| {
            transaction.send_with_headers(*topic, &key, record, &[(WRITING, writing.as_str())])
        };
        self.0.iter().try_for_each(send)
    }
}

/// Publishes a batch with its cursor in one transaction. Returns the sequence of its last record.
pub fn publish_batch(
    producer: &TransactionalProducer,
    kafka: &Kafka,
    chain: &Chain,
    mut sequence: u64,
    batch: Batch,
    window: &Window,
    written: &mut WrittenParts,
) -> Result<u64, Failure> {
    let started = Instant::now();
    let (mut added, mut removed, mut logs) = (0, 0, 0);
    let mut outgoing = OutgoingRecords::default();
    for change in batch.changes {
        match &change {
            Change::Added(block) => {
                added += 1;
                logs += block.logs.len() as u64;
            }
            Change::Replayed(_) | Change::Tags(_) => {}
            Change::Removed(..) => removed += 1,
        }
        sequence += 1;
        let (block, of_block) = records(chain.id, sequence, change, batch.finality);
        outgoing.push_block(kafka, chain, block, of_block);
    }
    let cursor = encode(chain.id, sequence, window, "", written);
    let transaction = producer.begin()?;
    outgoing.send(&transaction, chain.id)?;
    send_cursor(kafka, &transaction, &cursor)?;
    transaction.commit()?;

    let labels = [("chain", chain.name.as_str())];
    metrics::STAGE_LATENCY.histogram(&[("stage", STAGE)]).record(started.elapsed().as_secs_f64());
    metrics::STAGE_RECORDS.counter(&[("stage", STAGE)]).increment(added + removed);
    metrics::CHAIN_BLOCKS.counter(&[labels[0], ("kind", "added")]).increment(added);
    metrics::CHAIN_BLOCKS.counter(&[labels[0], ("kind", "removed")]).increment(removed);
    metrics::CHAIN_LOGS.counter(&labels).increment(logs);
    if let Some(tip) = window.tip() {
        #[expect(clippy::cast_precision_loss, reason = "block numbers are far below 2^52")]
        metrics::CHAIN_HEAD_BLOCK.gauge(&labels).set(tip.number as f64);
    }
    Ok(sequence)
}
