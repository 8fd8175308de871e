//! A block with its receipts from one endpoint, proven.

use super::block_id::{BlockId, block_call};
use super::error::FetchError;
use super::fetched::FetchedBlock;
use super::receipts::{BLOCK_RECEIPTS, fetch_logs, fetch_receipts, fetch_single_receipts};
use crate::block::{Block, Receipt, Receipts};
use crate::proof::{ProofError, Verify};
use crate::rpc::{Answer, Batch, Endpoint, Reply, RpcError};
use serde_json::json;

/// Fetches a block with its receipts. `None` if the endpoint lacks the block or its receipts.
pub(super) async fn fetch_from_endpoint(
    endpoint: &Endpoint,
    verify: Verify,
    id: BlockId,
) -> Result<Option<FetchedBlock>, FetchError> {
    let unproven = |source| FetchError::Unproven { endpoint: endpoint.host().to_owned(), source };
    let answer = if endpoint.has_block_receipts() {
        fetch_block_and_receipts(endpoint, id).await
    } else {
        fetch_block_object(endpoint, id).await.map(|block| (block, Ok(None)))
    };
    let (block, receipts) = match answer {
        Err(error) if error.is_null_round() => return Ok(None),
        answer => answer?,
    };
    let Some(block) = block else { return Ok(None) };
    match id {
        // Where the chain skips the number, some nodes answer with the block below.
        BlockId::Number(number) if block.number < number => return Ok(None),
        BlockId::Number(number) if number != block.number => {
            return Err(unproven(ProofError::new(number, "the number", number, block.number)));
        }
        BlockId::Hash(hash) if hash != block.hash => {
            return Err(unproven(ProofError::new(block.number, "the hash", hash, block.hash)));
        }
        _ => {}
    }
    let by_hash = matches!(id, BlockId::Hash(_));
    let moved = |receipts: &[Receipt]| {
        // A reorg put another block in its place, maybe an empty one.
        receipts.is_empty() && !block.transactions.is_empty()
            || receipts.iter().any(|receipt| receipt.block_hash.is_some_and(|hash| hash != block.hash))
    };
    let receipts = match receipts {
        // A reorg between two answers is nobody's fault, and by hash it can't happen.
        Ok(Some(receipts)) if !by_hash && moved(&receipts) => fetch_receipts(endpoint, BlockId::Hash(block.hash)).await,
        Ok(None) if !by_hash && endpoint.has_block_receipts() => fetch_receipts(endpoint, BlockId::Hash(block.hash)).await,
        receipts => receipts,
    };
    let receipts = match receipts {
        Ok(Some(all)) => {
            endpoint.mark_with_block_receipts();
            Some(Receipts::All(all))
        }
        Err(error) if error.is_unsupported() || error.is_result_limit() => {
            if error.is_unsupported() {
                endpoint.mark_without_block_receipts();
            }
            fetch_logs(endpoint, &block).await?
        }
        Err(error) if error.is_rate_limit() || error.is_unreachable() => return Err(error.into()),
        // It may fail for this block alone. The receipts one by one prove as much.
        Err(error) => match fetch_single_receipts(endpoint, &block).await {
            Ok(receipts) => receipts,
            Err(_) => return Err(error.into()),
        },
        Ok(None) if !endpoint.has_block_receipts() => fetch_logs(endpoint, &block).await?,
        Ok(None) => fetch_single_receipts(endpoint, &block).await?,
    };
    // A node that does not have the receipts yet counts as one without the block.
    let Some(receipts) = receipts else { return Ok(None) };
    Ok(Some(FetchedBlock::new(block, receipts, verify).map_err(unproven)?))
}

/// Fetches a block and its receipts in one batch, or side by side from a node without batches.
async fn fetch_block_and_receipts(
    endpoint: &Endpoint,
    id: BlockId,
) -> Result<(Option<Block>, Result<Option<Vec<Receipt>>, RpcError>), RpcError> {
    if !endpoint.takes_batches() {
        let (block, receipts) = tokio::join!(fetch_block_object(endpoint, id), fetch_receipts(endpoint, id));
        return Ok((block?, receipts));
    }
    let (method, params) = block_call(id, true);
    let calls = [(method, params), (BLOCK_RECEIPTS, json!([id.as_json()]))];
    // Nearly every block reads in one pass. Otherwise its parts are read one by one, tolerantly.
    let whole = |reply: &Reply| {
        let (block, receipts): (Block, Vec<Receipt>) = reply.read()?;
        (block.header_hash() == Some(block.hash)).then_some((block, receipts))
    };
    let mut answers = match endpoint.batch_read(&calls, whole).await {
        Ok(Batch::Read((block, receipts))) => return Ok((Some(block), Ok(Some(receipts)))),
        Ok(Batch::Split(answers)) => answers.into_iter(),
        // Both together may be too much.
        Err(error) if error.is_too_much() => return Ok((fetch_block_object(endpoint, id).await?, Err(error))),
        Err(error) => return Err(error),
    };
    let missing = || Err(RpcError::IncompleteBatch { method, endpoint: endpoint.host().to_owned() });
    let (block, receipts) = (answers.next().unwrap_or_else(missing)?, answers.next().unwrap_or_else(missing));
    Ok((read_block(endpoint, method, &block)?, receipts.and_then(|answer| endpoint.read(BLOCK_RECEIPTS, &answer))))
}

async fn fetch_block_object(endpoint: &Endpoint, id: BlockId) -> Result<Option<Block>, RpcError> {
    let (method, params) = block_call(id, true);
    read_block(endpoint, method, &endpoint.raw(method, params).await?)
}

fn read_block(endpoint: &Endpoint, method: &'static str, answer: &Answer) -> Result<Option<Block>, RpcError> {
    if answer.get() == "null" {
        return Ok(None);
    }
    Block::parse(answer.get()).map(Some).map_err(|source| endpoint.malformed(method, source))
}
