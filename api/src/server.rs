//! Routes and what is around them: every answer counted and timed, every refusal a problem document.

use crate::app::App;
use crate::problem::Problem;
use crate::{chains, health, payments};
use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use runtime::metrics;
use std::time::Instant;
use tower_http::normalize_path::NormalizePath;

/// A create request with the largest metadata needs 18 KiB.
const LARGEST_BODY: usize = 64 * 1024;

/// The whole API. A trailing slash is the same path.
pub fn service(app: App) -> NormalizePath<Router> {
    let routes = Router::new()
        .route("/api/v1/payments", post(payments::create).get(payments::list))
        .route("/api/v1/payments/{id}", get(payments::get))
        .route("/api/v1/payments/{id}/cancel", post(payments::cancel))
        .route("/api/v1/chains", get(chains::chains))
        .route("/api/v1/tokens", get(chains::tokens))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/health", get(health::health))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(middleware::from_fn(observe))
        .with_state(app);
    NormalizePath::trim_trailing_slash(routes)
}

async fn not_found(uri: Uri) -> Problem {
    Problem::not_found(format_args!("There is no {}", crate::fields::shown(uri.path())))
}

async fn not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not take {method}; the Allow header has what it takes", crate::fields::shown(uri.path()));
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
}

async fn observe(request: Request, next: Next) -> Response {
    let started = Instant::now();
    // The template, not the path: a metric for every payment's id would fill the memory.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let method = request.method().clone();
    let response = next.run(request).await;
    let (status, took) = (response.status(), started.elapsed());
    metrics::HTTP_REQUESTS.counter(&[("route", route), ("status", status.as_str())]).increment(1);
    metrics::HTTP_LATENCY.histogram(&[("route", route)]).record(took);
    tracing::debug!("{method} {route}: {status} in {took:.1?}");
    response
}
