//! Errors of JSON-RPC requests, and their classification: providers report the same condition with different codes and texts.
//!
//! A provider's odd error code or text is added here: to [`RpcError::is_unsupported`] (the method is missing),
//! [`RpcError::is_rate_limit`] (ask less), [`RpcError::is_result_limit`] (ask for less at a time),
//! [`RpcError::is_batch_limit`] (ask for less in a batch), or [`RpcError::is_revert`] (the contract said no).

use std::error::Error;
use std::time::Duration;
use topics::ChainId;

/// Why a request has no result. It names the endpoint by its host alone, since URLs contain keys.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The node could not be reached, or the connection broke off.
    #[error("{method} at {endpoint}: no answer")]
    Transport {
        method: &'static str,
        endpoint: String,
        /// Without the URL.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No answer came in time.
    #[error("{method} at {endpoint}: no answer within {after:.1?}")]
    Late {
        method: &'static str,
        endpoint: String,
        /// The deadline, which follows the usual latency.
        after: Duration,
    },
    /// Not sent: the provider's limit, or its `Retry-After`, holds it back for longer than an answer may take.
    #[error("{method} at {endpoint}: over its rate limit for another {wait:.1?}")]
    Throttled { method: &'static str, endpoint: String, wait: Duration },
    /// An HTTP status other than 2xx.
    #[error("{method} at {endpoint}: HTTP {status}: {body}")]
    Http {
        method: &'static str,
        endpoint: String,
        status: u16,
        /// The beginning of the body.
        body: String,
        /// `Retry-After`, if it was sent.
        retry_after: Option<Duration>,
    },
    /// A batch whose calls were not all answered.
    #[error("{method} and more at {endpoint}: not all of a batch were answered")]
    IncompleteBatch {
        /// Method of the first call.
        method: &'static str,
        endpoint: String,
    },
    /// The answer exceeds the size limit.
    #[error("{method} at {endpoint}: an answer of more than {limit} bytes")]
    TooLarge {
        method: &'static str,
        endpoint: String,
        /// In bytes.
        limit: usize,
    },
    /// A JSON-RPC error object.
    #[error("{method} at {endpoint}: error {code}: {message}")]
    Refused {
        method: &'static str,
        endpoint: String,
        /// JSON-RPC's code, or the node's own.
        code: i64,
        message: String,
    },
    /// The answer is not the JSON that the method returns.
    #[error("{method} at {endpoint}: malformed answer")]
    Malformed {
        method: &'static str,
        endpoint: String,
        /// The position and the problem.
        #[source]
        source: serde_json::Error,
    },
    /// The endpoint belongs to another chain.
    #[error("{endpoint} is of chain {got}; expected {expected}")]
    WrongChain {
        endpoint: String,
        /// The id in `chains.yaml`.
        expected: ChainId,
        /// The id that the node answered.
        got: ChainId,
    },
    /// Every circuit is open. They are probed again within seconds.
    #[error("all endpoints of chain {0} are failing; the next retry is soon")]
    AllOpen(String),
    /// The chain has no endpoint to ask.
    #[error("chain {0} has no endpoint")]
    NoEndpoint(String),
}

impl RpcError {
    /// Whether the node lacks the method.
    pub fn is_unsupported(&self) -> bool {
        let Self::Refused { code, message, .. } = self else { return false };
        // -32601 is JSON-RPC's "method not found"; -32004 is EIP-1474's "method not supported". Some nodes only use words.
        let message = message.to_lowercase();
        matches!(code, -32601 | -32004)
            || message.contains("method")
                && ["not found", "not exist", "not support", "not available", "unsupported", "not whitelisted"]
                    .iter()
                    .any(|phrase| message.contains(phrase))
    }

    /// Whether a call was executed and failed: the contract refuses it, or lacks the function. Old contracts end in other ways than by
    /// a revert.
    pub fn is_revert(&self) -> bool {
        let Self::Refused { code, message, .. } = self else { return false };
        let message = message.to_lowercase();
        // 3 is geth's "execution reverted", -32015 OpenEthereum's "VM execution error".
        matches!(code, 3 | -32015)
            || ["revert", "invalid opcode", "invalid jump", "bad instruction", "stack underflow", "out of gas"]
                .iter()
                .any(|phrase| message.contains(phrase))
    }

    /// Whether the node says that its chain has no block at the height: 12 is Lotus' "requested epoch was a null round".
    pub fn is_null_round(&self) -> bool {
        let Self::Refused { code, message, .. } = self else { return false };
        *code == 12 && message.contains("null round")
    }

    /// Whether we exceeded the provider's rate limit: ask less often. It does not count against the endpoint.
    pub fn is_rate_limit(&self) -> bool {
        match self {
            Self::Http { status: 429, .. } | Self::Throttled { .. } => true,
            Self::Http { status: 503, retry_after, .. } => retry_after.is_some(),
            // -32005 is EIP-1474's "limit exceeded". The rest are providers' own codes and words.
            Self::Refused { code, message, .. } => {
                let message = message.to_lowercase();
                !self.is_result_limit()
                    && !self.is_batch_limit()
                    && (matches!(code, 429 | -32005 | -32016 | -32029)
                        || ["rate limit", "too many requests", "request limit", "throughput", "compute units", "exceeded its"]
                            .iter()
                            .any(|phrase| message.contains(phrase)))
            }
            _ => false,
        }
    }

    /// Whether the result would exceed the provider's size limit: retrying the same request does not help.
    pub fn is_result_limit(&self) -> bool {
        let Self::Refused { message, .. } = self else { return false };
        let message = message.to_lowercase();
        ["query returned more than", "block range", "range is too", "response size", "too large", "max results", "limited to a"]
            .iter()
            .any(|phrase| message.contains(phrase))
    }

    /// Whether a batch of several calls was too large for the provider, or it takes none: fewer at a time may work.
    pub fn is_batch_limit(&self) -> bool {
        match self {
            Self::IncompleteBatch { .. } => true,
            Self::Http { status, .. } => matches!(status, 400 | 405 | 413 | 415 | 422),
            // Erigon drops the connection.
            Self::Transport { source, .. } => {
                let error = source.downcast_ref::<reqwest::Error>();
                error.is_some_and(|error| !error.is_connect() && !error.is_timeout())
            }
            // Codes -32000, -32005, -32007, -32010, 31 and more have been seen, with these words.
            Self::Refused { message, .. } => {
                let message = message.to_lowercase();
                message.contains("batch")
                    && [
                        "limit",
                        "exceed",
                        "too many",
                        "too large",
                        "too big",
                        "larger",
                        "more than",
                        "max",
                        "not allowed",
                        "size",
                    ]
                    .iter()
                    .any(|phrase| message.contains(phrase))
            }
            _ => false,
        }
    }

    /// Whether no answer came in time, which says nothing about what it would have been.
    pub fn is_late(&self) -> bool {
        match self {
            Self::Late { .. } => true,
            Self::Transport { source, .. } => source.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout),
            _ => false,
        }
    }

    /// Whether less may be answered: what was asked for was too large, or took too long.
    pub fn is_too_much(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Malformed { .. } | Self::Http { status: 413 | 500..=599, .. })
            && !self.is_rate_limit()
            || self.is_late()
    }

    /// Whether the node can't be reached at all, whatever is asked.
    pub fn is_unreachable(&self) -> bool {
        let Self::Transport { source, .. } = self else { return false };
        source.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect)
    }

    /// The provider's `Retry-After`, if it sent one.
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::Http { retry_after, .. } = self { *retry_after } else { None }
    }
}
