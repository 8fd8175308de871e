//! Reading a topic once, from its beginning to its end.
//!
//! The end is the one that the topic has at the time of the call, records of open transactions included. A read_committed
//! reader sees nothing that lies behind an open transaction, of whatever producer, so these calls wait until it is over.

use super::client::Kafka;
use super::hanging::{self, OpenTransaction};
use super::offsets::{Ends, end_offsets};
use super::record::Record;
use crate::failure::Failure;
use anyhow::anyhow;
use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::HashMap;
use std::time::{Duration, Instant};
use topics::Topic;

/// How long to wait for a next record, and for open transactions.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// rdkafka logs the end of a partition as an error; here the reader waits for it.
pub(super) struct EofContext;

impl ClientContext for EofContext {
    fn error(&self, error: KafkaError, reason: &str) {
        if !matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::PartitionEOF)) {
            tracing::warn!("librdkafka: {error}: {reason}");
        }
    }
}

impl ConsumerContext for EofContext {}

impl Kafka {
    /// Shows every committed record that is in a topic now, in order per partition. Blocks.
    ///
    /// # Errors
    /// When a transaction stays open for 30 s, or no record arrives for 30 s before the end.
    pub fn read_all(&self, topic: Topic, see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
        self.read_partitions(topic, &(0..topic.partitions()).collect::<Vec<_>>(), see)
    }

    /// [`read_all`](Self::read_all) of these partitions, whatever is the matter with the others.
    ///
    /// # Errors
    /// As for [`read_all`](Self::read_all).
    pub fn read_partitions(&self, topic: Topic, partitions: &[i32], mut see: impl FnMut(&Record<'_>)) -> Result<(), Failure> {
        let inner: BaseConsumer<EofContext> =
            self.lookup_config("lookup").set("enable.partition.eof", "true").create_with_context(EofContext)?;
        let name = self.name(topic);
        self.await_stable(&inner, topic, partitions)?;
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition_offset(&name, *partition, Offset::Beginning)?;
        }
        inner.assign(&list)?;
        let mut open = partitions.to_vec();
        let mut last = Instant::now();
        while !open.is_empty() {
            match inner.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    last = Instant::now();
                    see(&Record { topic, message });
                }
                // A partition that grows meanwhile ends more than once.
                Some(Err(KafkaError::PartitionEOF(partition))) => open.retain(|other| *other != partition),
                Some(Err(error)) => return Err(Failure::from(error).context(format!("reading {name}"))),
                None if last.elapsed() > READ_TIMEOUT => {
                    return Err(Failure::Retry(anyhow!("no record and no end of {name} came for {READ_TIMEOUT:?}")));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// Waits until the last stable offset of each of these partitions has reached the end that the partition has now. Returns
    /// the ends. A transaction that stays open is named by [`crate::stage::waiting`].
    pub(super) fn await_stable(
        &self,
        committed: &BaseConsumer<EofContext>,
        topic: Topic,
        partitions: &[i32],
    ) -> Result<HashMap<i32, i64>, Failure> {
        let outcome = self.stable_ends(committed, topic, partitions, READ_TIMEOUT)?;
        hanging::tell(&self.name(topic), partitions, outcome.as_ref().err().map_or(&[], Vec::as_slice), READ_TIMEOUT);
        outcome.map_err(|open| {
            let causes: Vec<String> = open.iter().map(|open| open.remedy(READ_TIMEOUT)).collect();
            Failure::Retry(anyhow!(causes.join("; ")))
        })
    }

    /// The end that each of these partitions has now, once everything below it can be read; or all that is open after `patience`.
    pub(super) fn stable_ends(
        &self,
        committed: &BaseConsumer<EofContext>,
        topic: Topic,
        partitions: &[i32],
        patience: Duration,
    ) -> Result<Result<HashMap<i32, i64>, Vec<OpenTransaction>>, Failure> {
        let (name, all) = (self.name(topic), Ends::open(self)?);
        // A topic that was created a moment ago may have no leader for a while.
        let deadline = Instant::now() + READ_TIMEOUT;
        let ends = retry_until(deadline, || end_offsets(&all.inner, &name, partitions.iter().copied()))?;
        let asked = Instant::now();
        loop {
            let stable = retry_until(deadline, || end_offsets(committed, &name, partitions.iter().copied()))?;
            let open = ends.iter().filter_map(|(partition, end)| {
                let from = stable.get(partition).copied().unwrap_or_default();
                let (partition, end) = (*partition, *end);
                (from < end).then(|| OpenTransaction { topic, name: name.clone(), partition, from, end })
            });
            let open: Vec<_> = open.collect();
            if open.is_empty() {
                return Ok(Ok(ends));
            }
            if asked.elapsed() >= patience {
                return Ok(Err(open));
            }
            std::thread::sleep(RETRY_DELAY);
        }
    }
}

/// Calls again until there is an answer, a failure that no retry mends, or the deadline.
fn retry_until<T>(deadline: Instant, mut call: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    loop {
        match call() {
            Err(Failure::Retry(_)) if Instant::now() < deadline => std::thread::sleep(RETRY_DELAY),
            outcome => return outcome,
        }
    }
}
