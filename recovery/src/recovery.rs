//! What a role that writes payments starts beside its work: it compares Postgres with the topics before the first connection is
//! handed out, whenever a connection reaches another database than before, and on a schedule.
//!
//! When a database takes the place of another, processes may still wait for Kafka with intents that they wrote to the one before. So
//! the gate opens [`SETTLING_TIME`] later, after one more comparison. Which database has caught up is a row of its own: a process
//! that starts on the same one does not wait.

use crate::catch_up::{COMPARED, CatchUp, RESTORING};
use crate::extent::{Extent, LeftOut, waits_for};
use crate::installation::{caught_up_lineage, installation, note_compared, note_lineage, other};
use crate::known;
use crate::own_account::OwnAccount;
use crate::republish::{REPAIRING, REPUBLISHING, republish};
use base::{locked, metrics};
use deadpool_postgres::{Client, Pool};
use merchants::accounts::Account;
use merchants::count_restored_accounts;
use payments::intents::ACKNOWLEDGEMENT_TIMEOUT;
use runtime::compared::{IntentsTopic, compared_topic};
use runtime::db::{Gate, Lineage, OwnConnection, Primary, lock};
use runtime::kafka::{Backlog, Offsets};
use runtime::stage::Notice;
use runtime::{Failure, Kafka, Settings, db, set_aside, stage};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;
use uuid::Uuid;

const STAGE: &str = "recovery";
/// Two for the schedule, one for publishing intents again, one for the relay, one for the gate's lease.
const MAX_CONNECTIONS: usize = 5;
/// How often the database is looked at, and what the topics have gained is compared.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often to connect anew: the name may lead to another server by now, while the old one still answers.
const RECONNECT_INTERVAL: Duration = Duration::from_secs(2);
/// Until no process takes a connection to another database any more, and Kafka has acknowledged the last intent of an address that is
/// given out. The API gives none out later than half a second after that time.
const SETTLING_TIME: Duration = Gate::settling_time(ACKNOWLEDGEMENT_TIMEOUT);
/// How long the database may take for an answer to a look. Comparing takes as long as was lost.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stop waits for a comparison before anything is written, which may wait for a broker.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// How often the topics are held against what Kafka had acknowledged.
const TOPICS_INTERVAL: Duration = Duration::from_secs(30);

/// The comparison of Postgres with the topics. Cheap to clone.
#[derive(Clone)]
pub struct Recovery(Arc<Inner>);

struct Inner {
    kafka: Kafka,
    /// Without the gate: it has to reach the database that the gate is closed to. None of its connections is used twice, so each
    /// reaches the database that `DATABASE_URL` leads to now.
    pool: Pool,
    primary: Primary,
    gate: Gate,
    /// Opened at the first use. One comparison at a time.
    backlog: Mutex<Option<Backlog>>,
    problems: Mutex<Problems>,
    own_account: OwnAccount,
}

/// What an operator should know.
#[derive(Default)]
struct Problems {
    topics: Vec<String>,
    foreign: Option<Uuid>,
    /// Merchants that get no addresses.
    in_doubt: i64,
}

/// What one process remembers from one look to the next.
#[derive(Default)]
struct Watch {
    client: Option<OwnConnection>,
    seen: Seen,
    /// It compares on the schedule, and holds the lock for that on its connection.
    leads: bool,
    /// When a connection was opened last.
    connected: Option<Instant>,
    /// When the topics were checked.
    checked: Option<Instant>,
    /// A database that took the place of another, and since when it is looked at.
    settling: Option<(String, Instant)>,
    /// The database has still to be told that it has to catch up anew.
    must_note: bool,
}

impl Watch {
    /// Notes that the gate is closed to this database, though it may be one that had caught up before, and was away.
    fn leave(&mut self, lineage: &str, went_back: bool, was_open: bool) {
        let other_settled = self.settling.take_if(|(of, _)| went_back || of != lineage).is_some();
        self.must_note |= other_settled || went_back || was_open;
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
            primary: Primary::of(&settings.database_url)?,
            gate: Gate::default(),
            backlog: Mutex::default(),
            problems: Mutex::default(),
            own_account: OwnAccount::default(),
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
        let (handle, leases, stopped) = (Handle::current(), self.clone(), stop.clone());
        tokio::select! {
            ended = stage::run(STAGE, stop, move |stop| self.follow(&handle, stop)) => ended,
            // Beside the comparison, which may take long.
            never = leases.0.primary.keep_lease(&leases.0.gate, &leases.0.pool) => match never {},
            () = leases.stopped_before_it_opened(&stopped) => Ok(()),
        }
    }

    /// Nobody works yet with what the first comparison finds, and its transactions may end at any time: a stop does not wait for an
    /// answer of Kafka's.
    async fn stopped_before_it_opened(&self, stop: &CancellationToken) {
        tokio::select! {
            () = self.0.gate.opened() => std::future::pending().await,
            () = stop.cancelled() => tokio::time::sleep(STOP_PATIENCE).await,
        }
    }

    /// The installation of the database.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn installation(&self) -> anyhow::Result<Uuid> {
        let of_database = async { installation(&*OwnConnection::open(&self.0.pool).await?.db()?).await };
        Ok(of_database.await?)
    }

    /// Notes cTrip's own account, which has to be registered, here and in each database that takes the place of this one.
    /// `replaces` is the one whose place it may take.
    ///
    /// # Errors
    /// When another is noted, or the database fails.
    pub async fn note_own_account(&self, account: &Account, replaces: Option<&str>) -> anyhow::Result<()> {
        let note = async { self.0.own_account.note(OwnConnection::open(&self.0.pool).await?.db()?, account, replaces).await };
        Ok(note.await?)
    }

    /// What is wrong with the topics, who else writes to them, which other server takes writes, how many merchants a restore
    /// keeps from addresses, and that the own account is another's; `None` when nothing is.
    pub fn problem(&self) -> Option<String> {
        let Problems { topics, foreign, in_doubt } = &*locked(&self.0.problems);
        let foreign = foreign.map(|other| {
            format!("installation {other} writes to our payment.intents; with the same xpub it gives out the same addresses")
        });
        let in_doubt = (*in_doubt > 0).then(|| {
            format!(
                "{in_doubt} merchants get no addresses, since a restore has taken back which account is theirs; `ctrip merchants list` \
                 shows both, `ctrip merchants update NAME --own-xpub XPUB` or `--no-own-xpub` decides"
            )
        });
        let others = foreign.into_iter().chain(self.0.primary.problem()).chain(in_doubt).chain(self.0.own_account.problem());
        let all: Vec<String> = topics.iter().cloned().chain(others).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Compares once, now, what answers. Returns what was left out. Blocks.
    ///
    /// # Errors
    /// As for [`run`](Self::run), and when Kafka or the database fails.
    pub fn catch_up(&self, handle: &Handle) -> Result<LeftOut, Failure> {
        self.catch_up_with(handle, &COMPARED)
    }

    /// Compares as [`catch_up`](Self::catch_up) does, but for `payment.intents`: events wait for no intents that are lacking.
    ///
    /// # Errors
    /// As for [`run`](Self::run), and when Kafka or the database fails.
    pub fn catch_up_events(&self, handle: &Handle) -> Result<LeftOut, Failure> {
        self.catch_up_with(handle, &[Topic::Events])
    }

    fn catch_up_with(&self, handle: &Handle, topics: &[Topic]) -> Result<LeftOut, Failure> {
        let mut client = handle.block_on(OwnConnection::open(&self.0.pool))?;
        Ok(self.compare(handle, client.db()?, topics, Extent::Answered)?.1)
    }

    /// A failure that passes closes nothing: what was found before holds as long as the database is the same.
    fn follow(&self, handle: &Handle, stop: &CancellationToken) -> Result<(), Failure> {
        let (mut watch, mut notice) = (Watch::default(), Notice::of(format!("{STAGE}: topics")));
        while !stop.is_cancelled() {
            match self.look(handle, &mut watch) {
                Ok(left_out) => notice.show(
                    waits_for(&left_out)
                        .map(|cause| format!("Postgres is compared with the topics, but for what does not answer: {cause}")),
                ),
                Err(failure @ Failure::Halt(_)) => return Err(failure),
                Err(failure) => {
                    notice.show(Some(format!("Postgres could not be compared with the topics, will retry: {failure}")));
                    // A topic that turns out to lack records is mended at the next look.
                    (watch.client, watch.checked) = (None, None);
                    *locked(&self.0.backlog) = None;
                }
            }
            let asked = handle.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => false,
                    // Connections to a database that settles ask all the time.
                    () = tokio::time::sleep(INTERVAL), if watch.settling.is_some() => false,
                    asked = self.0.gate.asked(INTERVAL), if watch.settling.is_none() => asked,
                }
            });
            if asked {
                // A new connection has reached another database than this one does.
                watch.client = None;
            }
        }
        Ok(())
    }

    /// Looks at the database that `DATABASE_URL` leads to, and compares it with the topics if it is another one, or it is time.
    /// Returns what was left out of that.
    fn look(&self, handle: &Handle, watch: &mut Watch) -> Result<LeftOut, Failure> {
        let (mut client, lineage) = self.connect(handle, watch)?;
        let db = client.db()?;
        let seen = within(handle, self.offsets(db))?;
        let went_back = goes_back(&watch.seen, &seen);
        watch.seen = seen;
        if went_back {
            tracing::warn!("Postgres knows less of the topics than before: it was restored");
        }
        let is_known = !went_back && self.0.gate.is_open_to(&lineage);
        if !is_known {
            watch.leave(&lineage.to_string(), went_back, self.0.gate.close());
        }
        if watch.must_note {
            within(handle, note_lineage(db, None))?;
            watch.must_note = false;
        }
        watch.leads = watch.leads || within(handle, try_lead(db))?;
        let mut left_out = LeftOut::new();
        if !is_known || watch.leads {
            // Before anything is written all has to answer.
            let extent = if is_known { Extent::Answered } else { Extent::Whole };
            let is_due = watch.checked.is_none_or(|at| at.elapsed() > TOPICS_INTERVAL);
            let mut had_lost = false;
            if is_due || (!is_known && watch.settling.is_none()) {
                had_lost = self.check_topics(handle, db, &mut watch.seen, extent)?;
                watch.checked = Some(Instant::now());
            }
            let is_settled = is_known || self.is_settled(handle, db, &lineage, &mut watch.settling)?;
            let (compared_had_lost, not_compared) = self.compare(handle, db, &COMPARED, extent)?;
            (had_lost, left_out) = (had_lost || compared_had_lost, not_compared);
            if !is_known && had_lost && watch.settling.is_none() {
                // Its row says that it had caught up, and it had not.
                (watch.settling, watch.must_note) = (Some((lineage.to_string(), Instant::now())), true);
            } else if !is_known && is_settled {
                within(handle, self.0.own_account.check(db, false))?;
                within(handle, note_lineage(db, Some(&lineage)))?;
                watch.settling = None;
                self.0.gate.open(lineage);
            }
        }
        if is_known {
            within(handle, self.0.own_account.check(db, true))?;
        }
        locked(&self.0.problems).foreign = within(handle, other(db))?;
        locked(&self.0.problems).in_doubt = within(handle, report(&self.0.kafka, db))?;
        watch.client = Some(client);
        Ok(left_out)
    }

    /// The connection of the last look, or a new one where `DATABASE_URL` leads to another database by now.
    fn connect(&self, handle: &Handle, watch: &mut Watch) -> Result<(OwnConnection, Lineage), Failure> {
        let lineage_of = |mut client: OwnConnection| {
            let lineage = within(handle, async { Ok(Lineage::of(client.db()?).await?) })?;
            Ok::<_, Failure>((client, lineage))
        };
        let mut last = watch.client.take().map(lineage_of).transpose()?;
        let is_recent = watch.connected.is_some_and(|at| at.elapsed() < RECONNECT_INTERVAL);
        // The lease's looks are new connections too.
        let led_to = self.0.gate.led_to(RECONNECT_INTERVAL);
        if let Some(last) = last.take_if(|last| is_recent || led_to.as_ref() == Some(&last.1)) {
            return Ok(last);
        }
        let new = lineage_of(handle.block_on(OwnConnection::open(&self.0.pool))?)?;
        watch.connected = Some(Instant::now());
        match last {
            Some(last) if last.1 == new.1 => Ok(last),
            _ => {
                watch.leads = false;
                Ok(new)
            }
        }
    }

    /// Whether no process can have something in flight any more that it wrote to another database: this one has caught up before, it
    /// has been looked at for long enough, or nothing was ever written.
    fn is_settled(
        &self,
        handle: &Handle,
        db: &Client,
        lineage: &Lineage,
        settling: &mut Option<(String, Instant)>,
    ) -> Result<bool, Failure> {
        if within(handle, caught_up_lineage(db))? == Some(lineage.to_string()) {
            return Ok(true);
        }
        if let Some((_, since)) = settling {
            return Ok(since.elapsed() >= SETTLING_TIME);
        }
        let mut backlog = locked(&self.0.backlog);
        let backlog = open(&mut backlog, &self.0.kafka)?;
        for topic in COMPARED {
            if backlog.ends(topic)?.values().any(|end| *end > 0) {
                tracing::warn!(
                    "Postgres was restarted or restored: waiting {SETTLING_TIME:?} for what is still on its way to Kafka"
                );
                *settling = Some((lineage.to_string(), Instant::now()));
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns whether the database had lost something, and what was left out.
    fn compare(
        &self,
        handle: &Handle,
        client: &mut Client,
        topics: &[Topic],
        extent: Extent,
    ) -> Result<(bool, LeftOut), Failure> {
        let mut backlog = locked(&self.0.backlog);
        let backlog = open(&mut backlog, &self.0.kafka)?;
        CatchUp { handle, kafka: &self.0.kafka, backlog, client }.run(topics, extent)
    }

    /// Holds the topics against what the database knows of them. Intents that Kafka had acknowledged and has no more are published
    /// again, and the topic is compared anew: its offsets go back, and are dropped from those `seen`, or they would pass for those of a
    /// restored database. Returns whether the database had lost something that other topics than before have.
    fn check_topics(&self, handle: &Handle, client: &mut Client, seen: &mut Seen, extent: Extent) -> Result<bool, Failure> {
        let mut backlog = locked(&self.0.backlog);
        let backlog = open(&mut backlog, &self.0.kafka)?;
        let reached = IntentsTopic::reached(&self.0.kafka, backlog, Topic::Intents)?;
        let compared = handle.block_on(compared_topic(&*client))?;
        let are_others = compared.is_some_and(|compared| reached.differs_from(&compared));
        // If they are another installation's, they get nothing of ours.
        let mut had_lost = false;
        if are_others {
            seen.clear();
            had_lost = CatchUp { handle, kafka: &self.0.kafka, backlog, client }.run(&COMPARED, extent)?.0;
        }
        let mut problems = Vec::new();
        for topic in COMPARED {
            let name = self.0.kafka.name(topic);
            let partitions = backlog.partitions(topic)?;
            if usize::try_from(topic.partitions()) != Ok(partitions) {
                let expected = topic.partitions();
                let remedy = if topic == Topic::Intents {
                    format!(
                        "Delete it (`kafka-topics.sh --bootstrap-server $KAFKA_BROKERS --delete --topic {name}`), then make it anew with \
                         `ctrip topics apply` and `ctrip intents republish`"
                    )
                } else {
                    "Do not delete it, its records are nowhere else: the added partitions stay empty, and such a program must take \
                     a key's partition from the number expected"
                        .to_owned()
                };
                problems.push(format!(
                    "{name} has {partitions} partitions, expected {expected}: other programs look for a key in the wrong one. {remedy}"
                ));
            }
            let known = handle.block_on(known::load(&*client, &name))?;
            let kept = if are_others { Some(known) } else { known::lost(backlog, topic, &known, extent)? };
            let Some(kept) = kept else { continue };
            tracing::error!(
                "{name} lacks records that Kafka had acknowledged: it was lost, made anew, or TOPIC_PREFIX or Kafka's cluster is another"
            );
            problems.push(format!("{name} lacked records that Kafka had acknowledged"));
            locked(&self.0.problems).topics.clone_from(&problems);
            if topic == Topic::Intents {
                let count = handle.block_on(republish(&self.0.kafka, &self.0.pool))?;
                tracing::warn!(
                    "published {count} intents again. Blocks that a detector matched before may lack payments to their addresses: \
                     `ctrip backfill` brings a range again"
                );
            }
            handle.block_on(known::rewind(client, topic, &name, &kept))?;
            seen.remove(&topic);
            problems.pop();
        }
        if are_others {
            handle.block_on(note_compared(&*client, &reached))?;
        }
        locked(&self.0.problems).topics = problems;
        Ok(had_lost)
    }

    async fn offsets(&self, client: &Client) -> Result<Seen, Failure> {
        let mut offsets = Seen::new();
        for topic in COMPARED {
            offsets.insert(topic, known::load(client, &self.0.kafka.name(topic)).await?.next);
        }
        Ok(offsets)
    }
}

fn goes_back(seen: &Seen, now: &Seen) -> bool {
    seen.iter().any(|(topic, offsets)| {
        let now = now.get(topic);
        offsets.iter().any(|(partition, offset)| now.and_then(|now| now.get(partition)).copied().unwrap_or(0) < *offset)
    })
}

/// A server that does not answer is no reason to wait for it for ever.
fn within<T>(handle: &Handle, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    handle.block_on(db::answered(LOOK_TIMEOUT, answer))
}

/// Returns how many merchants get no addresses.
#[expect(clippy::cast_precision_loss, reason = "few intents contradict the database, and few merchants change their account")]
async fn report(kafka: &Kafka, db: &Client) -> Result<i64, Failure> {
    let counts = set_aside::counts(db, kafka.topic_prefix()).await?;
    let count = |stages: &[&str]| stages.iter().filter_map(|stage| counts.get(*stage)).sum::<i64>() as f64;
    metrics::SET_ASIDE.gauge(&[("kind", "lost_payment")]).set(count(&[RESTORING.stage]));
    metrics::SET_ASIDE.gauge(&[("kind", "intent")]).set(count(&[REPAIRING, REPUBLISHING]));
    let in_doubt = count_restored_accounts(db).await?;
    metrics::SET_ASIDE.gauge(&[("kind", "merchant")]).set(in_doubt as f64);
    Ok(in_doubt)
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

    /// The row of a database that comes back says still that it has caught up.
    #[test]
    fn a_database_that_comes_back_after_another_settles_anew() {
        let mut watch = Watch::default();
        watch.leave("new", false, true);
        assert!(watch.must_note, "the new one could not be told");
        watch.leave("old", false, false);
        assert!(watch.must_note, "nor is it told any more");

        let mut watch = Watch { settling: Some(("new".to_owned(), Instant::now())), ..Watch::default() };
        watch.leave("new", false, false);
        assert!(!watch.must_note && watch.settling.is_some(), "the same one settles");
        watch.leave("old", false, false);
        assert!(watch.must_note && watch.settling.is_none());
        let mut watch = Watch::default();
        watch.leave("old", false, false);
        assert!(!watch.must_note, "a start");
    }
}
