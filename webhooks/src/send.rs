//! Sends one message: checks the URL, signs, posts, and keeps the start of the response. It decides nothing; the retry schedule
//! does.

use crate::attempt::{ClaimedDelivery, ResponseHead, SendOutcome};
use crate::signature;
use crate::ssrf::Guard;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// From the DNS lookup to the response's status.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// From there to the kept part of the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// Of the response body, or of an error's text.
const MAX_KEPT_BYTES: usize = 1024;
/// No attempt holds its connection for longer.
pub const ATTEMPT_TIMEOUT: Duration = RESPONSE_TIMEOUT.saturating_add(BODY_TIMEOUT);

/// Sends a message, signed with the current time. It never fails: no response is an outcome too.
pub async fn send(client: &Client, guard: &Guard, delivery: &ClaimedDelivery) -> SendOutcome {
    let started = Instant::now();
    let response = tokio::time::timeout(RESPONSE_TIMEOUT, post(client, guard, delivery)).await;
    let response = response.unwrap_or_else(|_| Err(format!("no response within {} s", RESPONSE_TIMEOUT.as_secs())));
    let latency = started.elapsed();
    let (response, now) = match response {
        Ok(response) => response,
        // Errors can be long: a TLS error lists all the names that the certificate has.
        Err(error) => {
            return SendOutcome {
                error: Some(storable(error.as_bytes())),
                latency,
                connection_held: latency,
                ..SendOutcome::default()
            };
        }
    };
    let head = ResponseHead { status: Some(response.status().as_u16()), retry_after: retry_after(response.headers(), now) };
    let reply = read_reply(response).await;
    SendOutcome { head, reply, error: None, latency, connection_held: started.elapsed() }
}

/// The response, and when it was requested.
async fn post(client: &Client, guard: &Guard, delivery: &ClaimedDelivery) -> Result<(Response, SystemTime), String> {
    // The guard's settings may have changed since the endpoint was created.
    let url = guard.check_url(&delivery.url).map_err(|refused| refused.to_string())?;
    let now = SystemTime::now();
    let timestamp = now.duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?.as_secs();
    let timestamp = i64::try_from(timestamp).map_err(|error| error.to_string())?;
    let request = client
        .post(url)
        .header(CONTENT_TYPE, "application/json")
        .header("webhook-id", &delivery.event_id)
        .header("webhook-timestamp", timestamp)
        .header(
            "webhook-signature",
            signature::signature_header(&delivery.secrets, &delivery.event_id, timestamp, &delivery.body),
        )
        .body(delivery.body.clone());
    // The URL may contain a token; stored errors and logs have other readers.
    let response = request.send().await.map_err(|error| base::error_chain(&error.without_url()))?;
    Ok((response, now))
}

/// The start of the body. The status has arrived, so a body that breaks off or times out is no failure.
async fn read_reply(mut response: Response) -> String {
    let mut kept = Vec::new();
    let read = async {
        while kept.len() < MAX_KEPT_BYTES {
            let Ok(Some(chunk)) = response.chunk().await else { break };
            kept.extend_from_slice(&chunk);
        }
    };
    // After a timeout, what has arrived is kept.
    let _ = tokio::time::timeout(BODY_TIMEOUT, read).await;
    storable(&kept)
}

/// The first kilobyte of foreign text, as Postgres can store it, which is without U+0000.
fn storable(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(MAX_KEPT_BYTES)]).replace('\0', "\u{fffd}")
}

/// `Retry-After` in both its forms, seconds and a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_truncated_and_storable() {
        assert_eq!(storable(b"a\0b\xff"), "a\u{fffd}b\u{fffd}");
        assert_eq!(storable(&[b'x'; 5000]), "x".repeat(MAX_KEPT_BYTES));
        assert!(storable("ä".repeat(MAX_KEPT_BYTES).as_bytes()).len() <= MAX_KEPT_BYTES + 2);
    }

    #[test]
    fn retry_after_is_read_in_both_its_forms() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_700);
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(77)));
        for nothing in ["", "-1", "soon", "Sun, 06 Nov 1994 08:00:00 GMT"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
