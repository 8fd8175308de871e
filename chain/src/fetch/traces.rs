//! Call traces from whichever tracer the endpoint has.

use super::error::FetchError;
use super::fetched::FetchedBlock;
use crate::rpc::{Answer, Endpoint, RpcError};
use crate::trace::{InternalTransfer, Tracer, internal_transfers};
use serde_json::json;

/// In order of preference: the one that takes a hash before the one that takes a number.
const TRACERS: [Tracer; 2] = [Tracer::CallTracer, Tracer::TraceBlock];

/// Fetches the internal transfers of a block.
pub(super) async fn fetch_internal_transfers(
    endpoint: &Endpoint,
    fetched: &FetchedBlock,
) -> Result<Vec<InternalTransfer>, FetchError> {
    let block = &fetched.block;
    // Nothing ran, and some tracers fail on genesis.
    if block.transactions.is_empty() {
        return Ok(Vec::new());
    }
    loop {
        let place = endpoint.tracer();
        let Some(tracer) = TRACERS.get(place) else {
            return Err(FetchError::NoTracer { endpoint: endpoint.host().to_owned() });
        };
        match request_trace(endpoint, *tracer, fetched).await {
            Ok(answer) => {
                return internal_transfers(block, &fetched.statuses, *tracer, answer.get()).map_err(|source| {
                    let endpoint = endpoint.host().to_owned();
                    FetchError::Trace { endpoint, number: block.number, source: Box::new(source) }
                });
            }
            Err(error) if error.is_unsupported() => endpoint.mark_without_tracer(place),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn request_trace(endpoint: &Endpoint, tracer: Tracer, fetched: &FetchedBlock) -> Result<Answer, RpcError> {
    let block = &fetched.block;
    match tracer {
        Tracer::CallTracer => endpoint.raw("debug_traceBlockByHash", json!([block.hash, { "tracer": "callTracer" }])).await,
        // It takes only a number. Reading the answer checks that it belongs to this block.
        Tracer::TraceBlock => endpoint.raw("trace_block", json!([format!("{:#x}", block.number)])).await,
    }
}
