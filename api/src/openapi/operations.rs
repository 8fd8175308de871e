//! Walks the operations of the document in its JSON form.

use serde_json::Value;

/// The content type of every refusal.
pub const PROBLEM: &str = "application/problem+json";

/// Whether the path requires an API key.
pub fn needs_key(path: &str) -> bool {
    path.starts_with("/api/")
}

/// Every operation with its path and its method in lower case.
pub fn operations(document: &mut Value) -> impl Iterator<Item = (String, String, &mut Value)> {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    paths.flat_map(|(path, item)| {
        let operations = item.as_object_mut().into_iter().flatten();
        operations.map(move |(method, operation)| (path.clone(), method.clone(), operation))
    })
}
