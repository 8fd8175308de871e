//! Keeps the subscriptions of a chain's websockets alive: reconnects with back-off, and passes announcements on.

use super::error::HeadsError;
use super::socket::Socket;
use super::timeouts::WsTimeouts;
use crate::config::{Chain, NodeUrl};
use base::{backoff, error_chain, metrics};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use topics::ChainId;

/// A websocket that keeps failing is logged as a warning once per interval, and at debug level in between.
const WARN_INTERVAL: Duration = Duration::from_secs(600);

/// The head announcements of a chain's websockets. Dropping the last clone closes the websockets.
#[derive(Clone, Debug)]
pub struct Heads {
    announced: watch::Receiver<Option<u64>>,
    _sockets: Arc<JoinSet<()>>,
}

impl Heads {
    /// Subscribes at each of the chain's `ws_urls`, and reconnects when one breaks off. Call it inside a tokio runtime.
    pub fn of(chain: &Chain) -> Self {
        Self::with_timeouts(chain, WsTimeouts::default())
    }

    /// As [`of`](Self::of), with other timeouts.
    pub fn with_timeouts(chain: &Chain, timeouts: WsTimeouts) -> Self {
        let (sender, announced) = watch::channel(None);
        let sockets = chain.ws_urls.iter().map(|url| {
            let listener = Listener {
                chain: chain.name.clone(),
                expected: chain.id,
                url: url.clone(),
                timeouts,
                announced: sender.clone(),
                warned_at: None,
                connection_is_news: true,
            };
            listener.run()
        });
        Self { announced, _sockets: Arc::new(sockets.collect()) }
    }

    /// Waits for an announcement; returns at once if there was one since the last call. The height, if announced, is not
    /// trusted. Without websockets it waits for ever.
    pub async fn next(&mut self) -> Option<u64> {
        match self.announced.changed().await {
            Ok(()) => *self.announced.borrow_and_update(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// One websocket, connected or not.
struct Listener {
    chain: String,
    expected: ChainId,
    url: NodeUrl,
    timeouts: WsTimeouts,
    announced: watch::Sender<Option<u64>>,
    warned_at: Option<Instant>,
    /// Whether the next connection is worth logging: the first one, and one after a warning.
    connection_is_news: bool,
}

impl Listener {
    async fn run(mut self) {
        let connected = metrics::WS_CONNECTED.gauge(&[("chain", &self.chain), ("endpoint", self.url.host())]);
        connected.set(0.0);
        let mut delays = backoff::delays(self.timeouts.max_backoff);
        loop {
            let started = Instant::now();
            let cause = match Socket::subscribe(&self.url, self.expected, self.timeouts).await {
                Ok(socket) => {
                    connected.set(1.0);
                    self.log_connected();
                    let cause = self.relay_heads(socket).await;
                    connected.set(0.0);
                    cause
                }
                Err(cause) => cause,
            };
            if started.elapsed() > self.timeouts.idle + self.timeouts.answer {
                delays = backoff::delays(self.timeouts.max_backoff);
            }
            let delay = delays.next().unwrap_or(self.timeouts.max_backoff);
            self.log_failure(&cause, delay);
            tokio::time::sleep(delay).await;
        }
    }

    /// Passes announcements on until the connection breaks off.
    async fn relay_heads(&self, mut socket: Socket) -> HeadsError {
        let heads = metrics::WS_HEADS.counter(&[("chain", &self.chain), ("endpoint", self.url.host())]);
        loop {
            match socket.next().await {
                Ok(number) => {
                    heads.increment(1);
                    self.announced.send_replace(number);
                }
                Err(cause) => return cause,
            }
        }
    }

    fn log_connected(&mut self) {
        if std::mem::take(&mut self.connection_is_news) {
            tracing::info!(chain = self.chain, endpoint = self.url.host(), "subscribed to new heads over a websocket");
        }
    }

    fn log_failure(&mut self, cause: &HeadsError, delay: Duration) {
        let (chain, endpoint, cause) = (&self.chain, self.url.host(), error_chain(cause));
        if self.warned_at.is_some_and(|warned_at| warned_at.elapsed() < WARN_INTERVAL) {
            tracing::debug!(chain, endpoint, "websocket failed, retry in {delay:.1?}: {cause}");
        } else {
            tracing::warn!(chain, endpoint, "websocket failed, polling goes on; retry in {delay:.1?}: {cause}");
            (self.warned_at, self.connection_is_news) = (Some(Instant::now()), true);
        }
    }
}
