//! Matching: finds the transfers of a block whose recipient is a watched address. Pure.
//!
//! Of a log, only the first topic and then the recipient are read; the rest is decoded if the recipient is watched. All lookups
//! of a block are made together, so that their cache misses overlap.
//!
//! Records are read in the order of their field numbers, in which every Protobuf library writes them.

use crate::coin::{Told, coin_contracts, count_once, is_payment};
use crate::watch_set::WatchSet;
use prost::DecodeError;
use topics::lazy::Fields;
pub use topics::{COIN_LOG_ADDRESS, TRANSFER_TOPIC};
use topics::{CoinContract, CoinLogs, MAX_LOGS_BYTES, wire};
use wire::matches_record::{Kind, Source, Transfer};

/// A record of `chain.blocks` whose transactions are not decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockView<'a> {
    pub chain_id: u64,
    /// The chain's record counter; 0 for a replayed block.
    pub sequence: u64,
    /// [`Kind`] as a number, which is the same in `chain.blocks`.
    pub kind: i32,
    pub number: u64,
    /// 32 bytes.
    pub hash: &'a [u8],
    /// 32 bytes.
    pub parent_hash: &'a [u8],
    /// Unix seconds.
    pub timestamp: u64,
    /// Height of the `safe` block.
    pub safe_number: Option<u64>,
    /// Height of the `finalized` block.
    pub finalized_number: Option<u64>,
    /// Height of the highest witnessed block.
    pub witnessed_number: Option<u64>,
    /// Height of a removed block's parent, if it is told.
    pub parent_number: Option<u64>,
    transactions: Vec<&'a [u8]>,
    internal_transfers: Vec<&'a [u8]>,
}

/// The beginning that a block's records in `chain.blocks`, `chain.matches` and, but for the parent, `chain.logs` have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordHead<'a> {
    pub chain_id: u64,
    /// The chain's record counter; 0 for a replayed block.
    pub sequence: u64,
    /// [`Kind`] as a number.
    pub kind: i32,
    pub number: u64,
    pub hash: &'a [u8],
    /// Not in `chain.logs`.
    pub parent_hash: &'a [u8],
    /// Of a removed block, if it is told.
    pub parent_number: Option<u64>,
}

impl<'a> BlockView<'a> {
    /// Reads a Protobuf message without its frame.
    ///
    /// # Errors
    /// If it is truncated or malformed.
    pub fn read(message: &'a [u8]) -> Result<Self, DecodeError> {
        let mut block = Self::default();
        for field in Fields::new(message) {
            let (number, value) = field?;
            match number {
                1 => block.chain_id = value.varint(),
                2 => block.sequence = value.varint(),
                3 => block.kind = i32::try_from(value.varint()).unwrap_or_default(),
                4 => block.number = value.varint(),
                5 => block.hash = value.bytes(),
                6 => block.parent_hash = value.bytes(),
                7 => block.timestamp = value.varint(),
                8 => block.safe_number = Some(value.varint()),
                9 => block.finalized_number = Some(value.varint()),
                12 => block.transactions.push(value.bytes()),
                14 => block.internal_transfers.push(value.bytes()),
                16 => block.witnessed_number = Some(value.varint()),
                17 => block.parent_number = Some(value.varint()),
                _ => {}
            }
        }
        Ok(block)
    }
}

impl<'a> RecordHead<'a> {
    /// Reads a Protobuf message without its frame.
    ///
    /// # Errors
    /// If it is truncated or malformed.
    pub fn read(message: &'a [u8]) -> Result<Self, DecodeError> {
        let mut head = Self::default();
        for field in Fields::new(message) {
            let (number, value) = field?;
            match number {
                1 => head.chain_id = value.varint(),
                2 => head.sequence = value.varint(),
                3 => head.kind = i32::try_from(value.varint()).unwrap_or_default(),
                4 => head.number = value.varint(),
                5 => head.hash = value.bytes(),
                6 => {
                    head.parent_hash = value.bytes();
                    if head.kind != i32::from(Kind::Removed) {
                        break;
                    }
                }
                17 => head.parent_number = Some(value.varint()),
                _ => {}
            }
        }
        Ok(head)
    }
}

/// Which part of a block's logs a record of `chain.logs` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogsPart {
    /// Counted from 1.
    pub part: u32,
    pub parts: u32,
}

impl LogsPart {
    /// All of them.
    pub const WHOLE: Self = Self { part: 1, parts: 1 };

    /// Reads a Protobuf message without its frame. The fields come after all logs, which are passed over only if there may be
    /// another part: the message is large, as is each that has transactions, or ends with both fields, as the last part does, of
    /// fewer than 128.
    ///
    /// # Errors
    /// If it is truncated or malformed.
    pub fn read(message: &[u8]) -> Result<Self, DecodeError> {
        let may_be_part = message.len() >= MAX_LOGS_BYTES / 2 || matches!(message, [.., 0x38, _, 0x40, _]);
        if !may_be_part {
            return Ok(Self::WHOLE);
        }
        let mut part = Self { part: 0, parts: 0 };
        for field in Fields::new(message) {
            match field? {
                (7, value) => part.part = u32::try_from(value.varint()).unwrap_or(u32::MAX),
                (8, value) => part.parts = u32::try_from(value.varint()).unwrap_or(u32::MAX),
                _ => {}
            }
        }
        Ok(part)
    }
}

/// A message with a recipient, not decoded.
#[derive(Clone, Copy)]
enum Candidate<'a> {
    /// With the contract, if it is the chain's coin.
    Log(&'a [u8], Option<&'static CoinContract>),
    Transaction(&'a [u8]),
    Internal(&'a [u8]),
}

/// Matches blocks. Reuse it for many blocks, since it keeps its buffers.
#[derive(Default)]
pub struct Matcher {
    recipients: Vec<[u8; 20]>,
    hits: Vec<usize>,
    /// The contracts that are the chain's coin.
    coins: Vec<&'static CoinContract>,
    /// Logs examined so far.
    pub logs: u64,
}

impl Matcher {
    /// Makes the block's record of `chain.matches`. `logs` is the Protobuf of its record of `chain.logs`.
    ///
    /// # Errors
    /// If a record is truncated or malformed.
    pub fn matches(
        &mut self,
        watched: &WatchSet,
        block: &BlockView<'_>,
        logs: &[u8],
    ) -> Result<wire::MatchesRecord, DecodeError> {
        self.matches_in_parts(watched, block, &[logs])
    }

    /// As [`matches`](Self::matches), for logs that are in several records.
    ///
    /// # Errors
    /// If a record is truncated or malformed.
    pub fn matches_in_parts(
        &mut self,
        watched: &WatchSet,
        block: &BlockView<'_>,
        logs: &[&[u8]],
    ) -> Result<wire::MatchesRecord, DecodeError> {
        let without = [Kind::Removed, Kind::Tags].into_iter().any(|kind| block.kind == i32::from(kind));
        let transfers = if without { Vec::new() } else { self.transfers(watched, block, logs)? };
        Ok(wire::MatchesRecord {
            chain_id: block.chain_id,
            sequence: block.sequence,
            kind: block.kind,
            number: block.number,
            hash: block.hash.to_vec().into(),
            parent_hash: block.parent_hash.to_vec().into(),
            timestamp: block.timestamp,
            safe_number: block.safe_number,
            finalized_number: block.finalized_number,
            transfers,
            witnessed_number: block.witnessed_number,
            parent_number: block.parent_number,
            part: 0,
            parts: 0,
        })
    }

    fn transfers(&mut self, watched: &WatchSet, block: &BlockView<'_>, logs: &[&[u8]]) -> Result<Vec<Transfer>, DecodeError> {
        self.recipients.clear();
        self.hits.clear();
        self.coins.clear();
        self.coins.extend(coin_contracts(block.chain_id));
        let mut candidates = Vec::with_capacity(block.transactions.len());
        let mut coin_in_logs = false;
        // Those that the block's own record does not hold.
        let mut transactions = Vec::new();
        for field in logs.iter().flat_map(|part| Fields::new(part)) {
            let log = match field? {
                (6, log) => log,
                (9, transaction) => {
                    transactions.push(transaction.bytes());
                    continue;
                }
                _ => continue,
            };
            self.logs += 1;
            if let Some(seen) = recipient_of_log(log.bytes())? {
                let coin = self.coins.iter().copied().find(|coin| coin.address.as_slice() == seen.emitter);
                coin_in_logs |= coin.is_some_and(|coin| coin.tells == CoinLogs::Every);
                self.recipients.push(seen.to);
                candidates.push(Candidate::Log(log.bytes(), coin));
            }
        }
        // If the block reports every movement of its coin as a log (EIP-7708, zkSync), the transactions' values and the traces
        // are the same money.
        if !coin_in_logs {
            for transaction in block.transactions.iter().chain(&transactions) {
                self.candidate(transaction, Candidate::Transaction(transaction), &mut candidates)?;
            }
            for internal in &block.internal_transfers {
                self.candidate(internal, Candidate::Internal(internal), &mut candidates)?;
            }
        }
        watched.find(&self.recipients, &mut self.hits);
        let mut found = Vec::new();
        for candidate in self.hits.iter().filter_map(|place| candidates.get(*place)) {
            let (told, transfer) = match candidate {
                Candidate::Log(log, coin) => (coin.map_or(Told::Token, Told::Coin), transfer_of_log(log, coin.is_some())?),
                Candidate::Transaction(transaction) => (Told::Value, transfer_of_transaction(transaction)?),
                Candidate::Internal(internal) => (Told::Frame, transfer_of_frame(internal)?),
            };
            found.extend(transfer.map(|transfer| (told, transfer)));
        }
        count_once(&mut found);
        found.retain(|(told, transfer)| is_payment(*told, transfer));
        let mut transfers: Vec<Transfer> = found.into_iter().map(|(_, transfer)| transfer).collect();
        transfers.sort_by_key(|t| (t.transaction_index, t.source, t.index));
        Ok(transfers)
    }

    /// Adds a transaction or an internal transfer, whose recipient is field 1.
    fn candidate<'a>(
        &mut self,
        message: &'a [u8],
        candidate: Candidate<'a>,
        candidates: &mut Vec<Candidate<'a>>,
    ) -> Result<(), DecodeError> {
        if let Some(field) = Fields::new(message).next()
            && let (1, to) = field?
            && let Ok(to) = to.bytes().try_into()
        {
            self.recipients.push(to);
            candidates.push(candidate);
        }
        Ok(())
    }
}

struct LogRecipient<'a> {
    emitter: &'a [u8],
    to: [u8; 20],
}

/// The recipient, if the log looks like a transfer of a fungible token: `Transfer` with both parties indexed, or with neither,
/// as some early tokens have it. Four topics are an ERC-721.
fn recipient_of_log(log: &[u8]) -> Result<Option<LogRecipient<'_>>, DecodeError> {
    let mut emitter: &[u8] = &[];
    let mut topics = 0;
    let mut to: &[u8] = &[];
    for field in Fields::new(log) {
        match field? {
            (1, value) => emitter = value.bytes(),
            (2, value) => {
                topics += 1;
                match topics {
                    1 if value.bytes() != TRANSFER_TOPIC.as_slice() => return Ok(None),
                    3 => to = value.bytes(),
                    4 => return Ok(None),
                    _ => {}
                }
            }
            (3, value) => {
                let data = value.bytes();
                match (topics, data.len()) {
                    (3, 32) => {}
                    (1, 96) => to = data.get(32..64).unwrap_or_default(),
                    _ => return Ok(None),
                }
                return Ok(word_as_address(to).map(|to| LogRecipient { emitter, to }));
            }
            _ => {}
        }
    }
    Ok(None)
}

fn word_as_address(word: &[u8]) -> Option<[u8; 20]> {
    let (padding, address) = word.split_at_checked(12)?;
    if padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    address.try_into().ok()
}

/// Big-endian without leading zeros, as amounts are on the wire.
fn trim(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// `is_coin` says that the contract is the chain's coin.
fn transfer_of_log(log: &[u8], is_coin: bool) -> Result<Option<Transfer>, DecodeError> {
    let log = <wire::logs_record::Log as prost::Message>::decode(log)?;
    let (from, to, amount) = match (log.topics.as_slice(), log.data.len()) {
        ([_, from, to], 32) => (from.as_ref(), to.as_ref(), log.data.as_ref()),
        ([_], 96) => (
            log.data.get(..32).unwrap_or_default(),
            log.data.get(32..64).unwrap_or_default(),
            log.data.get(64..).unwrap_or_default(),
        ),
        _ => return Ok(None),
    };
    let (Some(from), Some(to)) = (word_as_address(from), word_as_address(to)) else {
        return Ok(None);
    };
    Ok(Some(Transfer {
        transaction_hash: log.transaction_hash,
        source: Source::Log.into(),
        index: log.index,
        token: if is_coin { Default::default() } else { log.address },
        from: from.to_vec().into(),
        to: to.to_vec().into(),
        amount: trim(amount).into(),
        transaction_index: log.transaction_index,
    }))
}

/// zkSync's own type of transaction, whose sender may be a contract.
const ZKSYNC_TRANSACTION: u32 = 0x71;

/// Only with receipt status 1: a reverted transaction pays nothing, and without a status the outcome is unknown. Nor does the
/// value of zkSync's own type pay: its sender's contract decides what becomes of it, and a log tells.
fn transfer_of_transaction(transaction: &[u8]) -> Result<Option<Transfer>, DecodeError> {
    let transaction = <wire::block_record::Transaction as prost::Message>::decode(transaction)?;
    if transaction.status() != wire::block_record::Status::Success || transaction.r#type == ZKSYNC_TRANSACTION {
        return Ok(None);
    }
    Ok(Some(Transfer {
        transaction_hash: transaction.hash,
        source: Source::Transaction.into(),
        index: 0,
        token: Default::default(),
        from: transaction.from,
        to: transaction.to,
        amount: trim(&transaction.value).into(),
        transaction_index: transaction.index,
    }))
}

fn transfer_of_frame(internal: &[u8]) -> Result<Option<Transfer>, DecodeError> {
    let internal = <wire::block_record::InternalTransfer as prost::Message>::decode(internal)?;
    Ok(Some(Transfer {
        transaction_hash: internal.transaction_hash,
        source: Source::Trace.into(),
        index: internal.frame,
        token: Default::default(),
        from: internal.from,
        to: internal.to,
        amount: trim(&internal.value).into(),
        transaction_index: internal.transaction_index,
    }))
}
