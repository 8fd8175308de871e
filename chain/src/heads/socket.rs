//! One connection: two requests, then notifications, and a question now and then where there are none.

use super::Patience;
use crate::config::NodeUrl;
use crate::rpc::excerpt;
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

/// Of a message, in bytes. A header has one or two thousand.
const LARGEST: usize = 1024 * 1024;
/// Of what waits to be sent: a request, or the answer to a ping.
const MOST_UNSENT: usize = 64 * 1024;

const BLOCK_NUMBER: &str = "eth_blockNumber";

/// Why a websocket tells no new heads. It never names the URL, which carries keys.
#[derive(Debug, thiserror::Error)]
pub enum HeadsError {
    /// It could not be reached, speaks no websocket, or broke off.
    // Its text has that of its source in it.
    #[error("the connection failed: {0}")]
    Connection(Box<tungstenite::Error>),
    /// The URL can't be used.
    #[error("not a websocket URL that can be used")]
    Url,
    /// The other side closed it.
    #[error("closed by the endpoint: {0}")]
    Closed(String),
    /// Nothing came for too long.
    #[error("{method}: no answer within {within:?}")]
    Silent {
        /// What was asked.
        method: &'static str,
        /// How long it was waited for.
        within: Duration,
    },
    /// It answers, and does not tell the heads that it has.
    #[error("it has new heads and does not tell them")]
    Stopped,
    /// A JSON-RPC error.
    #[error("{method}: error {code}: {message}")]
    Refused {
        /// What was asked.
        method: &'static str,
        /// JSON-RPC's, or the node's own.
        code: i64,
        /// The node's.
        message: String,
    },
    /// Something that is no JSON-RPC.
    #[error("malformed message")]
    Malformed(#[source] serde_json::Error),
    /// The node is of another chain.
    #[error("it is of chain {got}; expected {expected}")]
    WrongChain {
        /// The id in `chains.yaml`.
        expected: ChainId,
        /// What the node said.
        got: ChainId,
    },
}

/// A subscription.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    patience: Patience,
    asked: u64,
    /// The last head that was told.
    last: Option<u64>,
    /// When it was told, or the node was found to have no other.
    at: Instant,
    /// When the answer to a question is due.
    due: Option<Instant>,
    /// The node has said that there is a head that it has not told.
    withholds: bool,
}

/// Whatever comes: an answer or a notification.
#[derive(Deserialize)]
struct Incoming<'a> {
    id: Option<u64>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
    error: Option<Refusal>,
    params: Option<Notification>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    code: i64,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Notification {
    result: Option<Announced>,
}

/// A header, of which nothing is needed.
#[derive(Deserialize)]
struct Announced {
    number: Option<U64>,
}

impl Socket {
    /// Connects, makes sure that the node is of the chain, and subscribes.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn subscribe(url: &NodeUrl, expected: ChainId, patience: Patience) -> Result<Self, HeadsError> {
        let stream = connect(url, patience.answer).await?;
        let (asked, at) = (0, Instant::now());
        let mut socket = Self { stream, patience, asked, last: None, at, due: None, withholds: false };
        let got = ChainId(socket.ask::<U64>("eth_chainId", json!([])).await?.to());
        if got != expected {
            return Err(HeadsError::WrongChain { expected, got });
        }
        // Nothing else is subscribed to, so its name is of no use.
        let _name: Value = socket.ask("eth_subscribe", json!(["newHeads"])).await?;
        socket.at = Instant::now();
        Ok(socket)
    }

    /// The number of the node's head.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn head(&mut self) -> Result<u64, HeadsError> {
        self.ask::<U64>(BLOCK_NUMBER, json!([])).await.map(|number| number.to())
    }

    /// Waits for the next head. After a time without any the node is asked for its head: a chain may be quiet, a connection dead, a
    /// subscription forgotten.
    ///
    /// # Errors
    /// When the connection breaks off, or is of no use any more.
    pub async fn next(&mut self) -> Result<Option<u64>, HeadsError> {
        loop {
            let until = self.due.unwrap_or(self.at + self.patience.quiet);
            let Ok(message) = timeout_at(until, receive(&mut self.stream)).await else {
                if self.due.is_some() {
                    return Err(HeadsError::Silent { method: BLOCK_NUMBER, within: self.patience.answer });
                }
                if self.withholds {
                    return Err(HeadsError::Stopped);
                }
                let due = Instant::now() + self.patience.answer;
                self.due = Some(due);
                self.send(BLOCK_NUMBER, json!([]), due).await?;
                continue;
            };
            let message = message?;
            let incoming = read(&message)?;
            if let Some(head) = incoming.params.and_then(|params| params.result) {
                let number = head.number.map(|number| number.to());
                (self.last, self.at, self.withholds) = (number.or(self.last), Instant::now(), false);
                return Ok(number);
            }
            if incoming.id == Some(self.asked) && self.due.take().is_some() {
                let number: u64 = answer::<U64>(BLOCK_NUMBER, incoming.result, incoming.error)?.to();
                self.at = Instant::now();
                let is_new = self.last.is_some_and(|last| number > last);
                self.last = Some(number);
                if is_new {
                    self.withholds = true;
                    return Ok(Some(number));
                }
            }
        }
    }

    async fn ask<T: DeserializeOwned>(&mut self, method: &'static str, params: Value) -> Result<T, HeadsError> {
        let due = Instant::now() + self.patience.answer;
        self.send(method, params, due).await?;
        loop {
            let message = timeout_at(due, receive(&mut self.stream)).await.map_err(|_| self.silent(method))??;
            let incoming = read(&message)?;
            if incoming.id == Some(self.asked) {
                return answer(method, incoming.result, incoming.error);
            }
            // The server refuses all of it, without saying which.
            if let (None, Some(_)) = (incoming.id, &incoming.error) {
                return answer(method, None, incoming.error);
            }
        }
    }

    async fn send(&mut self, method: &'static str, params: Value, due: Instant) -> Result<(), HeadsError> {
        self.asked += 1;
        let request = json!({ "jsonrpc": "2.0", "id": self.asked, "method": method, "params": params });
        let sent = timeout_at(due, self.stream.send(Message::text(request.to_string()))).await;
        sent.map_err(|_| self.silent(method))?.map_err(failed)
    }

    fn silent(&self, method: &'static str) -> HeadsError {
        HeadsError::Silent { method, within: self.patience.answer }
    }
}

async fn connect(url: &NodeUrl, within: Duration) -> Result<WebSocketStream<MaybeTlsStream<TcpStream>>, HeadsError> {
    let mut request = url.url().as_str().into_client_request().map_err(|_| HeadsError::Url)?;
    // A user and a password are a header, as over HTTP.
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
        .max_message_size(Some(LARGEST))
        .max_frame_size(Some(LARGEST))
        .write_buffer_size(0)
        .max_write_buffer_size(MOST_UNSENT);
    match tokio::time::timeout(within, connect_async_with_config(request, Some(config), true)).await {
        Ok(connected) => connected.map(|(stream, _)| stream).map_err(failed),
        Err(_) => Err(HeadsError::Silent { method: "connecting", within }),
    }
}

/// The next message with something in it. Pings are answered by the library.
async fn receive(stream: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Result<Bytes, HeadsError> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => return Ok(text.into()),
            Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
            Some(Ok(Message::Close(frame))) => {
                let reason = frame.map(|frame| format!("{} {}", frame.code, excerpt(&frame.reason)));
                return Err(HeadsError::Closed(reason.unwrap_or_else(|| "no reason given".to_owned())));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Err(error)) => return Err(failed(error)),
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
    error: Option<Refusal>,
) -> Result<T, HeadsError> {
    if let Some(Refusal { code, message }) = error {
        return Err(HeadsError::Refused { method, code, message: excerpt(&message) });
    }
    serde_json::from_str(result.map_or("null", RawValue::get)).map_err(HeadsError::Malformed)
}

fn failed(error: tungstenite::Error) -> HeadsError {
    match error {
        // It may show the URL.
        tungstenite::Error::Url(_) => HeadsError::Url,
        error => HeadsError::Connection(Box::new(error)),
    }
}
