//! JSON-RPC to a chain's nodes: in order of preference, with failover to the next endpoint and back-off when all fail.
//!
//! - `pool`: [`Rpc`], failover, retries and the order in which endpoints are asked.
//! - `endpoint`: one node. `ask`: its requests and batches.
//! - `error`: [`RpcError`], and what providers mean by their error codes and texts.
//! - `health`: circuit breaker and ranking. `rate_limit`: how fast a provider lets us ask. `batch_limit`: how much at a time.
//!   `patience`: when an answer is late. `capability`: which methods it has.
//!   `silence`: whether blocks wait for its word. `trace_time`: how long for their traces. All are pure.
//! - `transport` and `reply`: JSON-RPC over HTTP. `probe`: what an endpoint can do.
//!
//! alloy's and tower's layers for retry, fallback and throttling are not used: none of them knows that an answer failed its
//! proof, how far an endpoint lags, or what a provider allows.

mod ask;
mod batch_limit;
mod blame;
mod capability;
mod endpoint;
mod error;
mod health;
mod patience;
mod pool;
mod probe;
mod rate_limit;
mod reply;
mod silence;
mod trace_time;
mod transport;

pub(crate) use blame::{Blame, BlamesEndpoint};
pub(crate) use endpoint::Batch;
pub use endpoint::Endpoint;
pub use error::RpcError;
pub use health::MAX_LAG_BLOCKS;
pub use patience::MAX_DEADLINE;
pub use pool::Rpc;
pub use probe::Probe;
pub use reply::{Answer, Reply};
pub(crate) use trace_time::TraceTime;
pub(crate) use transport::Call;
