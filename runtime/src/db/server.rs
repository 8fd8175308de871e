//! One of the servers that `DATABASE_URL` names.

use super::config::parse;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, Config, Error, SimpleQueryMessage};

/// Tells the process of a server from every other, and of two that take writes the one that was promoted later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// When the process started.
    started: String,
    /// Each promotion begins a new one; 0 where it is not asked for, or not told.
    pub(super) timeline: u32,
}

impl Server {
    #[cfg(test)]
    pub(super) fn started(started: &str) -> Self {
        Self { started: started.to_owned(), timeline: 0 }
    }

    /// The one behind a connection.
    ///
    /// # Errors
    /// When it fails.
    pub(super) async fn of(client: &Client, with_timeline: bool) -> Result<Self, Error> {
        let started = ask(client, "SELECT extract(epoch FROM pg_postmaster_start_time())").await?.unwrap_or_default();
        let mut timeline = 0;
        if with_timeline {
            match ask(client, "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)").await {
                Ok(digits) => timeline = digits.and_then(|digits| u32::from_str_radix(&digits, 16).ok()).unwrap_or(0),
                // Some hosted servers tell nothing of their log.
                Err(error) if error.code().is_some() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { started, timeline })
    }
}

/// A single value, by a simple query: a pooler may give each statement another session.
pub(super) async fn ask(client: &Client, sql: &str) -> Result<Option<String>, Error> {
    let value = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    Ok(client.simple_query(sql).await?.iter().find_map(value))
}

/// Whether two connections get the same session of the server in turn, as behind a pooler in transaction mode.
pub(super) async fn shares_sessions(one: &Client, other: &Client) -> Result<bool, Error> {
    // Other clients of the pooler may come between two statements.
    for _ in 0..3 {
        let sql = "SELECT pg_backend_pid()";
        let first = ask(one, sql).await?;
        // A transaction keeps the session that a pooler gives it. If that was the first connection's, it has another one now.
        other.batch_execute("BEGIN").await?;
        let shares = async { Ok(ask(other, sql).await? == first || ask(one, sql).await? != first) };
        let shares = shares.await;
        other.batch_execute("ROLLBACK").await?;
        if shares? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The host of a configuration of [`single_hosts`], for people.
pub(super) fn name(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        #[cfg(unix)]
        Some(Host::Unix(path)) => path.display().to_string(),
        None => config.get_hostaddrs().first().map(ToString::to_string).unwrap_or_default(),
    };
    format!("{host}:{}", config.get_ports().first().unwrap_or(&5432))
}

/// The hosts and ports of a URL, for the message that none of them answers; nothing if it is no URL.
pub fn hosts(url: &str) -> String {
    let hosts = parse(url).map(|config| single_hosts(&config)).unwrap_or_default();
    hosts.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The same configuration once per host.
pub(super) fn single_hosts(config: &Config) -> Vec<Config> {
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

    #[test]
    fn each_host_has_all_settings() {
        let url = "postgres://u:p@one:1,two:2/d?options=-c%20statement_timeout%3D7&sslmode=disable";
        let all = single_hosts(&parse(url).unwrap());
        let at = |config: &Config| (config.get_hosts().to_vec(), config.get_ports().to_vec());
        let host = |name: &str| Host::Tcp(name.to_owned());
        assert_eq!(all.iter().map(at).collect::<Vec<_>>(), [(vec![host("one")], vec![1]), (vec![host("two")], vec![2])]);
        for (single, name) in all.iter().zip(["one:1", "two:2"]) {
            let url = url.replace("one:1,two:2", name);
            assert_eq!(*single, parse(&url).unwrap());
        }
        assert_eq!(single_hosts(&parse("postgres://u@one,two:7/d").unwrap())[0].get_ports(), [5432]);
        assert_eq!(hosts(url), "one:1, two:2", "and no password");
        assert_eq!((hosts("postgres://u@one/d").as_str(), hosts("nonsense").as_str()), ("one:5432", ""));
    }
}
