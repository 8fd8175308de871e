//! Halting a chain until a person decides. The cause is written into the chain's cursor, so that a restart does not forget it
//! and the API can show it; `ctrip resume` removes it.

use crate::cursor::cursor;
use crate::window::Window;
use anyhow::anyhow;
use runtime::kafka::{Kafka, TransactionalProducer};
use runtime::{Failure, stage};
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

/// Reads the chain's cursor, if there is one.
pub fn read(kafka: &Kafka, chain: ChainId) -> Result<Option<ChainCursor>, Failure> {
    let Some(bytes) = kafka.read_last(Topic::Cursors, &chain.to_string())? else { return Ok(None) };
    frame::decode(&bytes).map(Some).map_err(|e| Failure::halt(e).context("reading the chain's cursor"))
}

/// Writes the cursor without data. `halted` is the cause; empty resumes the chain.
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

/// Writes into the cursor, as it was committed, why the chain halts.
pub fn write_cause(producer: &TransactionalProducer, kafka: &Kafka, chain: ChainId, cause: &str) -> Result<(), Failure> {
    let committed = read(kafka, chain)?.unwrap_or_else(|| cursor(chain, 0, &Window::default()));
    let record = ChainCursor { halted: cause.to_owned(), ..committed };
    let transaction = producer.begin()?;
    transaction.send(Topic::Cursors, &chain.to_string(), &kafka.encode(&record))?;
    transaction.commit()
}

/// Blocks until the chain is resumed, or `stop`. Retries when Kafka fails.
///
/// # Errors
/// If the chain's cursor is gone.
pub fn wait_until_resumed(kafka: &Kafka, chain: ChainId, stop: &CancellationToken) -> Result<(), Failure> {
    while !stop.is_cancelled() {
        match read(kafka, chain) {
            Ok(Some(cursor)) if cursor.halted.is_empty() => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => return Err(Failure::Halt(anyhow!("the cursor of chain {chain} is gone"))),
            Err(failure) => tracing::warn!("cannot read whether chain {chain} is resumed, retrying: {failure}"),
        }
        stage::pause(stop, RESUME_POLL_INTERVAL);
    }
    Ok(())
}
