//! The contract: topic names and settings, the records' schemas and the types of the domain.
//!
//! Everything that two roles must agree on is here and nothing else: no IO, no Kafka client, no clock. Consumers in Rust
//! can depend on this crate alone.
//!
//! - [`Topic`] names the topics and their settings; [`Message`] ties a record type to its topic and key.
//! - [`wire`] is generated from `proto/`; [`frame`] puts the Confluent header in front of it.
//! - [`lazy`] reads a record's fields without decoding the rest, for hot paths.
//! - The rest are newtypes that make a wrong value hard to pass on.

mod amount;
pub mod frame;
mod ids;
pub mod lazy;
mod matches;
mod message;
mod topic;
mod transfer;

/// The records as generated from `proto/`.
pub mod wire {
    #![allow(missing_docs, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/ctrip.v1.rs"));
}

/// The schemas as a Protobuf `FileDescriptorSet`, for programs that read records without knowing their types when they are
/// compiled. [`Topic::record`] names each topic's message in it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub use amount::{Amount, AmountError};
pub use ids::{BlockRef, ChainId, PaymentId, Source, TransferId};
pub use matches::{Kind, Malformed, Matches, Transfer, address, hash};
pub use message::Message;
pub use topic::{Cleanup, Topic};
pub use transfer::{SYSTEM, TRANSFER};

pub use alloy::hex::encode_prefixed as hex;
pub use alloy::primitives::{Address, B256, U256};
