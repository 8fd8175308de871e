//! A producer whose events a thread of its own serves.
//!
//! It takes the place of rdkafka's `ThreadedProducer`, and of the `FutureProducer` that stands on it. Their thread waits for events
//! 100 ms at a time, and what is left of that librdkafka is asked for in whole milliseconds: so for the last of them it is asked again
//! and again. That took a hundredth of a processor for each producer that had nothing to do.

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, ProducerContext};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Whole milliseconds are left of it once it has begun.
const POLL_TIMEOUT: Duration = Duration::from_micros(100_020);

/// The producer. Its drop waits for the thread.
pub(super) struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    /// Connects at the first use.
    ///
    /// # Errors
    /// When librdkafka refuses the configuration, or there is no room for a thread.
    pub fn open(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let producer: Arc<BaseProducer<C>> = Arc::new(config.create_with_context(context)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (polled, stopped) = (Arc::clone(&producer), Arc::clone(&stop));
        let poll = move || {
            while !stopped.load(Ordering::Relaxed) {
                polled.poll(POLL_TIMEOUT);
            }
        };
        let thread = std::thread::Builder::new().name("producer".to_owned()).spawn(poll);
        let thread = thread.map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self { producer, stop, thread: Some(thread) })
    }
}

impl<C: ProducerContext + 'static> Deref for PolledProducer<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of a callback was told when it came.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use std::time::Instant;

    #[test]
    fn a_producer_that_has_nothing_to_do_takes_no_processor() {
        let cluster = MockCluster::new(1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", cluster.bootstrap_servers());
        let producer = PolledProducer::open(&config, DefaultProducerContext).unwrap();
        // The kernel counts in nanoseconds for how long a thread has run.
        let ran = || {
            let counts = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
            Duration::from_nanos(counts.split(' ').next().unwrap().parse().unwrap())
        };
        let (began, before) = (Instant::now(), ran());
        for _ in 0..20 {
            producer.poll(POLL_TIMEOUT);
        }
        let share = (ran() - before).as_secs_f64() / began.elapsed().as_secs_f64();
        assert!(share < 0.003, "{:.2} % of a processor", share * 100.0);
    }
}
