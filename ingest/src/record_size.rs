//! Keeps records within what a topic takes. A block is never held up by its size: its logs are split over several records, which
//! take the transactions too that its own does not hold, a log that no record holds loses its data, internal transfers that no
//! record holds are left for a backfill, and credits, which are no payments, are left out. Pure.

use prost::Message as _;
use topics::wire::block_record::Transaction;
use topics::wire::logs_record::Log;
use topics::wire::{BlockRecord, LogsRecord};
use topics::{MAX_LOGS_BYTES, hex, in_parts, length_in_part};

/// No transfer has so much data. Half of a record, so that each part but the last is at least half full.
const MAX_LOG_BYTES: usize = MAX_LOGS_BYTES / 2;
/// A record of `chain.blocks` with more bytes goes without its internal transfers, its credits, or most of its transactions.
const MAX_BLOCK_BYTES: usize = 24 * 1024 * 1024;
/// The transactions that such a record keeps.
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// A part of transactions has so many bytes at least, and not twice as many.
const MIN_PART_BYTES: usize = 10 * 1024 * 1024;
/// A transaction of a record has no more bytes.
const MAX_TRANSACTION_BYTES: usize = 188;
/// No block that nodes give in an answer of a size that is read has more.
pub const MAX_TRANSACTIONS: usize = 1_000_000;

/// Bounds the record of a block, and returns those of its logs. Leaves out its credits if it is too large, moves most of its
/// transactions to records before those of the logs, if they fill some, and else leaves out its internal transfers. Returns whether
/// those are left out.
pub fn bound_block(block: &mut BlockRecord, mut logs: LogsRecord) -> (Vec<LogsRecord>, bool) {
    if !block.credits.is_empty() && block.encoded_len() > MAX_BLOCK_BYTES {
        let (chain, number, count) = (block.chain_id, block.number, block.credits.len());
        tracing::warn!(chain, number, "a block's {count} credits fit no record and are left out");
        block.credits.clear();
    }
    let moved = if block.encoded_len() > MAX_BLOCK_BYTES { take_transactions(block) } else { Vec::new() };
    let is_untraced = !block.internal_transfers.is_empty() && block.encoded_len() > MAX_BLOCK_BYTES;
    if is_untraced {
        block.internal_transfers.clear();
        block.traced = false;
    }
    if moved.is_empty() {
        return (split_logs(logs), is_untraced);
    }
    let all = std::mem::take(&mut logs.logs);
    let of_transactions = moved.into_iter().map(|transactions| {
        let transactions = transactions.iter().map(|transaction| transaction.encode_to_vec().into()).collect();
        LogsRecord { transactions, ..logs.clone() }
    });
    let mut records: Vec<LogsRecord> = of_transactions.collect();
    records.extend(split_logs(LogsRecord { logs: all, ..logs }));
    let parts = u32::try_from(records.len()).unwrap_or(u32::MAX);
    records.iter_mut().zip(1..).for_each(|(record, part)| (record.part, record.parts) = (part, parts));
    (records, is_untraced)
}

/// Takes all transactions of a block but the first ones, as parts that are more than half full. Takes none if they don't fill one.
fn take_transactions(block: &mut BlockRecord) -> Vec<Vec<Transaction>> {
    let up_to = block.transactions.iter().scan(0, |bytes, transaction| {
        *bytes += length_in_part(transaction);
        Some(*bytes)
    });
    let kept = up_to.take_while(|bytes| *bytes <= KEPT_BYTES).count();
    let bytes: usize = block.transactions.iter().skip(kept).map(length_in_part).sum();
    match bytes / MIN_PART_BYTES {
        0 => Vec::new(),
        parts => in_parts(block.transactions.split_off(kept), bytes / parts + MAX_TRANSACTION_BYTES),
    }
}

/// The records of a block's logs: one, or as many parts as it takes.
fn split_logs(mut record: LogsRecord) -> Vec<LogsRecord> {
    if record.encoded_len() <= MAX_LOGS_BYTES {
        return vec![record];
    }
    let logs = std::mem::take(&mut record.logs);
    let head = record;
    let parts = in_parts(logs.into_iter().map(|log| bound_log(log, &head)), MAX_LOGS_BYTES);
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let part = |(logs, part)| LogsRecord { logs, part, parts: count, ..head.clone() };
    parts.into_iter().zip(1..).map(part).collect()
}

/// A log of a block, without its data if no record holds it.
fn bound_log(mut log: Log, head: &LogsRecord) -> Log {
    if log.encoded_len() > MAX_LOG_BYTES {
        let (number, hash) = (head.number, hex(&head.hash));
        let bytes = log.data.len();
        tracing::warn!(chain = head.chain_id, number, hash, index = log.index, "a log of {bytes} bytes loses its data");
        log.data.clear();
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;
    use topics::MAX_MESSAGE_BYTES;
    use topics::wire::block_record::{Credit, InternalTransfer};

    fn record(sizes: impl IntoIterator<Item = usize>) -> LogsRecord {
        let logs = (0..).zip(sizes).map(|(index, size)| Log { index, data: vec![7; size].into(), ..Log::default() });
        LogsRecord {
            chain_id: 1,
            sequence: 2,
            number: 3,
            hash: vec![9; 32].into(),
            logs: logs.collect(),
            ..LogsRecord::default()
        }
    }

    #[test]
    fn the_logs_of_a_block_are_one_record_as_long_as_they_fit() {
        let whole = record([32; 1000]);
        assert_eq!(split_logs(whole.clone()), [whole]);
        assert_eq!(split_logs(record([])), [record([])]);
    }

    /// 268 million gas buy 33 MB of log data, and the record did not fit its topic.
    #[test]
    fn logs_that_fit_no_record_are_split_in_order_and_none_is_lost() {
        const MIB: usize = 1024 * 1024;
        for sizes in [vec![1000; 40_000], vec![MIB; 70], vec![7 * MIB; 9], vec![1, 7 * MIB, 1, 7 * MIB, 7 * MIB, 3 * MIB]] {
            let whole = record(sizes);
            let parts = split_logs(whole.clone());
            assert!(parts.len() > 1);
            for (part, place) in parts.iter().zip(1..) {
                assert_eq!((part.part, part.parts), (place, u32::try_from(parts.len()).unwrap()));
                assert_eq!((part.sequence, part.number, &part.hash), (2, 3, &whole.hash));
                assert!(part.encoded_len() <= MAX_LOGS_BYTES + 100, "{}", part.encoded_len());
                assert!(part.part == part.parts || part.encoded_len() >= MAX_LOGS_BYTES / 2, "the reader takes it for a whole");
            }
            let logs: Vec<Log> = parts.into_iter().flat_map(|part| part.logs).collect();
            assert!(logs == whole.logs, "logs are lost or in another order");
        }
    }

    #[test]
    fn a_log_that_no_record_holds_loses_its_data_and_the_others_nothing() {
        let parts = split_logs(record([10, 40 * 1024 * 1024, 20]));
        let sizes: Vec<usize> = parts.iter().flat_map(|part| &part.logs).map(|log| log.data.len()).collect();
        assert_eq!(sizes, [10, 0, 20]);
    }

    #[test]
    fn internal_transfers_that_no_record_holds_are_left_for_a_backfill() {
        let transfer = InternalTransfer { to: vec![1; 20].into(), from: vec![2; 20].into(), ..InternalTransfer::default() };
        let block =
            |count| BlockRecord { traced: true, internal_transfers: vec![transfer.clone(); count], ..BlockRecord::default() };
        let (mut small, mut large) = (block(10), block(1_000_000));
        assert!(!bound_block(&mut small, record([])).1 && bound_block(&mut large, record([])).1);
        assert_eq!((small.traced, large.traced, large.internal_transfers.len()), (true, false, 0));
    }

    fn transaction(index: usize) -> Transaction {
        Transaction {
            to: vec![1; 20].into(),
            value: vec![255; 32].into(),
            status: 2,
            index: u32::try_from(index).unwrap(),
            hash: vec![3; 32].into(),
            from: vec![4; 20].into(),
            r#type: u32::MAX,
            nonce: Some(u64::MAX),
            gas_used: Some(u64::MAX),
            effective_gas_price: Some(vec![255; 32].into()),
        }
    }

    /// An endpoint showed a block with 700,000 withdrawals of its own, whose record no topic took.
    #[test]
    fn every_block_that_is_published_has_a_record_that_its_topic_takes() {
        assert!(Transaction { index: u32::MAX, ..transaction(0) }.encoded_len() + 5 <= MAX_TRANSACTION_BYTES);
        let credit = Credit { to: vec![1; 20].into(), value: vec![255; 32].into(), ..Credit::default() };
        let mut block = BlockRecord {
            traced: true,
            transactions: (0..130_000).map(transaction).collect(),
            credits: vec![credit; 700_000],
            ..BlockRecord::default()
        };
        assert_eq!(bound_block(&mut block, record([32])), (vec![record([32])], false));
        assert_eq!((block.credits.len(), block.traced), (0, true));
        assert_eq!(block.transactions.len(), 130_000);
        assert!(block.encoded_len() <= MAX_BLOCK_BYTES, "{}", block.encoded_len());
    }

    /// A chain with 10 gigagas in a block halted at the first transaction that its record did not hold.
    #[test]
    fn transactions_that_the_record_of_a_block_does_not_hold_come_with_its_logs_and_none_is_lost() {
        for (count, logs) in [(200_000, vec![]), (300_000, vec![32]), (700_000, vec![1000; 40_000])] {
            let internal_transfers = vec![InternalTransfer { to: vec![1; 20].into(), ..InternalTransfer::default() }; 50];
            let transactions = (0..count).map(transaction).collect();
            let whole = BlockRecord { transactions, internal_transfers, traced: true, ..Default::default() };
            let (mut block, logs) = (whole.clone(), record(logs));
            let (parts, is_untraced) = bound_block(&mut block, logs.clone());
            assert!(block.encoded_len() <= KEPT_BYTES);
            assert!(!is_untraced && block.traced && block.internal_transfers.len() == 50, "they have room");
            let mut transactions = block.transactions;
            for (part, place) in parts.iter().zip(1..) {
                assert_eq!((part.part, part.parts), (place, u32::try_from(parts.len()).unwrap()));
                assert_eq!((part.sequence, part.number, &part.hash), (2, 3, &logs.hash));
                assert!(part.encoded_len() < usize::try_from(MAX_MESSAGE_BYTES).unwrap());
                let is_last_of_logs = part.part == part.parts && part.transactions.is_empty();
                assert!(is_last_of_logs || part.encoded_len() >= MAX_LOGS_BYTES / 2, "the reader takes it for a whole");
                transactions.extend(part.transactions.iter().map(|bytes| Transaction::decode(bytes.as_ref()).unwrap()));
            }
            assert!(transactions == whole.transactions, "transactions are lost or in another order");
            assert!(parts.into_iter().flat_map(|part| part.logs).eq(logs.logs), "logs are lost or in another order");
        }
    }
}
