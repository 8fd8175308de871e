//! A block from the first endpoint that can prove it.

use super::block_id::BlockId;
use super::cross_check::confirm_elsewhere;
use super::error::FetchError;
use super::fetched::FetchedBlock;
use super::from_endpoint::fetch_from_endpoint;
use super::options::FetchOptions;
use crate::proof::Verify;
use crate::rpc::Rpc;

/// Fetches a block with its receipts from the first endpoint that has both and can prove them. `None` if no endpoint has it.
///
/// One endpoint answers all parts. By number, a reorg may change the block between two requests; parts of another block are
/// then fetched again by hash. What no root covers, such as traces, a second endpoint must confirm if there is one.
///
/// # Errors
/// The last endpoint's failure, if none gave a proven answer; or a contradiction between two endpoints.
pub async fn fetch_block(rpc: &Rpc, options: FetchOptions, id: BlockId) -> Result<Option<FetchedBlock>, FetchError> {
    let found = rpc.with_failover(|endpoint| async move {
        let fetched = fetch_from_endpoint(&endpoint, options, id).await?;
        Ok::<_, FetchError>(fetched.map(|fetched| (endpoint, fetched)))
    });
    let Some((endpoint, fetched)) = found.await? else { return Ok(None) };
    if options.verify != Verify::Off {
        confirm_elsewhere(rpc, &endpoint, &fetched).await?;
    }
    let source = matches!(id, BlockId::Number(_)).then_some(endpoint);
    Ok(Some(FetchedBlock { source, ..fetched }))
}
