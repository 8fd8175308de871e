//! Notices that Kafka has lost the end of what this process has written, before more is written behind it: then nothing could tell any
//! more that something is missing there.
//!
//! Kafka refuses a producer that goes on where the end is lost, but not one of whose records it has none left.
//!
//! A later assignment notices it by what is noted beside the group's offset in `chain.blocks`, in the transaction that writes matches.

use anyhow::anyhow;
use base::locked;
use runtime::Failure;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use topics::Topic;

/// A broker that was gone is not back sooner.
const MIN_OUTAGE: Duration = Duration::from_secs(1);

/// What was noted with the group's offset in a partition of `chain.blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The offset of the block whose match is the newest.
    pub matched: i64,
    /// Which transaction has written the block before the group's offset.
    pub writing: i64,
}

impl Note {
    pub fn text(self) -> String {
        format!("{} {}", self.matched, self.writing)
    }

    /// `None` if it is of something else.
    pub fn of(text: &str) -> Option<Self> {
        let (matched, writing) = text.split_once(' ')?;
        Some(Self { matched: matched.parse().ok()?, writing: writing.parse().ok()? })
    }
}

/// Up to where each partition of `chain.matches` was written, or further. Cheap to clone: the consumer's assignments share it with the
/// loop.
#[derive(Clone, Default)]
pub struct Written(Arc<Mutex<HashMap<i32, Known>>>);

#[derive(Clone, Copy)]
struct Known {
    end: i64,
    at: Instant,
    /// The offset of the block whose match is the newest.
    matched: Option<i64>,
}

/// What a transaction writes into a partition.
#[derive(Clone, Copy, Default)]
pub struct More {
    pub records: usize,
    /// The offset of the block that comes last.
    pub last: i64,
}

impl Written {
    /// Notes what is there when a partition is assigned.
    pub fn begin(&self, partition: i32, end: i64, matched: Option<i64>, at: Instant) {
        locked(&self.0).insert(partition, Known { end, at, matched });
    }

    /// The offset of the block whose match is the partition's newest.
    pub fn matched(&self, partition: i32) -> Option<i64> {
        locked(&self.0).get(&partition)?.matched
    }

    /// Notes that a partition gets more records. `end` asks Kafka for its end.
    ///
    /// # Errors
    /// Those of `end`; `Retry` when the end is before what was written.
    pub fn write(
        &self,
        partition: i32,
        more: More,
        now: Instant,
        end: impl FnOnce() -> Result<i64, Failure>,
    ) -> Result<(), Failure> {
        let known = locked(&self.0).get(&partition).copied();
        let end = match known {
            Some(Known { end, at, .. }) if now.saturating_duration_since(at) < MIN_OUTAGE => end,
            _ => end()?,
        };
        if let Some(Known { end: written, .. }) = known.filter(|known| end < known.end) {
            let topic = Topic::Matches;
            return Err(Failure::Retry(anyhow!(
                "{topic}/{partition} ends at {end}, and was written up to {written}: Kafka has lost its end, and what was there is \
                 matched again"
            )));
        }
        let end = end + i64::try_from(more.records).map_err(Failure::halt)?;
        locked(&self.0).insert(partition, Known { end, at: now, matched: Some(more.last) });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIVE: More = More { records: 5, last: 40 };

    #[test]
    fn what_was_there_at_the_assignment_is_held_against_the_end_before_the_first_write() {
        let (written, start) = (Written::default(), Instant::now());
        written.begin(3, 100, Some(30), start);
        assert_eq!(written.matched(3), Some(30));
        let lost = written.write(3, FIVE, start + Duration::from_secs(2), || Ok(99)).expect_err("100 was there").to_string();
        assert!(lost.contains("ends at 99") && lost.contains("up to 100"), "{lost}");
        assert_eq!(written.matched(3), Some(30));
        written.write(3, FIVE, start + Duration::from_secs(2), || Ok(100)).unwrap();
        assert_eq!(written.matched(3), Some(40));
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_no_other_text_is_one() {
        let note = Note { matched: 12, writing: -3 };
        assert_eq!(Note::of(&note.text()), Some(note));
        assert!(["", "12", "12 x", "a 3", "1 2 3"].iter().all(|text| Note::of(text).is_none()));
    }

    #[test]
    fn an_end_that_kafka_lost_is_noticed_before_more_is_written_behind_it() {
        let (written, start) = (Written::default(), Instant::now());
        let write = |seconds, end| {
            written.write(3, FIVE, start + Duration::from_secs(seconds), || Ok(end)).map_err(|failure| failure.to_string())
        };
        assert_eq!(write(0, 100), Ok(()));
        // The marker of the transaction is there as well; another writer may have been there.
        assert_eq!((write(10, 106), write(20, 120)), (Ok(()), Ok(())));
        let lost = write(30, 124).expect_err("125 was written");
        assert!(lost.contains("ends at 124") && lost.contains("up to 125"), "{lost}");
        // Those that follow at once cost no request.
        let written = Written::default();
        let mut asked = 0;
        for millis in [0, 200, 400, 1_600] {
            let ask = || {
                asked += 1;
                Ok(1_000 * asked)
            };
            written.write(3, FIVE, start + Duration::from_millis(millis), ask).unwrap();
        }
        assert_eq!(asked, 2);
    }
}
