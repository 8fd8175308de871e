//! A replica, for reads that may be a little old.
//!
//! A process writes a beat to the primary, again and again: what the replica shows of it tells up to which moment of this process it has
//! everything. So no clock of another host counts, nor where the replica stands in which log: one that follows another server, such as an
//! old primary, or that is stopped, shows no new beat, and is left alone once the last is too old.

use super::config::parse_for;
use super::pool::{Bounds, limit_statements};
use crate::failure::Failure;
use crate::stage;
use anyhow::anyhow;
use base::{locked, metrics};
use deadpool_postgres::{Client, ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_postgres::NoTls;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_util::sync::CancellationToken;

const NAME: &str = "the replica (DATABASE_READ_URL)";
/// How many beats go into the time that the replica may lag.
const BEATS: u32 = 8;
const MAX_INTERVAL: Duration = Duration::from_secs(1);
/// Beats that are waited for: minutes.
const MAX_BEATS: usize = 1024;
/// For a connection to the replica, and for a beat. The primary is asked instead.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A pool of connections to a replica, and how far it lags. Cheap to clone.
#[derive(Clone)]
pub struct Replica {
    pool: Pool,
    max_lag: Duration,
    /// The replica has all that was committed before.
    complete_until: Arc<Mutex<Option<Instant>>>,
}

/// The beats of a process that the replica has not shown yet, and when each was begun.
#[derive(Default)]
struct Beats {
    last: i64,
    sent: VecDeque<(i64, Instant)>,
}

impl Replica {
    /// No connection is opened yet. It is used once [`follow`](Self::follow) has found that it keeps up.
    ///
    /// # Errors
    /// When the URL does not parse.
    pub fn new(url: &str, bounds: Bounds, max_lag: Duration) -> anyhow::Result<Self> {
        let mut config = parse_for("DATABASE_READ_URL", url)?;
        config.target_session_attrs(TargetSessionAttrs::Any);
        let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let reads_only = Hook::async_fn(|client: &mut ClientWrapper, _| {
            // Whatever it is, nothing is written to it.
            Box::pin(
                async move { client.batch_execute("SET default_transaction_read_only = on").await.map_err(HookError::Backend) },
            )
        });
        let pool = Pool::builder(manager)
            .max_size(bounds.connections)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(bounds.wait.min(TIMEOUT)))
            .create_timeout(Some(TIMEOUT))
            .post_create(reads_only)
            .post_create(limit_statements(bounds.statement))
            .build()?;
        Ok(Self { pool, max_lag, complete_until: Arc::default() })
    }

    /// A connection, if the replica lags by less than it may, and one is to be had at once.
    pub async fn get(&self) -> Option<Client> {
        if self.is_usable() { self.pool.get().await.ok() } else { None }
    }

    fn is_usable(&self) -> bool {
        locked(&self.complete_until).is_some_and(|until| until.elapsed() < self.max_lag)
    }

    /// Writes beats to the primary under the name of this process, and looks for them, until `stop`.
    pub async fn follow(self, primary: Pool, process: String, stop: CancellationToken) {
        let (interval, mut beats) = ((self.max_lag / BEATS).min(MAX_INTERVAL), Beats::default());
        while !stop.is_cancelled() {
            let failure = self.look(&primary, &process, &mut beats).await.err();
            self.tell(failure.as_ref());
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    async fn look(&self, primary: &Pool, process: &str, beats: &mut Beats) -> Result<(), Failure> {
        let began = Instant::now();
        let (number, beat) = (beats.last + 1, primary.get());
        let sql = "INSERT INTO replica_beats (process, beat) VALUES ($1, $2)
                   ON CONFLICT (process) DO UPDATE SET beat = EXCLUDED.beat, written_at = now()";
        let written = async { Ok::<_, Failure>(beat.await?.execute(sql, &[&process, &number]).await?) };
        in_time("the primary", written).await?;
        beats.begun(number, began);
        let sql = "SELECT beat FROM replica_beats WHERE process = $1";
        let shown = async { Ok(self.pool.get().await?.query_opt(sql, &[&process]).await?) };
        let shown = in_time("the replica", shown).await?.map_or(0, |row| row.get(0));
        if let Some(until) = beats.shown(shown) {
            *locked(&self.complete_until) = Some(until);
        }
        Ok(())
    }

    /// Says when it is left alone, and when it is used again.
    fn tell(&self, failure: Option<&Failure>) {
        let lag = locked(&self.complete_until).map(|until| until.elapsed());
        metrics::REPLICA_LAG.gauge(&[]).set(lag.map_or(f64::INFINITY, |lag| lag.as_secs_f64()));
        let was_left = stage::waiting().iter().any(|(name, _)| name == NAME);
        match (self.is_usable(), was_left) {
            (true, true) => {
                stage::resumed(NAME);
                tracing::info!("{NAME} is used for reads again");
            }
            (false, false) => {
                let cause = failure.map_or("it does not show what the primary has".to_owned(), ToString::to_string);
                let lag = lag.map_or("was never up to date".to_owned(), |lag| format!("lags by {lag:.1?}"));
                let text = format!("{lag}, and may by {:?}: {cause}. The primary answers in its place", self.max_lag);
                tracing::warn!("{NAME} {text}");
                stage::waits(NAME, &text);
            }
            _ => {}
        }
    }
}

impl Beats {
    fn begun(&mut self, number: i64, at: Instant) {
        self.last = number;
        self.sent.push_back((number, at));
        if self.sent.len() > MAX_BEATS {
            self.sent.pop_front();
        }
    }

    /// When the newest beat was begun that is shown for the first time.
    fn shown(&mut self, number: i64) -> Option<Instant> {
        let mut until = None;
        while let Some((_, begun)) = self.sent.pop_front_if(|(sent, _)| *sent <= number) {
            until = Some(begun);
        }
        until
    }
}

async fn in_time<T>(whom: &str, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = || Failure::Retry(anyhow!("{whom} does not answer"));
    tokio::time::timeout(TIMEOUT, answer).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_complete_until_the_newest_beat_that_it_shows_was_begun() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut beats = Beats::default();
        (1..=3).for_each(|number| beats.begun(number, at(u64::try_from(number).unwrap())));
        assert_eq!(beats.shown(0), None);
        assert_eq!(beats.shown(2), Some(at(2)));
        assert_eq!(beats.shown(2), None, "it stands still");
        beats.begun(4, at(4));
        assert_eq!(beats.shown(1), None, "another database");
        assert_eq!(beats.shown(4), Some(at(4)));
    }

    #[tokio::test]
    async fn a_replica_that_was_not_seen_to_keep_up_or_lags_is_not_asked() {
        let bounds = Bounds { connections: 1, wait: Duration::from_secs(1), statement: Duration::from_secs(1) };
        let replica = Replica::new("postgres://u@127.0.0.1:1/d", bounds, Duration::from_secs(2)).unwrap();
        assert!(!replica.is_usable());
        *locked(&replica.complete_until) = Some(Instant::now());
        assert!(replica.is_usable());
        *locked(&replica.complete_until) = Some(Instant::now() - Duration::from_secs(2));
        assert!(!replica.is_usable() && replica.get().await.is_none());
        let wrong = Replica::new("nonsense", bounds, Duration::from_secs(2)).err().unwrap().to_string();
        assert!(wrong.contains("DATABASE_READ_URL") && !wrong.contains("nonsense"), "{wrong}");
    }
}
