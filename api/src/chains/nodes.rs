//! The chains' nodes, of which the API requests nothing but their heads, for `/health`.

use crate::chains::catalog::Catalog;
use chain::{Rpc, fetch_head};
use futures::future::join_all;
use std::collections::HashMap;
use std::time::Duration;
use topics::ChainId;

/// One RPC client per chain.
pub struct Nodes(Vec<(ChainId, Rpc)>);

impl Nodes {
    /// Connects at the first request.
    pub fn new(catalog: &Catalog) -> Self {
        Self(catalog.0.iter().map(|chain| (chain.id, Rpc::new(&chain.name, &chain.rpc_urls, Some(chain.id)))).collect())
    }

    /// The head's number of each chain, or the error, with all requests at the same time.
    pub async fn heads(&self, timeout: Duration) -> HashMap<ChainId, Result<u64, String>> {
        let requests = self.0.iter().map(|(id, rpc)| async move {
            let head = match tokio::time::timeout(timeout, fetch_head(rpc, None)).await {
                Ok(Ok(Some(head))) => Ok(head.number),
                Ok(Ok(None)) => Err("the node has no head".to_owned()),
                Ok(Err(error)) => Err(base::error_chain(&error)),
                Err(_) => Err(format!("no answer in {timeout:?}")),
            };
            (*id, head)
        });
        join_all(requests).await.into_iter().collect()
    }
}
