//! Halting a chain until a person decides. The cause is written into the chain's cursor, so that a restart does not forget it
//! and the API can show it; `ctrip resume` removes it.

use crate::cursor::{StoredCursor, WrittenParts, encode, part_of_key};
use crate::publish::send_cursor;
use crate::window::Window;
use anyhow::anyhow;
use runtime::kafka::{Kafka, TransactionalProducer};
use runtime::{Failure, stage};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use topics::{ChainId, Topic, frame};

const RESUME_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The error that stops a chain's stage until it is resumed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; check it, then run: ctrip resume --chain {chain}")]
pub struct Halted {
    pub chain: String,
    pub cause: String,
}

/// Reads the chain's cursor, with the parts of its window, if there is one.
pub fn read(kafka: &Kafka, chain: ChainId) -> Result<Option<StoredCursor>, Failure> {
    let (mut cursor, mut parts) = (None, BTreeMap::new());
    kafka.read_all(Topic::Cursors, |record| {
        let value = Some(record.payload().to_vec()).filter(|value| !value.is_empty());
        if record.key() == chain.to_string().as_bytes() {
            cursor = value;
        } else if let Some(part) = part_of_key(chain, record.key()) {
            parts.insert(part, value);
        }
    })?;
    let decode = |bytes: Vec<u8>| frame::decode(&bytes).map_err(|e| Failure::halt(e).context("reading the chain's cursor"));
    let Some(cursor) = cursor.map(decode).transpose()? else { return Ok(None) };
    let mut stored = StoredCursor::new(cursor);
    for (part, record) in parts {
        stored.set_part(part, record.map(decode).transpose()?);
    }
    Ok(Some(stored))
}

/// Writes the cursor without data. `halted` is the cause; empty resumes the chain.
pub fn write(
    producer: &TransactionalProducer,
    kafka: &Kafka,
    chain: ChainId,
    sequence: u64,
    window: &Window,
    halted: &str,
    written: &mut WrittenParts,
) -> Result<(), Failure> {
    let records = encode(chain, sequence, window, halted, written);
    let transaction = producer.begin()?;
    send_cursor(kafka, &transaction, &records)?;
    transaction.commit()
}

/// Blocks until the chain is resumed, or `stop`. Retries when Kafka fails.
///
/// # Errors
/// If the chain's cursor is gone.
pub fn wait_until_resumed(kafka: &Kafka, chain: ChainId, stop: &CancellationToken) -> Result<(), Failure> {
    while !stop.is_cancelled() {
        match read(kafka, chain) {
            Ok(Some(stored)) if stored.cursor.halted.is_empty() => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => return Err(Failure::Halt(anyhow!("the cursor of chain {chain} is gone"))),
            Err(failure) => tracing::warn!("cannot read whether chain {chain} is resumed, retrying: {failure}"),
        }
        stage::pause(stop, RESUME_POLL_INTERVAL);
    }
    Ok(())
}
