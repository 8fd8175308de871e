//! Keeps the gate of the role's pool closed until Postgres has all that `sweep.events` has: at the start, and whenever a
//! connection reaches another database than before.
//!
//! When a database takes the place of another, a process may still wait for Kafka with a record that it signed on the one
//! before. It sends nothing any more, since its own gate is closed by then; but its nonce would be given out again. So the
//! topic is read a while later. On the database that has caught up last, a process does not wait.

use crate::engine::outgoing::Pace;
use crate::restore::{Restored, STAGE, restore};
use deadpool_postgres::{Client, Pool};
use runtime::db::{self, Gate, Lineage, OwnConnection, Primary};
use runtime::kafka::Backlog;
use runtime::{Failure, Kafka, Settings};
use std::convert::Infallible;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use topics::Topic;

/// How long Kafka has to acknowledge a record.
pub const RECORD_TIMEOUT: Duration = Duration::from_secs(5);
/// Until no process takes a connection to another database any more, and Kafka has taken or refused the last record of one.
const SETTLING_TIME: Duration = Gate::LEASE.saturating_add(RECORD_TIMEOUT).saturating_add(Duration::from_secs(1));
/// How often the database is looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// Two for looks, one that is compared.
const MAX_CONNECTIONS: usize = 3;

/// Who opens the gate. Cheap to clone.
#[derive(Clone)]
pub struct CatchUp {
    kafka: Kafka,
    /// Without the gate, which it opens.
    pool: Pool,
    primary: Primary,
    gate: Gate,
    pace: Pace,
}

impl CatchUp {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// When `DATABASE_URL` does not parse.
    pub fn new(kafka: Kafka, settings: &Settings, pace: Pace) -> anyhow::Result<Self> {
        let pool = db::pool(&settings.database_url, MAX_CONNECTIONS)?;
        let (primary, gate) = (Primary::of(&settings.database_url)?, Gate::default());
        Ok(Self { kafka, pool, primary, gate, pace })
    }

    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Connections to whatever `DATABASE_URL` leads to, before the gate.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Looks where a new connection leads to. The gate's lease runs out while it can't.
    pub async fn keep_lease(self) -> Infallible {
        let mut turns = tokio::time::interval(INTERVAL);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            match self.primary.leads_to(&self.pool).await {
                Ok((lineage, began)) => self.gate.looked(lineage, began),
                // The stage tells of a database that stays away.
                Err(failure) => tracing::debug!("which database is reached could not be seen: {failure}"),
            }
        }
    }

    /// Compares each database that `DATABASE_URL` leads to, until `stop`.
    ///
    /// # Errors
    /// When Kafka or the database fails; what was found before holds.
    pub fn follow(&self, handle: &Handle, stop: &CancellationToken) -> Result<(), Failure> {
        let mut settling: Option<(Lineage, Instant)> = None;
        while !stop.is_cancelled() {
            let (lineage, _) = handle.block_on(self.primary.leads_to(&self.pool))?;
            if self.gate.is_open_to(&lineage) {
                settling = None;
            } else {
                self.gate.close();
                if self.is_settled(handle, &lineage, &mut settling)? {
                    self.compare(handle)?;
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
    fn is_settled(
        &self,
        handle: &Handle,
        lineage: &Lineage,
        settling: &mut Option<(Lineage, Instant)>,
    ) -> Result<bool, Failure> {
        if let Some((_, since)) = settling.as_ref().filter(|(of, _)| of == lineage) {
            return Ok(since.elapsed() >= SETTLING_TIME);
        }
        let noted = handle.block_on(async { noted(OwnConnection::open(&self.pool).await?.db()?).await })?;
        if noted == Some(lineage.to_string()) || Backlog::open(&self.kafka)?.ends(Topic::Sweeps)?.values().all(|end| *end == 0)
        {
            return Ok(true);
        }
        tracing::warn!("Postgres was restarted or restored: waiting {SETTLING_TIME:?} for what is still on its way to Kafka");
        *settling = Some((lineage.clone(), Instant::now()));
        Ok(false)
    }

    /// Reads the topic into the database that a new connection reaches, and opens the gate to that one.
    fn compare(&self, handle: &Handle) -> Result<(), Failure> {
        let mut own = handle.block_on(OwnConnection::open(&self.pool))?;
        let client = own.db()?;
        let lineage = handle.block_on(Lineage::of(client))?;
        let started = Instant::now();
        let Restored { rows, attempts, aside } = restore(&self.kafka, handle, client, &self.pace)?;
        if rows + attempts > 0 {
            tracing::warn!(
                "Postgres lacked {rows} transactions and {attempts} more signed ones that were sent perhaps; it has them now"
            );
        }
        tracing::info!(stage = STAGE, aside, "Postgres has all that {} has, after {:.1?}", Topic::Sweeps, started.elapsed());
        handle.block_on(note(client, &lineage))?;
        self.gate.open(lineage);
        Ok(())
    }
}

/// Which database has caught up last, as this one says.
async fn noted(db: &Client) -> Result<Option<String>, Failure> {
    Ok(db.query_opt("SELECT lineage FROM outgoing_restored", &[]).await?.map(|row| row.get(0)))
}

async fn note(db: &Client, lineage: &Lineage) -> Result<(), Failure> {
    let sql =
        "INSERT INTO outgoing_restored (lineage) VALUES ($1) ON CONFLICT (singleton) DO UPDATE SET lineage = excluded.lineage";
    db.execute(sql, &[&lineage.to_string()]).await?;
    Ok(())
}
