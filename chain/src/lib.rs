//! Chains and their nodes: `chains.yaml`, JSON-RPC with failover, and blocks that are proven before anybody uses them.
//!
//! In floors, each importing only from those above it in this list:
//!
//! - `block`, `proof`, `trace` and `credit` read and prove what a node answered. Pure: no network, no configuration.
//! - `config` turns `chains.yaml` into [`Chains`], with presets for what an entry leaves out. No network either.
//! - `rpc`: [`Rpc`] sends JSON-RPC to a chain's endpoints, with failover, back-off, circuit breakers and rate limits.
//! - `fetch`: [`fetch_block`] fetches a block with its receipts and [proves](prove) both against the block's hash. A node that
//!   lags or lies causes an error, never a block.
//! - `heads`: [`Heads`] announces new heads from websockets. It wakes the poller; nothing it says is trusted.
//! - `resolve`, `tokens`, `listing` and `check` join the configuration with live nodes: missing chain ids, what tokens' contracts
//!   say, what is listed by now, and `ctrip check`.
//!
//! Only this crate speaks JSON-RPC to nodes. It knows no payment rules and no Kafka.

mod block;
mod check;
mod config;
mod credit;
mod fetch;
mod heads;
mod listing;
mod proof;
mod resolve;
mod rpc;
mod text;
mod tokens;
mod trace;

pub use block::{
    AccessListItem, Authorization, Block, Head, Log, MAX_SKIPPED, Receipt, ReceiptStatus, Receipts, Transaction, Withdrawal,
    may_stand_above,
};
pub use check::{EndpointCheck, WebsocketCheck, check_endpoints, check_websockets};
pub use config::{
    COIN_DECIMALS, Chain, Chains, ChainsFile, ConfigError, NodeUrl, Policy, SweepAt, Sweeping, Tier, Token, read_address,
};
pub use credit::{Credit, CreditSource};
pub use fetch::{
    BlockId, FetchError, FetchOptions, FetchedBlock, PlacedLog, Standing, Tags, Witnesses, fetch_below_hole, fetch_block,
    fetch_head, fetch_head_from, fetch_newest, fetch_standings, fetch_tags, find_content_witnesses, find_witnesses, look_at,
};
pub use heads::{Heads, HeadsError, WsTimeouts};
pub use listing::Listing;
pub use proof::{PartProof, Proof, ProofError, Spent, Verify, prove};
pub use resolve::ResolveError;
pub use rpc::{Answer, Endpoint, MAX_LAG_BLOCKS, Probe, Reply, Rpc, RpcError};
pub use tokens::{TokenVerdict, check_token, check_tokens};
pub use trace::{InternalTransfer, TraceError, Tracer, internal_transfers};
