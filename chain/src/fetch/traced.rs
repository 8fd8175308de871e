use super::{FetchError, FetchedBlock};
use crate::rpc::{Answer, Endpoint, RpcError};
use crate::trace::{InternalTransfer, Tracer, internal_transfers};
use serde_json::json;

/// In the order in which they are tried: by hash before by number.
const TRACERS: [Tracer; 2] = [Tracer::CallTracer, Tracer::TraceBlock];

/// What contracts moved in a block, from whichever tracer the endpoint has.
pub(super) async fn get_internal(endpoint: &Endpoint, fetched: &FetchedBlock) -> Result<Vec<InternalTransfer>, FetchError> {
    let block = &fetched.block;
    // Nothing ran, and some tracers have nothing to say of genesis.
    if block.transactions.is_empty() {
        return Ok(Vec::new());
    }
    loop {
        let place = endpoint.tracer();
        let Some(tracer) = TRACERS.get(place) else {
            return Err(FetchError::NoTracer { endpoint: endpoint.host().to_owned() });
        };
        match ask(endpoint, *tracer, fetched).await {
            Ok(answer) => {
                return internal_transfers(block, &fetched.statuses, *tracer, answer.get()).map_err(|source| {
                    let endpoint = endpoint.host().to_owned();
                    FetchError::Trace { endpoint, number: block.number, source: Box::new(source) }
                });
            }
            Err(error) if error.is_unsupported() => endpoint.lacks_tracer(place),
            Err(error) => return Err(error.into()),
        }
    }
}

async fn ask(endpoint: &Endpoint, tracer: Tracer, fetched: &FetchedBlock) -> Result<Answer, RpcError> {
    let block = &fetched.block;
    match tracer {
        Tracer::CallTracer => endpoint.raw("debug_traceBlockByHash", json!([block.hash, { "tracer": "callTracer" }])).await,
        // It takes a number alone; whether the answer is of this block is looked at when it is read.
        Tracer::TraceBlock => endpoint.raw("trace_block", json!([format!("{:#x}", block.number)])).await,
    }
}
