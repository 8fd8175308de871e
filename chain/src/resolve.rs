//! Resolving chain ids, at the start and when the file is read again: `chains.yaml` may leave them out, and the nodes know them.

use crate::config::{Chain, Chains, ChainsFile, NodeUrl};
use crate::rpc::{Rpc, RpcError};
use std::collections::HashSet;
use std::time::Duration;
use topics::ChainId;

/// Why the entries of `chains.yaml` can't become chains.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The file has no chain id, and no node answered.
    #[error("chain {chain} has no chain_id in the chains file, and none of its nodes answered: write it there, or start again")]
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

impl ResolveError {
    /// The name of the chain that is left out.
    pub fn chain(&self) -> &str {
        match self {
            Self::Unknown { chain, .. } => chain,
            Self::SameId { other, .. } => other,
        }
    }
}

/// How long the start waits for the nodes of chains without an id.
const PATIENCE: Duration = Duration::from_secs(10);

impl ChainsFile {
    /// For a command about one chain: leaves out other chains whose nodes would be asked for an id, and may be down.
    #[must_use]
    pub fn only(mut self, name: &str) -> Self {
        let id = name.parse().ok().map(ChainId);
        if self.entries.iter().any(|entry| entry.name == name || id.is_some() && entry.chain_id == id) {
            self.entries.retain(|entry| entry.name == name || entry.chain_id.is_some());
        }
        self
    }

    /// Fills in the ids of chains that are known by their endpoints, unless another entry has them. A name may be another chain's by
    /// now.
    #[must_use]
    pub(crate) fn with_ids_of(mut self, known: &Chains) -> Self {
        let mut taken: HashSet<ChainId> = self.entries.iter().filter_map(|entry| entry.chain_id).collect();
        for entry in self.entries.iter_mut().filter(|entry| entry.chain_id.is_none()) {
            let shares = |chain: &&Chain| entry.rpc_urls.iter().any(|url| chain.rpc_urls.contains(url));
            let same = || known.iter().find(|chain| chain.rpc_urls == entry.rpc_urls);
            let id = known.by_name(&entry.name).filter(shares).or_else(same).map(|chain| chain.id);
            entry.chain_id = id.filter(|id| taken.insert(*id));
        }
        self
    }

    /// Asks the nodes for missing chain ids and fills in presets.
    ///
    /// An entry with an id causes no request: the API must start while a node is down. [`Rpc`] checks the id of each endpoint
    /// before its first use.
    ///
    /// # Errors
    /// If an id is missing and no node answers, or two entries are the same chain.
    pub async fn resolve(self) -> Result<Chains, ResolveError> {
        let (chains, left_out) = self.resolve_known().await;
        left_out.into_iter().next().map_or(Ok(chains), Err)
    }

    /// As [`resolve`](Self::resolve), for roles: a chain whose id can't be known now is left out, and the others go on.
    pub async fn resolve_known(self) -> (Chains, Vec<ResolveError>) {
        let ids = futures::future::join_all(self.entries.iter().map(|entry| async move {
            match entry.chain_id {
                Some(id) => Ok(id),
                None => ask_for_id(&entry.name, &entry.rpc_urls).await,
            }
        }))
        .await;
        let known: Vec<(String, ChainId)> =
            self.entries.iter().filter_map(|entry| Some((entry.name.clone(), entry.chain_id?))).collect();
        let (mut chains, mut left_out): (Vec<Chain>, Vec<ResolveError>) = (Vec::new(), Vec::new());
        for (entry, id) in self.entries.into_iter().zip(ids) {
            let seen = |id: ChainId| {
                let before = chains.iter().map(|chain| (&chain.name, chain.id));
                let twin = known.iter().map(|(name, id)| (name, *id)).chain(before).find(|(_, known)| *known == id);
                twin.map(|(name, _)| name.clone())
            };
            match id {
                Ok(id) => match seen(id).filter(|_| entry.chain_id.is_none()) {
                    Some(one) => left_out.push(ResolveError::SameId { one, other: entry.name, id }),
                    None => chains.push(entry.into_chain(id)),
                },
                Err(error) => left_out.push(error),
            }
        }
        (Chains::from(chains), left_out)
    }
}

async fn ask_for_id(chain: &str, urls: &[NodeUrl]) -> Result<ChainId, ResolveError> {
    let rpc = Rpc::new(chain, urls, None);
    let answer = tokio::time::timeout(PATIENCE, rpc.chain_id()).await;
    answer
        .unwrap_or_else(|_| Err(RpcError::AllOpen(chain.to_owned())))
        .map_err(|source| ResolveError::Unknown { chain: chain.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn file(text: &str) -> ChainsFile {
        ChainsFile::parse(Path::new("chains.yaml"), text).unwrap()
    }

    /// The operator moves a name to another chain's nodes: its payments would be looked for on the wrong chain.
    #[tokio::test]
    async fn what_was_resolved_is_kept_only_as_long_as_the_nodes_are_the_same() {
        let known =
            "[{name: a, chain_id: 1, rpc_urls: [http://one, http://two]}, {name: b, chain_id: 2, rpc_url: http://three}]";
        let known = file(known).resolve().await.unwrap();
        for (entries, ids) in [
            ("[{name: a, rpc_urls: [http://one, http://two]}, {name: b, rpc_url: http://three}]", [Some(1), Some(2)]),
            ("[{name: a, rpc_urls: [http://two, http://four]}, {name: other, rpc_url: http://three}]", [Some(1), Some(2)]),
            ("[{name: a, rpc_url: http://four}, {name: b, rpc_url: http://four}]", [None, None]),
            ("[{name: a, rpc_url: http://three}, {name: c, rpc_url: http://one}]", [Some(2), None]),
        ] {
            let found: Vec<_> = file(entries).with_ids_of(&known).entries.iter().map(|entry| entry.chain_id).collect();
            assert_eq!(found, ids.map(|id| id.map(ChainId)), "{entries}");
        }
    }
}
