//! Timeouts of websockets.

use std::time::Duration;

/// Timeouts of one websocket.
#[derive(Clone, Copy, Debug)]
pub struct WsTimeouts {
    /// After this time without an announcement, the node is asked for its head over the websocket.
    pub idle: Duration,
    /// For connecting, and for an answer.
    pub answer: Duration,
    /// Longest back-off between attempts to connect. The shortest is 100 ms.
    pub max_backoff: Duration,
}

impl Default for WsTimeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { idle: seconds(15), answer: seconds(10), max_backoff: seconds(60) }
    }
}
