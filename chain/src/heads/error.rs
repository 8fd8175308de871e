//! Errors of a websocket.

use std::time::Duration;
use tokio_tungstenite::tungstenite;
use topics::ChainId;

/// Why a websocket announces no heads. It never names the URL, which contains keys.
#[derive(Debug, thiserror::Error)]
pub enum HeadsError {
    /// The node could not be reached, speaks no websocket, or the connection broke off.
    // The source's text is part of this text, so it is no `#[source]`.
    #[error("the connection failed: {0}")]
    Connection(Box<tungstenite::Error>),
    /// The URL can't be used.
    #[error("the websocket URL can't be used")]
    Url,
    /// The endpoint closed it.
    #[error("closed by the endpoint: {0}")]
    Closed(String),
    /// No answer within the timeout.
    #[error("{method}: no answer within {within:?}")]
    Timeout { method: &'static str, within: Duration },
    /// The node answers requests but does not announce the heads that it has.
    #[error("it has new heads and does not announce them")]
    Stalled,
    /// A JSON-RPC error object.
    #[error("{method}: error {code}: {message}")]
    Refused {
        method: &'static str,
        /// JSON-RPC's code, or the node's own.
        code: i64,
        message: String,
    },
    /// The message is not JSON-RPC.
    #[error("malformed message")]
    Malformed(#[source] serde_json::Error),
    /// The node belongs to another chain.
    #[error("it is of chain {got}; expected {expected}")]
    WrongChain {
        /// The id in `chains.yaml`.
        expected: ChainId,
        /// The id that the node answered.
        got: ChainId,
    },
}
