//! What a server grants its clients.

use ipnet::IpNet;
use std::time::Duration;

/// What a server grants its clients.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The server's name in its metrics.
    pub server: &'static str,
    /// In all.
    pub connections: usize,
    /// Of one address, but for those of trusted proxies.
    pub connections_per_address: usize,
    /// Those whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    pub timeouts: Timeouts,
}

/// How long a connection may stand still.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Until the head of the first request is there.
    pub first_request: Duration,
    /// Until the head of the next one.
    pub next_request: Duration,
    /// The same, of a trusted proxy's.
    pub next_request_of_proxy: Duration,
    /// Until a request has its reply, and until the client takes the next piece of it.
    pub reply: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_request: Duration::from_secs(10),
            next_request: Duration::from_secs(75),
            // Proxies close theirs after a minute, or after an hour at most. Whoever closes first never meets a request on its way.
            next_request_of_proxy: Duration::from_secs(3700),
            // Longer than any request takes, and than a stream is silent.
            reply: Duration::from_secs(30),
        }
    }
}
