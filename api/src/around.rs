//! What is around every request: an id that its log lines and its problem have as well, a time limit, and how it is counted.

use crate::problem::Problem;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use runtime::metrics;
use std::time::{Duration, Instant};
use tracing::Instrument as _;
use uuid::Uuid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A client's own id is taken if it is no longer, as it goes into every log line of the request.
const LONGEST_ID: usize = 128;
/// To the answer's head; a stream goes on after it. Longer than any handler waits for a part of its own accord.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

tokio::task_local! {
    static CURRENT: Box<str>;
}

/// The id of the request that this task is answering.
pub fn request_id() -> Option<Box<str>> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Wraps the routes.
pub async fn around(request: Request, next: Next) -> Response {
    let started = Instant::now();
    // The template, not the path: a metric for every payment's id would fill the memory.
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let method = request.method().clone();
    let id = given(request.headers()).unwrap_or_else(|| Uuid::now_v7().to_string());
    let span = tracing::info_span!("request", id);

    let answered = CURRENT.scope(id.as_str().into(), async {
        match tokio::time::timeout(ANSWERED_WITHIN, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                tracing::warn!("{method} {route} was given up after {ANSWERED_WITHIN:?}");
                Problem::unavailable(5, "The request took too long").into_response()
            }
        }
    });
    let mut response = answered.instrument(span.clone()).await;
    if let Ok(value) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let (status, took) = (response.status(), started.elapsed());
    metrics::HTTP_REQUESTS.counter(&[("route", route), ("status", status.as_str())]).increment(1);
    metrics::HTTP_LATENCY.histogram(&[("route", route)]).record(took);
    span.in_scope(|| tracing::debug!("{method} {route}: {status} in {took:.1?}"));
    response
}

/// The client's id, unless it is one that does not belong into a log.
fn given(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fits = (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_would_break_a_log_line_is_replaced() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, value.parse().unwrap());
            given(&headers)
        };
        assert_eq!(read("a-1:b/2").as_deref(), Some("a-1:b/2"));
        for bad in ["", "a b", "a\tb", &"x".repeat(LONGEST_ID + 1)] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        assert_eq!(given(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_problem_has_the_id_of_its_request() {
        let response = CURRENT.scope("r-7".into(), async { Problem::internal().into_response() }).await;
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["request_id"], "r-7");
    }
}
