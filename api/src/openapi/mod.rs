//! The API's OpenAPI 3.1 document, generated from the code, and the page that shows it.
//!
//! A route is added with `OpenApiRouter::routes(routes!(handler))`, which takes path, method and document from the handler's
//! `#[utoipa::path]`, so the document has every route. Parts that many operations share are not annotated: [`complete`] derives them from
//! the operation's shape, such as the key of paths under `/api/` and the refusals of a body, of parameters and of an `{id}`
//! ([`refusals`]). The annotation has the rest: the success, and refusals of that operation alone.
//!
//! The document describes *this* server: chains and tokens are those of its chains.yaml ([`narrow`]).

mod narrow;
mod operations;
mod refusals;
pub mod schemas;
mod swagger_ui;

pub use swagger_ui::routes as pages;

use crate::chains::catalog::Catalog;
use crate::http::problem::Problem;
use axum::Extension;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base::locked;
use chain::{Chains, Listing};
use operations::{needs_key, operations};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "cTrip",
        description = "Crypto payments on EVM chains. Create a payment, show its address to your customer, and get an event when it \
            is paid.\n\n\
            Amounts are strings of base units (wei, or a token's smallest unit); times are RFC 3339 in UTC. Errors are problem \
            documents (RFC 9457) that name the field and say what was expected. Clients over their rate limit get 429 with \
            `Retry-After`. A trailing slash does not change a path.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(crate::http::problem::Problem)),
    tags(
        (name = "payments", description = "Each payment has a deposit address of its own."),
        (name = "addresses", description = "Static deposit addresses: one per customer, for any number of deposits."),
        (name = "webhooks", description = "Events, sent to your endpoints."),
        (name = "catalog", description = "The chains and tokens of this server."),
        (name = "service", description = "Health, and this document. No key is required."),
    ),
)]
struct Base;

/// The document before any route is added.
pub fn base() -> OpenApi {
    Base::openapi()
}

/// The document as JSON text, made anew when other chains or tokens are listed.
#[derive(Clone)]
pub struct Document {
    routes: Arc<OpenApi>,
    listing: Listing,
    made: Arc<Mutex<(Arc<Chains>, Bytes)>>,
}

impl Document {
    /// The document of these routes.
    ///
    /// # Errors
    /// When it can't be written as JSON.
    pub fn new(routes: OpenApi, listing: Listing) -> serde_json::Result<Self> {
        let chains = listing.chains();
        let made = (Arc::clone(&chains), complete(&routes, &Catalog(chains))?);
        Ok(Self { routes: Arc::new(routes), listing, made: Arc::new(Mutex::new(made)) })
    }

    fn text(&self) -> serde_json::Result<Bytes> {
        let (chains, mut made) = (self.listing.chains(), locked(&self.made));
        if !Arc::ptr_eq(&chains, &made.0) {
            *made = (Arc::clone(&chains), complete(&self.routes, &Catalog(chains))?);
        }
        Ok(made.1.clone())
    }
}

/// Completes the routes' document: shared refusals, authentication, and this server's chains and tokens.
///
/// # Errors
/// When it can't be written as JSON.
fn complete(document: &OpenApi, catalog: &Catalog) -> serde_json::Result<Bytes> {
    let mut document = serde_json::to_value(document)?;
    refusals::add(&mut document)?;
    narrow::narrow(&mut document["components"]["schemas"], catalog);
    document["components"]["securitySchemes"] = json!({
        "key": { "type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "A key from `ctrip keys create`." },
        "bearer": { "type": "http", "scheme": "bearer", "description": "The same key." },
    });
    for (path, _, operation) in operations(&mut document) {
        for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
            narrow::never_null(&mut parameter["schema"]);
            narrow::narrow_parameter(parameter, catalog);
        }
        let responses = operation["responses"].as_object_mut().into_iter().flatten();
        for header in responses.flat_map(|(_, r)| r.get_mut("headers").and_then(Value::as_object_mut).into_iter().flatten()) {
            narrow::never_null(&mut header.1["schema"]);
        }
        operation["security"] = if needs_key(&path) { json!([{ "key": [] }, { "bearer": [] }]) } else { json!([]) };
    }
    serde_json::to_vec(&document).map(Bytes::from)
}

/// `GET /openapi.json`
#[utoipa::path(
    get, path = "/openapi.json", tag = "service", summary = "Get this document",
    responses((status = 200, description = "OpenAPI 3.1.", body = serde_json::Value)),
)]
pub async fn document(Extension(document): Extension<Document>) -> Result<Response, Problem> {
    let text = document.text().map_err(|_| Problem::internal())?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::catalog::tests::catalog;
    use std::collections::HashSet;

    fn whole() -> Value {
        let (_, document) = crate::routes::routes().split_for_parts();
        let text = complete(&document, &catalog()).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn every_operation_has_a_summary_and_its_responses() {
        let mut document = whole();
        assert_eq!(document["openapi"], "3.1.0");
        let mut ids = HashSet::new();
        for (path, _, operation) in operations(&mut document) {
            for field in ["operationId", "summary"] {
                assert!(operation[field].as_str().is_some_and(|text| !text.is_empty()), "{path} has no {field}: {operation}");
            }
            assert!(ids.insert(operation["operationId"].to_string()), "{path}: a second {}", operation["operationId"]);
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{path} has no success");
            assert_eq!(responses.contains_key("401"), path.starts_with("/api/"), "{path}");
            assert_eq!(responses.contains_key("404"), path.contains("{id}"), "{path}");
        }
    }

    /// A dangling reference breaks generators of clients.
    #[test]
    fn every_reference_resolves() {
        fn walk(value: &Value, whole: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(whole.pointer(pointer).is_some(), "{reference}");
                    }
                    fields.values().for_each(|value| walk(value, whole));
                }
                Value::Array(items) => items.iter().for_each(|value| walk(value, whole)),
                _ => {}
            }
        }
        let whole = whole();
        walk(&whole, &whole);
    }

    #[test]
    fn the_document_names_this_servers_chains() {
        let document = whole();
        let create = &document["components"]["schemas"]["CreatePayment"]["properties"];
        assert_eq!(create["chain"]["enum"], json!(["anvil", "base", null]));
        assert_eq!(create["chain_id"]["enum"], json!([31337, 8453, null]));
        assert_eq!(create["token"]["enum"], json!(["USDX", null]));
    }
}
