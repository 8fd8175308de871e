//! Notices that Kafka has lost the end of what this process has written, before more is written behind it: then nothing could tell any
//! more that something is missing there.
//!
//! Kafka refuses a producer that goes on where the end is lost, but not one of whose records it has none left.

use anyhow::anyhow;
use runtime::Failure;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use topics::Topic;

/// A broker that was gone is not back sooner.
const MIN_OUTAGE: Duration = Duration::from_secs(1);

/// Up to where each partition of `chain.matches` was written, or further, and when.
#[derive(Default)]
pub struct Written(HashMap<i32, (i64, Instant)>);

impl Written {
    /// Notes that a partition gets more records. `end` asks Kafka for its end.
    ///
    /// # Errors
    /// Those of `end`; `Retry` when the end is before what was written.
    pub fn write(
        &mut self,
        partition: i32,
        records: usize,
        now: Instant,
        end: impl FnOnce() -> Result<i64, Failure>,
    ) -> Result<(), Failure> {
        let known = self.0.get(&partition).copied();
        let end = match known {
            Some((written, at)) if now.saturating_duration_since(at) < MIN_OUTAGE => written,
            _ => end()?,
        };
        if let Some((written, _)) = known.filter(|(written, _)| end < *written) {
            let topic = Topic::Matches;
            return Err(Failure::Retry(anyhow!(
                "{topic}/{partition} ends at {end}, and was written up to {written}: Kafka has lost its end, and what was there is \
                 matched again"
            )));
        }
        self.0.insert(partition, (end + i64::try_from(records).map_err(Failure::halt)?, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_kafka_lost_is_noticed_before_more_is_written_behind_it() {
        let (mut written, start) = (Written::default(), Instant::now());
        let mut write = |seconds, end| {
            written.write(3, 5, start + Duration::from_secs(seconds), || Ok(end)).map_err(|failure| failure.to_string())
        };
        assert_eq!(write(0, 100), Ok(()));
        // The marker of the transaction is there as well; another writer may have been there.
        assert_eq!((write(10, 106), write(20, 120)), (Ok(()), Ok(())));
        let lost = write(30, 124).expect_err("125 was written");
        assert!(lost.contains("ends at 124") && lost.contains("up to 125"), "{lost}");
        // Those that follow at once cost no request.
        let mut written = Written::default();
        let mut asked = 0;
        for millis in [0, 200, 400, 1_600] {
            let ask = || {
                asked += 1;
                Ok(1_000 * asked)
            };
            written.write(3, 5, start + Duration::from_millis(millis), ask).unwrap();
        }
        assert_eq!(asked, 2);
    }
}
