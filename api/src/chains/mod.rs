//! The chains that a payment can be made on: their catalog, their nodes' heads, and whether each takes new payments now.

pub mod availability;
pub mod catalog;
pub mod halts;
pub mod nodes;
