//! Routes: every refusal a problem document.

use crate::app::App;
use crate::problem::Problem;
use crate::{addresses, around, auth, bulk, chains, health, history, list, openapi, payments, webhooks};
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::{Extension, Router};
use tower_http::normalize_path::NormalizePath;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

/// A create request with the largest metadata needs 18 KiB.
const LARGEST_BODY: usize = 64 * 1024;
/// A batch of 1,000 with some metadata each.
const LARGEST_BATCH: usize = 8 * 1024 * 1024;

/// All routes, each with its part of the OpenAPI document: method and path are where the handler is.
#[cfg(test)]
pub fn routes() -> OpenApiRouter<App> {
    open().merge(merchants())
}

/// What a key is needed for: everything below `/api/v1`.
fn merchants() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(payments::create, list::list))
        .routes(routes!(bulk::create).layer(DefaultBodyLimit::max(LARGEST_BATCH)))
        .routes(routes!(payments::get))
        .routes(routes!(payments::cancel))
        .routes(routes!(history::list))
        .routes(routes!(addresses::create, addresses::list))
        .routes(routes!(addresses::get))
        .routes(routes!(addresses::deposits))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::get, webhooks::update, webhooks::delete))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(webhooks::ping))
        .routes(routes!(webhooks::deliveries::list))
        .routes(routes!(webhooks::deliveries::redeliver))
        .routes(routes!(chains::chains))
        .routes(routes!(chains::tokens))
}

/// What anyone may ask.
fn open() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::health))
        .routes(routes!(openapi::document))
        .merge(openapi::pages())
}

/// The whole API. A trailing slash is the same path.
///
/// # Errors
/// When the OpenAPI document can't be written.
pub fn service(app: App) -> serde_json::Result<NormalizePath<Router>> {
    let authenticated = middleware::from_fn_with_state(app.clone(), auth::authenticate);
    let (routes, document) = open().merge(merchants().route_layer(authenticated)).split_for_parts();
    let document = openapi::complete(&document, &app.catalog)?;
    let routes = routes
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(middleware::from_fn(around::around))
        .layer(Extension(document))
        .with_state(app);
    Ok(NormalizePath::trim_trailing_slash(routes))
}

async fn not_found(uri: Uri) -> Problem {
    Problem::not_found(format_args!("There is no {}", crate::fields::shown(uri.path())))
}

async fn not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not take {method}; the Allow header has what it takes", crate::fields::shown(uri.path()));
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
}
