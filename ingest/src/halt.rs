//! Halting a chain until a person decides. The cause is written into the chain's cursor, so that a restart does not forget it
//! and the API can show it; `ctrip resume` removes it.

use crate::cursor::{StoredCursor, WrittenParts, encode, part_keys, part_of_key};
use crate::publish::send_cursor;
use crate::window::Window;
use anyhow::anyhow;
use runtime::kafka::{Kafka, TransactionalProducer};
use runtime::{Failure, stage};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use topics::wire::ChainCursor;
use topics::{ChainId, Topic, frame};

const RESUME_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The error that stops a chain's stage until it is resumed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; check it, then run: ctrip resume --chain {chain}")]
pub struct Halted {
    pub chain: String,
    pub cause: String,
}

/// Reads the chain's cursor, with the parts of its window, if there is one. What is the matter with partitions that have
/// nothing of them keeps no chain waiting.
pub fn read(kafka: &Kafka, chain: ChainId) -> Result<Option<StoredCursor>, Failure> {
    let own = Topic::Cursors.partition_of(&chain.to_string());
    let (Some(cursor), mut parts) = read_partitions(kafka, chain, &[own])? else { return Ok(None) };
    let others: Vec<i32> = partitions_of_parts(chain, &cursor).into_iter().filter(|partition| *partition != own).collect();
    if !others.is_empty() {
        parts.extend(read_partitions(kafka, chain, &others)?.1);
    }
    let mut stored = StoredCursor::new(cursor);
    for (part, record) in parts {
        stored.set_part(part, record.as_deref().map(decode).transpose()?);
    }
    Ok(Some(stored))
}

/// Parts of a chain's window; those without a record are deleted.
type Parts = BTreeMap<u64, Option<Vec<u8>>>;

/// What these partitions have of the chain's cursor and of the parts of its window.
fn read_partitions(kafka: &Kafka, chain: ChainId, partitions: &[i32]) -> Result<(Option<ChainCursor>, Parts), Failure> {
    let (key, mut cursor, mut parts) = (chain.to_string(), None, Parts::new());
    kafka.read_partitions(Topic::Cursors, partitions, |record| {
        let value = Some(record.payload().to_vec()).filter(|value| !value.is_empty());
        if record.key() == key.as_bytes() {
            cursor = value;
        } else if let Some(part) = part_of_key(chain, record.key()) {
            parts.insert(part, value);
        }
    })?;
    Ok((cursor.as_deref().map(decode).transpose()?, parts))
}

fn decode(value: &[u8]) -> Result<ChainCursor, Failure> {
    frame::decode(value).map_err(|e| Failure::halt(e).context("reading the chain's cursor"))
}

/// The partitions that have the parts of a cursor's window.
fn partitions_of_parts(chain: ChainId, cursor: &ChainCursor) -> BTreeSet<i32> {
    let mut partitions = BTreeSet::new();
    for key in part_keys(chain, cursor) {
        partitions.insert(Topic::Cursors.partition_of(&key));
        if i32::try_from(partitions.len()) == Ok(Topic::Cursors.partitions()) {
            break;
        }
    }
    partitions
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
    let own = [Topic::Cursors.partition_of(&chain.to_string())];
    while !stop.is_cancelled() {
        match read_partitions(kafka, chain, &own) {
            Ok((Some(cursor), _)) if cursor.halted.is_empty() => return Ok(()),
            Ok((Some(_), _)) => {}
            Ok((None, _)) => return Err(Failure::Halt(anyhow!("the cursor of chain {chain} is gone"))),
            Err(failure) => tracing::warn!("cannot read whether chain {chain} is resumed, retrying: {failure}"),
        }
        stage::pause(stop, RESUME_POLL_INTERVAL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use topics::wire::chain_cursor::Block;

    #[test]
    fn a_chain_waits_for_no_partition_that_has_nothing_of_its_cursor() {
        let chain = ChainId(31_337);
        let partitions = |bottom, tip: Option<u64>| {
            let window = tip.map(|number| Block { number, ..Block::default() }).into_iter().collect();
            partitions_of_parts(chain, &ChainCursor { window, bottom_number: bottom, ..ChainCursor::default() })
        };
        let of = |part: u64| Topic::Cursors.partition_of(&format!("{chain}/{part}"));
        assert_eq!(partitions(Some(70), Some(140)), BTreeSet::from([of(2), of(3)]));
        assert!(partitions(Some(130), Some(140)).is_empty(), "the cursor's own record has all");
        assert!(partitions(None, Some(140)).is_empty() && partitions(Some(70), None).is_empty());
        assert_eq!(partitions(Some(0), Some(u64::MAX)).len(), 8);
    }
}
