//! New heads as websockets tell them (`eth_subscribe` to `newHeads`).
//!
//! Polling finds every block; this finds it sooner. So nothing that a socket says is believed: it wakes whoever looks at the
//! head, and the block is then fetched and proven over HTTP. Nothing is queued: heads that come while nobody waits are one
//! wake-up. Reorganisations need no logs of their own, since a new branch has a new head.
//!
//! alloy's pubsub client is not used: its reconnection has a fixed pace and an end, logs every try as an error, and it does not
//! notice a node that answers pings and has stopped telling heads.

mod socket;

use crate::config::{Chain, NodeUrl};
use runtime::{chain_of, metrics, stage};
pub use socket::HeadsError;
use socket::Socket;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use topics::ChainId;

/// A socket that fails again and again is a warning only so often, and a debug message in between.
const WARNED_EVERY: Duration = Duration::from_secs(600);

/// How long a socket is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Without a head for so long, the node is asked over the socket whether there is one.
    pub quiet: Duration,
    /// For a connection, and for an answer.
    pub answer: Duration,
    /// Between two tries to connect, at most. The first comes after 100 ms.
    pub longest_delay: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { quiet: seconds(15), answer: seconds(10), longest_delay: seconds(60) }
    }
}

/// The new heads of a chain, as its websockets tell them. They are closed with its last clone.
#[derive(Clone, Debug)]
pub struct Heads {
    told: watch::Receiver<Option<u64>>,
    _sockets: Arc<JoinSet<()>>,
}

impl Heads {
    /// Subscribes at each of the chain's `ws_urls`, and again whenever one breaks off. To be called inside a tokio runtime.
    pub fn of(chain: &Chain) -> Self {
        Self::with(chain, Patience::default())
    }

    /// The same with another patience.
    pub fn with(chain: &Chain, patience: Patience) -> Self {
        let (sender, told) = watch::channel(None);
        let sockets = chain.ws_urls.iter().map(|url| {
            let listener = Listener {
                chain: chain.name.clone(),
                expected: chain.id,
                url: url.clone(),
                patience,
                told: sender.clone(),
                warned: None,
                news: true,
            };
            listener.listen()
        });
        Self { told, _sockets: Arc::new(sockets.collect()) }
    }

    /// Waits until a socket tells of a head, unless one did since the last call. Gives the head's number if it came with one,
    /// which is hearsay. Without websockets it waits for ever.
    pub async fn next(&mut self) -> Option<u64> {
        match self.told.changed().await {
            Ok(()) => *self.told.borrow_and_update(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// Tries a socket: the number of its newest block, if it takes a subscription.
///
/// # Errors
/// When it does not.
pub async fn subscribe_once(url: &NodeUrl, expected: ChainId) -> Result<u64, HeadsError> {
    Socket::subscribe(url, expected, Patience::default()).await?.head().await
}

/// One websocket, connected or not.
struct Listener {
    chain: String,
    expected: ChainId,
    url: NodeUrl,
    patience: Patience,
    told: watch::Sender<Option<u64>>,
    warned: Option<Instant>,
    /// That it is connected is worth telling: the first time, and after a warning.
    news: bool,
}

impl Listener {
    async fn listen(mut self) {
        let connected = metrics::WS_CONNECTED.gauge(&[("chain", &self.chain), ("endpoint", self.url.host())]);
        connected.set(0.0);
        let mut delays = stage::delays(self.patience.longest_delay);
        loop {
            let started = Instant::now();
            let cause = match Socket::subscribe(&self.url, self.expected, self.patience).await {
                Ok(socket) => {
                    connected.set(1.0);
                    self.tell_connected();
                    let cause = self.hear(socket).await;
                    connected.set(0.0);
                    cause
                }
                Err(cause) => cause,
            };
            if started.elapsed() > self.patience.quiet + self.patience.answer {
                delays = stage::delays(self.patience.longest_delay);
            }
            let delay = delays.next().unwrap_or(self.patience.longest_delay);
            self.tell_failure(&cause, delay);
            tokio::time::sleep(delay).await;
        }
    }

    /// Passes on what the socket tells, until it breaks off.
    async fn hear(&self, mut socket: Socket) -> HeadsError {
        let heads = metrics::WS_HEADS.counter(&[("chain", &self.chain), ("endpoint", self.url.host())]);
        loop {
            match socket.next().await {
                Ok(number) => {
                    heads.increment(1);
                    self.told.send_replace(number);
                }
                Err(cause) => return cause,
            }
        }
    }

    fn tell_connected(&mut self) {
        if std::mem::take(&mut self.news) {
            tracing::info!(chain = self.chain, endpoint = self.url.host(), "subscribed to new heads over a websocket");
        }
    }

    fn tell_failure(&mut self, cause: &HeadsError, delay: Duration) {
        let (chain, endpoint, cause) = (&self.chain, self.url.host(), chain_of(cause));
        if self.warned.is_some_and(|warned| warned.elapsed() < WARNED_EVERY) {
            tracing::debug!(chain, endpoint, "no websocket, again in {delay:.1?}: {cause}");
        } else {
            tracing::warn!(chain, endpoint, "no websocket, polling goes on; again in {delay:.1?}: {cause}");
            (self.warned, self.news) = (Some(Instant::now()), true);
        }
    }
}
