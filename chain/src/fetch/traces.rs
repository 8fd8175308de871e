//! Call traces from whichever tracer the endpoint has: of the block, or of one transaction after the other where the block's trace
//! fails. Anyone can make a transaction whose trace is too large or takes too long; it must not take the others' with it.

use super::error::FetchError;
use super::fetched::FetchedBlock;
use crate::rpc::{Answer, Endpoint, RpcError};
use crate::trace::{InternalTransfer, Tracer, internal_transfers, internal_transfers_one_by_one, may_move_coin};
use alloy::primitives::B256;
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::time::Duration;

/// In order of preference: the one that takes a hash before the one that takes a number.
const TRACERS: [Tracer; 2] = [Tracer::CallTracer, Tracer::TraceBlock];
/// How long the node may run one transaction, at most. It gives up before we do, and does not work for nobody.
const MAX_TRACER_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_PARALLEL_TRACES: usize = 4;

/// What an endpoint's tracer told of a block.
#[derive(Debug, Default)]
pub(super) struct Traces {
    pub transfers: Vec<InternalTransfer>,
    /// Transactions that may have moved coin inside.
    pub wanted: usize,
    /// Positions of those that it could not trace.
    pub untraced: Vec<u32>,
    /// Why, of one of them.
    pub why: Option<RpcError>,
}

impl Traces {
    /// The transfers of transactions that neither left untraced.
    pub fn in_common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a InternalTransfer> {
        let traced = |index| !self.untraced.contains(index) && !other.untraced.contains(index);
        self.transfers.iter().filter(move |transfer| traced(&transfer.transaction_index))
    }

    /// The traces of an endpoint that could trace nothing.
    pub fn none(fetched: &FetchedBlock) -> Self {
        let wanted: Vec<u32> = wanted(fetched).map(|(index, _)| index).collect();
        Self { wanted: wanted.len(), untraced: wanted, ..Self::default() }
    }

    /// Whether there is nothing of what was wanted.
    pub fn are_none(&self) -> bool {
        self.wanted > 0 && self.untraced.len() == self.wanted
    }

    /// Whether another attempt would end in the same way, as far as the errors tell.
    pub fn are_final(&self) -> bool {
        let by_itself = self.why.as_ref().is_none_or(|why| match why {
            RpcError::TooLarge { .. } | RpcError::Malformed { .. } => true,
            RpcError::Refused { message, .. } => ["timeout", "timed out", "abort"].iter().any(|word| message.contains(word)),
            _ => false,
        });
        by_itself || !self.are_none()
    }
}

/// The transactions whose traces may show transfers.
fn wanted(fetched: &FetchedBlock) -> impl Iterator<Item = (u32, B256)> {
    let all = (0_u32..).zip(&fetched.block.transactions);
    all.filter(|(index, tx)| may_move_coin(&fetched.statuses, *index, tx)).map(|(index, tx)| (index, tx.hash))
}

/// Fetches the internal transfers of a block. Its trace takes no longer than `limit`, nor do all single traces together:
/// transactions without an answer by then stay untraced.
pub(super) async fn fetch_traces(endpoint: &Endpoint, fetched: &FetchedBlock, limit: Duration) -> Result<Traces, FetchError> {
    let block = &fetched.block;
    // Nothing ran, and some tracers fail on genesis.
    if block.transactions.is_empty() {
        return Ok(Traces::default());
    }
    loop {
        let Some((place, tracer)) = endpoint.tracer().and_then(|place| Some((place, *TRACERS.get(place)?))) else {
            return Err(FetchError::NoTracer { endpoint: endpoint.host().to_owned() });
        };
        let of_block = match request_trace(endpoint, tracer, fetched, limit).await {
            Ok(answer) => {
                endpoint.mark_with_tracer(place);
                internal_transfers(block, &fetched.statuses, tracer, answer.get()).map_err(|source| {
                    let endpoint = endpoint.host().to_owned();
                    FetchError::Trace { endpoint, number: block.number, source: Box::new(source) }
                })
            }
            Err(error) if error.is_unsupported() => {
                endpoint.mark_without_tracer(place);
                continue;
            }
            Err(error) if error.is_rate_limit() || error.is_unreachable() => return Err(error.into()),
            Err(error) => Err(error.into()),
        };
        match of_block {
            Ok(transfers) => return Ok(Traces { transfers, wanted: wanted(fetched).count(), ..Traces::default() }),
            Err(error) => {
                let error = base::error_chain(&error);
                tracing::debug!(endpoint = endpoint.host(), number = block.number, "tracing one by one: {error}");
                return trace_one_by_one(endpoint, tracer, fetched, limit).await;
            }
        }
    }
}

async fn trace_one_by_one(
    endpoint: &Endpoint,
    tracer: Tracer,
    fetched: &FetchedBlock,
    limit: Duration,
) -> Result<Traces, FetchError> {
    let FetchedBlock { block, statuses, .. } = fetched;
    let mut answers: Vec<Option<Answer>> = vec![None; block.transactions.len()];
    let wanted: Vec<(u32, B256)> = wanted(fetched).collect();
    let mut why = None;
    {
        let requests = wanted
            .clone()
            .into_iter()
            .map(|(index, hash)| async move { (index, request_single_trace(endpoint, tracer, hash, limit).await) });
        let mut running = futures::stream::iter(requests).buffer_unordered(MAX_PARALLEL_TRACES);
        let until = tokio::time::Instant::now() + limit;
        loop {
            let Ok(next) = tokio::time::timeout_at(until, running.next()).await else {
                why.get_or_insert_with(|| late("the traces of single transactions", endpoint, limit));
                break;
            };
            let Some((index, outcome)) = next else { break };
            match outcome {
                Ok(answer) => {
                    if let Some(slot) = usize::try_from(index).ok().and_then(|index| answers.get_mut(index)) {
                        *slot = Some(answer);
                    }
                }
                Err(error) if error.is_rate_limit() || error.is_unreachable() => return Err(error.into()),
                Err(error) => why = Some(error),
            }
        }
    }
    let texts: Vec<Option<&str>> = answers.iter().map(|answer| answer.as_ref().map(Answer::get)).collect();
    let (transfers, untraced) = internal_transfers_one_by_one(block, statuses, tracer, &texts);
    Ok(Traces { transfers, wanted: wanted.len(), untraced, why })
}

async fn request_trace(
    endpoint: &Endpoint,
    tracer: Tracer,
    fetched: &FetchedBlock,
    limit: Duration,
) -> Result<Answer, RpcError> {
    let block = &fetched.block;
    let (method, params) = match tracer {
        Tracer::CallTracer => ("debug_traceBlockByHash", json!([block.hash, call_tracer(limit)])),
        // It takes only a number. Reading the answer checks that it belongs to this block.
        Tracer::TraceBlock => ("trace_block", json!([format!("{:#x}", block.number)])),
    };
    let answer = tokio::time::timeout(limit, endpoint.raw(method, params)).await;
    answer.unwrap_or_else(|_| Err(late(method, endpoint, limit)))
}

fn late(method: &'static str, endpoint: &Endpoint, after: Duration) -> RpcError {
    RpcError::Late { method, endpoint: endpoint.host().to_owned(), after }
}

async fn request_single_trace(endpoint: &Endpoint, tracer: Tracer, hash: B256, limit: Duration) -> Result<Answer, RpcError> {
    match tracer {
        Tracer::CallTracer => endpoint.raw("debug_traceTransaction", json!([hash, call_tracer(limit)])).await,
        Tracer::TraceBlock => endpoint.raw("trace_transaction", json!([hash])).await,
    }
}

fn call_tracer(limit: Duration) -> Value {
    let timeout = (limit / 2).min(MAX_TRACER_TIMEOUT).as_millis();
    json!({ "tracer": "callTracer", "timeout": format!("{timeout}ms") })
}
