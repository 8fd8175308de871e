//! How the parts are: asked, not assumed. Answers are kept for moments, so that asking often costs nothing.

use crate::app::App;
use crate::halts::Halts;
use crate::nodes::Nodes;
use anyhow::Context as _;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use runtime::db;
use serde::Serialize;
use std::collections::HashMap;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use topics::ChainId;
use utoipa::ToSchema;

const PARTS_FRESH: Duration = Duration::from_secs(1);
const NODES_FRESH: Duration = Duration::from_secs(3);
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// What is needed to ask.
pub struct Health {
    http: reqwest::Client,
    registry: String,
    nodes: Nodes,
    halts: Halts,
    parts: Kept<Parts>,
    heads: Kept<HashMap<ChainId, Result<u64, String>>>,
}

/// How a part is: `None`, or what is wrong.
type Wrong = Option<String>;

#[derive(Clone)]
struct Parts {
    database: Wrong,
    kafka: Wrong,
    registry: Wrong,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
struct Report {
    status: &'static str,
    components: Components,
}

#[derive(Debug, Serialize, ToSchema)]
struct Readiness {
    /// `ok` or `failing`.
    status: &'static str,
    components: Needed,
}

#[derive(Debug, Serialize, ToSchema)]
struct Needed {
    database: Component,
    kafka: Component,
}

#[derive(Debug, Serialize, ToSchema)]
struct Components {
    database: Component,
    kafka: Component,
    registry: Component,
    chains: Vec<ChainReport>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Component {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    error: Wrong,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChainHealth)]
struct ChainReport {
    chain: String,
    chain_id: u64,
    status: &'static str,
    /// Of the node.
    #[schema(required = true)]
    head: Option<u64>,
    /// As far as payments follow it.
    #[schema(required = true)]
    processed: Option<u64>,
    #[schema(required = true)]
    lag_blocks: Option<u64>,
    /// Why ingest no longer follows it, until `ctrip resume`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    halted: Wrong,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    error: Wrong,
}

impl Health {
    /// `registry` is the Confluent-compatible API's URL.
    ///
    /// # Errors
    /// When there is no HTTP client to be had.
    pub fn new(registry: &str, nodes: Nodes, halts: Halts) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(ANSWERS_WITHIN).build().context("the HTTP client")?;
        let registry = registry.trim_end_matches('/').to_owned();
        Ok(Self { http, registry, nodes, halts, parts: Kept::default(), heads: Kept::default() })
    }

    async fn parts(&self, app: &App) -> Parts {
        self.parts
            .get(PARTS_FRESH, async {
                let (database, kafka, registry) =
                    tokio::join!(asked(database(app)), asked(app.intents.ping()), asked(self.registry()));
                Parts { database, kafka, registry }
            })
            .await
    }

    async fn registry(&self) -> anyhow::Result<()> {
        self.http.get(format!("{}/config", self.registry)).send().await?.error_for_status()?;
        Ok(())
    }

    async fn heads(&self) -> HashMap<ChainId, Result<u64, String>> {
        self.heads.get(NODES_FRESH, self.nodes.heads(ANSWERS_WITHIN)).await
    }
}

async fn database(app: &App) -> anyhow::Result<()> {
    let client = app.pool.get().await.map_err(db::unavailable).map_err(|failure| anyhow::anyhow!("{failure}"))?;
    client.query_one("SELECT 1", &[]).await?;
    Ok(())
}

async fn asked(answer: impl Future<Output = anyhow::Result<()>>) -> Wrong {
    match tokio::time::timeout(ANSWERS_WITHIN, answer).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some(format!("no answer in {ANSWERS_WITHIN:?}")),
    }
}

const fn word(wrong: &Wrong) -> &'static str {
    if wrong.is_none() { "ok" } else { "failing" }
}

fn component(wrong: Wrong) -> Component {
    Component { status: word(&wrong), error: wrong }
}

/// `GET /livez`: the process answers.
#[utoipa::path(
    get, path = "/livez", operation_id = "livez", tag = "service", summary = "The process answers",
    responses((status = 200, description = "It does.", body = Component)),
)]
pub async fn livez() -> Response {
    Json(component(None)).into_response()
}

/// `GET /readyz`: payments can be made. The registry is asked at start only, so being without it hinders nobody.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "service", summary = "Payments can be made",
    responses(
        (status = 200, description = "They can.", body = Readiness),
        (status = 503, description = "A part that is needed is away.", body = Readiness),
    ),
)]
pub async fn readyz(State(app): State<App>) -> Response {
    let Parts { database, kafka, registry: _ } = app.health.parts(&app).await;
    let ready = database.is_none() && kafka.is_none();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let components = Needed { database: component(database), kafka: component(kafka) };
    let body = Readiness { status: if ready { "ok" } else { "failing" }, components };
    (status, Json(body)).into_response()
}

/// `GET /health`: every part, and how far each chain is behind its node.
#[utoipa::path(
    get, path = "/health", operation_id = "health", tag = "service",
    summary = "Every part, and how far each chain is behind its node",
    responses(
        (status = 200, description = "In service, even if a chain is behind or halted.", body = Report),
        (status = 503, description = "A part is away.", body = Report),
    ),
)]
pub async fn health(State(app): State<App>) -> Response {
    let (parts, heads) = tokio::join!(app.health.parts(&app), app.health.heads());
    let processed = if parts.database.is_none() { processed(&app).await } else { HashMap::new() };
    let chains: Vec<ChainReport> = app
        .catalog
        .0
        .iter()
        .map(|chain| {
            let (head, error) = match heads.get(&chain.id) {
                Some(Ok(head)) => (Some(*head), None),
                Some(Err(error)) => (None, Some(error.clone())),
                None => (None, Some("not asked".to_owned())),
            };
            let processed = processed.get(&chain.id).copied();
            let lag_blocks = head.zip(processed).map(|(head, processed)| head.saturating_sub(processed));
            let halted = app.health.halts.of(chain.id);
            ChainReport {
                chain: chain.name.clone(),
                chain_id: chain.id.0,
                status: if halted.is_some() { "halted" } else { word(&error) },
                head,
                processed,
                lag_blocks,
                halted,
                error,
            }
        })
        .collect();
    let failing = [&parts.database, &parts.kafka, &parts.registry].into_iter().any(Option::is_some);
    // A node that is away, or a chain that has halted, is no reason to take this process out of service: the others go on.
    let degraded = chains.iter().any(|chain| chain.error.is_some() || chain.halted.is_some());
    let status = if failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let report = Report {
        status: if failing {
            "failing"
        } else if degraded {
            "degraded"
        } else {
            "ok"
        },
        components: Components {
            database: component(parts.database),
            kafka: component(parts.kafka),
            registry: component(parts.registry),
            chains,
        },
    };
    (status, Json(report)).into_response()
}

async fn processed(app: &App) -> HashMap<ChainId, u64> {
    let chains: Vec<ChainId> = app.catalog.0.iter().map(|chain| chain.id).collect();
    let Ok(client) = app.db().await else {
        return HashMap::new();
    };
    crate::payments::heads(&client, &chains).await.unwrap_or_else(|failure| {
        tracing::warn!("reading the chains' heads: {failure}");
        HashMap::new()
    })
}

/// An answer that is asked for again when it is old. Who comes while it is being asked for waits for that.
struct Kept<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Kept<T> {
    async fn get(&self, fresh: Duration, ask: impl Future<Output = T>) -> T {
        let mut kept = self.0.lock().await;
        if let Some((since, answer)) = kept.as_ref()
            && since.elapsed() < fresh
        {
            return answer.clone();
        }
        let answer = ask.await;
        *kept = Some((Instant::now(), answer.clone()));
        answer
    }
}
