//! The problem documents that operations have in common, each with a real one as its example.

use crate::keys::Scope;
use crate::openapi::{PROBLEM, needs_key, operations};
use crate::problem::Problem;
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

/// Puts them where they belong: the shape of an operation says which it can answer.
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
            // What the annotation says of it is more exact.
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
        "The body is no JSON object",
        "expected value at line 1 column 12",
    );
    let retry_after = json!({ "Retry-After": { "schema": { "type": "integer", "minimum": 1 }, "required": true, "description": "Seconds." } });
    Ok(json!({
        "BadRequest": response("The body or the query can't be read.", &unreadable, &json!({}))?,
        "Unauthorized": response(
            "No key, or none that is known.",
            &crate::auth::unauthorized("The API key is not known, or was revoked"),
            &json!({ "WWW-Authenticate": { "schema": { "type": "string" }, "required": true } }),
        )?,
        "Forbidden": response("The key may only read.", &crate::auth::insufficient("0f1e2d3c4b5a6978", Scope::Read), &json!({}))?,
        "BodyTimeout": response("The body did not arrive in time.", &crate::extract::body_timeout(), &json!({}))?,
        "TooMany": response(
            "The key has had its requests of this second.",
            &crate::auth::too_many(Duration::from_secs(1)),
            &retry_after,
        )?,
        "NotFound": response(
            "It is not there, or it is another merchant's.",
            &Problem::not_found("There is no payment 0198c5a2-7b1e-7c3a-9d1f-3b2a1c0d9e8f"),
            &json!({}),
        )?,
        "TooLarge": response("The body is too large.", &crate::extract::too_large(), &json!({}))?,
        "Invalid": response(
            "Fields, parameters or headers do not hold what they should; each is named.",
            &Problem::field(
                "amount",
                "expected a positive whole number of base units below 2^256, as JSON integer or string, got -1",
            ),
            &json!({}),
        )?,
        "Internal": response("Our fault.", &Problem::internal(), &json!({}))?,
        "Unavailable": response(
            "A part that this needs is away. The same request may succeed later; with the same Idempotency-Key it is done once.",
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
