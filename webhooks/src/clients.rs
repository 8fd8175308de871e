//! HTTP clients for messages. Connections are kept open for the next message of busy endpoints, and so many of those that the idle
//! ones are bounded: an HTTP client bounds them for each host, and merchants have as many hosts as they like.

use crate::guard::{Checked, Guard};
use crate::send;
use reqwest::Client;
use reqwest::dns::Resolve;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Endpoints whose connections are kept open.
const KEPT: usize = 120;
/// Idle connections of each of them.
const IDLE: usize = 3;
const IDLE_FOR: Duration = Duration::from_secs(5);

/// The clients.
pub struct Clients {
    keeping: Client,
    closing: Client,
    /// When they got their last message.
    kept: Mutex<HashMap<Uuid, Instant>>,
}

impl Clients {
    /// They look names up with `names`, and connect to what the guard allows.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn new(guard: &Guard, names: Arc<dyn Resolve>) -> reqwest::Result<Self> {
        let names = Arc::new(Checked::new(guard.clone(), names));
        let client = |idle| {
            Client::builder()
                .dns_resolver(Arc::clone(&names))
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .http1_only()
                .connect_timeout(CONNECT_WITHIN)
                .pool_max_idle_per_host(idle)
                .pool_idle_timeout(IDLE_FOR)
                .user_agent(concat!("ctrip-webhooks/", env!("CARGO_PKG_VERSION")))
                .build()
        };
        Ok(Self { keeping: client(IDLE)?, closing: client(0)?, kept: Mutex::default() })
    }

    /// The client for a message to this endpoint now.
    pub fn of(&self, endpoint: Uuid) -> Client {
        if keeps(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner), endpoint, Instant::now()) {
            self.keeping.clone()
        } else {
            self.closing.clone()
        }
    }
}

fn keeps(kept: &mut HashMap<Uuid, Instant>, endpoint: Uuid, now: Instant) -> bool {
    if kept.len() >= KEPT && !kept.contains_key(&endpoint) {
        // Their last connections are closed by then: the pool looks for idle ones as often as they may be idle.
        kept.retain(|_, last| now.saturating_duration_since(*last) < send::LONGEST + 2 * IDLE_FOR);
        if kept.len() >= KEPT {
            return false;
        }
    }
    kept.insert(endpoint, now);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_for_so_many_endpoints_until_they_are_quiet() {
        let (mut kept, start) = (HashMap::new(), Instant::now());
        let endpoints: Vec<Uuid> = (0..=KEPT).map(|i| Uuid::from_u128(i as u128)).collect();
        let later = |seconds| start + Duration::from_secs(seconds);
        for endpoint in &endpoints[..KEPT] {
            assert!(keeps(&mut kept, *endpoint, start));
        }
        assert!(!keeps(&mut kept, endpoints[KEPT], later(25)));
        assert!(keeps(&mut kept, endpoints[0], later(25)), "one that is kept already");
        assert!(keeps(&mut kept, endpoints[KEPT], later(26)));
        assert!(kept.len() == 2 && keeps(&mut kept, endpoints[1], later(26)));
    }
}
