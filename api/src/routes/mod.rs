//! The routes, one file per resource, and the service that they form. Every refusal is a problem document.
//!
//! Handlers hold no SQL: they call the crate or module that owns the tables. Each handler's `#[utoipa::path]` has its method,
//! its path and its part of the OpenAPI document, so a new endpoint begins in a file here and a line below.

mod address_deposits;
pub mod addresses;
mod chains;
mod health;
mod payment_events;
pub mod payment_reads;
mod payment_reply;
mod payments;
pub mod payments_batch;
mod payments_list;
mod transfer_reply;
mod transfers;
mod webhook_deliveries;
pub mod webhook_redeliver;
pub mod webhooks;

use crate::app::App;
use crate::http::limits::{MAX_BATCH_BODY_BYTES, MAX_BODY_BYTES};
use crate::http::problem::Problem;
use crate::http::request_layer;
use crate::{auth, openapi};
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::{Extension, Router};
use tower_http::normalize_path::NormalizePath;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

/// All routes with their OpenAPI document.
#[cfg(test)]
pub fn routes() -> OpenApiRouter<App> {
    public_routes().merge(merchant_routes())
}

/// The routes below `/api/v1`, which require a key.
fn merchant_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(payments::create, payments_list::list))
        .routes(routes!(payments_batch::create).layer(DefaultBodyLimit::max(MAX_BATCH_BODY_BYTES)))
        .routes(routes!(payments::get))
        .routes(routes!(payments::cancel))
        .routes(routes!(payment_events::list))
        .routes(routes!(transfers::of_payment))
        .routes(routes!(addresses::create, addresses::list))
        .routes(routes!(addresses::get))
        .routes(routes!(address_deposits::list))
        .routes(routes!(transfers::of_address))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::get, webhooks::update, webhooks::delete))
        .routes(routes!(webhooks::rotate))
        .routes(routes!(webhooks::ping))
        .routes(routes!(webhook_deliveries::list))
        .routes(routes!(webhook_redeliver::redeliver))
        .routes(routes!(chains::chains))
        .routes(routes!(chains::tokens))
}

/// The routes without a key.
fn public_routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::health))
        .routes(routes!(openapi::document))
        .merge(openapi::pages())
}

/// The whole API. A trailing slash does not change a path.
///
/// # Errors
/// When the OpenAPI document can't be written.
pub fn service(app: App) -> serde_json::Result<NormalizePath<Router>> {
    let authenticated = middleware::from_fn_with_state(app.clone(), auth::authenticate);
    let (routes, document) = public_routes().merge(merchant_routes().route_layer(authenticated)).split_for_parts();
    let document = openapi::Document::new(document, app.listing.clone())?;
    let routes = routes
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(request_layer::wrap))
        .layer(Extension(document))
        .with_state(app);
    Ok(NormalizePath::trim_trailing_slash(routes))
}

async fn not_found(uri: Uri) -> Problem {
    Problem::not_found(format_args!("There is no {}", base::text::excerpt(uri.path())))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail =
        format!("{} does not allow {method}; the Allow header has the methods that it does", base::text::excerpt(uri.path()));
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
}
