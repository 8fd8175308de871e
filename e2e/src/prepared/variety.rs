//! The content of the blocks: about the mix of mainnet's block 17,686,111 in `testdata`.

use super::shape::{CHAIN_ID, LOGS};
use super::template::{HASH, NUMBER, PARENT, TIMESTAMP, Template};
use alloy::consensus::proofs::{calculate_receipt_root, calculate_transaction_root, calculate_withdrawals_root};
use alloy::consensus::{
    EMPTY_OMMER_ROOT_HASH, Header, Receipt, ReceiptEnvelope, SignableTransaction as _, TxEip1559, TxEnvelope, TxLegacy,
};
use alloy::eips::eip4895::Withdrawal;
use alloy::primitives::{Address, B256, Bloom, Bytes, Log, LogData, Signature, TxKind, U256, keccak256};
use std::fmt::Write as _;

const TRANSACTIONS: u64 = 150;
const WITHDRAWALS: u64 = 16;
const BASE_FEE: u64 = 9_876_543_210;
const TIP: u64 = 100_000_000;

/// A node's responses about blocks of the same content, and their header, which differs only by its place in the chain.
pub(super) struct Variety {
    pub header: Header,
    pub block: Template,
    pub block_of_hashes: Template,
    pub receipts: Template,
}

/// A pseudo-random word, always the same for the same arguments.
pub(super) fn word(what: &str, variety: u64, place: u64) -> B256 {
    keccak256([what.as_bytes(), &variety.to_be_bytes(), &place.to_be_bytes()].concat())
}

/// A transaction with its receipt's data.
struct Executed {
    transaction: TxEnvelope,
    json: String,
    from: Address,
    to: Address,
    gas_used: u64,
    logs: Vec<Log>,
}

impl Variety {
    pub fn new(variety: u64) -> Self {
        let executed: Vec<Executed> = (0..TRANSACTIONS).map(|index| execute(variety, index)).collect();
        let mut receipts = Vec::new();
        let (mut receipts_json, mut first_log, mut gas_used) = (Vec::new(), 0, 0);
        for (index, one) in executed.iter().enumerate() {
            gas_used += one.gas_used;
            let receipt = Receipt { status: true.into(), cumulative_gas_used: gas_used, logs: one.logs.clone() }.with_bloom();
            receipts_json.push(receipt_json(index, one, gas_used, &receipt.logs_bloom, first_log));
            receipts.push(match one.transaction {
                TxEnvelope::Legacy(_) => ReceiptEnvelope::Legacy(receipt),
                _ => ReceiptEnvelope::Eip1559(receipt),
            });
            first_log += one.logs.len();
        }
        debug_assert_eq!(u64::try_from(first_log), Ok(LOGS));
        let transactions: Vec<&TxEnvelope> = executed.iter().map(|one| &one.transaction).collect();
        let withdrawals: Vec<Withdrawal> = (0..WITHDRAWALS).map(|index| withdrawal(variety, index)).collect();
        let header = Header {
            ommers_hash: EMPTY_OMMER_ROOT_HASH,
            beneficiary: address("miner", variety, 0),
            state_root: word("state", variety, 0),
            transactions_root: calculate_transaction_root(&transactions),
            receipts_root: calculate_receipt_root(&receipts),
            logs_bloom: receipts.iter().fold(Bloom::ZERO, |all, receipt| all | *receipt.logs_bloom()),
            gas_limit: 36_000_000,
            gas_used,
            extra_data: Bytes::from_static(b"beaverbuild.org"),
            mix_hash: word("randao", variety, 0),
            base_fee_per_gas: Some(BASE_FEE),
            withdrawals_root: Some(calculate_withdrawals_root(&withdrawals)),
            blob_gas_used: Some(393_216),
            excess_blob_gas: Some(786_432),
            parent_beacon_block_root: Some(word("beacon", variety, 0)),
            requests_hash: Some(word("requests", variety, 0)),
            ..Header::default()
        };
        let jsons: Vec<&str> = executed.iter().map(|one| one.json.as_str()).collect();
        let hashes: Vec<String> = transactions.iter().map(|one| format!("\"{:#x}\"", one.tx_hash())).collect();
        Self {
            block: Template::new(&block_json(&header, &jsons.join(","), &withdrawals)),
            block_of_hashes: Template::new(&block_json(&header, &hashes.join(","), &withdrawals)),
            receipts: Template::new(&format!("[{}]", receipts_json.join(","))),
            header,
        }
    }
}

fn address(what: &str, variety: u64, place: u64) -> Address {
    Address::from_word(word(what, variety, place))
}

fn execute(variety: u64, index: u64) -> Executed {
    let from = address("sender", variety, index);
    let (to, value, input, gas_used, logs) = match index % 10 {
        // Three in ten pay coin,
        0..3 => (address("payee", variety, index), U256::from(10_000_000_000_000_000 + index), Bytes::new(), 21_000, vec![]),
        // four a token,
        3..7 => {
            let (token, payee) = (address("token", 0, index % 16), address("payee", variety, index));
            let amount = B256::from(U256::from(25_000_000 + index));
            let input =
                [&keccak256("transfer(address,uint256)")[..4], payee.into_word().as_slice(), amount.as_slice()].concat();
            let log = log(token, "Transfer(address,address,uint256)", &[from.into_word(), payee.into_word()], &[amount]);
            (token, U256::ZERO, input.into(), 46_109, vec![log])
        }
        // and three call some exchange.
        _ => {
            let words: Vec<u8> = (0..8 + index % 9).flat_map(|place| argument(variety, index + place)).collect();
            let input = [&word("call", 0, index % 16)[..4], words.as_slice()].concat();
            let count = if index.is_multiple_of(3) { 6 } else { 5 };
            let logs = (0..count).map(|place| exchange_log(variety, index, place)).collect();
            (address("router", 0, index % 16), U256::ZERO, input.into(), 187_331 + index, logs)
        }
    };
    let (nonce, gas_limit, kind) = (1000 + index, gas_used + gas_used / 4, TxKind::Call(to));
    let signature = Signature::new(word("r", variety, index).into(), word("s", variety, index).into(), index.is_multiple_of(3));
    // About as many as still are.
    let transaction: TxEnvelope = if index.is_multiple_of(8) {
        let gas_price = u128::from(BASE_FEE + TIP);
        TxLegacy { chain_id: Some(CHAIN_ID), nonce, gas_price, gas_limit, to: kind, value, input: input.clone() }
            .into_signed(signature)
            .into()
    } else {
        let (max_fee_per_gas, max_priority_fee_per_gas) = (u128::from(2 * BASE_FEE), u128::from(TIP));
        let (chain_id, access_list, input) = (CHAIN_ID, Default::default(), input.clone());
        TxEip1559 { chain_id, nonce, gas_limit, max_fee_per_gas, max_priority_fee_per_gas, to: kind, value, access_list, input }
            .into_signed(signature)
            .into()
    };
    let (r, s, parity) = (signature.r(), signature.s(), u64::from(signature.v()));
    let price = BASE_FEE + TIP;
    let (fees, kind, end) = if transaction.is_legacy() {
        (String::new(), 0, format!("\"chainId\":\"{CHAIN_ID:#x}\",\"v\":\"{:#x}\"", 2 * CHAIN_ID + 35 + parity))
    } else {
        let fees = format!("\"maxFeePerGas\":\"{:#x}\",\"maxPriorityFeePerGas\":\"{TIP:#x}\",", 2 * BASE_FEE);
        let end = format!("\"accessList\":[],\"chainId\":\"{CHAIN_ID:#x}\",\"v\":\"{parity:#x}\",\"yParity\":\"{parity:#x}\"");
        (fees, 2, end)
    };
    let hash = transaction.tx_hash();
    let json = format!(
        "{{\"blockHash\":\"{HASH}\",\"blockNumber\":\"{NUMBER}\",\"blockTimestamp\":\"{TIMESTAMP}\",\"from\":\"{from:#x}\",\
         \"gas\":\"{gas_limit:#x}\",\"gasPrice\":\"{price:#x}\",{fees}\"hash\":\"{hash:#x}\",\"input\":\"{input}\",\
         \"nonce\":\"{nonce:#x}\",\"to\":\"{to:#x}\",\"transactionIndex\":\"{index:#x}\",\"value\":\"{value:#x}\",\
         \"type\":\"{kind:#x}\",{end},\"r\":\"{r:#x}\",\"s\":\"{s:#x}\"}}"
    );
    Executed { transaction, json, from, to, gas_used, logs }
}

/// An argument of a call: an address or a small number, as most are.
fn argument(variety: u64, place: u64) -> B256 {
    if place.is_multiple_of(2) {
        address("argument", variety, place).into_word()
    } else {
        B256::from(U256::from(1_000_003 * (place + 1)))
    }
}

fn log(address: Address, event: &str, indexed: &[B256], data: &[B256]) -> Log {
    let topics = [&[keccak256(event)], indexed].concat();
    let data: Vec<u8> = data.iter().flat_map(|word| word.0).collect();
    Log { address, data: LogData::new_unchecked(topics, data.into()) }
}

/// A log of a swap.
fn exchange_log(variety: u64, index: u64, place: u64) -> Log {
    let [sender, payee, pair] = ["sender", "payee", "pair"].map(|what| address(what, variety, index).into_word());
    let amount = |i: u64| B256::from(U256::from(1_000_000_000_000_000_007 + index * 31 + i));
    let token = address("token", 0, (index + place) % 16);
    let exchange = Address::from_word(pair);
    match place {
        0 => log(token, "Transfer(address,address,uint256)", &[sender, pair], &[amount(0)]),
        1 => log(token, "Transfer(address,address,uint256)", &[pair, payee], &[amount(1)]),
        2 => log(exchange, "Sync(uint112,uint112)", &[], &[amount(2), amount(3)]),
        3 => {
            let swap = "Swap(address,uint256,uint256,uint256,uint256,address)";
            log(exchange, swap, &[sender, payee], &[amount(0), B256::ZERO, B256::ZERO, amount(1)])
        }
        4 => log(token, "Approval(address,address,uint256)", &[sender, pair], &[amount(4)]),
        _ => log(token, "Deposit(address,uint256)", &[payee], &[amount(5)]),
    }
}

fn withdrawal(variety: u64, index: u64) -> Withdrawal {
    let place = 90_000_000 + variety * WITHDRAWALS + index;
    let (validator_index, amount) = (place % 1_000_000, 19_123_456 + index);
    Withdrawal { index: place, validator_index, address: address("validator", variety, index), amount }
}

fn receipt_json(index: usize, executed: &Executed, cumulative: u64, bloom: &Bloom, first_log: usize) -> String {
    let Executed { transaction, from, to, gas_used, logs, .. } = executed;
    let (hash, kind, price) = (transaction.tx_hash(), u8::from(!transaction.is_legacy()) * 2, BASE_FEE + TIP);
    let logs: Vec<String> = logs.iter().enumerate().map(|(place, log)| {
        let topics: Vec<String> = log.topics().iter().map(|topic| format!("\"{topic:#x}\"")).collect();
        format!(
            "{{\"address\":\"{:#x}\",\"topics\":[{}],\"data\":\"{}\",\"blockNumber\":\"{NUMBER}\",\"transactionHash\":\"{hash:#x}\",\
             \"transactionIndex\":\"{index:#x}\",\"blockHash\":\"{HASH}\",\"blockTimestamp\":\"{TIMESTAMP}\",\
             \"logIndex\":\"{:#x}\",\"removed\":false}}",
            log.address, topics.join(","), log.data.data, first_log + place
        )
    }).collect();
    format!(
        "{{\"blockHash\":\"{HASH}\",\"blockNumber\":\"{NUMBER}\",\"contractAddress\":null,\
         \"cumulativeGasUsed\":\"{cumulative:#x}\",\"effectiveGasPrice\":\"{price:#x}\",\"from\":\"{from:#x}\",\
         \"gasUsed\":\"{gas_used:#x}\",\"logs\":[{}],\"logsBloom\":\"{bloom:#x}\",\"status\":\"0x1\",\"to\":\"{to:#x}\",\
         \"transactionHash\":\"{hash:#x}\",\"transactionIndex\":\"{index:#x}\",\"type\":\"{kind:#x}\"}}",
        logs.join(",")
    )
}

fn block_json(header: &Header, transactions: &str, withdrawals: &[Withdrawal]) -> String {
    let mut list = String::new();
    for Withdrawal { index, validator_index, address, amount } in withdrawals {
        let comma = if list.is_empty() { "" } else { "," };
        // Writing into a string does not fail.
        let _ = write!(
            list,
            "{comma}{{\"index\":\"{index:#x}\",\"validatorIndex\":\"{validator_index:#x}\",\"address\":\"{address:#x}\",\
             \"amount\":\"{amount:#x}\"}}"
        );
    }
    let optional = |number: Option<u64>| number.unwrap_or_default();
    let root = |hash: Option<B256>| hash.unwrap_or_default();
    format!(
        "{{\"baseFeePerGas\":\"{:#x}\",\"blobGasUsed\":\"{:#x}\",\"difficulty\":\"0x0\",\"excessBlobGas\":\"{:#x}\",\
         \"extraData\":\"{}\",\"gasLimit\":\"{:#x}\",\"gasUsed\":\"{:#x}\",\"hash\":\"{HASH}\",\"logsBloom\":\"{:#x}\",\
         \"miner\":\"{:#x}\",\"mixHash\":\"{:#x}\",\"nonce\":\"0x0000000000000000\",\"number\":\"{NUMBER}\",\
         \"parentBeaconBlockRoot\":\"{:#x}\",\"parentHash\":\"{PARENT}\",\"receiptsRoot\":\"{:#x}\",\"requestsHash\":\"{:#x}\",\
         \"sha3Uncles\":\"{:#x}\",\"size\":\"0xfe36\",\"stateRoot\":\"{:#x}\",\"timestamp\":\"{TIMESTAMP}\",\
         \"transactions\":[{transactions}],\"transactionsRoot\":\"{:#x}\",\"uncles\":[],\"withdrawals\":[{list}],\
         \"withdrawalsRoot\":\"{:#x}\"}}",
        optional(header.base_fee_per_gas),
        optional(header.blob_gas_used),
        optional(header.excess_blob_gas),
        header.extra_data,
        header.gas_limit,
        header.gas_used,
        header.logs_bloom,
        header.beneficiary,
        header.mix_hash,
        root(header.parent_beacon_block_root),
        header.receipts_root,
        root(header.requests_hash),
        header.ommers_hash,
        header.state_root,
        header.transactions_root,
        root(header.withdrawals_root),
    )
}
