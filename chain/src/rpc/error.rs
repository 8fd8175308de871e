use alloy::transports::http::reqwest;
use alloy::transports::{RpcError as AlloyError, TransportError, TransportErrorKind};
use std::error::Error;
use topics::ChainId;

/// Why a node gave no answer. It names the endpoint by its host alone, since a URL carries keys.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// It could not be reached, or broke off.
    #[error("{method} at {endpoint}: no answer")]
    Transport {
        /// JSON-RPC method.
        method: &'static str,
        /// Host.
        endpoint: String,
        /// Without the URL.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// An HTTP status other than success.
    #[error("{method} at {endpoint}: HTTP {status}: {body}")]
    Http {
        /// JSON-RPC method.
        method: &'static str,
        /// Host.
        endpoint: String,
        /// 429 and so on.
        status: u16,
        /// The beginning of what came with it.
        body: String,
    },
    /// A JSON-RPC error.
    #[error("{method} at {endpoint}: error {code}: {message}")]
    Refused {
        /// JSON-RPC method.
        method: &'static str,
        /// Host.
        endpoint: String,
        /// JSON-RPC's, or the node's own.
        code: i64,
        /// The node's.
        message: String,
    },
    /// Something that is no answer to the question.
    #[error("{method} at {endpoint}: malformed answer")]
    Malformed {
        /// JSON-RPC method.
        method: &'static str,
        /// Host.
        endpoint: String,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The endpoint is of another chain.
    #[error("{endpoint} is of chain {got}; expected {expected}")]
    WrongChain {
        /// Host.
        endpoint: String,
        /// The id in `chains.yaml`.
        expected: ChainId,
        /// What the node said.
        got: ChainId,
    },
    /// There is nobody to ask.
    #[error("chain {0} has no endpoint")]
    NoEndpoint(String),
}

impl RpcError {
    /// Whether the node does not have the method at all.
    pub fn is_unsupported(&self) -> bool {
        let Self::Refused { code, message, .. } = self else { return false };
        // -32601 is JSON-RPC's "method not found"; -32004 is EIP-1474's "method not supported"; some say it in words only.
        let message = message.to_lowercase();
        matches!(code, -32601 | -32004)
            || message.contains("method")
                && ["not found", "not exist", "not support", "not available", "unsupported", "not whitelisted"]
                    .iter()
                    .any(|phrase| message.contains(phrase))
    }

    pub(super) fn new(method: &'static str, endpoint: &str, error: TransportError) -> Self {
        let endpoint = endpoint.to_owned();
        match error {
            AlloyError::ErrorResp(payload) => {
                Self::Refused { method, endpoint, code: payload.code, message: excerpt(&payload.message) }
            }
            // The text that is no JSON may be a page of HTML; serde says enough of it.
            AlloyError::DeserError { err, .. } => Self::Malformed { method, endpoint, source: err },
            AlloyError::Transport(TransportErrorKind::HttpError(error)) => {
                Self::Http { method, endpoint, status: error.status, body: excerpt(&error.body) }
            }
            AlloyError::Transport(TransportErrorKind::HttpErrorWithRetryAfter { error, .. }) => {
                Self::Http { method, endpoint, status: error.status, body: excerpt(&error.body) }
            }
            AlloyError::Transport(TransportErrorKind::Custom(source) | TransportErrorKind::NonRetryable(source)) => {
                // reqwest's errors print the URL, with its key.
                let source = match source.downcast::<reqwest::Error>() {
                    Ok(error) => Box::new(error.without_url()),
                    Err(other) => other,
                };
                Self::Transport { method, endpoint, source }
            }
            other => Self::Transport { method, endpoint, source: Box::new(other) },
        }
    }
}

fn excerpt(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
