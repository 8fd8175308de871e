//! The chains that a payment can be made on: their catalog, their nodes' heads, whether each takes new payments now, and which
//! tokens are wrong.

pub mod availability;
pub mod catalog;
pub mod halts;
pub mod nodes;
pub mod wrong_tokens;
