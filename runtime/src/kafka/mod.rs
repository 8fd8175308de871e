//! Kafka, as the stages need it. Apart from the examples and one test, the only module that names rdkafka.
//!
//! librdkafka's transaction calls, synchronous commits and rebalance callbacks block. So everything but [`Publisher`] runs on
//! a thread of its own (see [`stage`](crate::stage)).
//!
//! - [`Kafka`] is the handle that every client is made from.
//! - [`Consumer`] is a member of a group; [`Table`], [`Tail`], [`PartitionReader`], [`Backlog`] and [`Kafka::read_all`] read a
//!   topic outside of any group.
//! - [`TransactionalProducer`] writes records and offsets together; [`Publisher`] writes single records from async code.
//! - [`TopicReader`] is for people: it begins anywhere.
//! - [`Wait`] is that for which a partition is held; [`Kafka::unanswered`] finds those that do not answer.
//! - [`apply`] creates the topics and registers their schemas, [`apply_and_bring_back`] also those of former ids; [`probe()`] tells why a broker can't be used.

mod admin;
mod backlog;
mod carried_ids;
mod client;
mod consumer;
pub(crate) mod error;
mod hanging;
mod heard;
mod offsets;
mod partition_reader;
mod polled;
mod probe;
pub(crate) mod producer;
mod read_all;
mod record;
mod table;
mod tail;
mod topic_reader;
mod unanswered;
mod waits;

pub use admin::{apply, apply_and_bring_back};
pub use backlog::Backlog;
pub use client::Kafka;
pub use consumer::{Batch, Consumer, Positions};
pub use hanging::OpenTransaction;
pub use offsets::{Ends, NotedOffset, Offsets, ask_each};
pub use partition_reader::PartitionReader;
pub use probe::{Unusable, check, probe};
pub use producer::{Publisher, Transaction, TransactionalProducer, is_timeout};
/// The group, member and generation that a transaction's offsets come from.
pub use rdkafka::consumer::ConsumerGroupMetadata as GroupMetadata;
pub use record::{Mark, Record};
pub use table::Table;
pub use tail::Tail;
pub use topic_reader::{Start, TopicReader};
pub use unanswered::Unanswered;
pub use waits::Wait;
pub(crate) use waits::WaitLooks;
