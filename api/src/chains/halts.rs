//! Which chains have halted, and why. Ingest and the detector write the reason into `chain.cursors`, each under a key of its own
//! per chain; the API follows it while it runs.

use anyhow::anyhow;
use runtime::kafka::{Kafka, PartitionReader, Table, ask_each};
use runtime::{Failure, stage};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use topics::lazy::Fields;
use topics::{ChainId, Topic, frame};

const POLL_TIMEOUT: Duration = Duration::from_millis(200);
/// How long the start waits for open transactions.
const PATIENCE: Duration = Duration::from_secs(30);

/// The reasons of halted chains. Cheap to clone.
#[derive(Clone, Default)]
pub struct Halts(Arc<RwLock<Causes>>);

/// By the key of the record that tells it.
type Causes = HashMap<Vec<u8>, (ChainId, String)>;

impl Halts {
    /// The reason, or `None` for a chain that runs.
    pub fn of(&self, chain: ChainId) -> Option<String> {
        let halts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        halts.values().find(|(halted, _)| *halted == chain).map(|(_, cause)| cause.clone())
    }

    /// Reads what `chain.cursors` has now, so that no payment is taken on a chain that has halted before [`run`](Self::run) knows. It
    /// blocks.
    ///
    /// # Errors
    /// When Kafka fails. What can be read is read, whatever is the matter with another partition.
    pub fn read(&self, kafka: &Kafka) -> Result<(), Failure> {
        let read = |partition| -> Result<(), Failure> {
            let opened = PartitionReader::open_within(kafka, Topic::Cursors, partition, PATIENCE)?;
            // `/health` would name it for ever: nobody here waits for its end.
            let reader = opened.map_err(|open| Failure::Retry(anyhow!(open.remedy(PATIENCE))))?;
            while let Some(record) = reader.next()? {
                self.note(record.key(), record.payload());
            }
            Ok(())
        };
        let partitions: Vec<i32> = (0..Topic::Cursors.partitions()).collect();
        ask_each(&partitions, "chain.cursors", read)?.into_iter().try_for_each(|(_, read)| read)
    }

    /// Reads `chain.cursors` until `stop`.
    pub async fn run(self, kafka: Kafka, stop: CancellationToken) {
        let read = move |stop: &CancellationToken| -> Result<(), Failure> {
            let mut cursors = Table::open(&kafka, Topic::Cursors)?;
            while !stop.is_cancelled() {
                cursors.poll(POLL_TIMEOUT, |record| self.note(record.key(), record.payload()))?;
            }
            Ok(())
        };
        if let Err(error) = stage::run("api-halts", stop.clone(), read).await {
            tracing::error!("reading chain.cursors stopped, so new halts of chains are not noticed: {error:#}");
            // Creating payments does not depend on it.
            stage::waits("api-halts", &format!("{error:#}"));
            stop.cancelled().await;
        }
    }

    fn note(&self, key: &[u8], record: &[u8]) {
        // A record without a value deletes its key. One that can't be read is for ingest to halt at; here it is ignored.
        let told =
            if record.is_empty() { Some((ChainId(0), String::new())) } else { frame::payload(record).ok().and_then(halted) };
        let Some((chain, halted)) = told else { return };
        let mut halts = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if halted.is_empty() {
            halts.remove(key);
        } else {
            halts.insert(key.to_vec(), (chain, halted));
        }
    }
}

/// Decodes only these fields of a cursor, of which there is one per batch. A part of its window says nothing of halts.
fn halted(cursor: &[u8]) -> Option<(ChainId, String)> {
    let (mut chain, mut halted) = (0, "");
    for field in Fields::new(cursor) {
        match field.ok()? {
            (1, value) => chain = value.varint(),
            (5, value) => halted = std::str::from_utf8(value.bytes()).ok()?,
            (7, value) if value.varint() != 0 => return None,
            _ => {}
        }
    }
    Some((ChainId(chain), halted.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use prost::Message as _;
    use topics::wire::ChainCursor;

    #[test]
    fn a_resumed_chain_is_no_longer_halted() {
        let halts = Halts::default();
        let note = |key: &str, halted: &str| {
            let cursor = ChainCursor { chain_id: 7, sequence: 3, halted: halted.to_owned(), ..ChainCursor::default() };
            halts.note(key.as_bytes(), &topics::frame::wrap(1, &cursor.encode_to_vec()));
        };
        note("7", "");
        assert_eq!(halts.of(ChainId(7)), None);
        note("7", "too deep");
        assert_eq!(halts.of(ChainId(7)).as_deref(), Some("too deep"));
        halts.note(b"7", b"garbage");
        let part = ChainCursor { chain_id: 7, part: true, ..ChainCursor::default() };
        for key in [b"7".as_slice(), b"7/3"] {
            halts.note(key, &topics::frame::wrap(1, &part.encode_to_vec()));
        }
        // It has left the window.
        halts.note(b"7/3", b"");
        assert_eq!(halts.of(ChainId(7)).as_deref(), Some("too deep"), "a part of the window says nothing of halts");
        note("7", "");
        assert_eq!(halts.of(ChainId(7)), None);
        // The detector's reason stays while ingest goes on.
        note("detector/7", "a gap");
        note("7", "");
        assert_eq!(halts.of(ChainId(7)).as_deref(), Some("a gap"));
        note("detector/7", "");
        assert_eq!(halts.of(ChainId(7)), None);
        note("detector/7", "a gap");
        halts.note(b"detector/7", b"");
        assert_eq!(halts.of(ChainId(7)), None);
    }
}
