//! What the examples share. Of cTrip they use the `topics` crate alone, which holds the topics' names and schemas.

mod client;
mod decoder;

pub use client::{client, consumer, prefixed, variable};
pub use decoder::Decoder;
