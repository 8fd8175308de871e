//! Blocks as records, and the window as a cursor and back. Pure.

use crate::window::Window;
use bytes::Bytes;
use chain::{Credit, CreditSource, FetchedBlock, Head, InternalTransfer, PlacedLog, Status, Transaction};
use topics::wire::block_record::{self, Kind};
use topics::wire::chain_cursor;
use topics::wire::logs_record::{self, Log};
use topics::wire::{BlockRecord, ChainCursor, LogsRecord};
use topics::{Amount, B256, ChainId};

/// One step of the history of a chain.
#[derive(Clone, Debug)]
pub enum Change {
    /// The tip is taken off.
    Removed(Head),
    /// A block is put on the tip.
    Added(Box<FetchedBlock>),
    /// A block of the past, which is no step: the head stays where it is.
    Replayed(Box<FetchedBlock>),
}

/// What the chain called settled when a block was fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Number of the `safe` block.
    pub safe: Option<u64>,
    /// Number of the `finalized` block.
    pub finalized: Option<u64>,
}

/// The records of a change: in `chain.blocks` and in `chain.logs`.
pub fn records(chain: ChainId, sequence: u64, change: Change, settled: Settled) -> (BlockRecord, LogsRecord) {
    match change {
        Change::Removed(head) => {
            (block(chain, sequence, &head, Kind::Removed), logs(chain, sequence, &head, logs_record::Kind::Removed))
        }
        Change::Added(fetched) => whole(chain, sequence, *fetched, settled, Kind::Added, logs_record::Kind::Added),
        Change::Replayed(fetched) => whole(chain, sequence, *fetched, settled, Kind::Replayed, logs_record::Kind::Replayed),
    }
}

fn whole(
    chain: ChainId,
    sequence: u64,
    fetched: FetchedBlock,
    settled: Settled,
    kind: Kind,
    logs_kind: logs_record::Kind,
) -> (BlockRecord, LogsRecord) {
    let head = fetched.block.head();
    let transactions = fetched.block.transactions.iter().zip(&fetched.statuses).zip(0..);
    let record = BlockRecord {
        safe_number: settled.safe,
        finalized_number: settled.finalized,
        transactions_root: bytes(&fetched.block.transactions_root),
        receipts_root: bytes(&fetched.block.receipts_root),
        transactions: transactions.map(|((transaction, status), index)| of_transaction(transaction, *status, index)).collect(),
        traced: fetched.internal.is_some(),
        internal_transfers: fetched.internal.iter().flatten().map(internal_transfer).collect(),
        credits: fetched.block.credits(chain).iter().map(credit).collect(),
        ..block(chain, sequence, &head, kind)
    };
    let of_block = LogsRecord { logs: fetched.logs.into_iter().map(log).collect(), ..logs(chain, sequence, &head, logs_kind) };
    (record, of_block)
}

fn block(chain: ChainId, sequence: u64, head: &Head, kind: Kind) -> BlockRecord {
    BlockRecord {
        chain_id: chain.0,
        sequence,
        kind: kind.into(),
        number: head.number,
        hash: bytes(&head.hash),
        parent_hash: bytes(&head.parent_hash),
        timestamp: head.timestamp,
        ..BlockRecord::default()
    }
}

fn logs(chain: ChainId, sequence: u64, head: &Head, kind: logs_record::Kind) -> LogsRecord {
    LogsRecord {
        chain_id: chain.0,
        sequence,
        kind: kind.into(),
        number: head.number,
        hash: bytes(&head.hash),
        logs: Vec::new(),
    }
}

fn of_transaction(transaction: &Transaction, status: Status, index: u32) -> block_record::Transaction {
    let status = match status {
        Status::Unknown => block_record::Status::Unknown,
        Status::Success => block_record::Status::Success,
        Status::Reverted => block_record::Status::Reverted,
    };
    block_record::Transaction {
        to: transaction.to.map(|to| bytes(&to)).unwrap_or_default(),
        value: Amount::new(transaction.value).to_wire().into(),
        status: status.into(),
        index,
        hash: bytes(&transaction.hash),
        from: bytes(&transaction.from),
        // EIP-2718 has types of one byte; a node that says more is not made to fit.
        r#type: u32::try_from(transaction.kind).unwrap_or(u32::MAX),
    }
}

fn internal_transfer(transfer: &InternalTransfer) -> block_record::InternalTransfer {
    block_record::InternalTransfer {
        to: bytes(&transfer.to),
        value: Amount::new(transfer.value).to_wire().into(),
        from: bytes(&transfer.from),
        transaction_hash: bytes(&transfer.transaction_hash),
        transaction_index: transfer.transaction_index,
        frame: transfer.frame,
    }
}

fn credit(credit: &Credit) -> block_record::Credit {
    let source = match credit.source {
        CreditSource::Withdrawal => block_record::credit::Source::Withdrawal,
        CreditSource::Deposit => block_record::credit::Source::Deposit,
        CreditSource::Reward => block_record::credit::Source::Reward,
    };
    block_record::Credit {
        to: bytes(&credit.to),
        value: Amount::new(credit.value).to_wire().into(),
        source: source.into(),
        index: credit.index,
        transaction_hash: credit.transaction_hash.map(|hash| bytes(&hash)).unwrap_or_default(),
    }
}

fn bytes(fixed: &impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(fixed.as_ref())
}

fn log(placed: PlacedLog) -> Log {
    Log {
        address: bytes(&placed.log.address),
        topics: placed.log.topics.iter().map(bytes).collect(),
        data: placed.log.data.0,
        index: placed.index,
        transaction_index: placed.transaction_index,
        transaction_hash: bytes(&placed.transaction_hash),
    }
}

/// Where ingest stands, for `chain.cursors`. A block's parent is the block before it, so only the first one's is written.
pub fn cursor(chain: ChainId, sequence: u64, window: &Window) -> ChainCursor {
    let blocks = window.iter().enumerate().map(|(index, head)| chain_cursor::Block {
        number: head.number,
        hash: bytes(&head.hash),
        timestamp: head.timestamp,
        parent_hash: if index == 0 { bytes(&head.parent_hash) } else { Bytes::new() },
        first: index == 0 && window.is_whole(),
    });
    ChainCursor {
        chain_id: chain.0,
        sequence,
        window: blocks.collect(),
        finalized_number: window.finalized(),
        halted: String::new(),
    }
}

/// Why a cursor can't be gone on from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCursor {
    /// A hash of other than 32 bytes.
    #[error("the cursor's block {0} has a hash of other than 32 bytes")]
    Hash(u64),
    /// Its blocks do not stand one on the other.
    #[error("the cursor's block {0} does not stand on the one before it")]
    Gap(u64),
    /// It was written by nobody that follows this chain.
    #[error("the cursor is of chain {0}")]
    Chain(u64),
}

/// Reads a cursor: the sequence of the last record, and the window.
///
/// # Errors
/// When it is not one that [`cursor`] wrote for this chain.
pub fn restore(chain: ChainId, cursor: &ChainCursor) -> Result<(u64, Window), BadCursor> {
    if cursor.chain_id != chain.0 {
        return Err(BadCursor::Chain(cursor.chain_id));
    }
    let mut blocks: Vec<Head> = Vec::with_capacity(cursor.window.len());
    for block in &cursor.window {
        let hash = |bytes: &[u8]| B256::try_from(bytes).map_err(|_| BadCursor::Hash(block.number));
        let parent_hash = match blocks.last() {
            Some(below) if below.number.checked_add(1) != Some(block.number) => return Err(BadCursor::Gap(block.number)),
            Some(below) if block.parent_hash.is_empty() => below.hash,
            Some(below) if below.hash.as_slice() != block.parent_hash.as_ref() => return Err(BadCursor::Gap(block.number)),
            _ => hash(&block.parent_hash)?,
        };
        blocks.push(Head { number: block.number, hash: hash(&block.hash)?, parent_hash, timestamp: block.timestamp });
    }
    let whole = cursor.window.first().is_none_or(|block| block.first);
    Ok((cursor.sequence, Window::new(blocks, whole, cursor.finalized_number)))
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
