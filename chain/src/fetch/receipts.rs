//! The receipts of a block: at once, one by one where that fails, or its logs from nodes without `eth_getBlockReceipts`.

use super::block_id::BlockId;
use crate::block::{Block, Log, Receipt, Receipts};
use crate::rpc::{Call, Endpoint, RpcError};
use alloy::primitives::{B256, U256};
use serde_json::json;
use std::collections::HashMap;

pub(super) const BLOCK_RECEIPTS: &str = "eth_getBlockReceipts";
/// Receipts per batch, from nodes that have them by transaction only.
const RECEIPTS_PER_BATCH: usize = 100;

/// Fetches all receipts of a block. `None` if the node lacks the block.
pub(super) async fn fetch_receipts(endpoint: &Endpoint, id: BlockId) -> Result<Option<Vec<Receipt>>, RpcError> {
    endpoint.request(BLOCK_RECEIPTS, json!([id.as_json()])).await
}

/// Fetches what payments need of the receipts, without `eth_getBlockReceipts`: all logs, and the receipts of the transactions
/// that carry value. `None` if the node lacks one of those.
pub(super) async fn fetch_logs(endpoint: &Endpoint, block: &Block) -> Result<Option<Receipts>, RpcError> {
    let logs: Result<Vec<Log>, RpcError> = endpoint.request("eth_getLogs", json!([{ "blockHash": block.hash }])).await;
    let mut logs = match logs {
        // Too many logs for this provider. Receipts by transaction have fewer each, and prove more.
        Err(error) if error.is_result_limit() => {
            return fetch_single_receipts(endpoint, block).await;
        }
        logs => logs?,
    };
    logs.sort_by_key(|log| log.log_index);
    let with_value: Vec<B256> = block.transactions.iter().filter(|tx| tx.value > U256::ZERO).map(|tx| tx.hash).collect();
    let Some(receipts) = fetch_receipts_of(endpoint, block, &with_value).await? else { return Ok(None) };
    let paying: HashMap<B256, Receipt> = receipts.into_iter().map(|receipt| (receipt.transaction_hash, receipt)).collect();
    // A receipt of another transaction must not replace a missing one.
    Ok(with_value.iter().all(|hash| paying.contains_key(hash)).then_some(Receipts::Logs { logs, paying }))
}

/// Fetches all receipts of a block one by one, for a block whose `eth_getBlockReceipts` fails. `None` if the node lacks one.
pub(super) async fn fetch_single_receipts(endpoint: &Endpoint, block: &Block) -> Result<Option<Receipts>, RpcError> {
    let hashes: Vec<B256> = block.transactions.iter().map(|transaction| transaction.hash).collect();
    Ok(fetch_receipts_of(endpoint, block, &hashes).await?.map(Receipts::All))
}

/// Fetches the receipts of these transactions of the block. `None` if the node lacks one.
async fn fetch_receipts_of(endpoint: &Endpoint, block: &Block, hashes: &[B256]) -> Result<Option<Vec<Receipt>>, RpcError> {
    let mut receipts = Vec::with_capacity(hashes.len());
    for hashes in hashes.chunks(RECEIPTS_PER_BATCH) {
        for receipt in fetch_some_receipts(endpoint, hashes).await? {
            // The transaction may be in another block too, whose receipt says nothing about this one.
            match receipt.filter(|receipt| receipt.block_hash == Some(block.hash)) {
                Some(receipt) => receipts.push(receipt),
                None => return Ok(None),
            }
        }
    }
    Ok(Some(receipts))
}

async fn fetch_some_receipts(endpoint: &Endpoint, hashes: &[B256]) -> Result<Vec<Option<Receipt>>, RpcError> {
    const METHOD: &str = "eth_getTransactionReceipt";
    let calls: Vec<Call> = hashes.iter().map(|hash| (METHOD, json!([hash]))).collect();
    endpoint.batch(&calls).await?.into_iter().map(|answer| endpoint.read(METHOD, &answer?)).collect()
}
