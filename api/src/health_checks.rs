//! Probes of what the API depends on: Postgres, Kafka, the schema registry, and the chains' nodes.
//!
//! Results are cached for seconds, so that frequent `/health` requests, which anyone can send, cost the dependencies nothing.

use crate::chains::nodes::Nodes;
use crate::create::intents::Intents;
use anyhow::anyhow;
use deadpool_postgres::Pool;
use payments::store::{self, Witnessed};
use recovery::Recovery;
use runtime::{Failure, Registry, SetAside, set_aside};
use std::collections::HashMap;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use topics::ChainId;

const DEPENDENCIES_TTL: Duration = Duration::from_secs(1);
const HEADS_TTL: Duration = Duration::from_secs(3);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// The probes and their cached results.
pub struct HealthChecks {
    pool: Pool,
    intents: Intents,
    recovery: Recovery,
    registry: Registry,
    nodes: Nodes,
    dependencies: Cached<Dependencies>,
    findings: Cached<Findings>,
    heads: Cached<HashMap<ChainId, Result<u64, String>>>,
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
    pub set_aside: Vec<SetAside>,
    /// Transfers to addresses of which there is no payment.
    pub orphans: ProbeError,
}

impl HealthChecks {
    pub fn new(registry: Registry, pool: Pool, intents: Intents, recovery: Recovery, nodes: Nodes) -> Self {
        let (dependencies, findings, heads) = (Cached::default(), Cached::default(), Cached::default());
        Self { pool, intents, recovery, registry, nodes, dependencies, findings, heads }
    }

    /// Probes Postgres, Kafka and the registry at the same time.
    pub async fn dependencies(&self) -> Dependencies {
        self.dependencies
            .get(DEPENDENCIES_TTL, async {
                let (database, kafka, registry) =
                    tokio::join!(probe(ping_database(&self.pool)), probe(self.intents.ping()), probe(self.registry.ping()));
                Dependencies { database, kafka, registry }
            })
            .await
    }

    /// What the topics lack of what Kafka had acknowledged, or who else writes to them.
    pub fn topics(&self) -> ProbeError {
        self.recovery.problem()
    }

    /// What the database says about these chains, and about what waits.
    pub async fn findings(&self, chains: &[ChainId]) -> Findings {
        self.findings
            .get(DEPENDENCIES_TTL, async {
                find(&self.pool, chains).await.unwrap_or_else(|failure| {
                    tracing::warn!("/health could not read the database: {failure}");
                    Findings { orphans: Some(failure.to_string()), ..Findings::default() }
                })
            })
            .await
    }

    /// The newest block number of each chain's nodes, or why none responded.
    pub async fn heads(&self) -> HashMap<ChainId, Result<u64, String>> {
        self.heads.get(HEADS_TTL, self.nodes.heads(PROBE_TIMEOUT)).await
    }
}

async fn find(pool: &Pool, chains: &[ChainId]) -> Result<Findings, Failure> {
    let client = pool.get().await?;
    let orphans = store::count_orphans(&client).await?.map(|(count, address)| {
        format!(
            "{count} transfers are to addresses without a payment, such as {address}; each is credited when its payment is there \
             again. Restore the database that has it"
        )
    });
    Ok(Findings {
        processed: store::head_numbers(&client, chains).await?,
        witnessed: store::witnessed(&client).await?,
        set_aside: set_aside::all(&client).await?,
        orphans,
    })
}

async fn ping_database(pool: &Pool) -> anyhow::Result<()> {
    let client = pool.get().await.map_err(|error| anyhow!("{}", Failure::from(error)))?;
    client.query_one("SELECT 1", &[]).await?;
    Ok(())
}

async fn probe(ping: impl Future<Output = anyhow::Result<()>>) -> ProbeError {
    match tokio::time::timeout(PROBE_TIMEOUT, ping).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some(format!("no answer in {PROBE_TIMEOUT:?}")),
    }
}

/// A value that is loaded again once it is older than its TTL. Concurrent callers wait for one load.
struct Cached<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Cached<T> {
    async fn get(&self, ttl: Duration, load: impl Future<Output = T>) -> T {
        let mut cached = self.0.lock().await;
        if let Some((since, value)) = cached.as_ref()
            && since.elapsed() < ttl
        {
            return value.clone();
        }
        let value = load.await;
        *cached = Some((Instant::now(), value.clone()));
        value
    }
}
