//! Blocks, transactions, receipts and logs as nodes answer them, and the encodings that their hashes cover.
//!
//! Tolerant on purpose: an unknown field does no harm, and a missing one is an error only where nothing works without it.
//! Whether the answer is true is for [`prove`](crate::prove) to decide.
//!
//! After a hard fork, begin here: `known_fields` lists the fields we know, `header` and `encode` hash them.

mod encode;
mod header;
mod known_fields;
mod quantity;
mod receipts;
mod rlp;
mod tolerant;
mod transaction;

pub(crate) use encode::{is_fixed, knows_receipt, knows_transaction};
pub use header::{Block, Head, MAX_SKIPPED, Withdrawal, may_stand_above};
pub use receipts::{Log, Receipt, ReceiptStatus, Receipts};
pub(crate) use transaction::{ARBITRUM_INTERNAL, OP_DEPOSIT};
pub use transaction::{AccessListItem, Authorization, Transaction};
