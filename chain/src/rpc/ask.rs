//! Asking one endpoint: a second request goes out beside one that is late, a refused one is repeated at an endpoint that has no
//! other beside it, and a batch has as many calls as the provider takes.

use super::endpoint::{Batch, Endpoint, jitter, locked};
use super::error::RpcError;
use super::patience::{LearnedLatency, MAX_DEADLINE, Patience};
use super::reply::{Answer, Reply};
use super::transport::Call;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Repetitions of a refused request, at a lone endpoint.
const MAX_REPEATS: u32 = 7;
/// Refusals in a row of one batch, after which a smaller one is tried.
const MAX_REFUSALS: u32 = 3;
const MIN_PAUSE: Duration = Duration::from_millis(10);

impl Endpoint {
    /// Sends a request and deserializes the result.
    ///
    /// # Errors
    /// If no answer comes in time, on an error answer, or a result of another type.
    pub async fn request<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, RpcError> {
        let answer = self.raw(method, params).await?;
        self.read(method, &answer)
    }

    /// Sends a request and returns the result's JSON as it came.
    ///
    /// # Errors
    /// If no answer comes in time, or on an error answer.
    pub async fn raw(&self, method: &'static str, params: Value) -> Result<Answer, RpcError> {
        let mut pauses = self.pauses();
        loop {
            match self.send(method, method, || self.transport.call(method, &params), |_| false).await {
                Err(error) if error.is_rate_limit() => match pauses.next() {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                },
                answer => return answer,
            }
        }
    }

    /// Sends several calls, in one HTTP request if the node takes them. Answers are in the order of the calls, whatever the
    /// node's order was.
    ///
    /// # Errors
    /// If the node does not answer all calls.
    pub async fn batch(&self, calls: &[Call]) -> Result<Vec<Result<Answer, RpcError>>, RpcError> {
        match self.batch_read(calls, |_| None::<()>).await? {
            Batch::Split(answers) => Ok(answers),
            Batch::Read(()) => Ok(Vec::new()),
        }
    }

    /// As [`batch`](Self::batch), with a reader that may understand the whole reply in one pass.
    ///
    /// # Errors
    /// If the node does not answer all calls.
    pub async fn batch_read<T>(&self, calls: &[Call], read: impl Fn(&Reply) -> Option<T>) -> Result<Batch<T>, RpcError> {
        let (mut answers, mut rest) = (Vec::with_capacity(calls.len()), calls);
        let (mut pauses, mut refusals) = (self.pauses(), 0);
        while !rest.is_empty() {
            let size = locked(&self.batch_limit, |limit| limit.calls(Instant::now())).min(rest.len());
            let (these, after) = rest.split_at(size);
            if let [(method, params)] = these {
                match self.raw(method, params.clone()).await {
                    Err(error) if !matches!(error, RpcError::Refused { .. }) => return Err(error),
                    answer => answers.push(answer),
                }
                rest = after;
                continue;
            }
            match self.one_batch(these, |reply| read(reply).filter(|_| size == calls.len())).await {
                Ok(Batch::Read(whole)) => return Ok(Batch::Read(whole)),
                Ok(Batch::Split(all)) => {
                    answers.extend(self.repeat_refused(these, all).await);
                    (rest, refusals) = (after, 0);
                }
                Err(error) if error.is_batch_limit() => {
                    tracing::debug!(chain = self.chain, endpoint = self.host, "a batch of {size} was refused: {error}");
                    locked(&self.batch_limit, |limit| limit.record_refusal(size, Instant::now()));
                }
                Err(error) if error.is_rate_limit() => match pauses.next() {
                    Some(pause) => {
                        refusals += 1;
                        // A provider that counts the calls of a batch refuses a large one whatever the pause.
                        if refusals >= MAX_REFUSALS {
                            locked(&self.batch_limit, |limit| limit.record_crowding(size, Instant::now()));
                        }
                        tokio::time::sleep(pause).await;
                    }
                    None => return Err(error),
                },
                Err(error) => return Err(error),
            }
        }
        Ok(Batch::Split(answers))
    }

    /// Sends one batch as it is.
    async fn one_batch<T>(&self, calls: &[Call], read: impl Fn(&Reply) -> Option<T>) -> Result<Batch<T>, RpcError> {
        let methods: Vec<_> = calls.iter().map(|(method, _)| *method).collect();
        let split = |reply: Reply| match read(&reply) {
            Some(whole) => Ok(Batch::Read(whole)),
            None => {
                let all = reply.split(&methods)?;
                // Some providers refuse each call of a batch that is too large.
                match all.iter().all(Result::is_err).then(|| all.first().and_then(|first| first.as_ref().err())).flatten() {
                    Some(error) if error.is_batch_limit() => Err(reply.batch_refused()),
                    _ => Ok(Batch::Split(all)),
                }
            }
        };
        let refused = |answer: &Batch<T>| match answer {
            Batch::Read(_) => false,
            Batch::Split(all) => all.iter().any(|one| one.as_ref().is_err_and(RpcError::is_rate_limit)),
        };
        let method = methods.first().copied().unwrap_or("a batch");
        let request = || async { self.transport.batch(calls).await.and_then(&split) };
        let answer = self.send(method, "a batch", request, refused).await;
        if answer.is_ok() {
            locked(&self.batch_limit, |limit| limit.record_answer(calls.len()));
        }
        answer
    }

    /// Asks again, one by one, for what the rate limit refused of a batch.
    async fn repeat_refused(&self, calls: &[Call], all: Vec<Result<Answer, RpcError>>) -> Vec<Result<Answer, RpcError>> {
        let mut answers = Vec::with_capacity(all.len());
        for (answer, (method, params)) in all.into_iter().zip(calls) {
            answers.push(match answer {
                Err(error) if error.is_rate_limit() && self.is_lone => self.raw(method, params.clone()).await,
                answer => answer,
            });
        }
        answers
    }

    /// Sends a request, and others beside it as long as they are late. The first answer counts. `kind` tells requests apart that
    /// take a different time; `refused` says whether the rate limit refused parts of an answer.
    async fn send<T, F: Future<Output = Result<T, RpcError>>>(
        &self,
        method: &'static str,
        kind: &'static str,
        request: impl Fn() -> F,
        refused: impl Fn(&T) -> bool,
    ) -> Result<T, RpcError> {
        let attempt = |place: usize| {
            let (answer, refused) = (request(), &refused);
            async move {
                let started = Instant::now();
                let outcome = answer.await;
                let limited = outcome.as_ref().is_ok_and(refused);
                self.record_outcome(kind, started, outcome.as_ref().err(), limited);
                (place, outcome)
            }
        };
        self.wait_for_slot(method).await?;
        let Patience { late, deadline } = self.patience(method, kind);
        let given_up = tokio::time::Instant::now() + deadline;
        let (mut running, mut failed) = (FuturesUnordered::new(), 0);
        running.push(attempt(0));
        loop {
            tokio::select! {
                biased;
                Some((place, outcome)) = running.next() => match outcome {
                    // Another one is under way.
                    Err(error) if !running.is_empty() && !matches!(error, RpcError::Refused { .. }) => failed += 1,
                    outcome => {
                        // Those that went out before it are lost.
                        (failed..place).for_each(|_| locked(&self.latency, LearnedLatency::record_lost));
                        return outcome;
                    }
                },
                () = tokio::time::sleep_until(given_up) => {
                    locked(&self.latency, |latency| latency.record_given_up(kind));
                    self.count_request("late");
                    return Err(RpcError::Late { method, endpoint: self.host.clone(), after: deadline });
                }
                () = tokio::time::sleep(late) => {
                    if self.allow_second_request() {
                        tracing::trace!(chain = self.chain, endpoint = self.host, "{method} is late; asking again beside it");
                        running.push(attempt(failed + running.len()));
                    }
                }
            }
        }
    }

    /// How long to wait for an answer. Traces are dear, and may take any time: a second request would only double the load.
    fn patience(&self, method: &str, kind: &'static str) -> Patience {
        if method.starts_with("debug_") || method.starts_with("trace_") {
            return Patience { late: MAX_DEADLINE, deadline: MAX_DEADLINE };
        }
        locked(&self.latency, |latency| latency.patience(kind))
    }

    /// Waits for the rate limit, no longer than for an answer.
    async fn wait_for_slot(&self, method: &'static str) -> Result<(), RpcError> {
        let now = Instant::now();
        let slot = locked(&self.rate_limit, |rate_limit| {
            let wait = rate_limit.wait(now);
            if wait > MAX_DEADLINE { Err(wait) } else { Ok(rate_limit.reserve(now)) }
        });
        let slot = slot.map_err(|wait| RpcError::Throttled { method, endpoint: self.host.clone(), wait })?;
        if slot > now {
            tokio::time::sleep_until(slot.into()).await;
        }
        Ok(())
    }

    /// Whether a second request may go out now. It never waits for the rate limit.
    fn allow_second_request(&self) -> bool {
        let now = Instant::now();
        let free = locked(&self.rate_limit, |rate_limit| rate_limit.reserve_free(now));
        free && locked(&self.latency, |latency| latency.allow_second_request())
    }

    /// The pauses before a refused request is repeated. Where there is another endpoint, that one is asked instead.
    fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        let repeats = if self.is_lone { MAX_REPEATS } else { 0 };
        (0..repeats).map(|repeat| MIN_PAUSE * 2_u32.pow(repeat)).map(|pause| pause.mul_f64(0.5 + jitter()))
    }
}
