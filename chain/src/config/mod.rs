//! `chains.yaml`: which chains there are. A new chain is an entry there, and no code.

mod file;
mod presets;
mod scalar;
mod tiers;
mod tokens;
mod url;

use crate::fetch::Reading;
use crate::rpc::{Rpc, RpcError};
pub use file::ChainsFile;
use std::path::{Path, PathBuf};
use std::time::Duration;
use topics::{Address, Amount, ChainId};
pub use url::NodeUrl;

/// Digits after the point of every chain's coin: EVM balances are counted in 10^-18.
pub const COIN_DECIMALS: u8 = 18;

/// One chain to follow.
#[derive(Clone, Debug)]
pub struct Chain {
    /// What people and the API call it.
    pub name: String,
    /// EIP-155.
    pub id: ChainId,
    /// HTTP endpoints in order of preference; never empty.
    pub rpc_urls: Vec<NodeUrl>,
    /// Websocket endpoints that tell of new heads at once. May be empty: polling alone finds every block.
    pub ws_urls: Vec<NodeUrl>,
    /// A proof-of-authority chain. Blocks are read the same; for tools that sign.
    pub poa: bool,
    /// When a payment is confirmed, if no tier says otherwise.
    pub policy: Policy,
    /// The same for larger payments in the coin, by rising amount.
    pub tiers: Vec<Tier>,
    /// The first block to publish; the head at the first start if left out.
    pub start_block: Option<u64>,
    /// Time between two looks at the head.
    pub poll_interval: Duration,
    /// How old the newest block that payments follow may be before no new ones are taken; `None` is any age.
    pub max_lag: Option<Duration>,
    /// How a block is proven.
    pub verify: Verify,
    /// Whether nodes are asked for call traces, to see coin that contracts send.
    pub traces: bool,
    /// The tokens that payments can be asked in.
    pub tokens: Vec<Token>,
}

/// When a transfer counts as confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// With so many blocks, its own included.
    Confirmations(u32),
    /// When the node calls its block `safe`.
    Safe,
    /// When the node calls its block `finalized`.
    Finalized,
}

/// The policy for payments of an amount and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Base units of the asset.
    pub from: Amount,
    /// From there on.
    pub policy: Policy,
}

/// How much of a block must be proven before it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Header hash and roots where the encodings are known, and the logs' bloom where they are not.
    Auto,
    /// Header hash and roots, or the block is refused.
    Roots,
    /// The logs' bloom alone: for chains whose hashes are of something else than Ethereum's header.
    Bloom,
    /// Nothing: the node is believed.
    Off,
}

/// A token that payments can be asked in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Unique on its chain, whatever the case.
    pub symbol: String,
    /// Its contract.
    pub address: Address,
    /// Digits after the point.
    pub decimals: u8,
    /// When larger payments in it are confirmed, by rising amount.
    pub tiers: Vec<Tier>,
}

impl Token {
    /// The token's name among all chains (CAIP-19): `eip155:<chain id>/erc20:<checksummed address>`.
    pub fn id(&self, chain: ChainId) -> String {
        format!("eip155:{chain}/erc20:{}", self.address.to_checksum(None))
    }
}

impl Chain {
    /// What is wanted of its blocks.
    pub fn reading(&self) -> Reading {
        Reading { verify: self.verify, traces: self.traces }
    }

    /// The token with this symbol, whatever the case.
    pub fn token_by_symbol(&self, symbol: &str) -> Option<&Token> {
        self.tokens.iter().find(|token| token.symbol.eq_ignore_ascii_case(symbol))
    }

    /// The token at this address.
    pub fn token_by_address(&self, address: Address) -> Option<&Token> {
        self.tokens.iter().find(|token| token.address == address)
    }

    /// When so much of an asset is confirmed: as its highest tier says that does not begin above the amount, or else as the
    /// chain says. `None` is the coin; a token that is not listed has no tiers.
    pub fn policy_for(&self, token: Option<Address>, amount: Amount) -> Policy {
        let tiers = match token {
            None => self.tiers.as_slice(),
            Some(address) => self.token_by_address(address).map_or([].as_slice(), |token| token.tiers.as_slice()),
        };
        tiers.iter().rev().find(|tier| tier.from <= amount).map_or(self.policy, |tier| tier.policy)
    }
}

/// The chains of `chains.yaml`, all with their ids.
#[derive(Clone, Debug)]
pub struct Chains(Vec<Chain>);

impl Chains {
    /// Reads the file; [`ChainsFile::resolve`] then asks the nodes for what it leaves out.
    ///
    /// # Errors
    /// With the line and the key of the first mistake.
    pub fn load(path: impl AsRef<Path>) -> Result<ChainsFile, ConfigError> {
        ChainsFile::load(path.as_ref())
    }

    /// The chain of this name.
    pub fn by_name(&self, name: &str) -> Option<&Chain> {
        self.0.iter().find(|chain| chain.name == name)
    }

    /// The chain of this name, for people who named it.
    ///
    /// # Errors
    /// When there is none; it says which there are.
    pub fn named(&self, name: &str) -> Result<&Chain, ConfigError> {
        self.by_name(name).ok_or_else(|| {
            let names: Vec<&str> = self.iter().map(|chain| chain.name.as_str()).collect();
            ConfigError::NoChain { name: name.to_owned(), names: names.join(", ") }
        })
    }

    /// The chain of this id.
    pub fn by_id(&self, id: ChainId) -> Option<&Chain> {
        self.0.iter().find(|chain| chain.id == id)
    }

    /// All of them, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &Chain> {
        self.0.iter()
    }
}

impl IntoIterator for Chains {
    type Item = Chain;
    type IntoIter = std::vec::IntoIter<Chain>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What is wrong with `chains.yaml`, or with the nodes it names.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the chains file {path}")]
    Read {
        /// `CHAINS_FILE`.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A mistake in the file.
    #[error("{path}:{line}:{column}: {message}")]
    Invalid {
        /// `CHAINS_FILE`.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// The key, what was expected, what is there.
        message: String,
    },
    /// A command names a chain that the file does not have.
    #[error("no chain {name:?} in the chains file; expected one of {names}")]
    NoChain {
        /// The name given.
        name: String,
        /// Those there are.
        names: String,
    },
    /// The file gives no chain id, and no node tells it.
    #[error("chain {chain} has no chain_id in the chains file, and no node of it answered")]
    Unknown {
        /// Its name.
        chain: String,
        /// What the last node said.
        #[source]
        source: RpcError,
    },
    /// Two entries turned out to be one chain.
    #[error("chains {one} and {other} have the same chain id {id}; expected one entry a chain")]
    SameId {
        /// The first entry.
        one: String,
        /// The second.
        other: String,
        /// The id of both.
        id: ChainId,
    },
}

impl ChainsFile {
    /// Asks the nodes for the ids that the file leaves out, and fills in presets.
    ///
    /// Where the file gives an id nobody is asked: an API must start while a node is down. [`Rpc`] checks each endpoint's
    /// id before it uses it.
    ///
    /// # Errors
    /// When an id is missing and no node answers, or two entries are the same chain.
    pub async fn resolve(self) -> Result<Chains, ConfigError> {
        let mut chains: Vec<Chain> = Vec::new();
        for entry in self.entries {
            let id = match entry.chain_id {
                Some(id) => id,
                None => Rpc::new(&entry.name, &entry.rpc_urls, None)
                    .chain_id()
                    .await
                    .map_err(|source| ConfigError::Unknown { chain: entry.name.clone(), source })?,
            };
            if let Some(twin) = chains.iter().find(|chain| chain.id == id) {
                return Err(ConfigError::SameId { one: twin.name.clone(), other: entry.name, id });
            }
            chains.push(entry.complete(id));
        }
        Ok(Chains(chains))
    }
}
