//! Ids: of chains, payments, blocks and transfers.

use alloy::primitives::B256;
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// An EVM chain id (EIP-155).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ChainId(pub u64);

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A payment's id. A UUID of version 7, so that ids of the same time are adjacent in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentId(pub Uuid);

impl PaymentId {
    /// A new id.
    pub fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The public id of one of its events, the same in every replay, since a payment counts its own events.
    pub fn event_id(self, sequence: u64) -> String {
        format!("evt_{}_{sequence}", self.0.simple())
    }
}

impl fmt::Display for PaymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for PaymentId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// A block of one chain. The hash is its identity; the number is only its height.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    pub number: u64,
    /// Hash of the header.
    pub hash: B256,
}

impl fmt::Display for BlockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.number, self.hash)
    }
}

/// What reported a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The transaction's own value.
    Transaction,
    /// A log: ERC-20's `Transfer`, or EIP-7708's.
    Log,
    /// A call frame.
    Trace,
}

impl Source {
    /// The name in records and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Log => "log",
            Self::Trace => "trace",
        }
    }
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Transaction, Self::Log, Self::Trace]
            .into_iter()
            .find(|source| source.as_str() == text)
            .ok_or_else(|| format!("expected transaction, log or trace, got {text:?}"))
    }
}

/// The identity of a transfer. The same money in another block is another transfer. It does not say what was moved: a block whose
/// content no root proves may be removed and come again under its hash with other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransferId {
    pub chain: ChainId,
    /// Hash of its block.
    pub block: B256,
    /// Hash of its transaction.
    pub transaction: B256,
    pub source: Source,
    /// Its place in the source: 0 for a transaction, the log's index in the block, or the frame's in the transaction.
    pub index: u32,
}
