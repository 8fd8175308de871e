//! The open connections: who may have one more, and which gives way.

use super::client_address::{is_trusted, network};
use super::limits::{Limits, Timeouts};
use base::counts::Counts;
use base::{locked, metrics};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All connections of a server. Cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Inner>);

struct Inner {
    limits: Limits,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    open: usize,
    /// Without those of trusted proxies.
    open_of_address: Counts<IpAddr>,
    /// Those that wait for a request, by the turn in which they came to do so.
    waiting: BTreeMap<u64, Arc<Connection>>,
    waiting_of_address: BTreeSet<(IpAddr, u64)>,
    turns: u64,
}

/// One connection.
struct Connection {
    peer: IpAddr,
    /// What limits count it by.
    address: IpAddr,
    is_proxy: bool,
    state: Mutex<State>,
    /// Once it has given way or ended; it is out of the table then.
    gone: CancellationToken,
}

struct State {
    /// In hand: being answered, or their reply being taken; with when each last did something, by its number.
    requests: BTreeMap<u64, Instant>,
    /// The number of the next one.
    next: u64,
    /// Its turn while it waits for a request.
    turn: Option<u64>,
    /// When it last did something.
    progressed: Instant,
}

/// The place of a connection among all; dropping it frees it.
pub struct Place {
    connections: Connections,
    connection: Arc<Connection>,
}

/// A request in hand; dropping it ends it.
pub struct Busy {
    connections: Connections,
    connection: Arc<Connection>,
    number: u64,
}

impl Connections {
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Inner { limits, table: Mutex::default() }))
    }

    /// A place for a new connection; `None` if there is none, and none that waits could give way.
    pub fn admit(&self, peer: IpAddr) -> Option<Place> {
        let limits = self.limits();
        let (address, is_proxy) = (network(peer), is_trusted(peer, &limits.trusted_proxies));
        let mut table = locked(&self.0.table);
        let of_address = table.open_of_address.of(&address);
        let full = table.open >= limits.connections;
        // An address that floods the server loses its own connections first.
        let admitted = if !is_proxy && (full || of_address >= limits.connections_per_address) {
            table.evict_of(address) || (of_address < limits.connections_per_address && table.evict_oldest())
        } else {
            !full || table.evict_oldest()
        };
        if !admitted {
            self.count_closed("refused");
            return None;
        }
        table.open += 1;
        if !is_proxy {
            table.open_of_address.add(address, 1);
        }
        let state = State { requests: BTreeMap::new(), next: 0, turn: None, progressed: Instant::now() };
        let gone = CancellationToken::new();
        let connection = Arc::new(Connection { peer, address, is_proxy, state: Mutex::new(state), gone });
        locked(&connection.state).turn = table.wait(&connection);
        self.observe(&table);
        Some(Place { connections: self.clone(), connection })
    }

    /// Closes the connection that has waited longest for a request.
    pub fn evict_oldest(&self) {
        locked(&self.0.table).evict_oldest();
    }

    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Counts a connection that the server has closed.
    pub fn count_closed(&self, cause: &'static str) {
        metrics::HTTP_CLOSED.counter(&[("server", self.limits().server), ("cause", cause)]).increment(1);
    }

    fn observe(&self, table: &Table) {
        #[expect(clippy::cast_precision_loss, reason = "a process has thousands of connections")]
        metrics::HTTP_CONNECTIONS.gauge(&[("server", self.limits().server)]).set(table.open as f64);
    }
}

impl Table {
    /// The turn of a connection that waits for a request from now on.
    fn wait(&mut self, connection: &Arc<Connection>) -> Option<u64> {
        if connection.gone.is_cancelled() {
            return None;
        }
        self.turns += 1;
        self.waiting.insert(self.turns, Arc::clone(connection));
        self.waiting_of_address.insert((connection.address, self.turns));
        Some(self.turns)
    }

    fn wait_no_more(&mut self, turn: u64) -> Option<Arc<Connection>> {
        let connection = self.waiting.remove(&turn)?;
        self.waiting_of_address.remove(&(connection.address, turn));
        Some(connection)
    }

    fn evict_oldest(&mut self) -> bool {
        let oldest = self.waiting.first_key_value().map(|(turn, _)| *turn);
        oldest.is_some_and(|turn| self.evict(turn))
    }

    fn evict_of(&mut self, address: IpAddr) -> bool {
        let oldest = self.waiting_of_address.range((address, 0)..=(address, u64::MAX)).next().map(|(_, turn)| *turn);
        oldest.is_some_and(|turn| self.evict(turn))
    }

    fn evict(&mut self, turn: u64) -> bool {
        let Some(connection) = self.wait_no_more(turn) else { return false };
        self.close(&connection);
        true
    }

    fn close(&mut self, connection: &Connection) {
        connection.gone.cancel();
        self.open -= 1;
        if !connection.is_proxy {
            self.open_of_address.take_off(&connection.address, 1);
        }
    }
}

impl State {
    fn progress(&mut self, number: u64) {
        self.progressed = Instant::now();
        self.requests.insert(number, self.progressed);
    }
}

impl Place {
    pub fn peer(&self) -> IpAddr {
        self.connection.peer
    }

    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Marks that a request is in hand.
    pub fn begin(&self) -> Busy {
        let Self { connections, connection } = self;
        let mut state = locked(&connection.state);
        let number = state.next;
        state.next += 1;
        state.progress(number);
        if let Some(turn) = state.turn.take() {
            locked(&connections.0.table).wait_no_more(turn);
        }
        Busy { connections: connections.clone(), connection: Arc::clone(connection), number }
    }

    /// How long it may still stand still as it does now; the cause of its end if that is over. One request that stands still ends it,
    /// or small ones beside it would keep it for ever. A trusted proxy's has requests of many clients, and all have to stand still.
    ///
    /// # Errors
    /// The cause, for the metric.
    pub fn patience(&self) -> Result<Duration, &'static str> {
        let Timeouts { first_request, next_request, next_request_of_proxy, reply } = self.connections.limits().timeouts;
        let Connection { is_proxy, ref state, .. } = *self.connection;
        let state = locked(state);
        let (since, limit, cause) = match state.requests.values().min() {
            Some(_) if is_proxy => (state.progressed, reply, "stalled"),
            Some(progressed) => (*progressed, reply, "stalled"),
            None if state.next == 0 => (state.progressed, first_request, "no-request"),
            None if is_proxy => (state.progressed, next_request_of_proxy, "idle"),
            None => (state.progressed, next_request, "idle"),
        };
        // It may come to stand still in another way meanwhile, for which there is less time.
        let left = limit.checked_sub(since.elapsed()).filter(|left| !left.is_zero()).ok_or(cause)?;
        Ok(left.min(first_request).min(reply))
    }

    /// Waits until it has to give way.
    pub async fn evicted(&self) {
        self.connection.gone.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let turn = locked(&self.connection.state).turn.take();
        let mut table = locked(&self.connections.0.table);
        if let Some(turn) = turn {
            table.wait_no_more(turn);
        }
        if !self.connection.gone.is_cancelled() {
            table.close(&self.connection);
        }
        self.connections.observe(&table);
    }
}

impl Busy {
    /// Notes that the client took a piece of its reply.
    pub fn progressed(&self) {
        locked(&self.connection.state).progress(self.number);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = locked(&self.connection.state);
        state.requests.remove(&self.number);
        state.progressed = Instant::now();
        if state.requests.is_empty() {
            state.turn = locked(&self.connections.0.table).wait(&self.connection);
        }
    }
}
