//! The records of `chain.blocks` and `chain.logs`, made from fetched blocks. Pure.

use bytes::Bytes;
use chain::{Credit, CreditSource, FetchedBlock, Head, InternalTransfer, PlacedLog, ReceiptStatus, Spent, Transaction};
use topics::wire::block_record::{self, Kind};
use topics::wire::logs_record::{self, Log};
use topics::wire::{BlockRecord, LogsRecord};
use topics::{Amount, ChainId};

/// One step of a chain's history.
#[derive(Clone, Debug)]
pub enum Change {
    /// A reorg takes the tip off. With the number of its parent, which is the tip again, unless no block is left.
    Removed(Head, Option<u64>),
    /// A block is added on the tip.
    Added(Box<FetchedBlock>),
    /// A past block, from a backfill. It is no step: the head stays where it is.
    Replayed(Box<FetchedBlock>),
    /// The tip stays, and more is known of the chain.
    Tags(Head),
}

/// What is known of a chain beside its blocks: its finality tags, and how far it is witnessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FinalityTags {
    /// Height of the `safe` block.
    pub safe: Option<u64>,
    /// Height of the `finalized` block.
    pub finalized: Option<u64>,
    /// Height of the highest block that enough endpoints have given.
    pub witnessed: Option<u64>,
}

impl FinalityTags {
    /// What is known from now on: nothing of it goes down.
    #[must_use]
    pub fn advanced(self, known: Self) -> Self {
        Self {
            safe: self.safe.max(known.safe),
            finalized: self.finalized.max(known.finalized),
            witnessed: self.witnessed.max(known.witnessed),
        }
    }

    /// What is left of it once a reorg has taken off all above this tip, or all.
    #[must_use]
    pub fn below(self, tip: Option<u64>) -> Self {
        Self { safe: self.safe.min(tip), finalized: self.finalized.min(tip), witnessed: self.witnessed.min(tip) }
    }
}

/// The two records of a change, for `chain.blocks` and `chain.logs`.
pub fn records(chain: ChainId, sequence: u64, change: Change, finality: FinalityTags) -> (BlockRecord, LogsRecord) {
    match change {
        Change::Removed(head, parent_number) => {
            let of_block = BlockRecord { parent_number, ..block(chain, sequence, &head, Kind::Removed) };
            (of_block, logs(chain, sequence, &head, logs_record::Kind::Removed))
        }
        Change::Tags(head) => {
            let of_block = block(chain, sequence, &head, Kind::Tags);
            (with_tags(of_block, finality), logs(chain, sequence, &head, logs_record::Kind::Tags))
        }
        Change::Added(fetched) => records_of_block(chain, sequence, *fetched, finality, Kind::Added, logs_record::Kind::Added),
        Change::Replayed(fetched) => {
            records_of_block(chain, sequence, *fetched, finality, Kind::Replayed, logs_record::Kind::Replayed)
        }
    }
}

fn records_of_block(
    chain: ChainId,
    sequence: u64,
    fetched: FetchedBlock,
    finality: FinalityTags,
    kind: Kind,
    logs_kind: logs_record::Kind,
) -> (BlockRecord, LogsRecord) {
    let head = fetched.block.head();
    let transactions = fetched.block.transactions.iter().zip(&fetched.statuses).zip(&fetched.spent).zip(0..);
    let record = BlockRecord {
        transactions_root: to_bytes(&fetched.block.transactions_root),
        receipts_root: to_bytes(&fetched.block.receipts_root),
        transactions: transactions
            .map(|(((transaction, status), spent), index)| of_transaction(transaction, *status, *spent, index))
            .collect(),
        traced: fetched.is_traced(),
        internal_transfers: fetched.internal.iter().flatten().map(internal_transfer).collect(),
        credits: fetched.block.credits(chain).iter().map(credit).collect(),
        ..with_tags(block(chain, sequence, &head, kind), finality)
    };
    let of_block = LogsRecord { logs: fetched.logs.into_iter().map(log).collect(), ..logs(chain, sequence, &head, logs_kind) };
    (record, of_block)
}

pub(crate) fn block(chain: ChainId, sequence: u64, head: &Head, kind: Kind) -> BlockRecord {
    BlockRecord {
        chain_id: chain.0,
        sequence,
        kind: kind.into(),
        number: head.number,
        hash: to_bytes(&head.hash),
        parent_hash: to_bytes(&head.parent_hash),
        timestamp: head.timestamp,
        ..BlockRecord::default()
    }
}

/// Adds what is known of the chain. A record claims no witnesses for blocks above its own.
fn with_tags(record: BlockRecord, finality: FinalityTags) -> BlockRecord {
    BlockRecord {
        safe_number: finality.safe,
        finalized_number: finality.finalized,
        witnessed_number: finality.witnessed.map(|number| number.min(record.number)),
        ..record
    }
}

pub(crate) fn logs(chain: ChainId, sequence: u64, head: &Head, kind: logs_record::Kind) -> LogsRecord {
    LogsRecord {
        chain_id: chain.0,
        sequence,
        kind: kind.into(),
        number: head.number,
        hash: to_bytes(&head.hash),
        ..LogsRecord::default()
    }
}

fn of_transaction(transaction: &Transaction, status: ReceiptStatus, spent: Spent, index: u32) -> block_record::Transaction {
    let status = match status {
        ReceiptStatus::Unknown => block_record::Status::Unknown,
        ReceiptStatus::Success => block_record::Status::Success,
        ReceiptStatus::Reverted => block_record::Status::Reverted,
    };
    block_record::Transaction {
        to: transaction.to.map(|to| to_bytes(&to)).unwrap_or_default(),
        value: Amount::new(transaction.value).to_wire().into(),
        status: status.into(),
        index,
        hash: to_bytes(&transaction.hash),
        from: to_bytes(&transaction.from),
        // EIP-2718 types have one byte. A larger one from a node is not made to fit.
        r#type: u32::try_from(transaction.kind).unwrap_or(u32::MAX),
        nonce: spent.nonce,
        gas_used: spent.gas_used,
        effective_gas_price: spent.effective_gas_price.map(|price| Amount::new(price).to_wire().into()),
    }
}

fn internal_transfer(transfer: &InternalTransfer) -> block_record::InternalTransfer {
    block_record::InternalTransfer {
        to: to_bytes(&transfer.to),
        value: Amount::new(transfer.value).to_wire().into(),
        from: to_bytes(&transfer.from),
        transaction_hash: to_bytes(&transfer.transaction_hash),
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
        to: to_bytes(&credit.to),
        value: Amount::new(credit.value).to_wire().into(),
        source: source.into(),
        index: credit.index,
        transaction_hash: credit.transaction_hash.map(|hash| to_bytes(&hash)).unwrap_or_default(),
    }
}

pub(crate) fn to_bytes(fixed: &impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(fixed.as_ref())
}

fn log(placed: PlacedLog) -> Log {
    Log {
        address: to_bytes(&placed.log.address),
        topics: placed.log.topics.iter().map(to_bytes).collect(),
        data: placed.log.data.0,
        index: placed.index,
        transaction_index: placed.transaction_index,
        transaction_hash: to_bytes(&placed.transaction_hash),
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
