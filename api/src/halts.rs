//! Which chains have halted: ingest writes why into their cursors, and the API reads on there as long as it lives.

use runtime::kafka::{Kafka, Table};
use runtime::{Failure, stage};
use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use topics::lazy::Fields;
use topics::{ChainId, Topic, frame};

const WAITS: Duration = Duration::from_millis(200);

/// Why each halted chain has halted.
#[derive(Clone, Default)]
pub struct Halts(Arc<RwLock<HashMap<ChainId, String>>>);

impl Halts {
    /// Why the chain has halted, if it has.
    pub fn of(&self, chain: ChainId) -> Option<String> {
        self.0.read().ok()?.get(&chain).cloned()
    }

    /// Reads the cursors until `stop`.
    pub async fn follow(self, kafka: Kafka, stop: CancellationToken) {
        let read = move |stop: &CancellationToken| -> Result<(), Failure> {
            let mut cursors = Table::open(&kafka, Topic::Cursors)?;
            while !stop.is_cancelled() {
                cursors.poll(WAITS, |record| self.note(record.payload()))?;
            }
            Ok(())
        };
        if let Err(error) = stage::run("api-halts", stop.clone(), read).await {
            tracing::error!("whether chains have halted is no longer known: {error:#}");
            // Payments do not need to know it.
            stop.cancelled().await;
        }
    }

    fn note(&self, record: &[u8]) {
        // What can't be read is for ingest to halt at; here it says nothing.
        let Some((chain, halted)) = frame::payload(record).ok().and_then(halted) else { return };
        let Ok(mut halts) = self.0.write() else { return };
        if halted.is_empty() {
            halts.remove(&chain);
        } else {
            halts.insert(chain, halted);
        }
    }
}

/// Of a cursor only these two fields: its window is long, and there is one a batch.
fn halted(cursor: &[u8]) -> Option<(ChainId, String)> {
    let (mut chain, mut halted) = (0, "");
    for field in Fields::new(cursor) {
        match field.ok()? {
            (1, value) => chain = value.varint(),
            (5, value) => halted = std::str::from_utf8(value.bytes()).ok()?,
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
        let note = |halted: &str| {
            let cursor = ChainCursor { chain_id: 7, sequence: 3, halted: halted.to_owned(), ..ChainCursor::default() };
            halts.note(&topics::frame::wrap(1, &cursor.encode_to_vec()));
        };
        note("");
        assert_eq!(halts.of(ChainId(7)), None);
        note("too deep");
        assert_eq!(halts.of(ChainId(7)).as_deref(), Some("too deep"));
        halts.note(b"garbage");
        note("");
        assert_eq!(halts.of(ChainId(7)), None);
    }
}
