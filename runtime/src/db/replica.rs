//! A replica, for reads that may be a little old.
//!
//! A process writes a beat to the primary, again and again: what a connection to the replica shows of it, asked in the
//! transaction of each read, tells up to which moment of this process that server has everything. So no clock of another host
//! counts, nor where it stands in which log: one that follows another server, such as an old primary, or that is stopped, shows
//! no new beat, and is left alone once the last is too old.
//!
//! Where the URL leads to several servers, a process reads from one at a time: what one has shown, another that lags by more
//! would take back. When that one is lost, or lags for long, the next may be read once it has all that the last can have shown.

use super::config::parse_for;
use super::in_time::answered;
use super::own_connection::OwnConnection;
use super::pool::{Bounds, limit_statements};
use super::server::{Server, shares_sessions};
use super::tls::Tls;
use crate::failure::Failure;
use crate::stage;
use anyhow::anyhow;
use base::{locked, metrics};
use deadpool_postgres::{
    Client, ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, PoolBuilder, PoolError, RecyclingMethod, Runtime,
};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_postgres::config::{LoadBalanceHosts, TargetSessionAttrs};
use tokio_util::sync::CancellationToken;

const VARIABLE: &str = "DATABASE_READ_URL";
const NAME: &str = "the replica (DATABASE_READ_URL)";
/// How many beats go into the time that the replica may lag.
const BEATS: u32 = 8;
const MAX_INTERVAL: Duration = Duration::from_secs(1);
/// Beats that are remembered: minutes.
const MAX_BEATS: usize = 1024;
/// For a beat, and for a new connection.
const TIMEOUT: Duration = Duration::from_secs(2);
/// For a read to get a connection. The primary is asked instead.
const READ_TIMEOUT: Duration = Duration::from_millis(250);
/// Connections that are tried for one to the server that is read from.
const MAX_TRIES: usize = 3;
/// How long the server that is read from may lag by more than it may before another is looked for, at least and at most.
const LAGGING: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));
/// So many reads that took too long within the time, the replica found well in between, and it is named.
const MAX_LEFT: usize = 3;
const LEFT_WITHIN: Duration = Duration::from_secs(60);
const BEAT_SHOWN: &str = "SELECT beat FROM replica_beats WHERE process = $1";

/// A pool of connections to a replica, and how far it lags. Cheap to clone.
#[derive(Clone)]
pub struct Replica {
    pool: Pool,
    /// For looks, which do not wait for those that read.
    look_pool: Pool,
    max_lag: Duration,
    process: Arc<str>,
    beats: Arc<Mutex<Beats>>,
    one: Arc<Mutex<OneServer>>,
    is_well: Arc<AtomicBool>,
    /// When reads that took too long had it left alone.
    left: Arc<Mutex<VecDeque<Instant>>>,
}

/// The server that is read from.
#[derive(Default)]
struct OneServer {
    server: Option<Server>,
    since: Option<Instant>,
    is_lost: bool,
    /// It has lagged by too much in all looks since then.
    lags_since: Option<Instant>,
}

impl OneServer {
    fn is(&self, server: &Server) -> bool {
        !self.is_lost && self.server.as_ref() == Some(server)
    }

    /// Takes the server that was reached, if there is none. Returns whether it is the one. One that was lost because it lags is
    /// taken again only where no other was reached, in the last try.
    fn take(&mut self, server: Server, is_last_try: bool) -> bool {
        if self.is_lost || self.server.is_none() {
            if self.server.as_ref() != Some(&server) {
                (self.server, self.since) = (Some(server), Some(Instant::now()));
            } else if self.lags_since.is_some() && !is_last_try {
                return false;
            }
            (self.is_lost, self.lags_since) = (false, None);
            return true;
        }
        self.is(&server)
    }

    /// Takes what a look at it has found: whether it lags by too much, or nothing. Returns whether it is lost, and another one
    /// may be well.
    fn looked(&mut self, lags: Option<bool>, patience: Duration, now: Instant) -> bool {
        match lags {
            None => (self.is_lost, self.lags_since) = (true, None),
            Some(false) => self.lags_since = None,
            Some(true) => {
                let since = *self.lags_since.get_or_insert(now);
                self.is_lost = now.duration_since(since) >= patience;
            }
        }
        self.is_lost
    }

    /// Whether it may be read where it shows a beat that was begun then: what the server before it has shown was committed before
    /// this one was taken.
    fn may_show(&self, begun: Instant, max_lag: Duration) -> bool {
        begun.elapsed() < max_lag && self.since.is_some_and(|since| begun >= since)
    }
}

/// The beats of a process, and when each was begun.
#[derive(Default)]
struct Beats {
    last: i64,
    begun: VecDeque<(i64, Instant)>,
}

impl Replica {
    /// No connection is opened yet. It is used once [`follow`](Self::follow) has found that it keeps up. `process` is a name
    /// that no other process has, or had.
    ///
    /// # Errors
    /// When the URL does not parse.
    pub fn new(url: &str, bounds: Bounds, max_lag: Duration, process: &str) -> anyhow::Result<Self> {
        let one = Arc::<Mutex<OneServer>>::default();
        let pool_of_one = of_one_server(pool(url, bounds.connections, bounds.statement)?, &one);
        Ok(Self {
            pool: pool_of_one.build()?,
            look_pool: pool(url, 2, TIMEOUT)?.build()?,
            max_lag,
            process: process.into(),
            beats: Arc::default(),
            one,
            is_well: Arc::default(),
            left: Arc::default(),
        })
    }

    /// A connection to the replica, if one is to be had at once. Whether it keeps up, [`keeps_up`](Self::keeps_up) tells.
    pub async fn get(&self) -> Option<Client> {
        for _ in 0..MAX_TRIES {
            if !self.is_well.load(Ordering::Relaxed) {
                return None;
            }
            match self.pool.get().await {
                Ok(client) => return Some(client),
                // It may have led to another server.
                Err(PoolError::PostCreateHook(_)) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Whether the server behind a connection lags by less than it may, and has all that the one before it can have shown.
    /// Asked in the transaction of a read, it holds for what that sees. It is sent when it is first polled.
    pub async fn keeps_up(&self, client: &Client) -> bool {
        let begun = self.shown(client).await.ok().flatten();
        begun.is_some_and(|begun| locked(&self.one).may_show(begun, self.max_lag))
    }

    /// Leaves it alone until the next look finds it well, as after a read that has taken too long.
    pub fn leave(&self) {
        if self.is_well.swap(false, Ordering::Relaxed) {
            locked(&self.left).push_back(Instant::now());
        }
    }

    /// How often it was left alone of late.
    fn left(&self) -> usize {
        let mut left = locked(&self.left);
        while left.pop_front_if(|at| at.elapsed() > LEFT_WITHIN).is_some() {}
        left.len()
    }

    /// When the newest beat that the server behind a connection shows was begun; `None` if it shows nothing of this process.
    async fn shown(&self, client: &Client) -> Result<Option<Instant>, Failure> {
        let statement = client.prepare_cached(BEAT_SHOWN).await?;
        let shown = client.query_opt(&statement, &[&&*self.process]).await?.map(|row| row.get(0));
        Ok(shown.and_then(|beat| locked(&self.beats).begun(beat)))
    }

    /// Writes beats to the primary, and looks whether the replica shows them, until `stop`.
    pub async fn follow(self, primary: Pool, stop: CancellationToken) {
        let (interval, mut is_pooler) = ((self.max_lag / BEATS).min(MAX_INTERVAL), None);
        while !stop.is_cancelled() {
            let found = self.look(&primary, &mut is_pooler).await;
            self.tell(found);
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    async fn look(&self, primary: &Pool, is_pooler: &mut Option<bool>) -> Result<Option<Duration>, Failure> {
        let number = locked(&self.beats).begin();
        let beat = async {
            let sql = "INSERT INTO replica_beats (process, beat) VALUES ($1, $2)
                       ON CONFLICT (process) DO UPDATE SET beat = EXCLUDED.beat, written_at = now()";
            Ok(primary.get().await?.execute(sql, &[&&*self.process, &number]).await?)
        };
        answered(TIMEOUT, beat).await.map_err(|failure| failure.context("the primary"))?;
        let found = answered(TIMEOUT, async {
            let mut client = self.look_client().await?;
            // One that was found is asked again: its `pool_mode` may be another by now.
            if *is_pooler != Some(false) {
                let mut other = self.look_client().await?;
                *is_pooler = Some(shares_sessions(client.db()?, other.db()?).await?);
                other.give_back();
            }
            if *is_pooler == Some(true) {
                return Err(Failure::Retry(anyhow!(
                    "a pooler in transaction mode stands in front of it: set `pool_mode = session`"
                )));
            }
            let begun = self.shown(client.db()?).await?;
            client.give_back();
            Ok(begun.map(|begun| begun.elapsed()))
        })
        .await;
        let lags = found.as_ref().ok().map(|lag| lag.is_none_or(|lag| lag >= self.max_lag));
        let patience = self.max_lag.clamp(LAGGING.0, LAGGING.1);
        if locked(&self.one).looked(lags, patience, Instant::now()) {
            // They lead to that one.
            self.look_pool.retain(|_, _| false);
        }
        found
    }

    /// A connection to the server that is read from. It is closed unless it is given back: a look that is cut off leaves a
    /// statement behind, or a transaction.
    async fn look_client(&self) -> Result<OwnConnection, Failure> {
        for left in (0..MAX_TRIES).rev() {
            let mut client = OwnConnection::open(&self.look_pool).await?;
            let server = Server::of(client.db()?, false).await?;
            if locked(&self.one).take(server, left == 0) {
                return Ok(client);
            }
        }
        Err(Failure::Retry(anyhow!("it leads to several servers, and {MAX_TRIES} times not to the one that is read from")))
    }

    /// Notes whether it may be used, and says when it is left alone, and when it is used again.
    fn tell(&self, found: Result<Option<Duration>, Failure>) {
        let (lag, failure) = match found {
            Ok(lag) => (lag, None),
            Err(failure) => (None, Some(failure)),
        };
        metrics::REPLICA_LAG.gauge(&[]).set(lag.map_or(f64::INFINITY, |lag| lag.as_secs_f64()));
        let is_well = lag.is_some_and(|lag| lag < self.max_lag);
        self.is_well.store(is_well, Ordering::Relaxed);
        let was_left = stage::cause_of(NAME).is_some();
        let left = self.left();
        let is_slow = left >= MAX_LEFT;
        if is_well && !is_slow && was_left {
            stage::resumed(NAME);
            tracing::info!("{NAME} is used for reads again");
        } else if (!is_well || is_slow) && !was_left {
            let cause = match (failure, lag) {
                (Some(failure), _) => failure.to_string(),
                (None, Some(_)) if is_well => format!("reads of it took too long, {left} times within {LEFT_WITHIN:?}"),
                (None, Some(lag)) => format!("it lags by {lag:.1?}, and may by {:?}", self.max_lag),
                (None, None) => "it shows nothing that this process has written to the primary for minutes".to_owned(),
            };
            tracing::warn!("{NAME} is left alone: {cause}. The primary answers in its place");
            stage::waits(NAME, &format!("{cause}. The primary answers in its place"));
        }
    }
}

impl Beats {
    /// A new one. Its number is never used again, whatever becomes of its write.
    fn begin(&mut self) -> i64 {
        self.last += 1;
        self.begun.push_back((self.last, Instant::now()));
        if self.begun.len() > MAX_BEATS {
            self.begun.pop_front();
        }
        self.last
    }

    /// When a beat was begun: whoever shows it has all that was committed before.
    fn begun(&self, number: i64) -> Option<Instant> {
        self.begun.iter().rev().find(|(begun, _)| *begun == number).map(|(_, at)| *at)
    }
}

fn pool(url: &str, size: usize, longest: Duration) -> anyhow::Result<PoolBuilder> {
    let mut config = parse_for(VARIABLE, url)?;
    // The first of several would be reached each time, also when it lags and another is well.
    config.target_session_attrs(TargetSessionAttrs::Any).load_balance_hosts(LoadBalanceHosts::Random);
    let manager =
        Manager::from_connect(config, Tls::of(VARIABLE, url)?, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let reads_only = Hook::async_fn(|client: &mut ClientWrapper, _| {
        // Whatever it is, nothing is written to it.
        let sql = "SET default_transaction_read_only = on";
        Box::pin(async move { client.batch_execute(sql).await.map_err(HookError::Backend) })
    });
    let pool = Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1);
    let pool = pool.wait_timeout(Some(READ_TIMEOUT)).create_timeout(Some(TIMEOUT));
    Ok(pool.post_create(reads_only).post_create(limit_statements(longest)))
}

/// Lets connections to the server that is read from through, and to no other.
fn of_one_server(pool: PoolBuilder, one: &Arc<Mutex<OneServer>>) -> PoolBuilder {
    let (new, used) = (Arc::clone(one), Arc::clone(one));
    let other = || HookError::message("it leads to another server than the one that is read from");
    let pool = pool.post_create(Hook::async_fn(move |client: &mut ClientWrapper, _| {
        let new = Arc::clone(&new);
        Box::pin(async move {
            let server = Server::of(client, false).await.map_err(HookError::Backend)?;
            if !locked(&new).is(&server) {
                return Err(other());
            }
            // A read asks it with its first statement, in one round trip.
            client.prepare_cached(BEAT_SHOWN).await.map(drop).map_err(HookError::Backend)
        })
    }));
    pool.pre_recycle(Hook::sync_fn(move |_, metrics| {
        let is_of_it = locked(&used).since.is_some_and(|since| metrics.created >= since);
        is_of_it.then_some(()).ok_or_else(other)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_tells_when_it_was_begun_and_its_number_is_never_used_again() {
        let mut beats = Beats::default();
        let before = Instant::now();
        // It may be committed and not answered.
        let (first, second) = (beats.begin(), beats.begin());
        assert!(first != second && beats.begun(first).is_some_and(|at| at >= before), "{first} {second}");
        assert!(beats.begun(first) <= beats.begun(second) && beats.begun(0).is_none(), "another database has it");
        for _ in 0..MAX_BEATS {
            beats.begin();
        }
        assert_eq!(beats.begun(second), None, "too old");
    }

    #[test]
    fn one_server_is_read_from_until_it_is_lost_and_the_next_has_to_have_all_that_it_has_shown() {
        let [first, second] = ["1", "2"].map(Server::started);
        let mut one = OneServer::default();
        assert!(!one.is(&first) && one.take(first.clone(), false) && one.is(&first));
        let since = one.since;
        let is_other = !one.take(second.clone(), true) && !one.is(&second) && one.is(&first);
        assert!(is_other, "another one would take back what was shown");
        assert!(one.looked(None, LAGGING.0, Instant::now()) && !one.is(&first), "it may be another by now");
        assert!(one.take(first.clone(), false) && one.since == since, "it is the same");
        assert!(one.looked(None, LAGGING.0, Instant::now()));
        assert!(one.take(second.clone(), false) && one.since != since && one.is(&second) && !one.is(&first));
    }

    #[test]
    fn a_server_that_lags_for_long_is_left_for_another() {
        let ([first, second], began) = (["1", "2"].map(Server::started), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut one = OneServer::default();
        assert!(one.take(first.clone(), false));
        assert!(!one.looked(Some(true), LAGGING.0, at(0)) && !one.looked(Some(true), LAGGING.0, at(2)));
        assert!(
            !one.looked(Some(false), LAGGING.0, at(3)) && !one.looked(Some(true), LAGGING.0, at(4)),
            "it has caught up once"
        );
        assert!(one.looked(Some(true), LAGGING.0, at(7)) && !one.is(&first));
        assert!(!one.take(first.clone(), false), "another is looked for");
        assert!(one.take(second.clone(), false) && one.is(&second) && !one.is(&first));
        assert!(!one.looked(Some(true), LAGGING.0, at(8)) && one.looked(Some(true), LAGGING.0, at(11)));
        assert!(!one.take(second.clone(), false) && one.take(second.clone(), true), "there is no other");
        assert!(!one.looked(Some(true), LAGGING.0, at(12)), "it has its time again");
    }

    #[test]
    fn a_server_is_read_once_it_shows_a_beat_that_is_young_and_was_begun_since_it_was_taken() {
        let mut one = OneServer::default();
        let (now, max_lag) = (Instant::now(), Duration::from_secs(60));
        assert!(!one.may_show(now, max_lag), "none is read from");
        let ago = |seconds| now - Duration::from_secs(seconds);
        one.since = Some(ago(10));
        assert!(one.may_show(ago(10), max_lag) && one.may_show(ago(5), max_lag));
        assert!(!one.may_show(ago(11), max_lag), "the one before may have shown more");
        one.since = Some(ago(100));
        assert!(one.may_show(ago(59), max_lag) && !one.may_show(ago(60), max_lag), "it lags by too much");
    }

    #[tokio::test]
    async fn a_replica_that_was_not_seen_to_keep_up_or_lags_is_not_asked() {
        let bounds = Bounds { connections: 1, wait: Duration::from_secs(1), statement: Duration::from_secs(1) };
        let replica = Replica::new("postgres://u@127.0.0.1:1/d", bounds, Duration::from_secs(2), "p").unwrap();
        let is_well = || replica.is_well.load(Ordering::Relaxed);
        assert!(!is_well() && replica.get().await.is_none());
        replica.tell(Ok(Some(Duration::from_secs(1))));
        assert!(is_well());
        for bad in [Ok(Some(Duration::from_secs(2))), Ok(None), Err(Failure::Retry(anyhow!("away")))] {
            replica.tell(Ok(Some(Duration::ZERO)));
            replica.tell(bad);
            assert!(!is_well());
        }
        replica.tell(Ok(Some(Duration::ZERO)));
        replica.leave();
        assert!(!is_well(), "a read has taken too long");
        let is_named = || stage::cause_of(NAME).is_some();
        replica.tell(Ok(Some(Duration::ZERO)));
        assert!(is_well() && !is_named(), "once says nothing");
        for _ in 1..MAX_LEFT {
            // Others were under way.
            replica.leave();
            replica.leave();
            replica.tell(Ok(Some(Duration::ZERO)));
        }
        assert!(is_well() && is_named(), "it is asked, and no read of it ends in time");
        locked(&replica.left).clear();
        replica.tell(Ok(Some(Duration::ZERO)));
        assert!(!is_named());
        let wrong = Replica::new("nonsense", bounds, Duration::from_secs(2), "p").err().unwrap().to_string();
        assert!(wrong.contains("DATABASE_READ_URL") && !wrong.contains("nonsense"), "{wrong}");
    }
}
