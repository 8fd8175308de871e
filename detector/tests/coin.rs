//! A chain's coin by chain and by way: each payment is found once, whichever way it came, and alike with traces and without.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use alloy::primitives::address;
use detector::WatchSet;
use detector::matching::{BlockView, COIN_LOG_ADDRESS, Matcher, TRANSFER_TOPIC};
use prost::Message as _;
use topics::{Address, Amount, B256, U256, hex, wire};
use wire::block_record::{InternalTransfer, Kind, Status, Transaction};
use wire::logs_record::Log;
use wire::matches_record::Source::{self, Log as ByLog, Trace, Transaction as ByValue};

const PAYEE: Address = Address::repeat_byte(0xaa);
const PAYER: Address = Address::repeat_byte(0xbb);
const CONTRACT: Address = Address::repeat_byte(0xcc);
const CELO: Address = address!("471EcE3750Da237f93B8E339c536989b8978a438");
const MOONBEAM: Address = address!("0000000000000000000000000000000000000802");
const POLYGON: Address = address!("0000000000000000000000000000000000001010");
const ZKSYNC: Address = address!("000000000000000000000000000000000000800A");
const BOOTLOADER: Address = address!("0000000000000000000000000000000000008001");

/// What a block shows of one transaction.
#[derive(Clone, Default)]
struct Way {
    transaction: Transaction,
    logs: Vec<Log>,
    /// Shown only with `traces: true`.
    frames: Vec<InternalTransfer>,
}

fn call(to: Address, value: u64, kind: u32) -> Way {
    let transaction = Transaction {
        to: to.to_vec().into(),
        value: Amount::from(value).to_wire().into(),
        status: Status::Success.into(),
        index: 0,
        hash: B256::repeat_byte(1).to_vec().into(),
        from: PAYER.to_vec().into(),
        r#type: kind,
        ..Transaction::default()
    };
    Way { transaction, ..Way::default() }
}

impl Way {
    fn log(mut self, emitter: Address, from: Address, to: Address, value: u64) -> Self {
        let topics = [TRANSFER_TOPIC, from.into_word(), to.into_word()];
        self.logs.push(Log {
            address: emitter.to_vec().into(),
            topics: topics.iter().map(|topic| topic.to_vec().into()).collect(),
            data: B256::from(U256::from(value)).to_vec().into(),
            index: u32::try_from(self.logs.len()).unwrap(),
            transaction_index: 0,
            transaction_hash: B256::repeat_byte(1).to_vec().into(),
        });
        self
    }

    fn frame(mut self, from: Address, to: Address, value: u64) -> Self {
        self.frames.push(InternalTransfer {
            to: to.to_vec().into(),
            value: Amount::from(value).to_wire().into(),
            from: from.to_vec().into(),
            transaction_hash: B256::repeat_byte(1).to_vec().into(),
            transaction_index: 0,
            frame: u32::try_from(self.frames.len() + 1).unwrap(),
        });
        self
    }

    /// The transfers to the payee: source, index, amount, and the token's contract.
    fn found(&self, chain: u64, traces: bool) -> Vec<(Source, u32, U256, String)> {
        let mut watched = WatchSet::default();
        watched.insert(PAYEE);
        let block = wire::BlockRecord {
            chain_id: chain,
            sequence: 1,
            kind: Kind::Added.into(),
            hash: B256::repeat_byte(9).to_vec().into(),
            transactions: vec![self.transaction.clone()],
            traced: traces,
            internal_transfers: if traces { self.frames.clone() } else { vec![] },
            ..Default::default()
        };
        let logs = wire::LogsRecord { chain_id: chain, sequence: 1, logs: self.logs.clone(), ..Default::default() };
        let (block, logs) = (block.encode_to_vec(), logs.encode_to_vec());
        let matches = Matcher::default().matches(&watched, &BlockView::read(&block).unwrap(), &logs).unwrap();
        let told = |t: &wire::matches_record::Transfer| {
            (t.source(), t.index, U256::from_be_slice(&t.amount), hex(&t.token).trim_start_matches("0x").to_owned())
        };
        matches.transfers.iter().map(told).collect()
    }
}

/// Way, what it shows, and the payments that are found: without traces, and with them.
type Case = (&'static str, Way, &'static [(Source, u32, u64)], &'static [(Source, u32, u64)]);

fn cases(chain: u64) -> Vec<Case> {
    let plain = || call(PAYEE, 5, 2);
    let sent_on = || call(CONTRACT, 5, 2).frame(CONTRACT, PAYEE, 5);
    match chain {
        // Ethereum, and any chain without a contract of its coin.
        1 => vec![
            ("a value", plain(), &[(ByValue, 0, 5)], &[(ByValue, 0, 5)]),
            ("sent by a contract", sent_on(), &[], &[(Trace, 1, 5)]),
            ("a value, EIP-7708", plain().log(COIN_LOG_ADDRESS, PAYER, PAYEE, 5), &[(ByLog, 0, 5)], &[(ByLog, 0, 5)]),
            (
                "sent by a contract, EIP-7708",
                sent_on().log(COIN_LOG_ADDRESS, PAYER, CONTRACT, 5).log(COIN_LOG_ADDRESS, CONTRACT, PAYEE, 5),
                &[(ByLog, 1, 5)],
                &[(ByLog, 1, 5)],
            ),
        ],
        // Celo and Celo Sepolia.
        42_220 | 11_142_220 => vec![
            ("a value", plain(), &[(ByValue, 0, 5)], &[(ByValue, 0, 5)]),
            ("sent by a contract", sent_on(), &[], &[(Trace, 1, 5)]),
            ("its contract is called", call(CELO, 0, 2).log(CELO, PAYER, PAYEE, 5), &[(ByLog, 0, 5)], &[(ByLog, 0, 5)]),
            (
                "its contract is called by another",
                call(CONTRACT, 0, 2).log(CELO, CONTRACT, PAYEE, 5),
                &[(ByLog, 0, 5)],
                &[(ByLog, 0, 5)],
            ),
            (
                "minted by its contract",
                call(CONTRACT, 0, 2).log(CELO, Address::ZERO, PAYEE, 5),
                &[(ByLog, 0, 5)],
                &[(ByLog, 0, 5)],
            ),
            // Two payments, in two ways and of one amount.
            (
                "a contract pays twice",
                sent_on().log(CELO, CONTRACT, PAYEE, 5),
                &[(ByLog, 0, 5)],
                &[(ByLog, 0, 5), (Trace, 1, 5)],
            ),
            (
                "its contract is called, EIP-7708",
                call(CELO, 0, 2).log(CELO, PAYER, PAYEE, 5).log(COIN_LOG_ADDRESS, PAYER, PAYEE, 5),
                &[(ByLog, 1, 5)],
                &[(ByLog, 1, 5)],
            ),
        ],
        // Moonbeam, Moonriver, Moonbase Alpha.
        1284 | 1285 | 1287 => vec![
            ("a value", plain(), &[(ByValue, 0, 5)], &[(ByValue, 0, 5)]),
            ("its contract is called", call(MOONBEAM, 0, 2).log(MOONBEAM, PAYER, PAYEE, 5), &[(ByLog, 0, 5)], &[(ByLog, 0, 5)]),
        ],
        // Polygon and Amoy. The frame is the contract's own, as it passes the value on.
        137 | 80_002 => vec![
            ("a value", plain(), &[(ByValue, 0, 5)], &[(ByValue, 0, 5)]),
            ("sent by a contract", sent_on(), &[], &[(Trace, 1, 5)]),
            (
                "its contract is called",
                call(POLYGON, 5, 2).frame(POLYGON, PAYEE, 5).log(POLYGON, PAYER, PAYEE, 5),
                &[(ByLog, 0, 5)],
                &[(ByLog, 0, 5)],
            ),
            (
                "its contract is called twice",
                call(CONTRACT, 10, 2)
                    .frame(CONTRACT, POLYGON, 5)
                    .frame(POLYGON, PAYEE, 5)
                    .log(POLYGON, CONTRACT, PAYEE, 5)
                    .frame(CONTRACT, POLYGON, 5)
                    .frame(POLYGON, PAYEE, 5)
                    .log(POLYGON, CONTRACT, PAYEE, 5),
                &[(ByLog, 0, 5), (ByLog, 1, 5)],
                &[(ByLog, 0, 5), (ByLog, 1, 5)],
            ),
            // The log shows one of these frames, and not the first.
            (
                "its contract is called, pays a deposit out, and a contract pays",
                call(POLYGON, 5, 2)
                    .frame(CONTRACT, PAYEE, 5)
                    .frame(POLYGON, PAYEE, 7)
                    .frame(POLYGON, PAYEE, 5)
                    .log(POLYGON, PAYER, PAYEE, 5),
                &[(ByLog, 0, 5)],
                &[(ByLog, 0, 5), (Trace, 1, 5), (Trace, 2, 7)],
            ),
            (
                "its contract is called and pays a deposit of the same amount out",
                call(POLYGON, 5, 2).frame(POLYGON, PAYEE, 5).log(POLYGON, PAYER, PAYEE, 5).frame(POLYGON, PAYEE, 5),
                &[(ByLog, 0, 5)],
                &[(ByLog, 0, 5), (Trace, 2, 5)],
            ),
            // Bor's deposits from Ethereum have no such log.
            ("its contract pays a deposit out", call(CONTRACT, 0, 2).frame(POLYGON, PAYEE, 5), &[], &[(Trace, 1, 5)]),
            // The payee's own money comes back to it.
            (
                "the payee pays itself by the contract",
                call(CONTRACT, 0, 2).frame(POLYGON, PAYEE, 5).log(POLYGON, PAYEE, PAYEE, 5),
                &[],
                &[],
            ),
            (
                "its contract is called, EIP-7708",
                call(POLYGON, 5, 2)
                    .frame(POLYGON, PAYEE, 5)
                    .log(COIN_LOG_ADDRESS, PAYER, POLYGON, 5)
                    .log(COIN_LOG_ADDRESS, POLYGON, PAYEE, 5)
                    .log(POLYGON, PAYER, PAYEE, 5),
                &[(ByLog, 1, 5)],
                &[(ByLog, 1, 5)],
            ),
        ],
        // zkSync, a sister, and one that nobody has heard of: what their blocks hold decides.
        324 | 2741 | 987_654 => vec![
            (
                "a value",
                plain().log(ZKSYNC, PAYER, BOOTLOADER, 1).log(ZKSYNC, PAYER, PAYEE, 5),
                &[(ByLog, 1, 5)],
                &[(ByLog, 1, 5)],
            ),
            (
                "sent by a contract",
                sent_on().log(ZKSYNC, PAYER, CONTRACT, 5).log(ZKSYNC, CONTRACT, PAYEE, 5),
                &[(ByLog, 1, 5)],
                &[(ByLog, 1, 5)],
            ),
            ("what was too much of a fee", call(CONTRACT, 0, 2).log(ZKSYNC, BOOTLOADER, PAYEE, 5), &[], &[]),
            // The sender is a contract that did not send what its transaction says.
            ("a value that was not sent", call(PAYEE, 5, 0x71).log(ZKSYNC, PAYER, BOOTLOADER, 1), &[], &[]),
            ("a value that was not sent, and no fee", call(PAYEE, 5, 0x71), &[], &[]),
            // ZKsync OS logs no movements of coin.
            ("a value without any log", plain(), &[(ByValue, 0, 5)], &[(ByValue, 0, 5)]),
        ],
        chain => panic!("no cases for chain {chain}"),
    }
}

#[test]
fn each_payment_in_the_coin_is_found_once_on_each_chain_and_in_each_way() {
    for chain in [1, 42_220, 11_142_220, 1284, 1285, 1287, 137, 80_002, 324, 2741, 987_654] {
        for (way, shows, without, with) in cases(chain) {
            for (traces, expected) in [(false, without), (true, with)] {
                let expected: Vec<_> = expected
                    .iter()
                    .map(|(source, index, value)| (*source, *index, U256::from(*value), String::new()))
                    .collect();
                assert_eq!(shows.found(chain, traces), expected, "chain {chain}, {way}, traces: {traces}");
            }
        }
    }
}

/// A backfill may run under another `traces` than the first run did. A transfer found under two identities would count twice.
#[test]
fn a_payment_that_is_found_without_traces_is_the_same_one_with_them() {
    for chain in [1, 42_220, 1284, 137, 324] {
        for (way, shows, ..) in cases(chain) {
            let (without, with) = (shows.found(chain, false), shows.found(chain, true));
            assert!(without.iter().all(|payment| with.contains(payment)), "chain {chain}, {way}: {without:?} {with:?}");
        }
    }
}

#[test]
fn a_log_takes_the_place_of_a_frame_of_its_own_transaction_alone() {
    let mut way = call(POLYGON, 5, 2).frame(POLYGON, PAYEE, 5).frame(POLYGON, PAYEE, 5).log(POLYGON, PAYER, PAYEE, 5);
    way.frames[0].transaction_hash = B256::repeat_byte(2).to_vec().into();
    let found: Vec<_> = way.found(137, true).iter().map(|(source, index, ..)| (*source, *index)).collect();
    assert_eq!(found, [(ByLog, 0), (Trace, 1)]);
}

/// Anyone can deploy a token elsewhere with the bytes of Celo's.
#[test]
fn the_contract_of_one_chains_coin_is_a_token_on_another() {
    for (contract, chain) in [(CELO, 1), (MOONBEAM, 1), (POLYGON, 42_220), (CELO, 137)] {
        let found = call(contract, 0, 2).log(contract, PAYER, PAYEE, 5).found(chain, true);
        assert_eq!(
            found.iter().map(|payment| payment.3.as_str()).collect::<Vec<_>>(),
            [hex(contract).trim_start_matches("0x")]
        );
    }
}
