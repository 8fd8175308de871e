//! Records of `chain.matches`, checked: hashes and addresses have their lengths, enums are known.

use crate::amount::Amount;
use crate::ids::{BlockRef, ChainId, Source, TransferId};
use crate::wire;
use alloy::primitives::{Address, B256};

/// What happened to the record's block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is the new head.
    Added,
    /// It was the head, and a reorg removed it.
    Removed,
    /// It is a past block from a backfill. The head is elsewhere.
    Replayed,
    /// It is the head still, and more is known of the chain: its tags, and how far it is witnessed.
    Tags,
}

/// A transfer to an issued address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub id: TransferId,
    /// The token's contract. `None` is the chain's coin.
    pub token: Option<Address>,
    /// The payer, as the transfer says.
    pub from: Address,
    /// The issued address.
    pub to: Address,
    pub amount: Amount,
    /// Position of the transaction in the block.
    pub transaction_index: u32,
}

/// [`wire::MatchesRecord`], checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matches {
    pub chain: ChainId,
    /// The chain's record counter; 0 for a replayed block.
    pub sequence: u64,
    pub kind: Kind,
    pub block: BlockRef,
    /// Hash of the parent block.
    pub parent: B256,
    /// Height of a removed block's parent, if it is told; else it is the height below.
    pub parent_number: Option<u64>,
    /// Unix seconds.
    pub timestamp: u64,
    /// Height of the `safe` block, if the chain has one.
    pub safe: Option<u64>,
    /// Height of the `finalized` block, if the chain has one.
    pub finalized: Option<u64>,
    /// Height of the highest block that enough endpoints have given, as far as this record says.
    pub witnessed: Option<u64>,
    /// In the order of the block.
    pub transfers: Vec<Transfer>,
    /// Which part of the block's transfers they are, counted from 1, of how many; both may be 0 if they are all.
    pub part: u32,
    pub parts: u32,
}

impl Matches {
    /// Whether the block begins with this record.
    pub const fn begins_block(&self) -> bool {
        self.part <= 1
    }

    /// Whether the block is whole with this record.
    pub const fn ends_block(&self) -> bool {
        self.part >= self.parts
    }

    /// Height of the block below.
    pub fn number_below(&self) -> u64 {
        number_below(self.block.number, self.parent_number)
    }

    /// Whether this record can come right after another of its chain: the parts of a block stay together.
    pub fn can_follow(&self, before: &Self) -> bool {
        let same_block = (self.block, self.sequence) == (before.block, before.sequence);
        if self.begins_block() {
            // A copy of the topic may end within a block, which is then matched again.
            before.ends_block() || same_block
        } else {
            same_block && (self.part, self.parts) == (before.part + 1, before.parts)
        }
    }
}

/// Height of the block below one of this number. Its own record tells it; in old ones it is the height below.
pub fn number_below(number: u64, parent_number: Option<u64>) -> u64 {
    parent_number.unwrap_or(number.saturating_sub(1))
}

/// A field whose value contradicts its schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: expected {expected}, got {got}")]
pub struct MalformedField {
    /// Path of the field, e.g. `transfers.amount`.
    pub field: &'static str,
    pub expected: &'static str,
    pub got: String,
}

/// Reads a hash of 32 bytes. `field` is for the error.
///
/// # Errors
/// If there are more or fewer bytes.
pub fn hash(field: &'static str, bytes: &[u8]) -> Result<B256, MalformedField> {
    B256::try_from(bytes).map_err(|_| MalformedField { field, expected: "32 bytes", got: format!("{} bytes", bytes.len()) })
}

/// Reads an address of 20 bytes. `field` is for the error.
///
/// # Errors
/// If there are more or fewer bytes.
pub fn address(field: &'static str, bytes: &[u8]) -> Result<Address, MalformedField> {
    Address::try_from(bytes).map_err(|_| MalformedField { field, expected: "20 bytes", got: format!("{} bytes", bytes.len()) })
}

/// Reads a token's contract; none, for the chain's coin, where there are no bytes. `field` is for the error.
///
/// # Errors
/// If there are more or fewer bytes.
pub fn contract(field: &'static str, bytes: &[u8]) -> Result<Option<Address>, MalformedField> {
    if bytes.is_empty() { Ok(None) } else { address(field, bytes).map(Some) }
}

/// The last second of the year 9999. Later ones are no Unix seconds but milliseconds or nanoseconds, or a chain's mistake; no text
/// can express them, and one alone would expire every payment of its chain.
pub const MAX_TIMESTAMP: u64 = 253_402_300_799;

/// Checks that a block's timestamp is in Unix seconds.
///
/// # Errors
/// If it is later than [`MAX_TIMESTAMP`].
pub fn check_timestamp(timestamp: u64) -> Result<u64, MalformedField> {
    let malformed =
        || MalformedField { field: "timestamp", expected: "Unix seconds, not after the year 9999", got: timestamp.to_string() };
    Some(timestamp).filter(|timestamp| *timestamp <= MAX_TIMESTAMP).ok_or_else(malformed)
}

impl TryFrom<&wire::MatchesRecord> for Matches {
    type Error = MalformedField;

    fn try_from(record: &wire::MatchesRecord) -> Result<Self, MalformedField> {
        use wire::matches_record as m;
        let kind = match record.kind() {
            m::Kind::Added => Kind::Added,
            m::Kind::Removed => Kind::Removed,
            m::Kind::Replayed => Kind::Replayed,
            m::Kind::Tags => Kind::Tags,
            m::Kind::Unspecified => {
                return Err(MalformedField {
                    field: "kind",
                    expected: "ADDED, REMOVED, REPLAYED or TAGS",
                    got: record.kind.to_string(),
                });
            }
        };
        let chain = ChainId(record.chain_id);
        let block = BlockRef { number: record.number, hash: hash("hash", &record.hash)? };
        let transfers = record.transfers.iter().map(|t| transfer(chain, block.hash, t)).collect::<Result<_, _>>()?;
        let (part, parts) = (record.part, record.parts);
        if part > parts || (part == 0 && parts > 1) {
            return Err(MalformedField { field: "part", expected: "1 up to parts", got: format!("{part} of {parts}") });
        }
        Ok(Self {
            chain,
            sequence: record.sequence,
            kind,
            block,
            parent: hash("parent_hash", &record.parent_hash)?,
            parent_number: record.parent_number,
            timestamp: check_timestamp(record.timestamp)?,
            safe: record.safe_number,
            finalized: record.finalized_number,
            witnessed: record.witnessed_number,
            transfers,
            part,
            parts,
        })
    }
}

fn transfer(chain: ChainId, block: B256, t: &wire::matches_record::Transfer) -> Result<Transfer, MalformedField> {
    use wire::matches_record::Source as S;
    let source = match t.source() {
        S::Transaction => Source::Transaction,
        S::Log => Source::Log,
        S::Trace => Source::Trace,
        S::Unspecified => {
            return Err(MalformedField {
                field: "transfers.source",
                expected: "TRANSACTION, LOG or TRACE",
                got: t.source.to_string(),
            });
        }
    };
    let token = contract("transfers.token", &t.token)?;
    Ok(Transfer {
        id: TransferId {
            chain,
            block,
            transaction: hash("transfers.transaction_hash", &t.transaction_hash)?,
            source,
            index: t.index,
        },
        token,
        from: address("transfers.from", &t.from)?,
        to: address("transfers.to", &t.to)?,
        amount: Amount::from_wire(&t.amount).map_err(|e| MalformedField {
            field: "transfers.amount",
            expected: "at most 32 bytes",
            got: e.to_string(),
        })?,
        transaction_index: t.transaction_index,
    })
}
