//! The contract: topic names and settings, the records' schemas, and the domain's types.
//!
//! It contains what two roles must agree on, and nothing else: no IO, no Kafka client, no clock. Consumers in Rust can depend
//! on this crate alone.
//!
//! - [`Topic`] names the topics and their settings; [`Message`] ties a record type to its topic and key.
//! - [`wire`] is generated from `proto/`; [`frame`] puts the Confluent header in front of it.
//! - [`lazy`] reads a record's fields without decoding the rest, for hot paths.
//! - [`Matches`] is the checked form of a `chain.matches` record.
//! - The rest are newtypes that prevent mixing up values, such as [`Amount`] and [`ChainId`].

mod amount;
mod deposit_address;
pub mod frame;
mod ids;
pub mod lazy;
mod matches;
mod message;
mod partition;
mod parts;
mod topic;
mod transfer_log;
pub mod wire;

/// The schemas as a Protobuf `FileDescriptorSet`, for programs that decode records without compiled types. [`Topic::record`]
/// names each topic's message in it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub use amount::{Amount, AmountError};
pub use deposit_address::{derivation_path, payment_uri};
pub use ids::{BlockRef, ChainId, PaymentId, Source, TransferId};
pub use matches::{
    Kind, MAX_TIMESTAMP, MalformedField, Matches, Transfer, address, check_timestamp, contract, hash, number_below,
};
pub use message::Message;
pub use parts::{in_parts, length_in_part};
pub use topic::{Cleanup, MAX_LOGS_BYTES, MAX_MESSAGE_BYTES, Topic, WRITING};
pub use transfer_log::{
    COIN_CONTRACTS, COIN_LOG_ADDRESS, CoinContract, CoinLogs, TRANSFER_TOPIC, ZKSYNC_BOOTLOADER, tells_every_movement,
};

pub use alloy::hex::encode_prefixed as hex;
pub use alloy::primitives::{Address, B256, U256, U512};
