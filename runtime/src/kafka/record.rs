//! A record, and reading whatever has arrived of a topic.

use crate::failure::Failure;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use std::time::Duration;
use topics::{ChainId, Topic};

/// A record as it would be found again: a topic that was cut and written again, or made anew, has another one at that offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub offset: i64,
    /// When it was written, and a checksum.
    pub bytes: Vec<u8>,
}

impl Mark {
    /// When the record was written, in milliseconds of Unix time.
    pub fn written_ms(&self) -> Option<i64> {
        self.bytes.first_chunk().copied().map(i64::from_be_bytes)
    }
}

/// A record in librdkafka's memory, which lives as long as its consumer.
pub struct Record<'c> {
    pub topic: Topic,
    pub(super) message: BorrowedMessage<'c>,
}

impl Record<'_> {
    pub fn partition(&self) -> i32 {
        self.message.partition()
    }

    pub fn offset(&self) -> i64 {
        self.message.offset()
    }

    /// Empty if the record has none.
    pub fn key(&self) -> &[u8] {
        self.message.key().unwrap_or_default()
    }

    /// The chain that the key names, if it names one: `sweep.events` has the sweep behind it.
    pub fn chain(&self) -> Option<ChainId> {
        let key = std::str::from_utf8(self.key()).ok()?;
        let chain = if self.topic == Topic::Sweeps { key.split('/').next()? } else { key };
        chain.parse().ok().map(ChainId)
    }

    /// The value with its frame; empty if the record has none.
    pub fn payload(&self) -> &[u8] {
        self.message.payload().unwrap_or_default()
    }

    /// The value of its first header of that name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.message.headers()?.iter().find(|header| header.key == name)?.value
    }

    pub fn mark(&self) -> Mark {
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(self.key());
        checksum.update(self.payload());
        let written = self.timestamp_ms().unwrap_or_default().to_be_bytes();
        Mark { offset: self.offset(), bytes: [written.as_slice(), &checksum.finalize().to_be_bytes()].concat() }
    }

    /// When it was written, in milliseconds of Unix time.
    pub fn timestamp_ms(&self) -> Option<i64> {
        self.message.timestamp().to_millis()
    }
}

/// Shows every record that has arrived, after waiting up to `wait` for the first.
pub(super) fn poll_all(
    inner: &BaseConsumer,
    topic: Topic,
    wait: Duration,
    mut see: impl FnMut(&Record<'_>),
) -> Result<(), Failure> {
    let mut wait = wait;
    while let Some(message) = inner.poll(wait) {
        wait = Duration::ZERO;
        let message = message.map_err(|e| Failure::from(e).context(format!("reading {topic}")))?;
        see(&Record { topic, message });
    }
    Ok(())
}
