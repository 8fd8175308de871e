//! Sends one message: checks the URL, signs, posts, and keeps the start of the response. It decides nothing; the retry schedule
//! does.

use crate::attempt::{BODY_TIMEOUT, ClaimedDelivery, RESPONSE_TIMEOUT, ResponseHead, SendOutcome};
use crate::clients::Clients;
use crate::signature;
use crate::ssrf::Guard;
use futures::FutureExt as _;
use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Of the response body, or of an error's text.
const MAX_KEPT_BYTES: usize = 1024;

/// Sends a message, signed with the current time. It never fails: no response is an outcome too, and so is a panic, which would
/// come again with the message and keep all others from being sent.
pub async fn send(clients: &Clients, guard: &Guard, delivery: &ClaimedDelivery) -> SendOutcome {
    let started = Instant::now();
    let sent = without_panic(attempt(clients, guard, delivery, started)).await;
    sent.unwrap_or_else(|| {
        tracing::error!(endpoint = %delivery.endpoint_id, "an attempt to send {} panicked", delivery.event_id);
        no_response("cTrip failed to send it", started)
    })
}

/// What comes of a future; `None` if it panics.
async fn without_panic<T>(future: impl Future<Output = T>) -> Option<T> {
    // Nothing that it has changed is used after a panic.
    AssertUnwindSafe(future).catch_unwind().await.ok()
}

fn no_response(error: &str, started: Instant) -> SendOutcome {
    let latency = started.elapsed();
    // Errors can be long: a TLS error lists all the names that the certificate has.
    SendOutcome { error: Some(storable(error.as_bytes())), latency, connection_held: latency, ..SendOutcome::default() }
}

async fn attempt(clients: &Clients, guard: &Guard, delivery: &ClaimedDelivery, started: Instant) -> SendOutcome {
    if let Some(cause) = delivery.unsendable {
        return no_response(cause, started);
    }
    let response = tokio::time::timeout(RESPONSE_TIMEOUT, post(clients, guard, delivery)).await;
    let response = response.unwrap_or_else(|_| Err(format!("no response within {} s", RESPONSE_TIMEOUT.as_secs())));
    let (response, now) = match response {
        Ok(response) => response,
        Err(error) => return no_response(&error, started),
    };
    let latency = started.elapsed();
    let head = ResponseHead { status: Some(response.status().as_u16()), retry_after: retry_after(response.headers(), now) };
    let reply = read_reply(response).await;
    SendOutcome { head, reply, error: None, latency, connection_held: started.elapsed() }
}

/// The response, and when it was requested.
async fn post(clients: &Clients, guard: &Guard, delivery: &ClaimedDelivery) -> Result<(Response, SystemTime), String> {
    // The guard's settings may have changed since the endpoint was created.
    let url = guard.check_url(&delivery.url).map_err(|refused| refused.to_string())?;
    let now = SystemTime::now();
    let timestamp = now.duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?.as_secs();
    let timestamp = i64::try_from(timestamp).map_err(|error| error.to_string())?;
    let request = clients
        .post(url)
        .header(CONTENT_TYPE, "application/json")
        .header("webhook-id", &delivery.event_id)
        .header("webhook-timestamp", timestamp)
        .header(
            "webhook-signature",
            signature::signature_header(&delivery.secrets, &delivery.event_id, timestamp, &delivery.body),
        )
        .body(delivery.body.clone())
        .build();
    let response = match request {
        Ok(request) => clients.execute(delivery.endpoint_id, request).await,
        Err(error) => Err(error),
    };
    // The URL may contain a token; stored errors and logs have other readers.
    Ok((response.map_err(|error| base::error_chain(&error.without_url()))?, now))
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
    use crate::ssrf::SystemResolver;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use uuid::Uuid;

    /// A server that answers so many requests of each connection, writes something else to the next one, and closes it.
    async fn closing_after(answers: usize, last: &'static [u8]) -> (ClaimedDelivery, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                for _ in 0..answers {
                    let _ = socket.read(&mut [0; 4096]).await;
                    let _ = socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                }
                let _ = socket.read(&mut [0; 4096]).await;
                let _ = socket.write_all(last).await;
            }
        });
        let delivery = ClaimedDelivery {
            delivery_id: 1,
            endpoint_id: Uuid::nil(),
            merchant: Uuid::nil(),
            attempt_number: 1,
            failures: 0,
            event_id: "evt_1".to_owned(),
            url,
            secrets: Vec::new(),
            body: "{}".into(),
            unsendable: None,
            due_at: 0.0,
        };
        (delivery, connections)
    }

    #[tokio::test]
    async fn a_connection_that_the_receiver_closes_while_it_is_idle_costs_no_attempt() {
        let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap()], true);
        let clients = Clients::new(&guard, Arc::new(SystemResolver::default())).unwrap();
        let (delivery, connections) = closing_after(1, b"").await;
        for (_, expected) in (0..3).zip([1, 2, 3]) {
            let outcome = send(&clients, &guard, &delivery).await;
            assert_eq!((outcome.head.status, outcome.error), (Some(204), None));
            assert!(connections.load(Ordering::SeqCst) <= expected);
        }
        assert!(connections.load(Ordering::SeqCst) > 1, "no connection was closed");
        // One that was new says that the receiver is not well.
        let (delivery, connections) = closing_after(0, b"").await;
        let outcome = send(&clients, &guard, &delivery).await;
        assert!(outcome.error.is_some() && connections.load(Ordering::SeqCst) == 1, "{outcome:?}");
        // And so does one that answers with something else.
        let (delivery, connections) = closing_after(1, b"garbage\r\n\r\n").await;
        let [first, second] = [send(&clients, &guard, &delivery).await, send(&clients, &guard, &delivery).await];
        assert_eq!(first.head.status, Some(204));
        assert!(second.error.is_some() && connections.load(Ordering::SeqCst) == 1, "{second:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_sent_fails_and_opens_no_connection() {
        let guard = Guard::new(vec!["127.0.0.0/8".parse().unwrap()], true);
        let clients = Clients::new(&guard, Arc::new(SystemResolver::default())).unwrap();
        let (delivery, connections) = closing_after(1, b"").await;
        let outcome = send(&clients, &guard, &ClaimedDelivery { unsendable: Some("no secret"), ..delivery }).await;
        assert_eq!((outcome.head.status, outcome.error.as_deref()), (None, Some("no secret")));
        assert_eq!(connections.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_attempt_alone() {
        let panics = async {
            tokio::task::yield_now().await;
            assert!(tokio::task::try_id().is_none(), "the panic of this test");
        };
        assert_eq!(tokio::spawn(without_panic(panics)).await.unwrap(), None);
        assert_eq!(without_panic(async { 7 }).await, Some(7));
    }

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
