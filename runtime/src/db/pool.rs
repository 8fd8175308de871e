//! Connection pools.

use super::error::last_refused_write;
use super::gate::Gate;
use super::primary::{HOST_TIMEOUT, Primary};
use anyhow::Context as _;
use base::metrics;
use deadpool_postgres::{ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, PoolBuilder, RecyclingMethod, Runtime};
use std::time::{Duration, Instant};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Config, SimpleQueryMessage};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a connection.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long a host may leave what was sent to it unacknowledged, and so all of the above. Then the connection ends, and with it the
/// locks of a client that has vanished, and the wait for a server that has.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that rested for longer is tried before it is used.
const MAX_UNTRIED_REST: Duration = Duration::from_secs(1);
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_UNGATED_AGE: Duration = Duration::from_secs(60);
/// How long a transaction may wait for its client. The longest of ours waits for Kafka's acknowledgement, which takes seconds.
const MAX_IDLE_IN_TRANSACTION: Duration = Duration::from_secs(30);

/// When a commit of a connection returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitMode {
    /// Once the commit is on disk.
    Synchronous,
    /// Before that (`synchronous_commit = off`). A crash of Postgres undoes the last half second, in order and in whole
    /// transactions: for work that is then done again.
    Asynchronous,
}

/// A pool of at most `size` connections, none opened yet.
///
/// # Errors
/// When the URL does not parse.
pub fn pool(url: &str, size: usize) -> anyhow::Result<Pool> {
    Ok(builder(url, size)?.build()?)
}

/// [`pool`] behind a gate.
///
/// # Errors
/// When the URL does not parse.
pub fn gated_pool(url: &str, size: usize, gate: &Gate) -> anyhow::Result<Pool> {
    Ok(behind(builder(url, size)?, gate).build()?)
}

/// [`pool`] for statements that read short index ranges and nothing else, whatever their parameters are.
///
/// They are planned once. Postgres would otherwise plan a large statement for each execution, since it can't know that a range
/// of a large table is short, and planning takes longer than reading. Sequential scans are off, so that no plan is made for
/// the size that a table had when it was still small. `gate` stands in front of it, if given; without one its connections are used
/// for a minute, so that it leaves an old primary that still answers.
///
/// # Errors
/// When the URL does not parse.
pub fn generic_plan_pool(url: &str, size: usize, commit: CommitMode, gate: Option<&Gate>) -> anyhow::Result<Pool> {
    let settings = match commit {
        CommitMode::Synchronous => "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off",
        CommitMode::Asynchronous => {
            "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET synchronous_commit = off"
        }
    };
    let set = Hook::async_fn(move |client: &mut ClientWrapper, _| {
        Box::pin(async move { client.batch_execute(settings).await.map_err(HookError::Backend) })
    });
    let builder = builder(url, size)?.post_create(set);
    let builder = match gate {
        Some(gate) => behind(builder, gate),
        None => builder.pre_recycle(Hook::sync_fn(|_, metrics| {
            let old = || HookError::message("the connection is old");
            is_young(metrics.created).then_some(()).ok_or_else(old)
        })),
    };
    Ok(builder.build()?)
}

fn is_young(created: Instant) -> bool {
    created.elapsed() < MAX_UNGATED_AGE
}

fn behind(builder: PoolBuilder, gate: &Gate) -> PoolBuilder {
    builder.post_create(gate.new_connection()).pre_recycle(gate.used_connection())
}

fn builder(url: &str, size: usize) -> anyhow::Result<PoolBuilder> {
    let (config, primary) = (parse(url)?, Primary::of(url)?);
    let others = u32::try_from(primary.hosts()).unwrap_or(u32::MAX).saturating_sub(1);
    let create = CONNECT_TIMEOUT + HOST_TIMEOUT.saturating_mul(others);
    let manager = Manager::from_connect(config, primary, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let pool = Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1).pre_recycle(rested_connection());
    Ok(pool.wait_timeout(Some(WAIT_TIMEOUT)).create_timeout(Some(create)))
}

/// Tries a connection that has rested, or whose server may have become a standby since it was tried last.
fn rested_connection() -> Hook {
    Hook::async_fn(|client: &mut ClientWrapper, metrics| {
        let tried = metrics.recycled.unwrap_or(metrics.created);
        let trust = tried.elapsed() < MAX_UNTRIED_REST && last_refused_write().is_none_or(|refused| refused < tried);
        Box::pin(async move {
            if trust {
                return Ok(());
            }
            let asked = tokio::time::timeout(TRY_TIMEOUT, client.simple_query("SHOW transaction_read_only")).await;
            let answer = asked.map_err(|_| HookError::message("the database does not answer"))?.map_err(HookError::Backend)?;
            let writes =
                answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("off")));
            if writes { Ok(()) } else { Err(HookError::message("the database takes no writes any more")) }
        })
    })
}

/// The configuration of every connection. The URL holds a password, so the error does not repeat it.
pub(super) fn parse(url: &str) -> anyhow::Result<Config> {
    let mut config: Config = url.parse().context("DATABASE_URL: expected postgres://user:password@host:port/database")?;
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

/// Exports the pool's connections as metrics.
pub fn observe(pool: &Pool, role: &'static str) {
    let status = pool.status();
    #[expect(clippy::cast_precision_loss, reason = "a pool has dozens of connections")]
    let gauge = |state, value: usize| metrics::POOL_CONNECTIONS.gauge(&[("role", role), ("state", state)]).set(value as f64);
    gauge("open", status.size);
    gauge("idle", status.available);
    gauge("waiting", status.waiting);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_connection_stays_for_ever_with_a_host_that_has_vanished_or_was_replaced() {
        let config = parse("postgres://ctrip@localhost/ctrip").unwrap();
        assert!(config.get_keepalives());
        assert_eq!(config.get_tcp_user_timeout(), Some(&UNACKNOWLEDGED_TIMEOUT));
        assert!(config.get_keepalives_interval().is_some() && config.get_keepalives_retries().is_some());
        assert!(is_young(Instant::now()) && !is_young(Instant::now() - MAX_UNGATED_AGE));
        assert!(KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_RETRIES <= UNACKNOWLEDGED_TIMEOUT);
    }

    #[test]
    fn the_operators_options_count_beside_ours() {
        let config = parse("postgres://ctrip@localhost/ctrip?options=-c%20statement_timeout%3D7").unwrap();
        let options = config.get_options().unwrap();
        assert!(options.starts_with(&server_options()) && options.ends_with(" -c statement_timeout=7"), "{options}");
        assert_eq!(parse("postgres://ctrip@localhost/ctrip").unwrap().get_options(), Some(server_options().as_str()));
    }
}
