//! The chains' nodes, asked for nothing but their heads.

use crate::catalog::Catalog;
use chain::{Rpc, fetch_head};
use futures::future::join_all;
use std::collections::HashMap;
use std::time::Duration;
use topics::ChainId;

/// One client a chain.
pub struct Nodes(Vec<(ChainId, Rpc)>);

impl Nodes {
    /// Connects when asked.
    pub fn new(catalog: &Catalog) -> Self {
        Self(catalog.0.iter().map(|chain| (chain.id, Rpc::new(&chain.name, &chain.rpc_urls, Some(chain.id)))).collect())
    }

    /// The number of each chain's head, or why there is none, asked all at once.
    pub async fn heads(&self, within: Duration) -> HashMap<ChainId, Result<u64, String>> {
        let asked = self.0.iter().map(|(id, rpc)| async move {
            let head = match tokio::time::timeout(within, fetch_head(rpc, None)).await {
                Ok(Ok(Some(head))) => Ok(head.number),
                Ok(Ok(None)) => Err("the node has no head".to_owned()),
                Ok(Err(error)) => Err(runtime::chain_of(&error)),
                Err(_) => Err(format!("no answer in {within:?}")),
            };
            (*id, head)
        });
        join_all(asked).await.into_iter().collect()
    }
}
