//! Keeps records within what a topic takes. A block is never held up by its size: its logs are split over several records, a
//! log that no record holds loses its data, internal transfers that no record holds are left for a backfill, and credits, which are
//! no payments, are left out. Pure.

use chain::FetchedBlock;
use prost::Message as _;
use topics::wire::logs_record::Log;
use topics::wire::{BlockRecord, LogsRecord};
use topics::{MAX_LOGS_BYTES, hex, in_parts};

/// No transfer has so much data. Half of a record, so that each part but the last is at least half full.
const MAX_LOG_BYTES: usize = MAX_LOGS_BYTES / 2;
/// A record of `chain.blocks` with more bytes goes without its internal transfers, or its credits.
const MAX_BLOCK_BYTES: usize = 24 * 1024 * 1024;
/// A transaction of a record has no more bytes.
const MAX_TRANSACTION_BYTES: usize = 132;
/// Transactions of a block that a record holds, whatever they are.
pub const MAX_TRANSACTIONS: usize = MAX_BLOCK_BYTES / MAX_TRANSACTION_BYTES;

/// Whether a record holds the block, as [`bound_block`] leaves it.
pub fn fits_record(block: &FetchedBlock) -> bool {
    block.block.transactions.len() <= MAX_TRANSACTIONS
}

/// The records of a block's logs: one, or as many parts as it takes.
pub fn split_logs(mut record: LogsRecord) -> Vec<LogsRecord> {
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

/// Leaves out the credits of a block whose record would be too large, and its internal transfers if it still is. Returns whether
/// those are left out.
pub fn bound_block(block: &mut BlockRecord) -> bool {
    if !block.credits.is_empty() && block.encoded_len() > MAX_BLOCK_BYTES {
        let (chain, number, count) = (block.chain_id, block.number, block.credits.len());
        tracing::warn!(chain, number, "a block's {count} credits fit no record and are left out");
        block.credits.clear();
    }
    let is_too_large = !block.internal_transfers.is_empty() && block.encoded_len() > MAX_BLOCK_BYTES;
    if is_too_large {
        block.internal_transfers.clear();
        block.traced = false;
    }
    is_too_large
}

#[cfg(test)]
mod tests {
    use super::*;
    use topics::MAX_MESSAGE_BYTES;
    use topics::wire::block_record::{Credit, InternalTransfer, Transaction};
    use topics::wire::logs_record::Log;

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
        assert!(!bound_block(&mut small) && bound_block(&mut large));
        assert_eq!((small.traced, large.traced, large.internal_transfers.len()), (true, false, 0));
    }

    /// An endpoint showed a block with 700,000 withdrawals of its own, whose record no topic took.
    #[test]
    fn every_block_that_is_published_has_a_record_that_its_topic_takes() {
        let transaction = Transaction {
            to: vec![1; 20].into(),
            value: vec![255; 32].into(),
            status: 2,
            index: u32::MAX,
            hash: vec![3; 32].into(),
            from: vec![4; 20].into(),
            r#type: u32::MAX,
        };
        let credit = Credit { to: vec![1; 20].into(), value: vec![255; 32].into(), ..Credit::default() };
        let mut block = BlockRecord {
            traced: true,
            transactions: vec![transaction; MAX_TRANSACTIONS],
            credits: vec![credit; 700_000],
            ..BlockRecord::default()
        };
        assert!(!bound_block(&mut block));
        assert_eq!((block.credits.len(), block.traced), (0, true));
        assert!(block.encoded_len() + 1024 < usize::try_from(MAX_MESSAGE_BYTES).unwrap(), "{}", block.encoded_len());
        assert!(block.encoded_len() <= MAX_BLOCK_BYTES, "{}", block.encoded_len());
    }
}
