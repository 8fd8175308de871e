//! The configuration of every connection, from `DATABASE_URL`: nothing waits for ever for a host that has vanished, on either side.

use super::tls::without_options;
use anyhow::Context as _;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::TargetSessionAttrs;

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long a host may leave what was sent to it unacknowledged, and so all of the above. Then the connection ends, and with it the
/// locks of a client that has vanished, and the wait for a server that has.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a transaction may wait for its client. The longest of ours waits for Kafka's acknowledgement, which takes seconds.
const MAX_IDLE_IN_TRANSACTION: Duration = Duration::from_secs(30);

/// The configuration, of the primary.
pub(super) fn parse(url: &str) -> anyhow::Result<Config> {
    parse_for("DATABASE_URL", url)
}

/// [`parse`] for the URL of another variable. It holds a password, so the error does not repeat it.
pub(super) fn parse_for(variable: &str, url: &str) -> anyhow::Result<Config> {
    let (url, ssl_mode) = without_options(variable, url)?;
    let expected = || format!("{variable}: expected postgres://user:password@host:port/database");
    let mut config: Config = url.parse().with_context(expected)?;
    ssl_mode.map(|mode| config.ssl_mode(mode));
    // Of several hosts, and of a name that leads to another one after a failover, only the primary is of use.
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    config.connect_timeout(CONNECT_TIMEOUT);
    // A host that vanishes says nothing: neither what waits for an answer nor what is still to be sent waits for it for ever.
    config.keepalives_idle(KEEPALIVE_IDLE).keepalives_interval(KEEPALIVE_INTERVAL).keepalives_retries(KEEPALIVE_RETRIES);
    config.tcp_user_timeout(UNACKNOWLEDGED_TIMEOUT);
    // The last of two settings counts: the operator's.
    let options = format!("{} {}", server_options(), config.get_options().unwrap_or_default());
    config.options(options.trim_end());
    config.application_name("ctrip");
    Ok(config)
}

/// Settings of the server's end of a connection: it keeps no lock for a client whose host has vanished, or that was paused amid a
/// transaction.
fn server_options() -> String {
    format!(
        "-c idle_in_transaction_session_timeout={} -c tcp_keepalives_idle={} -c tcp_keepalives_interval={} -c tcp_keepalives_count={} \
         -c tcp_user_timeout={}",
        MAX_IDLE_IN_TRANSACTION.as_millis(),
        KEEPALIVE_IDLE.as_secs(),
        KEEPALIVE_INTERVAL.as_secs(),
        KEEPALIVE_RETRIES,
        UNACKNOWLEDGED_TIMEOUT.as_millis()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_postgres::config::SslMode;

    #[test]
    fn no_connection_stays_for_ever_with_a_host_that_has_vanished() {
        let config = parse("postgres://ctrip@localhost/ctrip").unwrap();
        assert!(config.get_keepalives());
        assert_eq!(config.get_tcp_user_timeout(), Some(&UNACKNOWLEDGED_TIMEOUT));
        assert!(config.get_keepalives_interval().is_some() && config.get_keepalives_retries().is_some());
        assert!(KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_RETRIES <= UNACKNOWLEDGED_TIMEOUT);
    }

    #[test]
    fn tls_is_asked_for_in_both_forms_and_by_no_default() {
        let mode = |text: &str| parse(text).unwrap().get_ssl_mode();
        assert_eq!(mode("postgres://ctrip:a?b@localhost/ctrip?sslmode=verify-full&connect_timeout=7"), SslMode::Require);
        assert_eq!(mode("host=localhost user=ctrip sslmode=require"), SslMode::Require);
        assert_eq!(mode("postgres://ctrip@localhost/ctrip?sslmode=disable"), SslMode::Disable);
        assert_eq!(mode("postgres://ctrip@localhost/ctrip?connect_timeout=7"), SslMode::Prefer);
    }

    #[test]
    fn the_operators_options_count_beside_ours() {
        let config = parse("postgres://ctrip@localhost/ctrip?options=-c%20statement_timeout%3D7").unwrap();
        let options = config.get_options().unwrap();
        assert!(options.starts_with(&server_options()) && options.ends_with(" -c statement_timeout=7"), "{options}");
        assert_eq!(parse("postgres://ctrip@localhost/ctrip").unwrap().get_options(), Some(server_options().as_str()));
    }
}
