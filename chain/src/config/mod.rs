//! `chains.yaml` as values. A new chain is an entry there and needs no code.
//!
//! The file is checked as it is parsed, so that each mistake is reported with its line and key. Presets fill in what an entry
//! of a well-known chain leaves out. Nothing here talks to a node: [`ChainsFile::resolve`] asks for missing chain ids.

mod chain;
mod chains;
mod error;
mod file;
mod keys;
mod names;
mod presets;
mod scalar;
mod sweeping;
mod tiers;
mod tokens;
mod url;

pub use chain::{COIN_DECIMALS, Chain, Policy, SweepAt, Sweeping, Tier, Token};
pub use chains::Chains;
pub use error::ConfigError;
pub use file::ChainsFile;
pub use scalar::read_address;
pub use url::NodeUrl;
