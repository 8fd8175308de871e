//! Proving a node's answer: it must hash to what the block's hash commits to. Pure.
//!
//! A header proves its roots; the roots prove transactions, receipts and withdrawals. If a chain hashes something that we do
//! not know (a hard fork's new header field, a transaction type of its own), that part stays unproven and [`Proof`] says so.
//! The logs are then compared with the header's bloom, which detects missing logs but not every altered one.
//!
//! What no root covers, such as traces, a second endpoint must confirm: see `fetch/cross_check.rs`.

mod error;
mod part;
mod prove;
mod receipts;
mod spent;
mod state_sync;
mod verify;
mod withdrawals;

pub use error::ProofError;
pub use part::{PartProof, Proof};
pub use prove::prove;
pub use spent::Spent;
pub(crate) use spent::spent;
pub use verify::Verify;
