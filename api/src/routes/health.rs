//! `/livez`, `/readyz` and `/health`. The probes themselves are in `health_checks`.

use crate::app::App;
use crate::chains::catalog::Catalog;
use crate::health_checks::{Dependencies, Findings, ProbeError};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chain::Chain;
use payments::store::Witnessed;
use runtime::{SetAside, stage};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use topics::ChainId;
use utoipa::ToSchema;

/// How long a chain's head may wait for its witnesses before it is said.
const MAX_UNWITNESSED: Duration = Duration::from_secs(10);

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
    /// Whether the topics have what Kafka had acknowledged, and the registry the ids of their schemas.
    topics: Component,
    /// Transfers that wait for their payment, or for their token to be right.
    orphans: Component,
    chains: Vec<ChainHealth>,
    /// Stages of this process that do not run now.
    stages: Vec<StageHealth>,
    /// What one fault keeps from being processed, while all else goes on.
    set_aside: Vec<SetAsideItem>,
}

#[derive(Debug, Serialize, ToSchema)]
struct StageHealth {
    stage: String,
    /// Why it waits, or restarts.
    error: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct SetAsideItem {
    /// The stage that has set it aside.
    stage: String,
    /// A chain's id. Lost payments and events are counted, and named to the operator alone.
    item: String,
    /// Why, and the command that helps.
    cause: String,
}

/// Anyone may ask for `/health`, so it names chains and nothing of a merchant's.
fn without_names(chains: Vec<SetAside>, others: BTreeMap<String, i64>) -> Vec<SetAsideItem> {
    let counted = others.into_iter().map(|(stage, count)| {
        let cause =
            "`ctrip set-aside` names them, with their causes and the commands that help, and so does the log".to_owned();
        SetAsideItem { stage, item: format!("{count} payments, static addresses or events"), cause }
    });
    chains.into_iter().map(|SetAside { stage, item, cause, .. }| SetAsideItem { stage, item, cause }).chain(counted).collect()
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
    /// The highest block that as many endpoints have given as `witnesses` asks. Payments are confirmed up to it.
    #[schema(required = true)]
    witnessed: Option<u64>,
    /// Why payments on the chain are detected and not confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    unwitnessed: Option<String>,
    /// Why the chain stands still, and the command that helps.
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

/// `GET /readyz`: Postgres and Kafka answer. The registry is needed only at the start, so it does not count.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readyz", tag = "service", summary = "Readiness: Postgres and Kafka answer",
    responses(
        (status = 200, description = "They answer. `/health` tells which chains take payments.", body = ReadinessReply),
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
        (status = 200, description = "In service, even if a chain lags, has halted or lacks witnesses.", body = HealthReply),
        (status = 503, description = "A dependency is unavailable.", body = HealthReply),
    ),
)]
pub async fn health(State(app): State<App>) -> Response {
    let (dependencies, heads, topics) = tokio::join!(app.health.dependencies(), app.health.heads(), app.health.topics());
    let Catalog(listed) = app.catalog();
    let chains: Vec<ChainId> = listed.iter().map(|chain| chain.id).collect();
    let Findings { processed, witnessed, chains_aside, others_aside, orphans } =
        if dependencies.database.is_none() { app.health.findings(chains).await } else { Findings::default() };
    let set_aside = without_names(chains_aside, others_aside);
    let stages = stage::waiting().into_iter().map(|(stage, error)| StageHealth { stage, error }).collect::<Vec<_>>();
    let chains: Vec<ChainHealth> = listed
        .iter()
        .map(|chain| {
            let (head, error) = match heads.get(&chain.id) {
                Some(Ok(head)) => (Some(*head), None),
                Some(Err(error)) => (None, Some(error.clone())),
                None => (None, Some("not probed".to_owned())),
            };
            let processed = processed.get(&chain.id).copied();
            let lag_blocks = head.zip(processed).map(|(head, processed)| head.saturating_sub(processed));
            let halted = app.availability.halted(chain.id);
            let witnessed = witnessed.get(&chain.id);
            let unwitnessed = witnessed.and_then(|witnessed| unwitnessed(chain, witnessed));
            ChainHealth {
                chain: chain.name.clone(),
                chain_id: chain.id.0,
                status: match (&halted, &unwitnessed) {
                    (Some(_), _) => "halted",
                    (None, Some(_)) if error.is_none() => "unwitnessed",
                    (None, _) => status_of(&error),
                },
                head,
                processed,
                lag_blocks,
                witnessed: witnessed.and_then(|witnessed| witnessed.number),
                unwitnessed,
                halted,
                error,
            }
        })
        .collect();
    let failing = [&dependencies.database, &dependencies.kafka, &dependencies.registry].into_iter().any(Option::is_some);
    // A node that is unavailable or a chain that has halted or waits for witnesses is no reason to take this process out of
    // service: other chains run.
    let degraded = chains.iter().any(|chain| chain.error.is_some() || chain.halted.is_some() || chain.unwitnessed.is_some())
        || !stages.is_empty()
        || !set_aside.is_empty()
        || topics.is_some()
        || orphans.is_some();
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
            topics: component(topics),
            orphans: component(orphans),
            chains,
            stages,
            set_aside,
        },
    };
    (status, Json(reply)).into_response()
}

/// Why payments on a chain wait for witnesses, if they have for a while.
fn unwitnessed(chain: &Chain, witnessed: &Witnessed) -> Option<String> {
    let behind = witnessed.behind.filter(|behind| *behind >= MAX_UNWITNESSED)?;
    let above = witnessed.number.map_or("none of its blocks".to_owned(), |number| format!("no block above {number}"));
    Some(format!(
        "for {} s {above} has been given by {} endpoints, which is what witnesses asks for; payments are detected, and confirmed \
         when enough endpoints give them. Look at the endpoints with: ctrip check --chain {}",
        behind.as_secs(),
        chain.witnesses,
        chain.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::catalog::tests::chains;

    #[test]
    fn a_chain_that_waits_for_witnesses_for_a_while_is_said_to() {
        let chain = chains().remove(0);
        let said = |number, seconds: Option<u64>| {
            unwitnessed(&chain, &Witnessed { number, behind: seconds.map(Duration::from_secs) }).unwrap_or_default()
        };
        assert_eq!((said(Some(5), None).as_str(), said(Some(5), Some(9)).as_str()), ("", ""));
        assert!(
            said(Some(5), Some(10)).contains("for 10 s no block above 5")
                && said(None, Some(60)).contains("none of its blocks")
        );
        assert!(said(None, Some(60)).ends_with("ctrip check --chain anvil"));
    }
}
