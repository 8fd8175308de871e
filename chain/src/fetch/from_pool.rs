//! A block from the first endpoint that can prove it.

use super::block_id::BlockId;
use super::cross_check::{confirm_content, confirm_traces};
use super::error::FetchError;
use super::fetched::FetchedBlock;
use super::from_endpoint::fetch_from_endpoint;
use super::options::FetchOptions;
use super::traces::{Traces, fetch_traces};
use crate::proof::Verify;
use crate::rpc::{Endpoint, Rpc, TraceTime};
use base::metrics;
use std::sync::Arc;
use std::time::Instant;

/// Fetches a block with its receipts from the first endpoint that has both and can prove them. `None` if no endpoint has it.
///
/// One endpoint answers all parts. By number, a reorg may change the block between two requests; parts of another block are
/// then fetched again by hash. What no root covers, such as traces, a second endpoint must confirm if there is one.
///
/// # Errors
/// The last endpoint's failure, if none gave a proven answer; or that two endpoints contradict each other, or that a second one
/// has not confirmed yet.
pub async fn fetch_block(rpc: &Rpc, options: FetchOptions, id: BlockId) -> Result<Option<FetchedBlock>, FetchError> {
    let found = rpc.with_failover(|endpoint| async move {
        let fetched = fetch_from_endpoint(&endpoint, options.verify, id).await?;
        Ok::<_, FetchError>(fetched.map(|fetched| (endpoint, fetched)))
    });
    let Some((endpoint, mut fetched)) = found.await? else { return Ok(None) };
    complete(rpc, options, &endpoint, &mut fetched).await?;
    count_doubts(rpc, &fetched);
    let source = matches!(id, BlockId::Number(_)).then_some(endpoint);
    Ok(Some(FetchedBlock { source, ..fetched }))
}

/// Has others confirm what no root covers, and adds traces. What the rest takes is not charged to them.
async fn complete(
    rpc: &Rpc,
    options: FetchOptions,
    endpoint: &Arc<Endpoint>,
    fetched: &mut FetchedBlock,
) -> Result<(), FetchError> {
    let began = Instant::now();
    if options.verify != Verify::Off {
        confirm_content(rpc, options.witnesses, endpoint, fetched).await?;
    }
    if !options.traces || fetched.logs_coin_transfers() {
        return Ok(());
    }
    let (hash, time) = (fetched.block.hash, rpc.trace_time(fetched.block.hash, began));
    let traced = add_traces(rpc, options, endpoint, fetched, time).await;
    match traced {
        Ok(()) => rpc.record_traced(hash, time.since, fetched.untraced.is_none()),
        Err(_) => rpc.record_tried(hash, time.since),
    }
    traced
}

/// Adds traces, if there is time for them, and has others confirm them.
async fn add_traces(
    rpc: &Rpc,
    options: FetchOptions,
    endpoint: &Arc<Endpoint>,
    fetched: &mut FetchedBlock,
    time: TraceTime,
) -> Result<(), FetchError> {
    let (tracer, traces) = trace(rpc, endpoint, fetched, time).await?;
    if options.verify != Verify::Off {
        confirm_traces(rpc, options.witnesses, &tracer, fetched, &traces, time).await?;
    }
    Ok(())
}

/// Traces the block at the first endpoint that can, beginning with the one that gave it. Transactions that nobody can trace stay
/// untraced.
///
/// # Errors
/// If no endpoint could trace anything, and may be able to yet.
async fn trace(
    rpc: &Rpc,
    asked: &Arc<Endpoint>,
    fetched: &mut FetchedBlock,
    time: TraceTime,
) -> Result<(Arc<Endpoint>, Traces), FetchError> {
    let (mut best, mut failure): (Option<(Arc<Endpoint>, Traces)>, Option<FetchError>) = (None, None);
    for endpoint in [asked.clone()].into_iter().chain(rpc.others(asked)) {
        if Instant::now() >= time.until && (best.is_some() || failure.is_some()) {
            break;
        }
        if let Err(error) = endpoint.check_chain_id().await {
            failure = Some(error.into());
            continue;
        }
        match fetch_traces(&endpoint, fetched, time.step).await {
            Ok(traces) => {
                let is_whole = traces.untraced.is_empty();
                if best.as_ref().is_none_or(|(_, best)| traces.untraced.len() < best.untraced.len()) {
                    best = Some((endpoint, traces));
                }
                if is_whole {
                    break;
                }
            }
            Err(error) => failure = Some(error),
        }
    }
    let has_waited = || Instant::now() >= time.waits_until;
    match best {
        Some((endpoint, traces)) if traces.are_final() || has_waited() => {
            fetched.internal = Some(traces.transfers.clone());
            fetched.untraced = (!traces.untraced.is_empty()).then(|| {
                let why = traces.why.as_ref().map_or_else(|| "an unusable answer".to_owned(), ToString::to_string);
                format!("{} transactions could not be traced: {why}", traces.untraced.len())
            });
            Ok((endpoint, traces))
        }
        Some((endpoint, Traces { untraced, why, .. })) => Err(FetchError::Untraced {
            endpoint: endpoint.host().to_owned(),
            number: fetched.block.number,
            count: untraced.len(),
            source: why.map(Box::new),
        }),
        None => match failure {
            Some(error) if !has_waited() => Err(error),
            failure => {
                fetched.internal = Some(Vec::new());
                fetched.untraced = Some(failure.map_or_else(|| "no endpoint".to_owned(), |error| base::error_chain(&error)));
                Ok((asked.clone(), Traces::none(fetched)))
            }
        },
    }
}

/// Counts and names what is published although it is not whole, or rests on one word.
fn count_doubts(rpc: &Rpc, fetched: &FetchedBlock) {
    let (chain, number) = (rpc.chain(), fetched.block.number);
    if let Some(why) = &fetched.untraced {
        metrics::CHAIN_UNTRACED.counter(&[("chain", chain)]).increment(1);
        tracing::warn!(
            chain,
            "block {number} is not traced whole, so coin that contracts sent in it may not be seen: {why}. Once a node can trace \
             it: ctrip backfill --chain {chain} --from {number} --to {number} --again"
        );
    }
    if fetched.on_one_word {
        metrics::CHAIN_UNAGREED.counter(&[("chain", chain)]).increment(1);
    }
}
