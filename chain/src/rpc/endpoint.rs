use super::error::RpcError;
use super::health::{Candidate, Circuit, Health};
use super::pace::Pace;
use super::transport::{Answer, Call, Reply, Transport};
use crate::config::NodeUrl;
use alloy::primitives::U64;
use runtime::metrics;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;
use topics::ChainId;

/// The answers to a batch.
pub enum Batch<T> {
    /// Read as a whole.
    Read(T),
    /// One by one, in the order of the calls.
    Split(Vec<Result<Answer, RpcError>>),
}

/// One node of a chain.
#[derive(Debug)]
pub struct Endpoint {
    chain: String,
    host: String,
    transport: Transport,
    expected: Option<ChainId>,
    is_of_chain: AtomicBool,
    block_receipts: AtomicBool,
    /// It has answered several requests made at once.
    batches: AtomicBool,
    /// Place of the next tracer to try.
    tracer: AtomicU8,
    health: Mutex<Health>,
    pace: Mutex<Pace>,
}

impl Endpoint {
    pub(super) fn new(chain: &str, url: &NodeUrl, expected: Option<ChainId>) -> Self {
        let endpoint = Self {
            chain: chain.to_owned(),
            host: url.host().to_owned(),
            transport: Transport::new(url),
            expected,
            is_of_chain: AtomicBool::new(false),
            block_receipts: AtomicBool::new(true),
            batches: AtomicBool::new(false),
            tracer: AtomicU8::new(0),
            health: Mutex::default(),
            pace: Mutex::new(Pace::new(Instant::now())),
        };
        metrics::RPC_STATE.gauge(&endpoint.labels()).set(Circuit::Closed.as_number());
        endpoint
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    fn labels(&self) -> [(&'static str, &str); 2] {
        [("chain", &self.chain), ("endpoint", &self.host)]
    }

    /// Asks, and reads the answer.
    ///
    /// # Errors
    /// When there is none within 10 s, or it is an error or something else.
    pub async fn request<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, RpcError> {
        let answer = self.raw(method, params).await?;
        self.read(method, &answer)
    }

    /// Asks, and gives the answer's JSON as it came.
    ///
    /// # Errors
    /// When there is none within 10 s, or it is an error.
    pub async fn raw(&self, method: &'static str, params: Value) -> Result<Answer, RpcError> {
        let started = self.wait_for_slot().await;
        let answer = self.transport.call(method, &params).await;
        self.note(started, answer.as_ref().err());
        answer
    }

    /// Asks several things in one HTTP request. Answers are in the order of the calls, whatever the node's order was.
    ///
    /// # Errors
    /// When the node answers none, or not all of them.
    pub async fn batch(&self, calls: &[Call]) -> Result<Vec<Result<Answer, RpcError>>, RpcError> {
        match self.batch_read(calls, |_| None::<()>).await? {
            Batch::Split(answers) => Ok(answers),
            Batch::Read(()) => Ok(Vec::new()),
        }
    }

    /// [`batch`](Self::batch) for a reader that may understand the reply as a whole, in one pass.
    ///
    /// # Errors
    /// When the node answers none, or not all of them.
    pub async fn batch_read<T>(&self, calls: &[Call], read: impl FnOnce(&Reply) -> Option<T>) -> Result<Batch<T>, RpcError> {
        let started = self.wait_for_slot().await;
        let reply = self.transport.batch(calls).await;
        let answers = reply.and_then(|reply| match read(&reply) {
            Some(read) => Ok(Batch::Read(read)),
            None => {
                let methods: Vec<_> = calls.iter().map(|(method, _)| *method).collect();
                reply.split(&methods).map(Batch::Split)
            }
        });
        let refused = match &answers {
            Err(error) => Some(error),
            Ok(answers) => {
                self.batches.store(true, Ordering::Relaxed);
                match answers {
                    Batch::Read(_) => None,
                    Batch::Split(all) => all.iter().filter_map(|answer| answer.as_ref().err()).find(|error| error.is_limit()),
                }
            }
        };
        self.note(started, refused);
        answers
    }

    /// Waits as long as the endpoint wants us to, and gives the time then.
    async fn wait_for_slot(&self) -> Instant {
        let now = Instant::now();
        let slot = locked(&self.pace, |pace| pace.slot(now));
        if slot > now {
            tokio::time::sleep_until(slot.into()).await;
            return Instant::now();
        }
        now
    }

    fn note(&self, started: Instant, error: Option<&RpcError>) {
        let (labels, took) = (self.labels(), started.elapsed());
        metrics::RPC_LATENCY.histogram(&labels).record(took.as_secs_f64());
        let outcome = match error {
            None => "ok",
            Some(error) if error.is_limit() => "limited",
            Some(_) => "error",
        };
        metrics::RPC_REQUESTS.counter(&[labels[0], labels[1], ("outcome", outcome)]).increment(1);
        match error {
            None => {
                locked(&self.health, |health| health.answered(took));
                locked(&self.pace, Pace::succeeded);
            }
            Some(error) if error.is_limit() => {
                tracing::debug!(chain = self.chain, endpoint = self.host, "asked too often: {error}");
                locked(&self.pace, |pace| pace.refused(Instant::now(), error.retry_after()));
            }
            Some(_) => {}
        }
    }

    pub(crate) fn read<T: DeserializeOwned>(&self, method: &'static str, answer: &Answer) -> Result<T, RpcError> {
        serde_json::from_str(answer.get()).map_err(|source| self.malformed(method, source))
    }

    pub(crate) fn malformed(&self, method: &'static str, source: serde_json::Error) -> RpcError {
        RpcError::Malformed { method, endpoint: self.host.clone(), source }
    }

    /// EIP-155.
    ///
    /// # Errors
    /// When the node does not say.
    pub async fn chain_id(&self) -> Result<ChainId, RpcError> {
        self.request("eth_chainId", json!([])).await.map(|id: U64| ChainId(id.to()))
    }

    /// Makes sure once that the node is of the chain that `chains.yaml` says: one wrong endpoint in a list would bring
    /// another chain's blocks in on the first failover. Finds out with it whether the node takes batches.
    ///
    /// # Errors
    /// When it is not, or does not say.
    pub async fn check_chain(&self) -> Result<(), RpcError> {
        if self.is_of_chain.load(Ordering::Relaxed) {
            return Ok(());
        }
        let got = match self.batch(&[("eth_chainId", json!([])), ("eth_blockNumber", json!([]))]).await {
            Ok(answers) => {
                let answer = answers
                    .into_iter()
                    .next()
                    .unwrap_or_else(|| Err(RpcError::NoBatch { method: "eth_chainId", endpoint: self.host.clone() }))?;
                self.read::<U64>("eth_chainId", &answer).map(|id| ChainId(id.to()))?
            }
            // Whatever it thinks of batches, this it has to answer.
            Err(_) => self.chain_id().await?,
        };
        if let Some(expected) = self.expected.filter(|expected| *expected != got) {
            return Err(RpcError::WrongChain { endpoint: self.host.clone(), expected, got });
        }
        self.is_of_chain.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it has answered a batch.
    pub(crate) fn takes_batches(&self) -> bool {
        self.batches.load(Ordering::Relaxed)
    }

    /// Whether `eth_getBlockReceipts` is worth asking for.
    pub(crate) fn has_block_receipts(&self) -> bool {
        self.block_receipts.load(Ordering::Relaxed)
    }

    pub(crate) fn lacks_block_receipts(&self) {
        if self.block_receipts.swap(false, Ordering::Relaxed) {
            tracing::info!(chain = self.chain, endpoint = self.host, "no eth_getBlockReceipts here; using eth_getLogs");
        }
    }

    /// Place of the tracer to use, in the order of preference.
    pub(crate) fn tracer(&self) -> usize {
        usize::from(self.tracer.load(Ordering::Relaxed))
    }

    /// This one it does not have: the next one from now on.
    pub(crate) fn lacks_tracer(&self, place: usize) {
        let next = u8::try_from(place.saturating_add(1)).unwrap_or(u8::MAX);
        self.tracer.fetch_max(next, Ordering::Relaxed);
    }

    pub(super) fn candidate(&self, now: Instant) -> Candidate {
        let health = locked(&self.health, |health| *health);
        Candidate { health, waits: locked(&self.pace, |pace| pace.waits(now)) }
    }

    /// Whether a request may go through now; if it is the probe of an open circuit, the answer decides.
    pub(super) fn admits(&self) -> bool {
        self.change(|health| health.admits(Instant::now()))
    }

    pub(super) fn failed(&self) {
        self.change(|health| health.failed(Instant::now(), jitter()));
    }

    pub(super) fn given_up(&self) {
        self.change(|health| health.given_up(Instant::now()));
    }

    pub(super) fn succeeded(&self) {
        self.change(Health::succeeded);
    }

    /// It gave an answer that contradicts itself, or what is known.
    pub fn lied(&self) {
        metrics::CHAIN_UNPROVEN.counter(&self.labels()).increment(1);
        self.change(|health| health.lied(Instant::now(), jitter()));
    }

    /// It told of heads that neither it nor any other had when they were asked for.
    pub fn withheld(&self) {
        locked(&self.health, |health| health.withheld(Instant::now()));
    }

    pub(crate) fn saw_head(&self, number: u64) {
        locked(&self.health, |health| health.saw_head(number));
        #[expect(clippy::cast_precision_loss, reason = "block numbers are far below 2^52")]
        metrics::RPC_HEAD.gauge(&self.labels()).set(number as f64);
    }

    /// Whether its circuit is closed.
    pub fn works(&self) -> bool {
        locked(&self.health, |health| health.circuit() == Circuit::Closed)
    }

    fn change<T>(&self, act: impl FnOnce(&mut Health) -> T) -> T {
        let (before, done, after) = locked(&self.health, |health| {
            let before = health.circuit();
            let done = act(health);
            (before, done, health.circuit())
        });
        if before != after {
            metrics::RPC_STATE.gauge(&self.labels()).set(after.as_number());
        }
        done
    }
}

/// Of 0 to 1, so that of those that failed together not all come back at the same moment. The clock is random enough for it.
fn jitter() -> f64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos() % 1000) / 1000.0
}

/// Nothing panics while holding these, and what they hold is right whatever state it is in.
fn locked<S, T>(state: &Mutex<S>, act: impl FnOnce(&mut S) -> T) -> T {
    act(&mut state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}
