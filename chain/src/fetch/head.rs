//! Heads: the newest one, a given one, tagged ones; and which endpoints have a block.

use super::block_id::{BlockId, BlockTag, block_call};
use crate::block::Head;
use crate::rpc::{Endpoint, Rpc, RpcError};
use alloy::primitives::B256;
use serde_json::json;
use std::sync::Arc;

/// Fetches a block's place in the chain; without an id, the newest head of the preferred endpoint.
///
/// # Errors
/// If no endpoint answered.
pub async fn fetch_head(rpc: &Rpc, id: Option<BlockId>) -> Result<Option<Head>, RpcError> {
    let Some(id) = id else { return Ok(fetch_newest(rpc).await?.map(|(_, head)| head)) };
    rpc.with_failover(|endpoint| async move {
        let (method, params) = block_call(id, false);
        endpoint.request(method, params).await
    })
    .await
}

/// Fetches the newest head, with the endpoint that answered it.
///
/// # Errors
/// If no endpoint answered.
pub async fn fetch_newest(rpc: &Rpc) -> Result<Option<(Arc<Endpoint>, Head)>, RpcError> {
    rpc.with_failover(|endpoint| async move {
        let head: Option<Head> = endpoint.request("eth_getBlockByNumber", json!(["latest", false])).await?;
        if let Some(head) = &head {
            endpoint.record_head(head.number);
        }
        rpc.refresh_heads(&endpoint);
        Ok(head.map(|head| (endpoint, head)))
    })
    .await
}

/// Fetches the `safe` or `finalized` block of the preferred endpoint. `None` if it has none or fails: nothing depends on a
/// single answer, since the next block's record carries the tags again.
pub async fn fetch_tag(rpc: &Rpc, tag: BlockTag) -> Option<Head> {
    let endpoint = rpc.preferred().await?;
    let head: Result<Option<Head>, RpcError> = endpoint.request("eth_getBlockByNumber", json!([tag.as_str(), false])).await;
    head.inspect_err(|error| tracing::trace!(tag = tag.as_str(), "no tagged block: {error}")).ok()?
}

/// Which endpoints have a block on their chain, and which have another.
#[derive(Clone, Debug, Default)]
pub struct Witnesses {
    /// Endpoints that have the block.
    pub with: Vec<Arc<Endpoint>>,
    /// Endpoints that have another block at its height.
    pub against: Vec<Arc<Endpoint>>,
}

/// Asks every endpoint for its block at a height. An endpoint that does not answer, or has no block there, is neither.
pub async fn find_witnesses(rpc: &Rpc, number: u64, hash: B256) -> Witnesses {
    let answers = futures::future::join_all(rpc.endpoints().iter().map(|endpoint| async move {
        endpoint.check_chain_id().await?;
        let (method, params) = block_call(BlockId::Number(number), false);
        endpoint.request(method, params).await.map(|head: Option<Head>| (endpoint.clone(), head))
    }))
    .await;
    let mut witnesses = Witnesses::default();
    for (endpoint, head) in answers.into_iter().filter_map(Result::<_, RpcError>::ok) {
        match head {
            Some(head) if head.hash == hash => witnesses.with.push(endpoint),
            Some(_) => witnesses.against.push(endpoint),
            None => {}
        }
    }
    witnesses
}
