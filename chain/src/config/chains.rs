//! All configured chains, by name and by id.

use super::chain::Chain;
use super::error::ConfigError;
use super::file::ChainsFile;
use std::path::Path;
use topics::ChainId;

/// The chains of `chains.yaml`, with their ids resolved.
#[derive(Clone, Debug)]
pub struct Chains(Vec<Chain>);

impl Chains {
    /// Reads the file. [`ChainsFile::resolve`] then asks the nodes for missing chain ids.
    ///
    /// # Errors
    /// With the line and key of the first mistake.
    pub fn load(path: impl AsRef<Path>) -> Result<ChainsFile, ConfigError> {
        ChainsFile::load(path.as_ref())
    }

    /// Finds a chain by its name.
    pub fn by_name(&self, name: &str) -> Option<&Chain> {
        self.0.iter().find(|chain| chain.name == name)
    }

    /// Finds the chain that a command names, by its name or id.
    ///
    /// # Errors
    /// If there is none. The error lists the chains there are.
    pub fn named(&self, name: &str) -> Result<&Chain, ConfigError> {
        let by_id = || name.parse().ok().and_then(|id| self.by_id(ChainId(id)));
        self.by_name(name).or_else(by_id).ok_or_else(|| {
            let names: Vec<&str> = self.iter().map(|chain| chain.name.as_str()).collect();
            ConfigError::NoChain { name: name.to_owned(), names: names.join(", ") }
        })
    }

    /// Finds a chain by its id.
    pub fn by_id(&self, id: ChainId) -> Option<&Chain> {
        self.0.iter().find(|chain| chain.id == id)
    }

    /// All chains in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &Chain> {
        self.0.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Chain> {
        self.0.iter_mut()
    }
}

impl From<Vec<Chain>> for Chains {
    fn from(chains: Vec<Chain>) -> Self {
        Self(chains)
    }
}

impl IntoIterator for Chains {
    type Item = Chain;
    type IntoIter = std::vec::IntoIter<Chain>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
