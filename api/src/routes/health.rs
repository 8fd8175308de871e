//! `/livez`, `/readyz` and `/health`. The probes themselves are in `health_checks`.

use crate::app::App;
use crate::health_checks::{Dependencies, ProbeError};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use payments::store;
use serde::Serialize;
use std::collections::HashMap;
use topics::ChainId;
use utoipa::ToSchema;

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Health)]
struct HealthReply {
    status: &'static str,
    components: Components,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Readiness)]
struct ReadinessReply {
    /// `ok` or `failing`.
    status: &'static str,
    components: RequiredComponents,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Needed)]
struct RequiredComponents {
    database: Component,
    kafka: Component,
}

#[derive(Debug, Serialize, ToSchema)]
struct Components {
    database: Component,
    kafka: Component,
    registry: Component,
    chains: Vec<ChainHealth>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Component {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    error: ProbeError,
}

#[derive(Debug, Serialize, ToSchema)]
struct ChainHealth {
    chain: String,
    chain_id: u64,
    status: &'static str,
    /// The node's newest block.
    #[schema(required = true)]
    head: Option<u64>,
    /// The last block that the confirmer has processed.
    #[schema(required = true)]
    processed: Option<u64>,
    #[schema(required = true)]
    lag_blocks: Option<u64>,
    /// Why ingest has halted the chain; `ctrip resume` clears it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    halted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    error: ProbeError,
}

const fn status_of(error: &ProbeError) -> &'static str {
    if error.is_none() { "ok" } else { "failing" }
}

fn component(error: ProbeError) -> Component {
    Component { status: status_of(&error), error }
}

/// `GET /livez`: the process runs.
#[utoipa::path(
    get, path = "/livez", operation_id = "livez", tag = "service", summary = "Liveness: the process runs",
    responses((status = 200, description = "It runs.", body = Component)),
)]
pub async fn livez() -> Response {
    Json(component(None)).into_response()
}

/// `GET /readyz`: payments can be created. The registry is needed only at the start, so it does not count.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "service", summary = "Readiness: payments can be created",
    responses(
        (status = 200, description = "They can be.", body = ReadinessReply),
        (status = 503, description = "Postgres or Kafka is unavailable.", body = ReadinessReply),
    ),
)]
pub async fn readyz(State(app): State<App>) -> Response {
    let Dependencies { database, kafka, registry: _ } = app.health.dependencies().await;
    let ready = database.is_none() && kafka.is_none();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let components = RequiredComponents { database: component(database), kafka: component(kafka) };
    let body = ReadinessReply { status: if ready { "ok" } else { "failing" }, components };
    (status, Json(body)).into_response()
}

/// `GET /health`: every dependency, and the lag of each chain behind its node.
#[utoipa::path(
    get, path = "/health", operation_id = "health", tag = "service",
    summary = "Health of every dependency, and the lag of each chain behind its node",
    responses(
        (status = 200, description = "In service, even if a chain lags or has halted.", body = HealthReply),
        (status = 503, description = "A dependency is unavailable.", body = HealthReply),
    ),
)]
pub async fn health(State(app): State<App>) -> Response {
    let (dependencies, heads) = tokio::join!(app.health.dependencies(), app.health.heads());
    let processed = if dependencies.database.is_none() { processed(&app).await } else { HashMap::new() };
    let chains: Vec<ChainHealth> = app
        .catalog
        .0
        .iter()
        .map(|chain| {
            let (head, error) = match heads.get(&chain.id) {
                Some(Ok(head)) => (Some(*head), None),
                Some(Err(error)) => (None, Some(error.clone())),
                None => (None, Some("not probed".to_owned())),
            };
            let processed = processed.get(&chain.id).copied();
            let lag_blocks = head.zip(processed).map(|(head, processed)| head.saturating_sub(processed));
            let halted = app.halts.of(chain.id);
            ChainHealth {
                chain: chain.name.clone(),
                chain_id: chain.id.0,
                status: if halted.is_some() { "halted" } else { status_of(&error) },
                head,
                processed,
                lag_blocks,
                halted,
                error,
            }
        })
        .collect();
    let failing = [&dependencies.database, &dependencies.kafka, &dependencies.registry].into_iter().any(Option::is_some);
    // A node that is unavailable or a chain that has halted is no reason to take this process out of service: other chains run.
    let degraded = chains.iter().any(|chain| chain.error.is_some() || chain.halted.is_some());
    let status = if failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let reply = HealthReply {
        status: if failing {
            "failing"
        } else if degraded {
            "degraded"
        } else {
            "ok"
        },
        components: Components {
            database: component(dependencies.database),
            kafka: component(dependencies.kafka),
            registry: component(dependencies.registry),
            chains,
        },
    };
    (status, Json(reply)).into_response()
}

async fn processed(app: &App) -> HashMap<ChainId, u64> {
    let chains: Vec<ChainId> = app.catalog.0.iter().map(|chain| chain.id).collect();
    let Ok(client) = app.db().await else {
        return HashMap::new();
    };
    store::head_numbers(&client, &chains).await.unwrap_or_else(|failure| {
        tracing::warn!("/health could not read the chains' heads: {failure}");
        HashMap::new()
    })
}
