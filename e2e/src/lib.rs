//! Labs: what black-box tests, the demo and the benches need to run cTrip on the real stack.
//!
//! Each [`Lab`] has a database, a topic prefix, a node and a folder of its own, so that any number run side by side.

mod admin;
mod backup;
mod client;
mod dust;
mod faults;
mod geth;
mod history;
mod http;
mod lab;
mod ledger;
mod network;
mod node;
mod postgres;
pub mod prepared;
mod process;
mod prometheus;
mod proxy;
mod records;
pub mod replay;
mod rig;
mod session;
mod stack;
mod topic_log;
mod tunnel;
mod wait;

pub use admin::KafkaAdmin;
pub use backup::Backup;
pub use client::{Api, Payment};
pub use dust::{Aftermath, Flood};
pub use faults::Fault;
pub use geth::Fork;
pub use history::{History, HistoryReader, Step};
pub use http::{plain_http, quantity};
pub use lab::{Lab, MNEMONIC, Plan, XPUB, write_mnemonic};
pub use ledger::{Row, ledger};
pub use network::Network;
pub use node::{Node, PAYER, TOKEN_SYMBOL};
pub use postgres::PostgresServer;
pub use process::{Process, built, free_port, memory_mb};
pub use prometheus::{Prometheus, promtool};
pub use proxy::{Extent, Lacks, Proxy};
pub use records::{events, records};
pub use rig::{Rig, write_chains};
pub use session::Session;
pub use stack::{Stack, root};
pub use tunnel::Tunnel;
pub use wait::eventually;
