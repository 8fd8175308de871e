//! The role `sweeper`: money out.
//!
//! - [`keys`] is who signs. No other crate holds a private key, and no other process.
//! - [`engine`] sends each outgoing transaction once, whatever dies. It knows no payments: what is sent, and from where, others say.
//! - `role` runs the rest: `catch_up` keeps Postgres closed until it has what `sweep.events` has (`restore`), and writes again
//!   what that has lost (`topic_lost`); [`reading`] brings `chain.blocks` to the engine, as [`blocks`] reads them; [`plan`] says
//!   what is swept, `deposit_keys` who signs for it, `allowed` what is signed at all, `records` and `outcomes` tell.

mod allowed;
pub mod blocks;
mod catch_up;
mod deposit_keys;
pub mod engine;
pub mod keys;
mod outcomes;
pub mod plan;
pub mod reading;
mod records;
mod restore;
mod role;
mod topic_lost;

pub use role::{check, run};
