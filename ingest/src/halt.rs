//! A chain that stops until a person has looked at it. Why is written into its cursor, so that a restart does not forget it and
//! the API can tell; `ctrip resume` takes it out again.

use crate::records::cursor;
use crate::window::Window;
use anyhow::anyhow;
use runtime::kafka::{Kafka, TransactionalProducer};
use runtime::{Failure, stage};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use topics::wire::ChainCursor;
use topics::{ChainId, Topic, frame};

const ASKED_EVERY: Duration = Duration::from_secs(2);

/// What ends a chain's stage until it is resumed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; look at it, then: ctrip resume --chain {chain}")]
pub struct Halted {
    /// The chain's name.
    pub chain: String,
    /// Why.
    pub cause: String,
}

/// The chain's cursor, if it has one.
pub fn read(kafka: &Kafka, chain: ChainId) -> Result<Option<ChainCursor>, Failure> {
    let Some(bytes) = kafka.read_last(Topic::Cursors, &chain.to_string())? else { return Ok(None) };
    frame::decode(&bytes).map(Some).map_err(|e| Failure::halt(e).context("reading the chain's cursor"))
}

/// Writes the cursor alone: halted for a cause, or going on.
pub fn write(
    producer: &TransactionalProducer,
    kafka: &Kafka,
    chain: ChainId,
    sequence: u64,
    window: &Window,
    halted: &str,
) -> Result<(), Failure> {
    let record = ChainCursor { halted: halted.to_owned(), ..cursor(chain, sequence, window) };
    let transaction = producer.begin()?;
    transaction.send(Topic::Cursors, &chain.to_string(), &kafka.encode(&record))?;
    transaction.commit()
}

/// Waits until the chain is resumed. Blocks.
///
/// # Errors
/// Never because of Kafka, which is asked again.
pub fn until_resumed(kafka: &Kafka, chain: ChainId, stop: &CancellationToken) -> Result<(), Failure> {
    while !stop.is_cancelled() {
        match read(kafka, chain) {
            Ok(Some(cursor)) if cursor.halted.is_empty() => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => return Err(Failure::Halt(anyhow!("the cursor of chain {chain} is gone"))),
            Err(failure) => tracing::warn!("asking whether chain {chain} is resumed: {failure}"),
        }
        stage::pause(stop, ASKED_EVERY);
    }
    Ok(())
}
