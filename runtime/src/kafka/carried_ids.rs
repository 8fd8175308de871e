//! Which schema ids the records of a topic carry. A look at the first ones and at the last ones of each partition: between them ids
//! change with an upgrade at most.

use super::backlog::Backlog;
use super::offsets::Offsets;
use crate::failure::Failure;
use std::collections::BTreeMap;
use topics::wire::{
    BlockRecord, ChainCursor, LogsRecord, MatchesRecord, PaymentEvent, PaymentIntent, PaymentState, Quarantined, SweepEvent,
};
use topics::{Topic, frame};

/// Records at the beginning, all partitions together.
const FIRST: usize = 1_000;
/// Offsets at the end of each partition, some of which are markers of transactions.
const LAST: i64 = 16;
/// Of each look: the logs of a block may have 16 MiB.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// A registry goes on above the highest id, so that one who writes a larger one could leave it none.
const MAX_ID: u32 = 1_000_000_000;

/// The ids, that of the newest record first.
pub(super) fn carried_ids(backlog: &Backlog, topic: Topic) -> Result<Vec<u32>, Failure> {
    let ends = backlog.ends(topic)?;
    let mut newest: BTreeMap<u32, i64> = BTreeMap::new();
    let tail: Offsets = ends.iter().map(|(partition, end)| (*partition, end.saturating_sub(LAST).max(0))).collect();
    for (from, limit) in [(Offsets::new(), FIRST), (tail, usize::MAX)] {
        backlog.read(topic, &from, &ends, (limit, MAX_BYTES), |record| {
            if let (Some(id), Some(written)) = (id_of(topic, record.payload()), record.timestamp_ms()) {
                let last = newest.entry(id).or_insert(written);
                *last = written.max(*last);
            }
        })?;
    }
    let mut ids: Vec<(u32, i64)> = newest.into_iter().collect();
    ids.sort_by_key(|(_, written)| std::cmp::Reverse(*written));
    Ok(ids.into_iter().map(|(id, _)| id).collect())
}

/// The id of what is a record of the topic.
fn id_of(topic: Topic, value: &[u8]) -> Option<u32> {
    let is_record = match topic {
        Topic::Blocks => frame::decode::<BlockRecord>(value).is_ok(),
        Topic::Logs => frame::decode::<LogsRecord>(value).is_ok(),
        Topic::Cursors => frame::decode::<ChainCursor>(value).is_ok(),
        Topic::Matches => frame::decode::<MatchesRecord>(value).is_ok(),
        Topic::Intents => frame::decode::<PaymentIntent>(value).is_ok(),
        Topic::Events => frame::decode::<PaymentEvent>(value).is_ok(),
        Topic::State => frame::decode::<PaymentState>(value).is_ok(),
        Topic::Sweeps => frame::decode::<SweepEvent>(value).is_ok(),
        Topic::Quarantine => frame::decode::<Quarantined>(value).is_ok(),
    };
    let is_empty = value.len() <= frame::HEADER_LEN;
    frame::schema_id(value).filter(|id| is_record && !is_empty && (1..=MAX_ID).contains(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_record_of_the_topic_or_has_an_absurd_id_asks_for_no_schema() {
        let event = PaymentEvent { id: "evt".to_owned(), ..PaymentEvent::default() };
        assert_eq!(id_of(Topic::Events, &frame::encode(41, &event)), Some(41));
        let broken = [0, 0, 0, 0, 41, 0, 0xff, 0xff];
        for forged in [&frame::encode(u32::MAX, &event)[..], &frame::encode(0, &event), &frame::wrap(41, &[]), &broken, b"{}"] {
            assert_eq!(id_of(Topic::Events, forged), None, "{forged:?}");
        }
    }
}
