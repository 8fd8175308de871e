use crate::amount::Amount;
use crate::ids::{BlockRef, ChainId, Source, TransferId};
use crate::wire;
use alloy::primitives::{Address, B256};

/// What a record says of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is the new head.
    Added,
    /// It was the head and is no longer on the chain.
    Removed,
    /// It is history, brought in again; the head is elsewhere.
    Replayed,
}

/// A transfer to an issued address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Identity.
    pub id: TransferId,
    /// The emitting contract; `None` is the chain's coin.
    pub token: Option<Address>,
    /// Payer, as the transfer says.
    pub from: Address,
    /// The issued address.
    pub to: Address,
    /// What arrived.
    pub amount: Amount,
    /// Place of the transaction in the block.
    pub transaction_index: u32,
}

/// [`wire::MatchesRecord`], checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matches {
    /// Chain.
    pub chain: ChainId,
    /// The chain's record counter.
    pub sequence: u64,
    /// Added, removed or replayed.
    pub kind: Kind,
    /// The block.
    pub block: BlockRef,
    /// The block before it.
    pub parent: B256,
    /// Unix seconds.
    pub timestamp: u64,
    /// Number of the `safe` block, if the chain has it.
    pub safe: Option<u64>,
    /// Number of the `finalized` block, if the chain has it.
    pub finalized: Option<u64>,
    /// In the block's order.
    pub transfers: Vec<Transfer>,
}

/// A field of a record that does not hold what its schema says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: expected {expected}, got {got}")]
pub struct Malformed {
    /// Path of the field.
    pub field: &'static str,
    /// What the schema asks for.
    pub expected: &'static str,
    /// What was there.
    pub got: String,
}

/// 32 bytes as a hash.
///
/// # Errors
/// When there are more or fewer.
pub fn hash(field: &'static str, bytes: &[u8]) -> Result<B256, Malformed> {
    B256::try_from(bytes).map_err(|_| Malformed { field, expected: "32 bytes", got: format!("{} bytes", bytes.len()) })
}

/// 20 bytes as an address.
///
/// # Errors
/// When there are more or fewer.
pub fn address(field: &'static str, bytes: &[u8]) -> Result<Address, Malformed> {
    Address::try_from(bytes).map_err(|_| Malformed { field, expected: "20 bytes", got: format!("{} bytes", bytes.len()) })
}

impl TryFrom<&wire::MatchesRecord> for Matches {
    type Error = Malformed;

    fn try_from(record: &wire::MatchesRecord) -> Result<Self, Malformed> {
        use wire::matches_record as m;
        let kind = match record.kind() {
            m::Kind::Added => Kind::Added,
            m::Kind::Removed => Kind::Removed,
            m::Kind::Replayed => Kind::Replayed,
            m::Kind::Unspecified => {
                return Err(Malformed { field: "kind", expected: "ADDED, REMOVED or REPLAYED", got: record.kind.to_string() });
            }
        };
        let chain = ChainId(record.chain_id);
        let block = BlockRef { number: record.number, hash: hash("hash", &record.hash)? };
        let transfers = record.transfers.iter().map(|t| transfer(chain, block.hash, t)).collect::<Result<_, _>>()?;
        Ok(Self {
            chain,
            sequence: record.sequence,
            kind,
            block,
            parent: hash("parent_hash", &record.parent_hash)?,
            timestamp: record.timestamp,
            safe: record.safe_number,
            finalized: record.finalized_number,
            transfers,
        })
    }
}

fn transfer(chain: ChainId, block: B256, t: &wire::matches_record::Transfer) -> Result<Transfer, Malformed> {
    use wire::matches_record::Source as S;
    let source = match t.source() {
        S::Transaction => Source::Transaction,
        S::Log => Source::Log,
        S::Trace => Source::Trace,
        S::Unspecified => {
            return Err(Malformed {
                field: "transfers.source",
                expected: "TRANSACTION, LOG or TRACE",
                got: t.source.to_string(),
            });
        }
    };
    let token = if t.token.is_empty() { None } else { Some(address("transfers.token", &t.token)?) };
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
        amount: Amount::from_wire(&t.amount).map_err(|e| Malformed {
            field: "transfers.amount",
            expected: "at most 32 bytes",
            got: e.to_string(),
        })?,
        transaction_index: t.transaction_index,
    })
}
