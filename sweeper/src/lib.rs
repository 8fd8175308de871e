//! Money out: the keys, and the engine that sends what they sign. No role runs it yet.
//!
//! - [`keys`] is who signs. No other crate signs.
//! - [`engine`] sends each outgoing transaction once, whatever dies. It knows no payments: what is sent, and from where, others say.
//! - [`plan`] says what is swept from which address to the treasury, and queues it into the engine.

pub mod engine;
pub mod keys;
pub mod plan;
