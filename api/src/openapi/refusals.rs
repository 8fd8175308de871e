//! The refusals that operations share, each with a real problem document as its example. Which of them an operation has follows
//! from its shape; refusals of one operation alone are in its annotation.

use crate::http::problem::Problem;
use crate::openapi::operations::{PROBLEM, needs_key, operations};
use axum::http::StatusCode;
use merchants::Scope;
use serde_json::{Value, json};
use std::time::Duration;

/// Adds each refusal to the operations that can respond with it.
pub fn add(document: &mut Value) -> serde_json::Result<()> {
    document["components"]["responses"] = responses()?;
    for (path, method, operation) in operations(document) {
        let body = operation.get("requestBody").is_some();
        let parameters = operation.get("parameters").and_then(Value::as_array);
        let given = |place: &str| parameters.is_some_and(|all| all.iter().any(|parameter| parameter["in"] == place));
        let (query, header, item) = (given("query"), given("header"), given("path"));
        let shared = [
            (400, "BadRequest", body || query),
            (401, "Unauthorized", needs_key(&path)),
            (403, "Forbidden", needs_key(&path) && method != "get"),
            (404, "NotFound", item),
            (408, "BodyTimeout", body),
            (413, "TooLarge", body),
            (422, "Invalid", body || query || header),
            (429, "TooMany", needs_key(&path)),
            (500, "Internal", needs_key(&path)),
            (503, "Unavailable", needs_key(&path)),
        ];
        for (status, name, _) in shared.into_iter().filter(|(_, _, applies)| *applies) {
            let status = status.to_string();
            // An annotation of the same status is more specific.
            if operation["responses"].get(&status).is_none() {
                operation["responses"][&status] = json!({ "$ref": format!("#/components/responses/{name}") });
            }
        }
    }
    Ok(())
}

fn responses() -> serde_json::Result<Value> {
    let unreadable = Problem::new(
        StatusCode::BAD_REQUEST,
        "malformed-json",
        "The body is not a JSON object",
        "expected value at line 1 column 12",
    );
    let retry_after = json!({ "Retry-After": { "schema": { "type": "integer", "minimum": 1 }, "required": true, "description": "Seconds until a retry." } });
    Ok(json!({
        "BadRequest": response("The body or the query can't be parsed.", &unreadable, &json!({}))?,
        "Unauthorized": response(
            "No API key, or an unknown or revoked one.",
            &crate::auth::unauthorized("The API key is unknown or revoked"),
            &json!({ "WWW-Authenticate": { "schema": { "type": "string" }, "required": true } }),
        )?,
        "Forbidden": response("The key has the scope `read`.", &crate::auth::insufficient_scope("0f1e2d3c4b5a6978", Scope::Read), &json!({}))?,
        "BodyTimeout": response("The body did not arrive in time.", &crate::http::limits::body_timeout(), &json!({}))?,
        "TooMany": response(
            "The key is over its rate limit, too many unknown keys came from this address, or the key or its merchant has too many \
                live streams or large batches in hand.",
            &crate::auth::rate_limited(Duration::from_secs(1)),
            &retry_after,
        )?,
        "NotFound": response(
            "It does not exist, or belongs to another merchant.",
            &Problem::not_found("There is no payment 0198c5a2-7b1e-7c3a-9d1f-3b2a1c0d9e8f"),
            &json!({}),
        )?,
        "TooLarge": response("The body is too large.", &crate::http::limits::body_too_large(), &json!({}))?,
        "Invalid": response(
            "Fields, parameters or headers are invalid; each is named.",
            &Problem::field(
                "amount",
                "expected a positive whole number of base units below 2^256, as JSON integer or string, got -1",
            ),
            &json!({}),
        )?,
        "Internal": response("An error of the server.", &Problem::internal(), &json!({}))?,
        "Unavailable": response(
            "A dependency is unavailable. Retry after `Retry-After`; with the same Idempotency-Key the request takes effect once.",
            &Problem::unacknowledged(),
            &retry_after,
        )?,
    }))
}

fn response(description: &str, example: &Problem, headers: &Value) -> serde_json::Result<Value> {
    let schema = json!({ "$ref": "#/components/schemas/Problem" });
    let content = json!({ PROBLEM: { "schema": schema, "example": serde_json::to_value(example)? } });
    Ok(json!({ "description": description, "content": content, "headers": headers }))
}
