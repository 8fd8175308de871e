//! The fan-out: records of `payment.events` become deliveries, one per endpoint that wants the event.
//!
//! A batch is one Postgres transaction, with the offsets it ends at. (endpoint, event) is unique, so a replay adds nothing. An
//! event that can't be told is set aside (`runtime::set_aside`), and the others go on. A merchant that has more than its share
//! of a batch gets the rest from the backlog, in turn with others.

use crate::fronts::{Fronts, NewDeliveries};
use crate::spread::{Deliveries, MAX_DELIVERIES_PER_TURN, Messages};
use crate::subscriptions::{Event, Subscriptions};
use crate::{backlog, body};
use base::counts::Counts;
use base::error_chain;
use base::json::check_storable_text;
use deadpool_postgres::{GenericClient, Pool};
use runtime::kafka::Record;
use runtime::{Failure, FoldStage, Kafka, Span};
use std::collections::HashSet;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::wire::PaymentEvent;
use topics::{PaymentId, Topic, frame};
use uuid::Uuid;

pub const FOLDING: FoldStage =
    FoldStage { stage: "webhooks", topic: Topic::Events, max_records: 512, max_bytes: 4 * 1024 * 1024, on_return: None };
/// Of an event's id and type: an index entry has room for some 2,700.
const MAX_NAME_BYTES: usize = 200;
/// For a record without a timestamp: it counts as written after any endpoint was created.
const YEAR_9999_MS: i64 = 253_000_000_000_000;

/// Consumes until `stop`, and tells the engine of new deliveries.
///
/// # Errors
/// `Retry` when Kafka or the database fails.
pub fn run(kafka: &Kafka, pool: &Pool, handle: &Handle, fronts: &Fronts, stop: &CancellationToken) -> Result<(), Failure> {
    handle.block_on(FOLDING.report_set_aside(kafka, pool, "webhook_event"))?;
    FOLDING.follow(kafka, pool, handle, stop, |spans| {
        let records = spans.iter().flat_map(|(_, records)| records);
        let (mut events, mut untold) = (Vec::new(), Vec::new());
        for record in records {
            match read(record) {
                Ok(event) => events.push(event),
                Err(event) => untold.push(event),
            }
        }
        let spans: Vec<&Span> = spans.iter().map(|(span, _)| span).collect();
        fronts.tell(handle.block_on(apply(kafka, pool, &spans, &events, untold))?);
        Ok(())
    })
}

/// An event that can be told, if a message can be made of its record.
struct ReadEvent {
    event: Event,
    record: PaymentEvent,
    place: (i32, i64),
}

/// An event that can't be told: its item in `set_aside`.
struct UntoldEvent {
    place: (i32, i64),
    id: String,
    cause: String,
}

fn read(record: &Record<'_>) -> Result<ReadEvent, UntoldEvent> {
    let place = (record.partition(), record.offset());
    let unreadable = |cause: String| UntoldEvent { place, id: format!("{}/{}", place.0, place.1), cause };
    let wire: PaymentEvent = frame::decode(record.payload()).map_err(|error| unreadable(error.to_string()))?;
    let untold = |cause: String| UntoldEvent { place, id: wire.id.clone(), cause };
    for (name, text) in [("id", &wire.id), ("type", &wire.r#type)] {
        check_storable_text(text).map_err(|error| untold(format!("{name}: {error}")))?;
        if text.len() > MAX_NAME_BYTES {
            return Err(untold(format!("{name}: expected at most {MAX_NAME_BYTES} bytes, got {}", text.len())));
        }
    }
    let event = Event {
        id: wire.id.clone(),
        kind: wire.r#type.clone(),
        merchant: wire.merchant_id.parse().map_err(|error| untold(format!("merchant_id: {error}")))?,
        payment: wire.payment_id.parse().map_err(|error| untold(format!("payment_id: {error}")))?,
        sequence: i64::try_from(wire.sequence).map_err(|error| untold(format!("sequence: {error}")))?,
        written_ms: record.timestamp_ms().unwrap_or(YEAR_9999_MS),
    };
    // Under another's id it would be taken for a replay of that one.
    let id = PaymentId(event.payment).event_id(wire.sequence);
    if event.id != id {
        return Err(untold(format!("id: expected {id}, as its payment and sequence say")));
    }
    Ok(ReadEvent { event, record: wire, place })
}

/// Returns which endpoints got deliveries.
async fn apply(
    kafka: &Kafka,
    pool: &Pool,
    spans: &[&Span],
    events: &[ReadEvent],
    mut untold: Vec<UntoldEvent>,
) -> Result<NewDeliveries, Failure> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    for span in spans {
        FOLDING.claim(&tx, span).await?;
    }
    let new = insert(&tx, events, &mut untold).await?;
    for UntoldEvent { place: (partition, offset), id, cause } in &untold {
        let cause = format!(
            "no webhook tells it: {cause}; it is in {0}/{partition}, `ctrip tail {0} --from {offset}` shows it",
            FOLDING.topic
        );
        FOLDING.set_aside(&tx, (&kafka.name(FOLDING.topic), *partition), id, *offset, &cause).await?;
    }
    tx.commit().await?;
    if !untold.is_empty() {
        for UntoldEvent { id, cause, .. } in &untold {
            tracing::error!("event {id} is set aside, the others go on: {cause}");
        }
        FOLDING.report_set_aside(kafka, pool, "webhook_event").await?;
    }
    Ok(new)
}

/// Inserts the messages of events that somebody wants, and their deliveries, or puts them into the backlog.
async fn insert(
    db: &impl GenericClient,
    events: &[ReadEvent],
    untold: &mut Vec<UntoldEvent>,
) -> Result<NewDeliveries, Failure> {
    let merchants: Vec<Uuid> = events.iter().map(|read| read.event.merchant).collect::<HashSet<_>>().into_iter().collect();
    let subscriptions = Subscriptions::of(db, &merchants).await?;
    let (mut messages, mut wanted) = (Messages::default(), Vec::new());
    for ReadEvent { event, record, place } in events {
        let wanting = subscriptions.wanting(event);
        // Most merchants have no endpoint, and their events need no body.
        if wanting.is_empty() {
            continue;
        }
        match body::event_body(record) {
            Ok(body) => {
                messages.push(event, body);
                wanted.push((event, wanting));
            }
            Err(error) => untold.push(UntoldEvent { place: *place, id: event.id.clone(), cause: error_chain(&error) }),
        }
    }
    if wanted.is_empty() {
        return Ok(NewDeliveries::default());
    }
    messages.insert(db).await?;
    let theirs: Vec<Uuid> = wanted.iter().map(|(event, _)| event.merchant).collect::<HashSet<_>>().into_iter().collect();
    let (now, later) = share(wanted, backlog::waiting(db, &theirs).await?);
    backlog::put(db, &later).await?;
    now.insert(db).await
}

/// Divides events, each with the endpoints that want it, into what is delivered now and what waits in the backlog, behind what
/// its merchant has there.
fn share(wanted: Vec<(&Event, Vec<Uuid>)>, mut waiting: HashSet<Uuid>) -> (Deliveries, Vec<&Event>) {
    let (mut now, mut later, mut shares) = (Deliveries::default(), Vec::new(), Counts::default());
    for (event, wanting) in wanted {
        if shares.of(&event.merchant) + wanting.len() > MAX_DELIVERIES_PER_TURN {
            waiting.insert(event.merchant);
        }
        if waiting.contains(&event.merchant) {
            later.push(event);
        } else {
            shares.add(event.merchant, wanting.len());
            now.push(event, &wanting);
        }
    }
    (now, later)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merchant_has_a_share_of_a_batch_and_what_follows_waits_in_order() {
        let event = |merchant: u128, sequence: i64| Event {
            id: format!("evt_{merchant}_{sequence}"),
            kind: "payment.created".to_owned(),
            merchant: Uuid::from_u128(merchant),
            payment: Uuid::from_u128(merchant),
            sequence,
            written_ms: 0,
        };
        let endpoints = |count: usize| vec![Uuid::nil(); count];
        let (flood, one): (Vec<Event>, Event) = ((0..100).map(|i| event(1, i)).collect(), event(2, 0));
        let wanted: Vec<_> = flood.iter().map(|event| (event, endpoints(20))).chain([(&one, endpoints(1))]).collect();
        let (now, later) = share(wanted.clone(), HashSet::new());
        // 25 events for 20 endpoints, and the one of another merchant.
        assert_eq!((now.len(), later.len()), (25 * 20 + 1, 75));
        assert!(later.iter().map(|event| event.sequence).eq(25..100), "{later:?}");
        // Behind what waits already, there is no overtaking.
        let (now, later) = share(wanted, HashSet::from([Uuid::from_u128(1)]));
        assert_eq!((now.len(), later.len()), (1, 100));
        // Not even by one event that would have room.
        let (now, later) =
            share(vec![(&flood[0], endpoints(500)), (&flood[1], endpoints(20)), (&flood[2], endpoints(1))], HashSet::new());
        assert_eq!((now.len(), later.len()), (500, 2));
    }
}
