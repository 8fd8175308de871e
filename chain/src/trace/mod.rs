//! Internal transfers: coin that contracts move, read from a node's call traces. Pure.
//!
//! Two formats, one meaning: `call_tracer` reads geth's `callTracer`, `trace_block` reads Parity's. Both return the frames that
//! moved coin, and `transfers` checks them against the block. No root proves a trace; each must belong to its transaction and
//! agree with the receipt on success or failure.

mod call_tracer;
mod error;
mod frame;
mod trace_block;
mod transfers;

pub use error::TraceError;
pub use transfers::{InternalTransfer, Tracer, internal_transfers};
pub(crate) use transfers::{internal_transfers_one_by_one, may_move_coin};
