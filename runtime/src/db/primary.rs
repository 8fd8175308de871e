//! Connects to the primary, the one server among those of `DATABASE_URL` that takes writes, and leaves it when it is that no more.
//!
//! tokio-postgres tries the hosts in their order, and gives a time-out to the TCP handshake alone: a host that accepts connections and
//! stands still, or whose name nobody resolves, would keep it from the others for good. So the next host is asked here when one has not
//! answered for a second. An old primary that was not stopped takes writes too: of two, the one that was promoted last counts.
//!
//! No statement has a deadline: one that waits for a lock may take long, and all is well. A server that stands still with a statement in
//! hand never answers it, though, and its host acknowledges what it is sent. So each process looks every few seconds where `DATABASE_URL`
//! leads to. Connections to another server, and all if nobody answers for long, are closed, and what waits for them fails. Where there is
//! but one host, a connection that is opened for work has looked as well, and takes the place of the next look.

use super::config::{CONNECT_TIMEOUT, parse};
use super::gate::{Gate, Lineage};
use super::server::{Server, name, shares_sessions, single_hosts};
use super::shared_look::SharedLook;
use super::tls::Tls;
use crate::failure::Failure;
use base::locked;
use deadpool_postgres::{Connect, Pool};
use futures::FutureExt as _;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Connection, Error};

/// After this time without an answer the next host is asked as well.
const HOST_TIMEOUT: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// From one look that keeps a lease to the next.
const LEASE_INTERVAL: Duration = Duration::from_secs(1);
/// After this time without an answer, over some looks, connections are closed.
const MAX_SILENCE: Duration = Duration::from_secs(10);
const MIN_SILENT_LOOKS: u32 = 3;

/// One for each URL: all pools of a process agree on the primary.
static PRIMARIES: Mutex<BTreeMap<String, Primary>> = Mutex::new(BTreeMap::new());

/// The servers. Cheap to clone.
#[derive(Clone)]
pub struct Primary(Arc<Inner>);

struct Inner {
    /// A configuration with one host each.
    hosts: Vec<Config>,
    tls: Tls,
    last: Mutex<Last>,
    looks: watch::Sender<Look>,
    /// The task that looks while there are connections.
    watcher: Mutex<Option<JoinHandle<()>>>,
    problem: Mutex<Option<String>>,
    shared_look: SharedLook,
}

/// The server that was the primary last.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    /// Of its host.
    place: usize,
    timeline: u32,
}

/// What a look has found.
#[derive(Clone, Debug)]
enum Look {
    /// There was none yet.
    None,
    Primary {
        server: Server,
        began: Instant,
    },
    /// Not enough to close anything.
    Unclear,
    /// Nobody answers.
    Silence {
        began: Instant,
    },
}

impl Look {
    /// When the primary was found.
    const fn found(&self) -> Option<Instant> {
        match self {
            Self::Primary { began, .. } => Some(*began),
            Self::None | Self::Unclear | Self::Silence { .. } => None,
        }
    }

    /// Whether a connection that was opened before is of no use.
    fn leaves(&self, server: &Server, opened: Instant) -> bool {
        match self {
            Self::None | Self::Unclear => false,
            Self::Primary { server: found, began } => *began > opened && found != server,
            Self::Silence { began } => *began > opened,
        }
    }
}

impl Primary {
    /// # Errors
    /// When the URL does not parse, or names no host.
    pub fn of(url: &str) -> anyhow::Result<Self> {
        let mut primaries = locked(&PRIMARIES);
        if let Some(known) = primaries.get(url) {
            return Ok(known.clone());
        }
        let hosts = single_hosts(&parse(url)?);
        anyhow::ensure!(!hosts.is_empty(), "DATABASE_URL names no host; expected postgres://user:password@host:port/database");
        let inner = Inner {
            hosts,
            tls: Tls::of("DATABASE_URL", url)?,
            last: Mutex::default(),
            looks: watch::Sender::new(Look::None),
            watcher: Mutex::default(),
            problem: Mutex::default(),
            shared_look: SharedLook::new(),
        };
        let primary = Self(Arc::new(inner));
        primaries.insert(url.to_owned(), primary.clone());
        Ok(primary)
    }

    /// How long opening a connection may take.
    pub(super) fn patience(&self) -> Duration {
        CONNECT_TIMEOUT + HOST_TIMEOUT.saturating_mul(u32::try_from(self.hosts()).unwrap_or(u32::MAX))
    }

    fn hosts(&self) -> usize {
        self.0.hosts.len()
    }

    /// Two servers that take writes; `None` when there is but one.
    pub fn problem(&self) -> Option<String> {
        locked(&self.0.problem).clone()
    }

    /// Opens a connection, which its task drives until the client is dropped, the task is aborted, or the server is the primary no more.
    ///
    /// # Errors
    /// That of a host, when none takes writes.
    pub async fn open(&self) -> Result<(Client, JoinHandle<()>), Error> {
        let mut looks = self.0.looks.subscribe();
        self.watch();
        if self.hosts() > 1 {
            // Without one, an old primary that takes writes still would do. A slow host holds up nobody.
            drop(tokio::time::timeout(HOST_TIMEOUT * 2, looks.wait_for(|look| !matches!(look, Look::None))).await);
        }
        let (count, first) = (self.hosts(), locked(&self.0.last).place);
        let mut places = (0..count).map(|step| (first + step) % count);
        let mut attempts = FuturesUnordered::new();
        loop {
            attempts.extend(places.next().map(|place| self.open_at(place, looks.clone())));
            let is_last = places.len() == 0;
            let patience = if is_last { Duration::MAX } else { HOST_TIMEOUT };
            match tokio::time::timeout(patience, attempts.next()).await {
                Ok(Some(Ok(opened))) => return Ok(opened),
                Ok(Some(Err(error))) if is_last && attempts.is_empty() => return Err(error),
                _ => {}
            }
        }
    }

    /// Where a new connection of the pool, which has the same URL, leads to, and when the look began that tells so: another role's, or
    /// one that begins now.
    ///
    /// # Errors
    /// When the database fails, or does not answer in time.
    pub async fn leads_to(&self, pool: &Pool) -> Result<(Lineage, Instant), Failure> {
        self.0.shared_look.renew(pool).await
    }

    /// Looks again and again where a new connection of the pool, which has no gate, leads to. The lease of the gate runs out while
    /// it can't.
    pub async fn keep_lease(&self, gate: &Gate, pool: &Pool) -> Infallible {
        let mut turns = tokio::time::interval(LEASE_INTERVAL);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            match self.leads_to(pool).await {
                Ok((lineage, began)) => gate.looked(lineage, began),
                // A stage tells of a database that stays away.
                Err(failure) => tracing::debug!("which database is reached could not be seen: {failure}"),
            }
        }
    }

    /// Whether two connections get the same session of the server in turn, as behind a pooler in transaction mode.
    ///
    /// # Errors
    /// When a connection fails.
    pub async fn shares_sessions(&self) -> Result<bool, Error> {
        let ((one, _), (other, _)) = (self.open().await?, self.open().await?);
        shares_sessions(&one, &other).await
    }

    async fn open_at(&self, place: usize, looks: watch::Receiver<Look>) -> Result<(Client, JoinHandle<()>), Error> {
        let opened = Instant::now();
        let (client, connection) = self.0.tls.open(&self.0.hosts[place]).await?;
        let (tell, told) = oneshot::channel();
        let driver = tokio::spawn(drive(connection, told, looks, opened));
        let server = Server::of(&client, self.hosts() > 1).await?;
        if !self.note(place, &server) {
            refuse(&client).await?;
        }
        if self.hosts() == 1 {
            self.show(Look::Primary { server: server.clone(), began: opened }, opened);
        }
        // Its task is there as long as the client.
        let _ = tell.send(server);
        Ok((client, driver))
    }

    /// Notes a server that takes writes. Returns whether it is the primary, as far as is known.
    fn note(&self, place: usize, server: &Server) -> bool {
        let mut last = locked(&self.0.last);
        let is_primary = server.timeline >= last.timeline;
        if is_primary {
            *last = Last { place, timeline: server.timeline };
        }
        is_primary
    }

    /// Looks from now on, if nobody does. A runtime that ends takes the task with it.
    fn watch(&self) {
        let mut watcher = locked(&self.0.watcher);
        if watcher.as_ref().is_none_or(JoinHandle::is_finished) {
            *watcher = Some(tokio::spawn(self.clone().look_while_used()));
        }
    }

    async fn look_while_used(self) {
        let (mut heard, mut silent) = (Instant::now(), 0);
        loop {
            let began = Instant::now();
            let look = match self.look(&mut heard).await {
                Some(server) => {
                    (heard, silent) = (Instant::now(), 0);
                    Look::Primary { server, began }
                }
                None => {
                    silent += 1;
                    // A process that was paused has not heard anything either.
                    let is_silent = silent >= MIN_SILENT_LOOKS && heard.elapsed() > MAX_SILENCE;
                    if is_silent { Look::Silence { began } } else { Look::Unclear }
                }
            };
            self.show(look, began);
            tokio::time::sleep(LOOK_INTERVAL).await;
            // What was opened meanwhile has looked.
            while let Some(found) = self.found().filter(|found| found.elapsed() < LOOK_INTERVAL) {
                (heard, silent) = (found, 0);
                tokio::time::sleep(LOOK_INTERVAL.saturating_sub(found.elapsed())).await;
            }
            let mut watcher = locked(&self.0.watcher);
            if self.0.looks.receiver_count() == 0 {
                *watcher = None;
                return;
            }
        }
    }

    /// Shows a look to all connections, unless the last one has found the primary and began no earlier.
    fn show(&self, look: Look, began: Instant) {
        self.0.looks.send_if_modified(|last| {
            let is_newest = last.found().is_none_or(|found| found < began);
            if is_newest {
                *last = look;
            }
            is_newest
        });
    }

    /// When the primary was found last, if the last look has found it.
    fn found(&self) -> Option<Instant> {
        self.0.looks.borrow().found()
    }

    /// Asks all hosts, and returns the primary. A server that is full is `heard` too.
    async fn look(&self, heard: &mut Instant) -> Option<Server> {
        let ask = async |place: usize| (place, server_at(&self.0.hosts[place], &self.0.tls, self.hosts() > 1).await);
        let mut asked: FuturesUnordered<_> = (0..self.hosts()).map(ask).collect();
        let mut found: Vec<(usize, Server)> = Vec::new();
        let mut deadline = Instant::now() + CONNECT_TIMEOUT;
        while let Ok(Some((place, answer))) = tokio::time::timeout_at(deadline.into(), asked.next()).await {
            match answer {
                Ok(server) => {
                    found.push((place, server));
                    deadline = deadline.min(Instant::now() + HOST_TIMEOUT);
                }
                Err(error) => {
                    if error.code().is_some_and(|code| *code != SqlState::CANNOT_CONNECT_NOW) {
                        *heard = Instant::now();
                    }
                    tracing::debug!("{} was not looked at: {error}", name(&self.0.hosts[place]));
                }
            }
        }
        self.tell(&found);
        let last = locked(&self.0.last).place;
        let (place, server) = found.into_iter().max_by_key(|(place, server)| (server.timeline, *place == last))?;
        self.note(place, &server).then_some(server)
    }

    /// Names two that take writes.
    fn tell(&self, found: &[(usize, Server)]) {
        let is_split = found.iter().any(|(_, server)| *server != found[0].1);
        let problem = is_split.then(|| {
            let named =
                |(place, server): &(usize, Server)| format!("{} (timeline {})", name(&self.0.hosts[*place]), server.timeline);
            let named: Vec<String> = found.iter().map(named).collect();
            format!(
                "{} of DATABASE_URL take writes; the one of the highest timeline is used. Stop the other, or make it a standby",
                named.join(" and ")
            )
        });
        let mut known = locked(&self.0.problem);
        if let Some(problem) = problem.as_ref().filter(|problem| known.as_ref() != Some(problem)) {
            tracing::error!("{problem}");
        }
        *known = problem;
    }
}

impl fmt::Debug for Primary {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.hosts.iter().map(name)).finish()
    }
}

impl Connect for Primary {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        self.open().boxed()
    }
}

/// Drives a connection. The client's next call returns its error, or that it was closed.
async fn drive<S, T>(
    connection: Connection<S, T>,
    server: oneshot::Receiver<Server>,
    mut looks: watch::Receiver<Look>,
    opened: Instant,
) where
    Connection<S, T>: Future,
{
    let left = async {
        // Nobody waits for one that was not opened in time.
        if let Ok(server) = server.await {
            let _ = looks.wait_for(|look| look.leaves(&server, opened)).await;
            tracing::warn!("a connection to Postgres is closed: its server does not answer, or is the primary no more");
        }
    };
    tokio::select! {
        _ = connection => {}
        () = left => {}
    }
}

async fn server_at(host: &Config, tls: &Tls, with_timeline: bool) -> Result<Server, Error> {
    let (client, connection) = tls.open(host).await?;
    // It ends with this look.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    Server::of(&client, with_timeline).await
}

/// The error of a server that takes writes and should not.
async fn refuse(client: &Client) -> Result<(), Error> {
    client
        .batch_execute(
            "DO $$ BEGIN RAISE read_only_sql_transaction USING MESSAGE = 'this server takes writes, and another one of DATABASE_URL was \
             promoted after it: stop it, or make it a standby'; END $$",
        )
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_host_that_stands_still_keeps_nobody_from_the_next() {
        // It accepts connections and says nothing.
        let still = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let next = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let url = format!("postgres://u@127.0.0.1:{},127.0.0.1:{}/d", port(&still), port(&next));
        let primary = Primary::of(&url).unwrap();
        let opening = tokio::spawn(async move { primary.open().await.map(drop) });
        // Once by the look, once to open a connection.
        for _ in 0..2 {
            tokio::time::timeout(HOST_TIMEOUT * 5, next.accept()).await.unwrap().unwrap();
        }
        opening.abort();
    }

    #[test]
    fn a_url_without_a_host_is_refused() {
        assert!(format!("{:#}", Primary::of("postgres:///d").unwrap_err()).contains("names no host"));
    }
}
