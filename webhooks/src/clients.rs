//! HTTP clients with bounded idle connections, and their `User-Agent`; all other headers are those of `send.rs`. reqwest bounds
//! connections per host only, and merchants have any number of hosts. So there are two clients: one keeps connections alive, for a
//! bounded number of busy endpoints, and one closes them after each message.
//!
//! Both connect only to what the SSRF guard allows, follow no redirects and use no proxy.

use crate::attempt::ATTEMPT_TIMEOUT;
use crate::ssrf::{Guard, GuardedResolver};
use base::locked;
use reqwest::dns::Resolve;
use reqwest::{Client, Request, RequestBuilder, Response, Url};
use std::cell::Cell;
use std::collections::HashMap;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tower::Service;
use tower::layer::layer_fn;
use uuid::Uuid;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Endpoints whose connections are kept alive.
const MAX_KEEP_ALIVE_ENDPOINTS: usize = 120;
const MAX_IDLE_PER_ENDPOINT: usize = 3;
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// A receiver that ends a connection later has worked on the message.
const MAX_CLOSING_TIME: Duration = Duration::from_secs(1);

/// The two clients, and which endpoints use the one that keeps connections alive.
pub struct Clients {
    keep_alive: Client,
    closing: Client,
    /// Endpoints with kept connections, and when each got its last message.
    kept: Mutex<HashMap<Uuid, Instant>>,
}

impl Clients {
    /// Clients that resolve names with `names`, and connect only to what the guard allows.
    ///
    /// # Errors
    /// When TLS can't be initialised.
    pub fn new(guard: &Guard, names: Arc<dyn Resolve>) -> reqwest::Result<Self> {
        let names = Arc::new(GuardedResolver::new(guard.clone(), names));
        let client = |idle| {
            Client::builder()
                .dns_resolver(Arc::clone(&names))
                .redirect(reqwest::redirect::Policy::none())
                .no_proxy()
                .http1_only()
                .connect_timeout(CONNECT_TIMEOUT)
                .connector_layer(layer_fn(NotingConnector))
                .pool_max_idle_per_host(idle)
                .pool_idle_timeout(IDLE_TIMEOUT)
                .user_agent(concat!("ctrip-webhooks/", env!("CARGO_PKG_VERSION")))
                .build()
        };
        Ok(Self { keep_alive: client(MAX_IDLE_PER_ENDPOINT)?, closing: client(0)?, kept: Mutex::default() })
    }

    /// A request for [`execute`](Self::execute).
    pub fn post(&self, url: Url) -> RequestBuilder {
        self.closing.post(url)
    }

    /// Sends a request to an endpoint. If the connection was one that had been kept, and ends soon and without a response, the endpoint
    /// had closed it for being idle: then the request goes out once more, on a new one.
    ///
    /// # Errors
    /// When there is no response.
    pub async fn execute(&self, endpoint: Uuid, request: Request) -> reqwest::Result<Response> {
        let (again, started) = (request.try_clone(), Instant::now());
        let client = self.client_for(endpoint);
        let sent = async { (client.execute(request).await, CONNECTS.with(Cell::get)) };
        match (CONNECTS.scope(Cell::new(false), sent).await, again) {
            ((Err(error), false), Some(again)) if started.elapsed() < MAX_CLOSING_TIME && has_ended(&error) => {
                self.closing.execute(again).await
            }
            ((outcome, _), _) => outcome,
        }
    }

    /// The client for a message that is sent to this endpoint now.
    pub fn client_for(&self, endpoint: Uuid) -> Client {
        if keeps_alive(&mut locked(&self.kept), endpoint, Instant::now()) {
            self.keep_alive.clone()
        } else {
            self.closing.clone()
        }
    }
}

tokio::task_local! {
    /// Whether the request that this task sends began a connection.
    static CONNECTS: Cell<bool>;
}

/// Notes that a request begins a connection.
#[derive(Clone)]
struct NotingConnector<S>(S);

impl<R, S: Service<R>> Service<R> for NotingConnector<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, to: R) -> S::Future {
        // Without a request there is nothing to note.
        let _ = CONNECTS.try_with(|connects| connects.set(true));
        self.0.call(to)
    }
}

/// Whether the connection ended, and not a response that can't be read. hyper has its own words for an end without a response.
fn has_ended(error: &reqwest::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |cause: &&(dyn Error + 'static)| (*cause).source());
    causes.any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted))
            || cause.to_string().contains("connection closed before message completed")
    })
}

fn keeps_alive(kept: &mut HashMap<Uuid, Instant>, endpoint: Uuid, now: Instant) -> bool {
    if kept.len() >= MAX_KEEP_ALIVE_ENDPOINTS && !kept.contains_key(&endpoint) {
        // Their last connections are closed by then: the pool looks for idle ones once per `IDLE_TIMEOUT`.
        kept.retain(|_, last| now.saturating_duration_since(*last) < ATTEMPT_TIMEOUT + 2 * IDLE_TIMEOUT);
        if kept.len() >= MAX_KEEP_ALIVE_ENDPOINTS {
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
    fn connections_are_kept_for_a_bounded_number_of_endpoints_until_they_are_quiet() {
        let (mut kept, start) = (HashMap::new(), Instant::now());
        let endpoints: Vec<Uuid> = (0..=MAX_KEEP_ALIVE_ENDPOINTS).map(|i| Uuid::from_u128(i as u128)).collect();
        let later = |seconds| start + Duration::from_secs(seconds);
        for endpoint in &endpoints[..MAX_KEEP_ALIVE_ENDPOINTS] {
            assert!(keeps_alive(&mut kept, *endpoint, start));
        }
        assert!(!keeps_alive(&mut kept, endpoints[MAX_KEEP_ALIVE_ENDPOINTS], later(25)));
        assert!(keeps_alive(&mut kept, endpoints[0], later(25)), "one that is kept already");
        assert!(keeps_alive(&mut kept, endpoints[MAX_KEEP_ALIVE_ENDPOINTS], later(26)));
        assert!(kept.len() == 2 && keeps_alive(&mut kept, endpoints[1], later(26)));
    }
}
