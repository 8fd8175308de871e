//! HTTP as every route shares it: problem documents, request ids, limits, a budget for large bodies, merchants' shares,
//! extractors, JSON bodies, pagination.
//!
//! Left out on purpose: authentication (`auth`), and what a payment is. Of [`payments`] this room names only the place in a
//! list that a cursor encodes.

pub mod body_budget;
pub mod extract;
pub mod fields;
pub mod limits;
pub mod pagination;
pub mod problem;
pub mod request_id;
pub mod request_layer;
pub mod share;
