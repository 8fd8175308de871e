//! The chains' nodes, of which the API requests nothing but their heads, for `/health`.

use base::locked;
use chain::{Chain, Listing, NodeUrl, Rpc, fetch_head};
use futures::future::join_all;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use topics::ChainId;

/// One RPC client per chain that is listed.
pub struct Nodes {
    listing: Listing,
    clients: Mutex<Clients>,
}

/// Each with the endpoints that it was made for.
type Clients = HashMap<ChainId, (Vec<NodeUrl>, Arc<Rpc>)>;

impl Nodes {
    /// Connects at the first request.
    pub fn new(listing: Listing) -> Self {
        Self { listing, clients: Mutex::default() }
    }

    fn clients(&self) -> Vec<(ChainId, Arc<Rpc>)> {
        let mut clients = locked(&self.clients);
        let client = |chain: &Chain| {
            let known = clients.remove(&chain.id).filter(|(urls, _)| *urls == chain.rpc_urls);
            let new = || (chain.rpc_urls.clone(), Arc::new(Rpc::new(&chain.name, &chain.rpc_urls, Some(chain.id))));
            (chain.id, known.unwrap_or_else(new))
        };
        let listed: Clients = self.listing.chains().iter().map(client).collect();
        *clients = listed;
        clients.iter().map(|(id, (_, rpc))| (*id, Arc::clone(rpc))).collect()
    }

    /// The head's number of each chain, or the error, with all requests at the same time.
    pub async fn heads(&self, timeout: Duration) -> HashMap<ChainId, Result<u64, String>> {
        let requests = self.clients().into_iter().map(|(id, rpc)| async move {
            let head = match tokio::time::timeout(timeout, fetch_head(&rpc, None)).await {
                Ok(Ok(Some(head))) => Ok(head.number),
                Ok(Ok(None)) => Err("the node has no head".to_owned()),
                Ok(Err(error)) => Err(base::error_chain(&error)),
                Err(_) => Err(format!("no answer in {timeout:?}")),
            };
            (id, head)
        });
        join_all(requests).await.into_iter().collect()
    }
}
