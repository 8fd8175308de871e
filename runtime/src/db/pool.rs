//! Connection pools.

use super::config::parse;
use super::error::last_refused_write;
use super::gate::Gate;
use super::primary::Primary;
use base::metrics;
use deadpool_postgres::{ClientWrapper, Hook, HookError, Manager, ManagerConfig, Pool, PoolBuilder, RecyclingMethod, Runtime};
use std::time::{Duration, Instant};
use tokio_postgres::SimpleQueryMessage;

/// How long a caller waits for a connection.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that rested for longer is tried before it is used.
const MAX_UNTRIED_REST: Duration = Duration::from_secs(1);
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_UNGATED_AGE: Duration = Duration::from_secs(60);

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
    Ok(builder(url, size)?.pre_recycle(rested_connection()).build()?)
}

/// How much those who ask may take of the database.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connections: usize,
    /// How long a caller waits for a connection.
    pub wait: Duration,
    /// How long a statement may take, unless the operator has set `statement_timeout`.
    pub statement: Duration,
}

/// [`pool`] behind a gate.
///
/// # Errors
/// When the URL does not parse.
pub fn gated_pool(url: &str, size: usize, gate: &Gate) -> anyhow::Result<Pool> {
    Ok(behind(builder(url, size)?, gate).build()?)
}

/// [`gated_pool`] with bounds. A statement ends in time: the server would go on with one whose caller is gone, on a connection that is
/// replaced meanwhile. It is not asked to cancel it, since a commit that waits for a standby would then count without it.
///
/// # Errors
/// When the URL does not parse.
pub fn bounded_pool(url: &str, bounds: Bounds, gate: &Gate) -> anyhow::Result<Pool> {
    let builder = behind(builder(url, bounds.connections)?, gate).wait_timeout(Some(bounds.wait));
    Ok(builder.post_create(limit_statements(bounds.statement)).build()?)
}

/// Ends statements of new connections after this time, if the operator has set no `statement_timeout`.
pub(super) fn limit_statements(longest: Duration) -> Hook {
    tell_first(format!(
        "SELECT set_config('statement_timeout', '{}', false) WHERE current_setting('statement_timeout') = '0'",
        longest.as_millis()
    ))
}

/// Executes these statements on each new connection.
fn tell_first(statements: String) -> Hook {
    Hook::async_fn(move |client: &mut ClientWrapper, _| {
        let statements = statements.clone();
        Box::pin(async move { client.batch_execute(&statements).await.map_err(HookError::Backend) })
    })
}

/// [`pool`] for statements that read short index ranges and nothing else, whatever their parameters are.
///
/// They are planned once. Postgres would otherwise plan a large statement for each execution, since it can't know that a range
/// of a large table is short, and planning takes longer than reading. Sequential scans are off, so that no plan is made for
/// the size that a table had when it was still small. Nor are plans compiled: a scan that has no alternative then counts as the most
/// expensive of all, and its plan would be compiled at each start of a connection. `gate` stands in front of it, if given; without one
/// its connections are used for a minute, so that it leaves an old primary that still answers.
///
/// # Errors
/// When the URL does not parse.
pub fn generic_plan_pool(url: &str, size: usize, commit: CommitMode, gate: Option<&Gate>) -> anyhow::Result<Pool> {
    let mut settings = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET jit = off".to_owned();
    if commit == CommitMode::Asynchronous {
        settings.push_str("; SET synchronous_commit = off");
    }
    let builder = builder(url, size)?.post_create(tell_first(settings));
    let builder = match gate {
        Some(gate) => behind(builder, gate),
        None => {
            let young = Hook::sync_fn(|_, metrics| {
                let old = || HookError::message("the connection is old");
                is_young(metrics.created).then_some(()).ok_or_else(old)
            });
            builder.pre_recycle(young).pre_recycle(rested_connection())
        }
    };
    Ok(builder.build()?)
}

fn is_young(created: Instant) -> bool {
    created.elapsed() < MAX_UNGATED_AGE
}

fn behind(builder: PoolBuilder, gate: &Gate) -> PoolBuilder {
    // The free check first.
    builder.post_create(gate.new_connection()).pre_recycle(gate.used_connection()).pre_recycle(rested_connection())
}

fn builder(url: &str, size: usize) -> anyhow::Result<PoolBuilder> {
    let (config, primary) = (parse(url)?, Primary::of(url)?);
    let patience = primary.patience();
    let manager = Manager::from_connect(config, primary, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let pool = Pool::builder(manager).max_size(size).runtime(Runtime::Tokio1);
    Ok(pool.wait_timeout(Some(WAIT_TIMEOUT)).create_timeout(Some(patience)))
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
    fn an_old_primary_that_still_answers_is_left() {
        assert!(is_young(Instant::now()) && !is_young(Instant::now() - MAX_UNGATED_AGE));
    }
}
