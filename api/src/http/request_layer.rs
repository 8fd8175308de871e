//! The middleware around every request: its id, its timeout, its metrics and its log line.

use crate::http::limits::{REQUEST_TIMEOUT, request_timeout};
use crate::http::request_id::{self, REQUEST_ID};
use axum::extract::{MatchedPath, Request};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base::metrics;
use std::time::Instant;
use tracing::Instrument as _;
use uuid::Uuid;

/// Wraps the routes, inside of which [`request_id::current`] is set.
pub async fn wrap(request: Request, next: Next) -> Response {
    let started = Instant::now();
    // The template, not the path: a label value per payment id would fill the memory.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let method = request.method().clone();
    let id = request_id::from_client(request.headers()).unwrap_or_else(|| Uuid::now_v7().to_string());
    let span = tracing::info_span!("request", id);

    let handled = request_id::CURRENT.scope(id.as_str().into(), async {
        match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                tracing::warn!("{method} {route} timed out after {REQUEST_TIMEOUT:?}");
                request_timeout().into_response()
            }
        }
    });
    let mut response = handled.instrument(span.clone()).await;
    if let Ok(value) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let (status, took) = (response.status(), started.elapsed());
    metrics::HTTP_REQUESTS.counter(&[("route", route), ("status", status.as_str())]).increment(1);
    metrics::HTTP_LATENCY.histogram(&[("route", route)]).record(took);
    span.in_scope(|| tracing::debug!("{method} {route}: {status} in {took:.1?}"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::Problem;

    #[tokio::test]
    async fn a_problem_has_the_id_of_its_request() {
        let response = request_id::CURRENT.scope("r-7".into(), async { Problem::internal().into_response() }).await;
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["request_id"], "r-7");
    }
}
