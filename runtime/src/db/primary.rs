//! Connects to the primary, the one server among those of `DATABASE_URL` that takes writes.
//!
//! tokio-postgres tries the hosts in their order, and gives a time-out to the TCP handshake alone: a host that accepts connections and
//! stands still, or whose name nobody resolves, would keep it from the others for good. So each host has a time of its own here, and the
//! one that was the primary last is asked first.

use super::config::parse;
use deadpool_postgres::Connect;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, Error, NoTls};

/// For each host but the last one asked, which has what is left of the caller's own time.
pub(super) const HOST_TIMEOUT: Duration = Duration::from_secs(1);

/// The servers.
#[derive(Debug)]
pub struct Primary {
    /// A configuration with one host each.
    hosts: Vec<Config>,
    /// Place of the one that was the primary last.
    last: AtomicUsize,
}

impl Primary {
    /// # Errors
    /// When the URL does not parse.
    pub fn of(url: &str) -> anyhow::Result<Self> {
        Ok(Self { hosts: single_hosts(&parse(url)?), last: AtomicUsize::new(0) })
    }

    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Opens a connection, which its task drives until the client is dropped.
    ///
    /// # Errors
    /// That of the host that was asked last.
    pub async fn open(&self) -> Result<(Client, JoinHandle<Result<(), Error>>), Error> {
        let (count, first) = (self.hosts.len(), self.last.load(Ordering::Relaxed));
        for place in (0..count.saturating_sub(1)).map(|step| (first + step) % count) {
            if let Ok(Ok(opened)) = tokio::time::timeout(HOST_TIMEOUT, self.open_at(place)).await {
                return Ok(opened);
            }
        }
        self.open_at((first + count - 1) % count).await
    }

    /// Whether two connections get the same session of the server in turn, as behind a pooler in transaction mode.
    ///
    /// # Errors
    /// When a connection fails.
    pub async fn shares_sessions(&self) -> Result<bool, Error> {
        let ((one, _), (other, _)) = (self.open().await?, self.open().await?);
        let session = async |client: &Client| Ok::<i32, Error>(client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0));
        // Other clients of the pooler may come between two statements.
        for _ in 0..3 {
            if session(&one).await? == session(&other).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn open_at(&self, place: usize) -> Result<(Client, JoinHandle<Result<(), Error>>), Error> {
        let (client, connection) = self.hosts[place].connect(NoTls).await?;
        self.last.store(place, Ordering::Relaxed);
        Ok((client, tokio::spawn(connection)))
    }
}

impl Connect for Primary {
    fn connect(&self, _: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        async {
            let (client, driver) = self.open().await?;
            // The client's next call returns the connection's error.
            Ok((client, tokio::spawn(async { drop(driver.await) })))
        }
        .boxed()
    }
}

/// The same configuration once per host.
fn single_hosts(config: &Config) -> Vec<Config> {
    let count = config.get_hosts().len().max(config.get_hostaddrs().len());
    (0..count).map(|place| single_host(config, place)).collect()
}

fn single_host(config: &Config, place: usize) -> Config {
    let mut single = Config::new();
    match config.get_hosts().get(place) {
        Some(Host::Tcp(host)) => drop(single.host(host)),
        #[cfg(unix)]
        Some(Host::Unix(path)) => drop(single.host_path(path)),
        None => {}
    }
    config.get_hostaddrs().get(place).map(|address| single.hostaddr(*address));
    config.get_ports().get(place).or(config.get_ports().first()).map(|port| single.port(*port));
    config.get_user().map(|user| single.user(user));
    config.get_password().map(|password| single.password(password));
    config.get_dbname().map(|name| single.dbname(name));
    config.get_options().map(|options| single.options(options));
    config.get_application_name().map(|name| single.application_name(name));
    config.get_connect_timeout().map(|timeout| single.connect_timeout(*timeout));
    config.get_tcp_user_timeout().map(|timeout| single.tcp_user_timeout(*timeout));
    config.get_keepalives_interval().map(|interval| single.keepalives_interval(interval));
    config.get_keepalives_retries().map(|retries| single.keepalives_retries(retries));
    single
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding());
    single
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;
    use tokio::net::TcpListener;

    #[test]
    fn each_host_has_all_settings() {
        let url = "postgres://u:p@one:1,two:2/d?options=-c%20statement_timeout%3D7&sslmode=disable";
        let all = single_hosts(&parse(url).unwrap());
        let at = |config: &Config| (config.get_hosts().to_vec(), config.get_ports().to_vec());
        let host = |name: &str| Host::Tcp(name.to_owned());
        assert_eq!(all.iter().map(at).collect::<Vec<_>>(), [(vec![host("one")], vec![1]), (vec![host("two")], vec![2])]);
        for (single, name) in all.iter().zip(["one:1", "two:2"]) {
            let url = url.replace("one:1,two:2", name);
            let mut expected = parse(&url).unwrap();
            // One of several has less time.
            expected.connect_timeout(*single.get_connect_timeout().unwrap());
            assert_eq!(*single, expected);
        }
        assert_eq!(single_hosts(&parse("postgres://u@one,two:7/d").unwrap())[0].get_ports(), [5432]);
    }

    #[tokio::test]
    async fn a_host_that_stands_still_keeps_nobody_from_the_next() {
        // It accepts connections and says nothing.
        let still = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refuses = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let url = format!("postgres://u@127.0.0.1:{},127.0.0.1:{refuses}/d", still.local_addr().unwrap().port());
        let (primary, started) = (Primary::of(&url).unwrap(), Instant::now());
        let error = primary.open().await.err().unwrap();
        assert!(base::error_chain(&error).contains("refused"), "{error}");
        assert!(started.elapsed() < HOST_TIMEOUT * 2);
    }
}
