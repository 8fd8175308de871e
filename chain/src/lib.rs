//! Everything that talks to a node, and the file that says which nodes there are.
//!
//! - [`Chains`] are the entries of `chains.yaml`, with what [presets](config) fill in.
//! - [`Rpc`] asks a chain's endpoints, in order of preference and by how they behave, again and elsewhere when one fails.
//! - [`fetch_block`] brings a block with its receipts, and [`prove`] checks both against the block's hash: a node that lags
//!   or lies gives an error, never a block.
//! - [`Heads`] hears of new heads over websockets. It wakes whoever looks at the head, and is believed in nothing.
//!
//! Only this crate names alloy's RPC client. It knows no payment rules and no Kafka.

pub mod block;
mod check;
mod config;
mod credit;
mod encode;
mod fetch;
mod heads;
mod proof;
mod rpc;
mod trace;

pub use block::{Block, Head, Log, Receipt, Transaction, Withdrawal};
pub use check::{Hearing, Trial, check, check_websockets};
pub use config::{COIN_DECIMALS, Chain, Chains, ChainsFile, ConfigError, NodeUrl, Policy, Tier, Token, Verify};
pub use credit::{Credit, CreditSource};
pub use fetch::{
    BlockId, FetchError, FetchedBlock, PlacedLog, Reading, Receipts, Status, Witnesses, fetch_block, fetch_head, fetch_newest,
    fetch_tag, witnesses,
};
pub use heads::{Heads, HeadsError, Patience};
pub use proof::{Part, Proof, Unproven, prove};
pub use rpc::{Answer, Endpoint, LAGS, Probe, Reply, Rpc, RpcError, Tag, table};
pub use trace::{InternalTransfer, TraceError, Tracer, internal_transfers};
