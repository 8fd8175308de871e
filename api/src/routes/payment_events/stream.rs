//! A payment's events as a live stream (server-sent events) that resumes after `Last-Event-ID`.
//!
//! The stream replays the history after the client's last event, then waits for the event feed to wake it and reads on there.
//! Since every event comes from the history, in order of `sequence`, a client that reconnects misses none and gets none twice.
//! A failure ends the stream: the client reconnects with the last id. A key that does not work any more ends it as well.

use super::event_reply::{EventReply, sequence_in_id};
use crate::app::App;
use crate::event_feed::{MAX_EVENTS, Subscription};
use crate::http::limits::REQUEST_TIMEOUT;
use crate::http::share::{self, OwnShare};
use anyhow::anyhow;
use axum::http::{HeaderMap, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream;
use merchants::KeyId;
use payments::history::{self, RecordedEvent};
use runtime::{Failure, db};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;
use topics::PaymentId;

const LAST_EVENT_ID: &str = "last-event-id";
/// How often the key is looked at again.
const KEY_INTERVAL: Duration = Duration::from_secs(5);
/// Proxies often close a connection that is silent for a minute.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Whether the client accepts `text/event-stream`.
pub fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        let kind = kind.split(';').next().unwrap_or_default();
        kind.trim().eq_ignore_ascii_case("text/event-stream")
    })
}

/// The sequence number of the event in `Last-Event-ID`; `None` without the header, or if it is no event of this payment.
pub fn last_event_id(headers: &HeaderMap, payment: PaymentId) -> Option<u64> {
    headers.get(LAST_EVENT_ID).and_then(|text| text.to_str().ok()).and_then(|text| sequence_in_id(payment, text))
}

/// A stream, and the last event that it has sent.
pub struct EventStream {
    app: App,
    key: KeyId,
    share: OwnShare,
    /// When the key was looked at.
    key_seen: Instant,
    subscription: Subscription,
    payment: PaymentId,
    /// Unix seconds; the history skips the months before it.
    created_at: i64,
    /// The sequence number of the last event that was sent.
    after: u64,
    ready: VecDeque<EventReply>,
}

impl EventStream {
    /// Begins after the event with the number `after`. The subscription must be older than the check that the payment exists.
    pub fn new(app: App, key: KeyId, subscription: Subscription, payment: PaymentId, created_at: i64, after: u64) -> Self {
        let (share, key_seen, ready) = (OwnShare::of_request(), Instant::now(), VecDeque::new());
        Self { app, key, share, key_seen, subscription, payment, created_at, after, ready }
    }

    /// The next event; `None` at the stop, and when the key does not work any more.
    async fn next(&mut self) -> Result<Option<EventReply>, Failure> {
        loop {
            if self.key_seen.elapsed() >= KEY_INTERVAL {
                // While the database can't be asked, the stream has no events to tell.
                if matches!(self.app.keys.grant_again(self.key).await, Ok(None)) {
                    return Ok(None);
                }
                self.key_seen = Instant::now();
            }
            if let Some(event) = self.ready.pop_front() {
                self.after = event.sequence;
                return Ok(Some(event));
            }
            let read = async || db::answered(REQUEST_TIMEOUT, self.share.work(self.read())).await;
            let events = self.subscription.events(self.after, read).await?;
            let reply = |recorded: &RecordedEvent| EventReply::new(recorded.event.clone(), recorded.asked_by.clone());
            self.ready = events.iter().map(|recorded| reply(recorded)).collect::<Result<_, _>>()?;
            if self.ready.is_empty() {
                tokio::select! {
                    woken = self.subscription.woken() => {
                        if !woken {
                            return Ok(None);
                        }
                    }
                    () = tokio::time::sleep_until(self.key_seen + KEY_INTERVAL) => {}
                }
            }
        }
    }

    /// The next events of the history. The connection goes back to the pool before the stream waits for others.
    fn read(&self) -> impl Future<Output = Result<Vec<RecordedEvent>, Failure>> + Send + use<> {
        let (pool, payment, created_at, after) = (self.app.pool.clone(), self.payment, self.created_at, self.after);
        async move {
            let db = share::connection(&pool).await.map_err(|_| Failure::Retry(anyhow!("no connection was to be had")))?;
            let limit = i64::try_from(MAX_EVENTS).map_err(Failure::halt)?;
            history::list_events(&*db, payment, created_at, after, limit).await
        }
    }

    /// The response, whose body is the stream.
    pub fn into_response(self) -> Response {
        let events = stream::unfold(self, |mut stream| async move {
            match stream.next().await {
                Ok(next) => next.map(|event| (server_sent(&event), stream)),
                Err(failure) => {
                    tracing::warn!("a live stream of events ends: {failure}");
                    None
                }
            }
        });
        let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_INTERVAL)).into_response();
        // nginx would wait for its buffer to fill.
        response.headers_mut().insert("x-accel-buffering", header::HeaderValue::from_static("no"));
        response
    }
}

fn server_sent(event: &EventReply) -> Result<sse::Event, axum::Error> {
    sse::Event::default().id(&event.id).event(&event.r#type).json_data(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_for_clients_that_accept_one() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_stream(&headers)
        };
        assert!(wants("text/event-stream") && wants("application/json, Text/Event-Stream;q=0.9"));
        assert!(!wants("*/*") && !wants("application/json") && !wants_stream(&HeaderMap::new()));
    }
}
