//! What a role that writes payments starts beside its work: it compares Postgres with the topics before the first connection is
//! handed out, whenever a connection reaches another database than before, and on a schedule.

use crate::catch_up::{CatchUp, mark};
use crate::installation::{installation, other};
use crate::known::{self, Known};
use crate::republish;
use anyhow::Context as _;
use deadpool_postgres::{Client, Object, Pool};
use runtime::db::{Gate, Lineage, lock};
use runtime::kafka::{Backlog, Offsets};
use runtime::{Failure, Kafka, Settings, db, stage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;
use uuid::Uuid;

const STAGE: &str = "recovery";
/// One for the schedule, one for publishing intents again, one for the relay.
const MAX_CONNECTIONS: usize = 3;
/// How often the database is looked at, and what the topics have gained is compared.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often the topics are held against what Kafka had acknowledged.
const TOPICS_INTERVAL: Duration = Duration::from_secs(30);
/// The topics that Postgres is compared with.
const COMPARED: [Topic; 2] = [Topic::Events, Topic::Intents];

/// The comparison of Postgres with the topics. Cheap to clone.
#[derive(Clone)]
pub struct Recovery(Arc<Inner>);

struct Inner {
    kafka: Kafka,
    /// Without the gate: it has to reach the database that the gate is closed to.
    pool: Pool,
    gate: Gate,
    /// Opened at the first use. One comparison at a time.
    backlog: Mutex<Option<Backlog>>,
    problems: Mutex<Problems>,
}

/// What an operator should know.
#[derive(Default)]
struct Problems {
    topics: Vec<String>,
    foreign: Option<Uuid>,
}

/// What one process remembers from one look to the next.
#[derive(Default)]
struct Watch {
    client: Option<OwnConnection>,
    seen: Seen,
    /// It compares on the schedule, and holds the lock for that on its connection.
    leads: bool,
    /// When the topics were checked.
    checked: Option<Instant>,
}

/// A connection that is closed on drop and not returned to the pool, where it would keep the lock, and stay with a database that
/// another one has taken the place of.
struct OwnConnection(Option<Client>);

impl OwnConnection {
    fn db(&mut self) -> Result<&mut Client, Failure> {
        self.0.as_mut().ok_or_else(|| Failure::Retry(anyhow::anyhow!("the connection is closed")))
    }
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            drop(Object::take(client));
        }
    }
}

/// What one process has seen of the offsets of each topic.
type Seen = BTreeMap<Topic, Offsets>;

impl Recovery {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When `DATABASE_URL` does not parse.
    pub fn new(kafka: Kafka, settings: &Settings) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(Inner {
            kafka,
            pool: db::pool(&settings.database_url, MAX_CONNECTIONS)?,
            gate: Gate::default(),
            backlog: Mutex::default(),
            problems: Mutex::default(),
        })))
    }

    /// The gate for the role's pool. It opens when Postgres has caught up.
    pub fn gate(&self) -> &Gate {
        &self.0.gate
    }

    /// Compares until `stop`.
    ///
    /// # Errors
    /// When the topics are another installation's.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let handle = Handle::current();
        stage::run(STAGE, stop, move |stop| self.follow(&handle, stop)).await
    }

    /// The installation of the database.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn installation(&self) -> anyhow::Result<Uuid> {
        let client = self.0.pool.get().await.context("connecting to DATABASE_URL")?;
        installation(&client).await.map_err(|failure| anyhow::anyhow!("{failure}"))
    }

    /// What is wrong with the topics, and who else writes to them; `None` when nothing is.
    pub fn problem(&self) -> Option<String> {
        let Problems { topics, foreign } = &*lock_in(&self.0.problems);
        let foreign = foreign.map(|other| {
            format!("installation {other} writes to our payment.intents; with the same xpub it gives out the same addresses")
        });
        let all: Vec<String> = topics.iter().cloned().chain(foreign).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Compares once, now. Blocks.
    ///
    /// # Errors
    /// As for [`run`](Self::run), and when Kafka or the database fails.
    pub fn catch_up(&self, handle: &Handle) -> Result<(), Failure> {
        let mut client = handle.block_on(self.0.pool.get())?;
        self.compare(handle, &mut client)
    }

    /// A failure that passes closes nothing: what was found before holds as long as the database is the same.
    fn follow(&self, handle: &Handle, stop: &CancellationToken) -> Result<(), Failure> {
        let mut watch = Watch::default();
        while !stop.is_cancelled() {
            if let Err(failure) = self.look(handle, &mut watch) {
                if matches!(failure, Failure::Halt(_)) {
                    return Err(failure);
                }
                tracing::warn!(stage = STAGE, "Postgres could not be compared with the topics, will retry: {failure}");
                watch.client = None;
                *lock_in(&self.0.backlog) = None;
            }
            let asked = handle.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => false,
                    asked = self.0.gate.asked(INTERVAL) => asked,
                }
            });
            if asked {
                // A new connection has reached another database than this one does.
                watch.client = None;
            }
        }
        Ok(())
    }

    /// Looks at the database behind the connection, and compares it with the topics if it is another one, or it is time.
    fn look(&self, handle: &Handle, watch: &mut Watch) -> Result<(), Failure> {
        let mut client = match watch.client.take() {
            Some(client) => client,
            None => {
                watch.leads = false;
                handle.block_on(async { Ok::<_, Failure>(OwnConnection(Some(self.0.pool.get().await?))) })?
            }
        };
        let db = client.db()?;
        let lineage = handle.block_on(Lineage::of(db))?;
        let went_back = goes_back(&watch.seen, &handle.block_on(self.offsets(db))?);
        if went_back {
            tracing::warn!("Postgres knows less of the topics than before: it was restored");
            self.0.gate.close();
        }
        let is_known = !went_back && self.0.gate.is_open_to(&lineage);
        watch.leads = watch.leads || handle.block_on(try_lead(db))?;
        if !is_known || watch.leads {
            if !is_known || watch.checked.is_none_or(|at| at.elapsed() > TOPICS_INTERVAL) {
                self.check_topics(handle, db)?;
                watch.checked = Some(Instant::now());
            }
            self.compare(handle, db)?;
            self.0.gate.open(lineage);
        }
        watch.seen = handle.block_on(self.offsets(db))?;
        lock_in(&self.0.problems).foreign = handle.block_on(other(db))?;
        watch.client = Some(client);
        Ok(())
    }

    fn compare(&self, handle: &Handle, client: &mut Client) -> Result<(), Failure> {
        let mut backlog = lock_in(&self.0.backlog);
        let backlog = open(&mut backlog, &self.0.kafka)?;
        CatchUp { handle, kafka: &self.0.kafka, backlog, client }.run()
    }

    /// Holds the topics against what the database knows of them. Intents that Kafka had acknowledged and has no more are published
    /// again, and the topic is compared anew.
    fn check_topics(&self, handle: &Handle, client: &mut Client) -> Result<(), Failure> {
        let mut backlog = lock_in(&self.0.backlog);
        let backlog = open(&mut backlog, &self.0.kafka)?;
        let mut problems = Vec::new();
        for topic in COMPARED {
            let name = self.0.kafka.name(topic);
            let partitions = backlog.partitions(topic)?;
            if usize::try_from(topic.partitions()) != Ok(partitions) {
                problems.push(format!(
                    "{name} has {partitions} partitions, expected {}: other programs look for a key in the wrong one. Make it anew with \
                     `ctrip topics apply`, then `ctrip intents republish`",
                    topic.partitions()
                ));
            }
            let known = handle.block_on(known::load(&*client, &name))?;
            let Some(again) = lost(backlog, topic, &known)? else { continue };
            tracing::error!("{name} lacks records that Kafka had acknowledged: it was lost, or made anew");
            problems.push(format!("{name} lacked records that Kafka had acknowledged"));
            lock_in(&self.0.problems).topics.clone_from(&problems);
            if topic == Topic::Intents {
                let count = handle.block_on(republish::republish(&self.0.kafka, &self.0.pool))?;
                tracing::warn!(
                    "published {count} intents again. Blocks that a detector matched before may lack payments to their addresses: \
                     `ctrip backfill` brings a range again"
                );
            }
            handle.block_on(async {
                let transaction = client.transaction().await?;
                known::rewind(&transaction, &name, &again).await?;
                Ok::<_, Failure>(transaction.commit().await?)
            })?;
            problems.pop();
        }
        lock_in(&self.0.problems).topics = problems;
        Ok(())
    }

    async fn offsets(&self, client: &Client) -> Result<Seen, Failure> {
        let mut offsets = Seen::new();
        for topic in COMPARED {
            offsets.insert(topic, known::load(client, &self.0.kafka.name(topic)).await?.next);
        }
        Ok(offsets)
    }
}

/// From where to compare a topic again, if it lacks records that the database knows of.
fn lost(backlog: &Backlog, topic: Topic, known: &Known) -> Result<Option<Offsets>, Failure> {
    let ends = backlog.ends(topic)?;
    // The record that was read last, if the topic still has one at its offset.
    let one: Offsets = known.last.iter().map(|(partition, (offset, _))| (*partition, *offset)).collect();
    let after =
        one.iter().filter(|(p, offset)| ends.get(p).is_some_and(|end| *offset < end)).map(|(p, o)| (*p, o + 1)).collect();
    let mut other = Vec::new();
    backlog.read(topic, &one, &after, usize::MAX, |record| {
        let last = known.last.get(&record.partition());
        if last.is_some_and(|(offset, last)| *offset == record.offset() && *last != mark(record)) {
            other.push(record.partition());
        }
    })?;
    let short = |partition: &i32, next: &i64| ends.get(partition).is_some_and(|end| end < next);
    if other.is_empty() && !known.next.iter().any(|(partition, next)| short(partition, next)) {
        return Ok(None);
    }
    let from = |(partition, next): (&i32, &i64)| {
        let end = ends.get(partition).copied().unwrap_or(0);
        (*partition, if other.contains(partition) { 0 } else { end.min(*next) })
    };
    Ok(Some(known.next.iter().map(from).collect()))
}

fn goes_back(seen: &Seen, now: &Seen) -> bool {
    seen.iter().any(|(topic, offsets)| {
        let now = now.get(topic);
        offsets.iter().any(|(partition, offset)| now.and_then(|now| now.get(partition)).copied().unwrap_or(0) < *offset)
    })
}

async fn try_lead(client: &Client) -> Result<bool, Failure> {
    Ok(client.query_one("SELECT pg_try_advisory_lock($1)", &[&lock::CATCH_UP_LEADER]).await?.get(0))
}

fn open<'a>(backlog: &'a mut Option<Backlog>, kafka: &Kafka) -> Result<&'a Backlog, Failure> {
    match backlog {
        Some(backlog) => Ok(backlog),
        none => Ok(none.insert(Backlog::open(kafka)?)),
    }
}

/// Nothing is left half done by a panic while one of these locks is held.
fn lock_in<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_that_go_back_tell_of_a_restore() {
        let seen = |intents: i64, events: i64| {
            Seen::from([(Topic::Intents, Offsets::from([(0, intents), (1, 7)])), (Topic::Events, Offsets::from([(0, events)]))])
        };
        assert!(!goes_back(&Seen::new(), &seen(1, 1)));
        assert!(!goes_back(&seen(5, 5), &seen(5, 6)));
        assert!(goes_back(&seen(5, 5), &seen(4, 9)) && goes_back(&seen(5, 5), &seen(9, 4)));
        assert!(goes_back(&seen(5, 5), &Seen::new()));
    }
}
