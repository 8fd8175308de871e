//! Resolving chain ids: `chains.yaml` may leave them out, and the nodes know them.

use crate::config::{Chain, Chains, ChainsFile};
use crate::rpc::{Rpc, RpcError};
use topics::ChainId;

/// Why the entries of `chains.yaml` can't become chains.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The file has no chain id, and no node answered.
    #[error("chain {chain} has no chain_id in the chains file, and none of its nodes answered")]
    Unknown {
        chain: String,
        /// The failure of the last node.
        #[source]
        source: RpcError,
    },
    /// Two entries are the same chain.
    #[error("chains {one} and {other} have the same chain id {id}; expected one entry per chain")]
    SameId { one: String, other: String, id: ChainId },
}

impl ChainsFile {
    /// Asks the nodes for missing chain ids and fills in presets.
    ///
    /// An entry with an id causes no request: the API must start while a node is down. [`Rpc`] checks the id of each endpoint
    /// before its first use.
    ///
    /// # Errors
    /// If an id is missing and no node answers, or two entries are the same chain.
    pub async fn resolve(self) -> Result<Chains, ResolveError> {
        let mut chains: Vec<Chain> = Vec::new();
        for entry in self.entries {
            let id = match entry.chain_id {
                Some(id) => id,
                None => Rpc::new(&entry.name, &entry.rpc_urls, None)
                    .chain_id()
                    .await
                    .map_err(|source| ResolveError::Unknown { chain: entry.name.clone(), source })?,
            };
            if let Some(twin) = chains.iter().find(|chain| chain.id == id) {
                return Err(ResolveError::SameId { one: twin.name.clone(), other: entry.name, id });
            }
            chains.push(entry.into_chain(id));
        }
        Ok(Chains::new(chains))
    }
}
