//! One websocket connection: checks the chain id, subscribes, then waits for announcements. If none comes for a while, it asks
//! for the head, to tell a quiet chain from a dead connection or a forgotten subscription.

use super::error::HeadsError;
use super::timeouts::WsTimeouts;
use crate::config::NodeUrl;
use crate::text::one_line;
use alloy::primitives::U64;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::{SinkExt as _, StreamExt as _};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Bytes, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use topics::ChainId;

/// A header has one or two thousand bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// For a request, or the answer to a ping.
const MAX_WRITE_BUFFER_BYTES: usize = 64 * 1024;

const BLOCK_NUMBER: &str = "eth_blockNumber";

/// A subscribed connection.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    timeouts: WsTimeouts,
    request_id: u64,
    /// The last head announced.
    last_head: Option<u64>,
    /// The time of the last announcement, or of the last answer that there is nothing new.
    quiet_since: Instant,
    /// When the answer to a request under way is due.
    answer_due: Option<Instant>,
    /// The node has answered with a head that it did not announce.
    withholds_head: bool,
}

/// A message: an answer or a notification.
#[derive(Deserialize)]
struct Incoming<'a> {
    id: Option<u64>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<ErrorObject>,
    params: Option<Notification>,
}

#[derive(Deserialize)]
struct ErrorObject {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Notification {
    result: Option<Announced>,
}

/// An announced header. Even the height is optional.
#[derive(Deserialize)]
struct Announced {
    number: Option<U64>,
}

impl Socket {
    /// Connects, checks the chain id and subscribes.
    ///
    /// # Errors
    /// If any of that fails.
    pub async fn subscribe(url: &NodeUrl, expected: ChainId, timeouts: WsTimeouts) -> Result<Self, HeadsError> {
        let stream = connect(url, timeouts.answer).await?;
        let quiet_since = Instant::now();
        let mut socket =
            Self { stream, timeouts, request_id: 0, last_head: None, quiet_since, answer_due: None, withholds_head: false };
        let got = ChainId(socket.request::<U64>("eth_chainId", json!([])).await?.to());
        if got != expected {
            return Err(HeadsError::WrongChain { expected, got });
        }
        // There is no other subscription, so its id is not needed.
        let _id: Value = socket.request("eth_subscribe", json!(["newHeads"])).await?;
        socket.quiet_since = Instant::now();
        Ok(socket)
    }

    /// Asks for the height of the node's head.
    ///
    /// # Errors
    /// If the request fails.
    pub async fn head(&mut self) -> Result<u64, HeadsError> {
        self.request::<U64>(BLOCK_NUMBER, json!([])).await.map(|number| number.to())
    }

    /// Waits for the next announcement. After the idle timeout it asks for the head; a newer one than announced counts as an
    /// announcement, and as a reason to reconnect if none follows.
    ///
    /// # Errors
    /// If the connection breaks off or announces no heads any more.
    pub async fn next(&mut self) -> Result<Option<u64>, HeadsError> {
        loop {
            let until = self.answer_due.unwrap_or(self.quiet_since + self.timeouts.idle);
            let Ok(message) = timeout_at(until, receive(&mut self.stream)).await else {
                if self.answer_due.is_some() {
                    return Err(HeadsError::Timeout { method: BLOCK_NUMBER, within: self.timeouts.answer });
                }
                if self.withholds_head {
                    return Err(HeadsError::Stalled);
                }
                let due = Instant::now() + self.timeouts.answer;
                self.answer_due = Some(due);
                self.send(BLOCK_NUMBER, json!([]), due).await?;
                continue;
            };
            let message = message?;
            let incoming = read(&message)?;
            if let Some(head) = incoming.params.and_then(|params| params.result) {
                let number = head.number.map(|number| number.to());
                (self.last_head, self.quiet_since, self.withholds_head) = (number.or(self.last_head), Instant::now(), false);
                return Ok(number);
            }
            if incoming.id == Some(self.request_id) && self.answer_due.take().is_some() {
                let number: u64 = answer::<U64>(BLOCK_NUMBER, incoming.result, incoming.error)?.to();
                self.quiet_since = Instant::now();
                let is_new = self.last_head.is_some_and(|last| number > last);
                self.last_head = Some(number);
                if is_new {
                    self.withholds_head = true;
                    return Ok(Some(number));
                }
            }
        }
    }

    async fn request<T: DeserializeOwned>(&mut self, method: &'static str, params: Value) -> Result<T, HeadsError> {
        let due = Instant::now() + self.timeouts.answer;
        self.send(method, params, due).await?;
        loop {
            let message = timeout_at(due, receive(&mut self.stream)).await.map_err(|_| self.timeout(method))??;
            let incoming = read(&message)?;
            if incoming.id == Some(self.request_id) {
                return answer(method, incoming.result, incoming.error);
            }
            // An error without an id refuses whatever was asked.
            if let (None, Some(_)) = (incoming.id, &incoming.error) {
                return answer(method, None, incoming.error);
            }
        }
    }

    async fn send(&mut self, method: &'static str, params: Value, due: Instant) -> Result<(), HeadsError> {
        self.request_id += 1;
        let request = json!({ "jsonrpc": "2.0", "id": self.request_id, "method": method, "params": params });
        let sent = timeout_at(due, self.stream.send(Message::text(request.to_string()))).await;
        sent.map_err(|_| self.timeout(method))?.map_err(connection_error)
    }

    fn timeout(&self, method: &'static str) -> HeadsError {
        HeadsError::Timeout { method, within: self.timeouts.answer }
    }
}

async fn connect(url: &NodeUrl, within: Duration) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, HeadsError> {
    let mut request = url.url().as_str().into_client_request().map_err(|_| HeadsError::Url)?;
    // User and password become a header, as over HTTP.
    let (user, password) = (url.url().username(), url.url().password());
    if !user.is_empty() || password.is_some() {
        let mut both: Vec<u8> = percent_decode_str(user).collect();
        both.push(b':');
        both.extend(percent_decode_str(password.unwrap_or_default()));
        let value = format!("Basic {}", BASE64_STANDARD.encode(both));
        let mut value = HeaderValue::from_str(&value).map_err(|_| HeadsError::Url)?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
        .write_buffer_size(0)
        .max_write_buffer_size(MAX_WRITE_BUFFER_BYTES);
    match tokio::time::timeout(within, connect_async_with_config(request, Some(config), true)).await {
        Ok(connected) => connected.map(|(stream, _)| stream).map_err(connection_error),
        Err(_) => Err(HeadsError::Timeout { method: "connecting", within }),
    }
}

/// Receives the next text or binary message. The library answers pings.
async fn receive(stream: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Result<Bytes, HeadsError> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => return Ok(text.into()),
            Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
            Some(Ok(Message::Close(frame))) => {
                let reason = frame.map(|frame| format!("{} {}", frame.code, one_line(&frame.reason)));
                return Err(HeadsError::Closed(reason.unwrap_or_else(|| "no reason given".to_owned())));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(connection_error(error)),
            None => return Err(HeadsError::Closed("no reason given".to_owned())),
        }
    }
}

fn read(message: &[u8]) -> Result<Incoming<'_>, HeadsError> {
    serde_json::from_slice(message).map_err(HeadsError::Malformed)
}

fn answer<T: DeserializeOwned>(
    method: &'static str,
    result: Option<&RawValue>,
    error: Option<ErrorObject>,
) -> Result<T, HeadsError> {
    if let Some(ErrorObject { code, message }) = error {
        return Err(HeadsError::Refused { method, code, message: one_line(&message) });
    }
    serde_json::from_str(result.map_or("null", RawValue::get)).map_err(HeadsError::Malformed)
}

fn connection_error(error: tungstenite::Error) -> HeadsError {
    match error {
        // Its text may show the URL.
        tungstenite::Error::Url(_) => HeadsError::Url,
        error => HeadsError::Connection(Box::new(error)),
    }
}

/// Tries a websocket once. Returns the height of its head.
///
/// # Errors
/// If it does not accept a subscription.
pub async fn subscribe_once(url: &NodeUrl, expected: ChainId) -> Result<u64, HeadsError> {
    Socket::subscribe(url, expected, WsTimeouts::default()).await?.head().await
}
