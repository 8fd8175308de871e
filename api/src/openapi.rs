//! The API's OpenAPI 3.1 document, made from the code, and the page that shows it.
//!
//! A route is added with `OpenApiRouter::routes(routes!(handler))`, which takes path, method and document from the handler's
//! `#[utoipa::path]`, so none can be forgotten here. What many operations have in common is not annotated but put in by
//! [`complete`], from the operation's shape: a key and what follows from it under `/api/`, what a body, parameters and an
//! `{id}` can get wrong. An annotation has the rest: the success, and refusals of that operation alone.
//!
//! The document is of *this* server: chains and tokens are those of its chains.yaml.

mod page;
mod refusals;
pub mod schemas;

pub use page::routes as pages;

use crate::catalog::Catalog;
use axum::Extension;
use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;

/// The document's type of every refusal.
pub const PROBLEM: &str = "application/problem+json";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "cTrip",
        description = "Crypto payments on EVM chains. Post a payment, show its address, and learn once that it was paid.\n\n\
            Amounts are strings of base units (wei, or a token's smallest unit); times are RFC 3339 in UTC. Errors are problem \
            documents (RFC 9457) that name the field and say what was expected. A trailing slash is the same path.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(crate::problem::Problem)),
    tags(
        (name = "payments", description = "A payment has a deposit address of its own."),
        (name = "addresses", description = "A deposit address is a customer's, for any number of deposits."),
        (name = "webhooks", description = "Events, sent to you."),
        (name = "catalog", description = "What a payment can be asked for."),
        (name = "service", description = "How the service is, and this document. No key is needed."),
    ),
)]
struct Base;

/// The document before any route: its head, and how to authenticate.
pub fn base() -> OpenApi {
    Base::openapi()
}

/// The document, to be served.
#[derive(Clone)]
pub struct Document(Bytes);

/// Makes the routes' document whole.
///
/// # Errors
/// When it can't be written as JSON.
pub fn complete(document: &OpenApi, catalog: &Catalog) -> serde_json::Result<Document> {
    let mut document = serde_json::to_value(document)?;
    refusals::add(&mut document)?;
    schemas::narrow(&mut document["components"]["schemas"], catalog);
    document["components"]["securitySchemes"] = json!({
        "key": { "type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "A key of `ctrip keys create`." },
        "bearer": { "type": "http", "scheme": "bearer", "description": "The same key." },
    });
    for (path, _, operation) in operations(&mut document) {
        for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
            schemas::never_null(&mut parameter["schema"]);
            schemas::narrow_parameter(parameter, catalog);
        }
        let responses = operation["responses"].as_object_mut().into_iter().flatten();
        for header in responses.flat_map(|(_, r)| r.get_mut("headers").and_then(Value::as_object_mut).into_iter().flatten()) {
            schemas::never_null(&mut header.1["schema"]);
        }
        operation["security"] = if needs_key(&path) { json!([{ "key": [] }, { "bearer": [] }]) } else { json!([]) };
    }
    serde_json::to_vec(&document).map(|text| Document(text.into()))
}

fn needs_key(path: &str) -> bool {
    path.starts_with("/api/")
}

/// Path, method in lower case, and what is said of it.
fn operations(document: &mut Value) -> impl Iterator<Item = (String, String, &mut Value)> {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    paths.flat_map(|(path, item)| {
        let operations = item.as_object_mut().into_iter().flatten();
        operations.map(move |(method, operation)| (path.clone(), method.clone(), operation))
    })
}

/// `GET /openapi.json`
#[utoipa::path(
    get, path = "/openapi.json", tag = "service", summary = "This document",
    responses((status = 200, description = "OpenAPI 3.1.", body = serde_json::Value)),
)]
pub async fn document(Extension(Document(text)): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::catalog;
    use std::collections::HashSet;

    fn whole() -> Value {
        let (_, document) = crate::server::routes().split_for_parts();
        let Document(text) = complete(&document, &catalog()).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    #[test]
    fn every_operation_says_what_it_is_and_what_it_answers() {
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

    /// A reference to nothing breaks whoever generates a client.
    #[test]
    fn every_reference_leads_somewhere() {
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
