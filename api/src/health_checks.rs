//! Probes of what the API depends on: Postgres, Kafka, the schema registry, and the chains' nodes.
//!
//! Results are cached for seconds, so that frequent `/health` requests, which anyone can send, cost the dependencies nothing. Each
//! is found out in a task, for which requests only wait: those that leave early cost nothing either.

use crate::chains::nodes::Nodes;
use crate::create::intents::Intents;
use anyhow::anyhow;
use base::locked;
use deadpool_postgres::{Client, Pool};
use payments::store::{self, Witnessed};
use recovery::Recovery;
use runtime::{Failure, Kafka, Registry, SetAside, SharedTask, db, set_aside};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use topics::ChainId;

const DEPENDENCIES_TTL: Duration = Duration::from_secs(1);
const HEADS_TTL: Duration = Duration::from_secs(3);
const SCHEMAS_TTL: Duration = Duration::from_secs(60);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than it takes where Postgres is well. All requests wait for one load, so it has to end.
const FIND_TIMEOUT: Duration = Duration::from_secs(10);

/// The probes and their cached results.
pub struct HealthChecks {
    probed: Arc<Probed>,
    recovery: Recovery,
    dependencies: Cached<Dependencies>,
    findings: Cached<Findings>,
    heads: Cached<HashMap<ChainId, Result<u64, String>>>,
    schemas: Cached<ProbeError>,
}

/// What is probed.
struct Probed {
    pool: Pool,
    intents: Intents,
    registry: Registry,
    nodes: Nodes,
    kafka: Kafka,
}

/// The error of a failed probe; `None` when it succeeded.
pub type ProbeError = Option<String>;

/// The results of the probes, except those of nodes.
#[derive(Clone)]
pub struct Dependencies {
    pub database: ProbeError,
    pub kafka: ProbeError,
    pub registry: ProbeError,
}

/// What the database says.
#[derive(Clone, Default)]
pub struct Findings {
    /// The numbers of the chains' heads, as the confirmer has processed them.
    pub processed: HashMap<ChainId, u64>,
    pub witnessed: HashMap<ChainId, Witnessed>,
    pub chains_aside: Vec<SetAside>,
    /// How many payments, static addresses or events each stage has set aside.
    pub others_aside: BTreeMap<String, i64>,
    /// Transfers that wait for their payment, or for their token to be right.
    pub orphans: ProbeError,
}

impl HealthChecks {
    pub fn new(registry: Registry, pool: Pool, intents: Intents, recovery: Recovery, nodes: Nodes, kafka: Kafka) -> Self {
        let probed = Arc::new(Probed { pool, intents, registry, nodes, kafka });
        let (dependencies, findings, heads) = (Cached::default(), Cached::default(), Cached::default());
        Self { probed, recovery, dependencies, findings, heads, schemas: Cached::default() }
    }

    /// Probes Postgres, Kafka and the registry at the same time.
    pub async fn dependencies(&self) -> Dependencies {
        let probed = Arc::clone(&self.probed);
        let load = async move {
            let Probed { pool, intents, registry, .. } = &*probed;
            let (database, kafka, registry) =
                tokio::join!(probe(ping_database(pool)), probe(intents.ping()), probe(registry.ping()));
            Dependencies { database, kafka, registry }
        };
        let failed = || Dependencies { database: unknown(), kafka: unknown(), registry: unknown() };
        self.dependencies.get(DEPENDENCIES_TTL, load).await.unwrap_or_else(failed)
    }

    /// [`Recovery::problem`], and why others can't read the topics.
    pub async fn topics(&self) -> ProbeError {
        let probed = Arc::clone(&self.probed);
        let load = async move {
            // A registry that is away is told as such.
            let checked = tokio::time::timeout(PROBE_TIMEOUT, probed.kafka.check_schema_ids(&probed.registry)).await;
            checked.ok().and_then(Result::err).map(|error| format!("{error:#}"))
        };
        let unreadable = self.schemas.get(SCHEMAS_TTL, load).await.flatten();
        let all: Vec<String> = self.recovery.problem().into_iter().chain(unreadable).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What the database says about these chains, and about what waits.
    pub async fn findings(&self, chains: Vec<ChainId>) -> Findings {
        let probed = Arc::clone(&self.probed);
        let load = async move {
            find(&probed, &chains).await.unwrap_or_else(|failure| {
                tracing::warn!("/health could not read the database: {failure}");
                Findings { orphans: Some(failure.to_string()), ..Findings::default() }
            })
        };
        let failed = || Findings { orphans: unknown(), ..Findings::default() };
        self.findings.get(DEPENDENCIES_TTL, load).await.unwrap_or_else(failed)
    }

    /// The newest block number of each chain's nodes, or why none responded.
    pub async fn heads(&self) -> HashMap<ChainId, Result<u64, String>> {
        let probed = Arc::clone(&self.probed);
        let load = async move { probed.nodes.heads(PROBE_TIMEOUT).await };
        self.heads.get(HEADS_TTL, load).await.unwrap_or_default()
    }
}

/// For a probe that has panicked.
fn unknown() -> ProbeError {
    Some("the probe ended without an answer".to_owned())
}

async fn find(probed: &Probed, chains: &[ChainId]) -> Result<Findings, Failure> {
    let client = probed.pool.get().await?;
    db::in_time(client, FIND_TIMEOUT, async |client| find_with(client, chains, probed.kafka.topic_prefix()).await).await
}

async fn find_with(client: &Client, chains: &[ChainId], topic_prefix: &str) -> Result<Findings, Failure> {
    let (ownerless, in_doubt) = store::count_orphans(client).await?;
    let ownerless = (ownerless > 0).then(|| {
        format!(
            "{ownerless} transfers are to addresses without a payment; each is credited when its payment is there again. Restore the \
             database that has it"
        )
    });
    let in_doubt = (in_doubt > 0).then(|| {
        format!(
            "{in_doubt} transfers wait for their tokens: each is credited when the confirmer's chains file lists \
             its token with the decimals that the contract says. `ctrip check` asks; the confirmer has to reach the nodes as well. \
             `ctrip orphans list` shows which tokens, `ctrip orphans forget` gives one up"
        )
    });
    let orphans: Vec<String> = ownerless.into_iter().chain(in_doubt).collect();
    let orphans = (!orphans.is_empty()).then(|| orphans.join("; "));
    Ok(Findings {
        processed: store::head_numbers(client, chains).await?,
        witnessed: store::witnessed(client).await?,
        chains_aside: set_aside::chains(client, topic_prefix).await?,
        others_aside: set_aside::counts(client, topic_prefix).await?,
        orphans,
    })
}

async fn ping_database(pool: &Pool) -> anyhow::Result<()> {
    let client = pool.get().await.map_err(|error| anyhow!("{}", Failure::from(error)))?;
    client.query_one("SELECT 1", &[]).await?;
    Ok(())
}

async fn probe<E: Display>(ping: impl Future<Output = Result<(), E>>) -> ProbeError {
    match tokio::time::timeout(PROBE_TIMEOUT, ping).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some(format!("no answer in {PROBE_TIMEOUT:?}")),
    }
}

/// A value that is loaded again once it is older than its TTL. Callers wait for one load, which goes on when they leave.
struct Cached<T>(Mutex<Option<Load<T>>>);

/// The last load: when it ended, with what.
type Load<T> = SharedTask<(Instant, T)>;

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone + Send + Sync + 'static> Cached<T> {
    /// `None` if the load has panicked.
    async fn get(&self, ttl: Duration, load: impl Future<Output = T> + Send + 'static) -> Option<T> {
        self.last(ttl, load).outcome().await.map(|(_, value)| value)
    }

    fn last(&self, ttl: Duration, load: impl Future<Output = T> + Send + 'static) -> Load<T> {
        let serves = |last: &&Load<T>| last.is_under_way() || last.has_ended_with(|(ended, _)| ended.elapsed() < ttl);
        let mut cached = locked(&self.0);
        if let Some(last) = cached.as_ref().filter(serves) {
            return last.clone();
        }
        let load = async {
            let value = load.await;
            (Instant::now(), value)
        };
        cached.insert(SharedTask::spawn(load)).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn requests_that_leave_early_begin_one_load_and_the_next_gets_it() {
        let (cached, begun, may_end) = (Cached::default(), Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let load = || {
            let (begun, may_end) = (Arc::clone(&begun), Arc::clone(&may_end));
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                may_end.acquire().await.map(|turn| turn.forget()).unwrap();
                begun.load(Ordering::Relaxed)
            }
        };
        let ttl = Duration::from_secs(3600);
        for _ in 0..100 {
            assert_eq!(cached.get(ttl, load()).now_or_never(), None);
            tokio::task::yield_now().await;
        }
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        may_end.add_permits(1);
        assert_eq!(cached.get(ttl, load()).await, Some(1));
        assert_eq!(cached.get(ttl, load()).await, Some(1), "it is believed for its TTL");
        may_end.add_permits(1);
        assert_eq!(cached.get(Duration::ZERO, load()).await, Some(2));
    }

    #[tokio::test]
    async fn a_load_that_panics_is_begun_again() {
        let cached = Cached::default();
        assert_eq!(cached.get(Duration::MAX, async { panic!("on purpose") }).await, None::<u8>);
        assert_eq!(cached.get(Duration::MAX, async { 1 }).await, Some(1));
    }
}
