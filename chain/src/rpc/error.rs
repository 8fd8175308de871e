use std::error::Error;
use std::time::Duration;
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
        /// When to come again, if it says so.
        retry_after: Option<Duration>,
    },
    /// Some of several requests made at once have no answer.
    #[error("{method} and more at {endpoint}: not all of a batch were answered")]
    NoBatch {
        /// JSON-RPC method of the first.
        method: &'static str,
        /// Host.
        endpoint: String,
    },
    /// More than anybody asked for.
    #[error("{method} at {endpoint}: an answer of more than {limit} bytes")]
    TooLarge {
        /// JSON-RPC method.
        method: &'static str,
        /// Host.
        endpoint: String,
        /// In bytes.
        limit: usize,
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
    /// All circuits are open.
    #[error("no endpoint of chain {0} works; they are asked again soon")]
    AllOpen(String),
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

    /// Whether the endpoint was asked more than it allows: it should be asked less, and is no worse for it.
    pub fn is_limit(&self) -> bool {
        match self {
            Self::Http { status: 429, .. } => true,
            Self::Http { status: 503, retry_after, .. } => retry_after.is_some(),
            // EIP-1474's "limit exceeded"; what providers say in words of their own.
            Self::Refused { code, message, .. } => {
                let message = message.to_lowercase();
                !self.is_range()
                    && (matches!(code, 429 | -32005 | -32016 | -32029)
                        || ["rate limit", "too many requests", "request limit", "throughput", "compute units", "exceeded its"]
                            .iter()
                            .any(|phrase| message.contains(phrase)))
            }
            _ => false,
        }
    }

    /// Whether the answer would have been too large for the provider: asking the same again does not help here.
    pub fn is_range(&self) -> bool {
        let Self::Refused { message, .. } = self else { return false };
        let message = message.to_lowercase();
        ["query returned more than", "block range", "range is too", "response size", "too large", "max results", "limited to a"]
            .iter()
            .any(|phrase| message.contains(phrase))
    }

    /// When to come again, if the endpoint said so.
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Http { retry_after, .. } = self { *retry_after } else { None }
    }
}

/// The beginning, on one line.
pub(crate) fn excerpt(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
