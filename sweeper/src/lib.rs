//! Money out.

pub mod keys;
