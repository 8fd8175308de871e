//! Rows of `outbox`: events on their way to Kafka, written in the transaction that changed the payment.
//!
//! The confirmer's relay claims rows in numbered batches; its module says how that makes them exactly once. `batch` has the
//! number of a row that is claimed. It is negative where the relay keeps the row back for a partition of `payment.events`.

use crate::events::{event_record, state_record};
use crate::history;
use crate::lifecycle::Event;
use crate::payment::Payment;
use deadpool_postgres::GenericClient;
use prost::Message as _;
use runtime::Failure;
use runtime::db::{LowestId, bigint, lock};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use topics::Topic;
use topics::wire::PaymentEvent;
use uuid::Uuid;

/// Bytes of records per statement: those of a payment with many transfers are some 20 kB each.
const MAX_BYTES_PER_STATEMENT: usize = 4 * 1024 * 1024;

/// How often the whole outbox is looked at.
const FULL_LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// An event and the state after it, as the relay publishes them.
#[derive(Debug)]
pub struct OutboxRow {
    /// Orders the events.
    pub id: i64,
    /// The key of both records.
    pub payment: Uuid,
    /// An encoded `PaymentEvent`.
    pub event: Vec<u8>,
    /// An encoded `PaymentState`.
    pub state: Vec<u8>,
}

/// The partition of `payment.events` that a payment's events go to.
pub fn events_partition(payment: Uuid) -> i32 {
    Topic::Events.partition_of(&payment.to_string())
}

/// What [`OutboxFront::claim`] has found.
#[derive(Debug)]
pub struct Claim {
    /// Those of the batch, in order.
    pub rows: Vec<OutboxRow>,
    /// How many it keeps back from now on, since their partitions are held.
    pub kept: usize,
}

/// Writes events to the outbox and the history, in order, each with the payment as it is right after the event.
///
/// # Errors
/// When the database fails.
pub async fn record_events<'a>(
    db: &impl GenericClient,
    events: impl Iterator<Item = (&'a Payment, &'a Event)>,
) -> Result<(), Failure> {
    record_requested_events(db, events.map(|(payment, event)| (payment, event, None))).await
}

/// [`record_events`] with the ids of the API keys whose requests caused them.
///
/// # Errors
/// When the database fails.
pub async fn record_requested_events<'a>(
    db: &impl GenericClient,
    events: impl Iterator<Item = (&'a Payment, &'a Event, Option<&'a str>)>,
) -> Result<(), Failure> {
    let mut batch = Encoded::default();
    for (payment, event, key) in events {
        batch.push(payment, event, key);
        if batch.bytes > MAX_BYTES_PER_STATEMENT {
            batch.write(db).await?;
            batch = Encoded::default();
        }
    }
    batch.write(db).await
}

/// Events as values of a statement.
#[derive(Default)]
struct Encoded<'a> {
    ids: Vec<Uuid>,
    records: Vec<Vec<u8>>,
    states: Vec<Vec<u8>>,
    sequences: Vec<i64>,
    keys: Vec<Option<&'a str>>,
    /// Of the history.
    entries: Vec<Vec<u8>>,
    bytes: usize,
}

impl<'a> Encoded<'a> {
    fn push(&mut self, payment: &Payment, event: &Event, key: Option<&'a str>) {
        let record = PaymentEvent { asked_by: key.unwrap_or_default().to_owned(), ..event_record(payment, event) };
        let (encoded, state) = (record.encode_to_vec(), state_record(payment).encode_to_vec());
        self.bytes += encoded.len() + state.len();
        self.ids.push(payment.id.0);
        self.records.push(encoded);
        self.states.push(state);
        self.sequences.push(bigint(event.sequence));
        self.keys.push(key);
        self.entries.push(history::trim(record).encode_to_vec());
        base::metrics::PAYMENT_EVENTS.counter(&[("type", event.kind.name(payment))]).increment(1);
    }

    async fn write(&self, db: &impl GenericClient) -> Result<(), Failure> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let statement = db
            .prepare_cached(
                // One statement, so one round trip, for which a batch of new payments waits.
                "WITH recorded AS (
                     SELECT * FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bigint[], $5::text[], $6::bytea[])
                         WITH ORDINALITY AS t (payment_id, event, state, sequence, asked_by, entry, place)
                 ), history AS (
                     INSERT INTO payment_events (payment_id, sequence, asked_by, record)
                     SELECT payment_id, sequence, asked_by, entry FROM recorded
                 )
                 INSERT INTO outbox (payment_id, sequence, event, state) SELECT payment_id, sequence, event, state FROM recorded
                 ORDER BY place",
            )
            .await?;
        let Self { ids, records, states, sequences, keys, entries, .. } = self;
        db.execute(&statement, &[ids, records, states, sequences, keys, entries]).await?;
        Ok(())
    }
}

/// From where on the outbox has rows.
#[derive(Debug, Default)]
pub struct OutboxFront {
    lowest: LowestId,
    /// The last batch, or the first one before that. What is claimed under a lower number is in doubt, and stays as it is.
    batch: i64,
    /// The partitions of `payment.events` whose rows are kept back.
    held: BTreeSet<i32>,
    /// The id after the highest that was claimed.
    claimed: i64,
    /// When all was looked at.
    looked: Option<Instant>,
}

impl OutboxFront {
    /// For a relay whose first batch has this number, and that keeps back what goes to these partitions.
    pub fn of(first: i64, held: &[i32]) -> Self {
        Self { batch: first, held: held.iter().copied().collect(), ..Self::default() }
    }

    /// Keeps nothing back for this partition any more. What is claimed for it is decided about.
    pub fn release(&mut self, partition: i32) {
        self.held.remove(&partition);
        // Its rows may be far below.
        self.lowest = LowestId::default();
    }

    /// What stands for the number of a batch in rows that are kept back still.
    fn kept(&self) -> Vec<i64> {
        self.held.iter().map(|partition| kept_for(*partition)).collect()
    }

    /// Deletes published rows and claims the next ones under the number `batch`, or finds those that were claimed under it before a
    /// crash. Numbers only go up. Rows that were kept back for partitions that are held no more are among the next ones.
    ///
    /// Those of partitions that are held are kept back in the same transaction: were a crash to leave one of them claimed, it
    /// would be told before an earlier one of its payment. Comparisons with Kafka are kept out meanwhile. What they find there of such
    /// a partition is in no row that this has locked, or they would pass over the row and it would be told again.
    ///
    /// Events of payments whose intent Kafka has not acknowledged wait, since an event tells the payment's address.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim(&mut self, db: &mut impl GenericClient, batch: i64, limit: i64) -> Result<Claim, Failure> {
        let (rows, kept) = if self.held.is_empty() {
            (self.take(&*db, batch, limit).await?, Vec::new())
        } else {
            let transaction = db.transaction().await?;
            lock::hold_off_comparison(&transaction).await?;
            let taken = self.take(&transaction, batch, limit).await?;
            let (kept, rows): (Vec<_>, Vec<_>) =
                taken.into_iter().partition(|row| self.held.contains(&events_partition(row.payment)));
            keep_back(&transaction, &kept).await?;
            transaction.commit().await?;
            (rows, kept)
        };
        self.batch = batch;
        self.claimed = [rows.last(), kept.last()].into_iter().flatten().fold(self.claimed, |id, row| id.max(row.id + 1));
        Ok(Claim { rows, kept: kept.len() })
    }

    /// [`claim`](Self::claim) of what is there, whatever it is.
    async fn take(&self, db: &impl GenericClient, batch: i64, limit: i64) -> Result<Vec<OutboxRow>, Failure> {
        let statement = db
            .prepare_cached(
                "WITH published AS (DELETE FROM outbox WHERE batch >= $4 AND batch < $1),
                      claimed AS (SELECT id FROM outbox WHERE batch = $1),
                      new AS (SELECT id FROM outbox o WHERE id >= $3 AND (batch IS NULL OR batch < 0 AND batch <> ALL ($5))
                          AND NOT EXISTS (SELECT FROM claimed)
                          AND NOT EXISTS (SELECT FROM unacknowledged_intents i WHERE i.payment_id = o.payment_id)
                          ORDER BY id LIMIT $2)
                 UPDATE outbox SET batch = $1 WHERE id IN (SELECT id FROM claimed UNION ALL SELECT id FROM new)
                 RETURNING id, payment_id, event, state",
            )
            .await?;
        let rows = db.query(&statement, &[&batch, &limit, &self.lowest.id(), &self.batch, &self.kept()]).await?;
        let mut rows: Vec<OutboxRow> = rows
            .iter()
            .map(|row| OutboxRow { id: row.get(0), payment: row.get(1), event: row.get(2), state: row.get(3) })
            .collect();
        rows.sort_unstable_by_key(|row| row.id);
        Ok(rows)
    }

    /// Moves on, and returns the number of events that are not published yet, and of the last batch.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn move_on(&mut self, db: &impl GenericClient) -> Result<i64, Failure> {
        let is_due = self.looked.is_none_or(|at| at.elapsed() > FULL_LOOK_INTERVAL);
        let from = if is_due { 0 } else { self.lowest.id() };
        // An event that is kept back or in doubt does not hold the front, and is counted wherever it is.
        let sql = "SELECT count(*) + (SELECT count(*) FILTER (WHERE id < $1) FROM outbox WHERE batch < $3),
                       min(id) FILTER (WHERE (batch = ANY ($2) OR batch > 0 AND batch < $3) IS NOT TRUE),
                       pg_snapshot_xmin(pg_current_snapshot())::text::bigint
                   FROM outbox WHERE id >= $1";
        let row = db.query_one(&db.prepare_cached(sql).await?, &[&from, &self.kept(), &self.batch]).await?;
        let (lowest, oldest): (Option<i64>, i64) = (row.get(1), row.get(2));
        if is_due {
            self.looked = Some(Instant::now());
        }
        if self.see(lowest, oldest) {
            tracing::error!("the outbox has the event {}, below where none can be", self.lowest.id());
        }
        let to = lowest.unwrap_or(self.claimed);
        if !self.lowest.is_moving() && to > self.lowest.id() {
            // A writer has its transaction's number before it draws an id. This one is above those of all that drew one below `to`.
            let sql = "SELECT pg_current_xact_id()::text::bigint";
            let own: i64 = db.query_one(&db.prepare_cached(sql).await?, &[]).await?.get(0);
            self.lowest.move_to(to, own);
        }
        Ok(row.get(0))
    }

    /// Takes in the lowest event that a look has found, and the oldest transaction that was open then. Returns whether the
    /// event is where none can be.
    fn see(&mut self, lowest: Option<i64>, oldest: i64) -> bool {
        if let Some(found) = lowest.filter(|found| *found < self.lowest.id()) {
            self.lowest = LowestId::at(found);
            return true;
        }
        self.lowest.see(lowest, oldest);
        false
    }
}

/// The event of a row.
pub(super) fn read_event(event: &[u8]) -> Result<PaymentEvent, Failure> {
    PaymentEvent::decode(event).map_err(|e| Failure::halt(e).context("outbox"))
}

/// What stands for the number of a batch in a row that is kept back for a partition.
fn kept_for(partition: i32) -> i64 {
    -1 - i64::from(partition)
}

/// Keeps rows back that are claimed.
async fn keep_back(db: &impl GenericClient, rows: &[OutboxRow]) -> Result<(), Failure> {
    let (ids, kept): (Vec<i64>, Vec<i64>) = rows.iter().map(|row| (row.id, kept_for(events_partition(row.payment)))).unzip();
    let sql = "UPDATE outbox o SET batch = r.kept FROM unnest($1::bigint[], $2::bigint[]) AS r (id, kept) WHERE o.id = r.id";
    db.execute(&db.prepare_cached(sql).await?, &[&ids, &kept]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_writer_that_was_waited_for_has_written_is_no_fault_and_is_not_passed_over() {
        // It is to move to 20 once all before transaction 7 have ended; one of these wrote the event 12.
        let waiting = || {
            let mut front = OutboxFront { lowest: LowestId::at(10), ..OutboxFront::default() };
            front.lowest.move_to(20, 7);
            front
        };
        let mut front = waiting();
        assert!(!front.see(Some(20), 6) && front.lowest.id() == 10, "one is open still");
        assert!(!front.see(Some(12), 7) && front.lowest.id() == 12, "{front:?}");
        let mut front = waiting();
        assert!(!front.see(None, 7) && front.lowest.id() == 20, "none has written anything");
        let mut front = waiting();
        assert!(!front.see(Some(31), 7) && front.lowest.id() == 20, "what is above was not waited for");
        let mut front = waiting();
        assert!(front.see(Some(9), 7) && front.lowest.id() == 9 && !front.lowest.is_moving(), "below where it was none can be");
    }
}
