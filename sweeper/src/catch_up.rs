//! Keeps the gate of the role's pool closed until Postgres has all that `sweep.events` has: at the start, whenever a connection
//! reaches another database than before, and when the same one knows less than before.
//!
//! When a database takes the place of another, a process may still wait for Kafka with a record that it signed on the one
//! before. It sends nothing any more, since its own gate is closed by then; but its nonce would be given out again. So the
//! topic is read a while later. On the database that has caught up last, a process does not wait.

use crate::deposit_keys;
use crate::keys::Seeds;
use crate::reading::READING;
use crate::restore::{Restored, STAGE, restore};
use crate::topic_lost;
use chain::Listing;
use deadpool_postgres::{Client, GenericClient, Pool};
use runtime::db::{self, Gate, Lineage, OwnConnection, Primary};
use runtime::kafka::Publisher;
use runtime::{Failure, Kafka, Settings, compared};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use topics::Topic;

/// How long Kafka has to acknowledge a record.
pub const RECORD_TIMEOUT: Duration = Duration::from_secs(5);
/// Until no process takes a connection to another database any more, and Kafka has taken or refused the last record of one.
const SETTLING_TIME: Duration = Gate::settling_time(RECORD_TIMEOUT);
/// How often the database is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// Two for looks, one that is compared.
const MAX_CONNECTIONS: usize = 3;

/// Who opens the gate. Cheap to clone.
#[derive(Clone)]
pub struct CatchUp {
    kafka: Kafka,
    publisher: Publisher,
    /// Without the gate, which it opens. None of its connections is used twice, so each reaches the database that `DATABASE_URL`
    /// leads to now.
    pool: Pool,
    primary: Primary,
    gate: Gate,
    listing: Listing,
    seeds: Arc<Seeds>,
    /// That of all engines.
    last_place: Arc<AtomicI64>,
}

/// What one look has to tell the next.
#[derive(Debug, Default)]
pub struct Looks {
    /// How much the database knew, where the gate is open to it.
    known: Option<Reached>,
    /// To which database the gate was opened last.
    opened: Option<Lineage>,
    /// A database that was found in the place of another, and when.
    settling: Option<(Lineage, Instant)>,
    /// The one of which a person has said that it has what the topic has lost, while that is written again.
    has_all: Option<Lineage>,
}

/// How much a database knows of `chain.blocks`, and of what it has signed. Both grow: one that falls says that rows were
/// restored into the same tables, or the whole machine to what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reached {
    blocks: i64,
    signed: i64,
}

impl Reached {
    async fn of(db: &Client, topic: &str) -> Result<Self, Failure> {
        let sql = "SELECT (SELECT coalesce(sum(next_offset), 0)::bigint FROM stage_offsets WHERE stage = $1 AND topic = $2),
                       (SELECT coalesce(max(place), 0) FROM outgoing_attempts)";
        let row = db.query_one(&db.prepare_cached(sql).await?, &[&READING.stage, &topic]).await?;
        Ok(Self { blocks: row.get(0), signed: row.get(1) })
    }

    const fn is_below(self, other: Self) -> bool {
        self.blocks < other.blocks || self.signed < other.signed
    }
}

impl Looks {
    /// Whether the database knows less than at the last look.
    fn fell(&mut self, now: Reached) -> bool {
        self.known.replace(now).is_some_and(|known| now.is_below(known))
    }
}

impl CatchUp {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When `DATABASE_URL` does not parse.
    pub fn new(kafka: Kafka, settings: &Settings, listing: Listing, seeds: Arc<Seeds>) -> anyhow::Result<Self> {
        let publisher = Publisher::open(&kafka, RECORD_TIMEOUT)?;
        let pool = db::pool(&settings.database_url, MAX_CONNECTIONS)?;
        let (primary, gate) = (Primary::of(&settings.database_url)?, Gate::default());
        Ok(Self { kafka, publisher, pool, primary, gate, listing, seeds, last_place: Arc::default() })
    }

    pub fn last_place(&self) -> &Arc<AtomicI64> {
        &self.last_place
    }

    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Connections to whatever `DATABASE_URL` leads to, before the gate. None is given back, as an [`OwnConnection`] never is.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Looks where a new connection leads to, beside the comparison. The gate's lease runs out while it can't.
    pub async fn keep_lease(self) -> Infallible {
        self.primary.keep_lease(&self.gate, &self.pool).await
    }

    /// Compares each database that `DATABASE_URL` leads to, until `stop`.
    ///
    /// # Errors
    /// When Kafka or the database fails; what was found before holds.
    pub fn follow(&self, handle: &Handle, looks: &mut Looks, stop: &CancellationToken) -> Result<(), Failure> {
        while !stop.is_cancelled() {
            let (lineage, _) = handle.block_on(self.primary.leads_to(&self.pool))?;
            if self.gate.is_open_to(&lineage) {
                looks.settling = None;
                let name = self.kafka.name(READING.topic);
                let reached =
                    handle.block_on(async { Reached::of(OwnConnection::open(&self.pool).await?.db()?, &name).await })?;
                if looks.fell(reached) {
                    tracing::warn!("Postgres knows less than before: it was restored");
                    self.gate.close();
                    looks.settling = Some((lineage, Instant::now()));
                } else {
                    self.last_place.fetch_max(reached.signed, Ordering::Relaxed);
                }
            } else {
                self.gate.close();
                looks.known = None;
                if self.is_settled(handle, &lineage, looks)? {
                    self.compare(handle, looks)?;
                }
            }
            handle.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = self.gate.asked(INTERVAL) => {}
                }
            });
        }
        Ok(())
    }

    /// Whether nobody can have anything on its way any more that was signed on another database.
    fn is_settled(&self, handle: &Handle, lineage: &Lineage, looks: &mut Looks) -> Result<bool, Failure> {
        if let Some((_, since)) = looks.settling.as_ref().filter(|(of, _)| of == lineage) {
            return Ok(since.elapsed() >= SETTLING_TIME);
        }
        let noted = handle.block_on(async { noted(OwnConnection::open(&self.pool).await?.db()?).await })?;
        // Another may have been open in between, and this one has the note from before.
        let was_last = looks.opened.as_ref().is_none_or(|opened| opened == lineage);
        if was_last && noted == Some(lineage.to_string()) {
            return Ok(true);
        }
        tracing::warn!("Postgres is another than before: waiting {SETTLING_TIME:?} for what is still on its way to Kafka");
        looks.settling = Some((lineage.clone(), Instant::now()));
        Ok(false)
    }

    /// Reads the topic into the database that a new connection reaches, writes again what of it the topic has lost, and opens
    /// the gate to that one. One that is of other topics or another account is refused, whenever it comes.
    fn compare(&self, handle: &Handle, looks: &mut Looks) -> Result<(), Failure> {
        let mut own = handle.block_on(OwnConnection::open(&self.pool))?;
        let client = own.db()?;
        let lineage = handle.block_on(Lineage::of(client))?;
        compared::refuse_others(&self.kafka, handle, &*client, Topic::Sweeps)?;
        handle.block_on(deposit_keys::check(&*client, &self.seeds))?.map_err(Failure::retry)?;
        let (started, blocks) = (Instant::now(), self.kafka.name(READING.topic));
        let before = handle.block_on(Reached::of(client, &blocks))?;
        let topic = self.kafka.name(Topic::Sweeps);
        let known = handle.block_on(topic_lost::known(client, &topic))?;
        let Restored { rows, attempts, outcomes, aside, lacking, read, last_place } = restore(&self.kafka, handle, client)?;
        if rows + attempts + outcomes > 0 {
            tracing::warn!(
                "Postgres lacked {rows} transactions, {attempts} more signed ones that were sent perhaps, and what became of \
                 {outcomes}; it has them now"
            );
        }
        handle.block_on(async {
            if looks.has_all.as_ref() != Some(&lineage)
                && let Some(lost) = topic_lost::refuse(client, &topic, &known, &read, &lacking).await?
            {
                tracing::error!("{lost}: what Postgres has of that is written again, as a person has said");
                looks.has_all = Some(lineage.clone());
            }
            topic_lost::write_again(client, &self.kafka, &self.publisher, &self.listing.chains(), lacking).await?;
            let tx = client.transaction().await?;
            topic_lost::note(&tx, &topic, &read, looks.has_all.as_ref() == Some(&lineage)).await?;
            note(&tx, &lineage).await?;
            Ok::<_, Failure>(tx.commit().await?)
        })?;
        looks.has_all = None;
        // It grows meanwhile: what was put back is signed, by this sweeper or another one.
        let reached = handle.block_on(Reached::of(client, &blocks))?;
        let known = Reached { signed: before.signed.max(last_place), ..before };
        if reached.is_below(known) {
            tracing::warn!("Postgres knows less than when it began to be compared: it was restored");
            looks.settling = Some((lineage, Instant::now()));
            return Ok(());
        }
        tracing::info!(stage = STAGE, aside, "Postgres has all that {} has, after {:.1?}", Topic::Sweeps, started.elapsed());
        looks.opened = Some(lineage.clone());
        // What it knew when it was compared: a look that finds less finds it restored.
        looks.known = Some(reached);
        self.last_place.store(reached.signed, Ordering::Relaxed);
        self.gate.open(lineage);
        Ok(())
    }
}

/// Which database has caught up last, as this one says.
async fn noted(db: &Client) -> Result<Option<String>, Failure> {
    Ok(db.query_opt("SELECT lineage FROM outgoing_restored", &[]).await?.map(|row| row.get(0)))
}

/// Notes that this one has, and that what a person has said of it is done.
async fn note(db: &impl GenericClient, lineage: &Lineage) -> Result<(), Failure> {
    let sql = "INSERT INTO outgoing_restored (lineage) VALUES ($1)
               ON CONFLICT (singleton) DO UPDATE SET lineage = excluded.lineage, accepted = NULL";
    db.execute(sql, &[&lineage.to_string()]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_knows_less_than_before_was_restored() {
        let reached = |blocks, signed| Reached { blocks, signed };
        let mut looks = Looks::default();
        assert!(!looks.fell(reached(5, 7)), "the first look");
        assert!(!looks.fell(reached(5, 7)) && !looks.fell(reached(6, 9)));
        assert!(looks.fell(reached(7, 8)), "fewer transactions, though it has read on");
        assert!(looks.fell(reached(6, 9)), "fewer blocks");
        assert!(!looks.fell(reached(6, 9)), "it is told once");
    }
}
